"""The folders that are root's alone: made so, closed again where they were open, refused where they are not ours.

`runDir` names network namespaces and holds the socket, `stateDir` decides what happens while the helper is away.
Who could write there could lead the helper into any namespace. They may exist before we come (a container's host
path is made with 0755), so a folder of root's that holds nothing but our files is closed. One that others use too,
`/run` itself say, is not ours to close: it will do as long as only root can write to it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cni_plugin import trust

_OURS = ("attachments", "helper.sock", "sysctls.json", "tunnelled-namespaces", "draining", "service-tunnel")
"""Beginnings of the names of all that this project makes, after the dot of what is hidden or not finished."""
_PRIVATE = 0o700
_OTHERS_WRITE = 0o022


class NotPrivate(OSError):
    """A folder to which somebody else than root could write; the text says whose and the way out."""


def make_private(folder: Path, ours_alone: bool = False) -> None:
    """Makes the folder where it is missing, takes others' permissions from it; raises NotPrivate, OSError.

    `ours_alone`: whatever it holds is ours, so it is closed in any case.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
    # A link may have been put there, but then by root; what matters from here on is this one folder.
    link = folder.lstat()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        for owner in (link.st_uid, found.st_uid):
            if not trust.is_trusted(owner):
                raise NotPrivate(f"{folder} belongs to uid {owner}: chown it to root, or name another folder")
        mode = stat.S_IMODE(found.st_mode)
        if not mode & ~_PRIVATE:
            return
        shared = mode & stat.S_ISVTX or not all(_is_ours(name) for name in os.listdir(descriptor))
        if ours_alone or not shared:
            os.fchmod(descriptor, mode & _PRIVATE)
        elif mode & _OTHERS_WRITE:
            raise NotPrivate(
                f"others than root may write to {folder}, which is not this helper's alone: "
                "take that right away, or name a folder that nothing else uses"
            )
    finally:
        os.close(descriptor)


def _is_ours(name: str) -> bool:
    return name.removeprefix(".").startswith(_OURS)
