"""Keeps plugin and entry in place: again at once when the primary network rewrites its file, and now and then anyway.

What wakes it may be its own write; it looks, finds what it wants, and writes nothing. Where another program takes the
entry out each time it is put, the pauses between two writes grow, so that the two do not fill a node with work.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags

from install.node.chain import ConfigUnusable
from install.node.files import FileTrouble
from install.node.installer import Contended, Found, Target, install, put_entry
from install.node.store import PluginUnusable

TROUBLES = (ConfigUnusable, Contended, FileTrouble, PluginUnusable)
_CALM = 10.0
"""Seconds without a write after which the next one happens at once again."""
_PAUSES = (0.0, 0.0, 0.0, 0.2, 0.5, 1.0)
"""Seconds before the first, second … write that follow each other closely."""
_RETRY = 5.0
"""Seconds after a failure, or without a network yet; what the kernel tells of comes sooner."""
_EVENTS = (
    flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE | flags.ATTRIB
    | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
)  # fmt: skip


class Changes:
    """Waits for something to happen in folders, or to what leads to them."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._inotify = INotify()
        self._watches: set[int] = set()
        self.arm()

    def arm(self) -> None:
        """Watches each folder as its path leads now, and the nearest above it, in which it may be replaced."""
        found = set()
        for folder in self._folders:
            for start in dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))):
                for place in (Path(start), *Path(start).parents):
                    try:
                        found.add(self._inotify.add_watch(place, _EVENTS))
                    except OSError:  # not there, or not a folder
                        continue
                    if str(place) != start:
                        break
        for stale in self._watches - found:
            with suppress(OSError):  # The kernel has dropped it with the folder.
                self._inotify.rm_watch(stale)
        self._watches = found

    def wait(self, seconds: float) -> bool:
        """Whether something happened within that time."""
        happened = bool(select.select([self._inotify], [], [], max(seconds, 0.0))[0])
        if happened:
            self._inotify.read(timeout=0)
        self.arm()
        return happened

    def close(self) -> None:
        self._inotify.close()


def watch(target: Target, resync: float, tell: Callable[[str], None]) -> None:
    """Goes on until its process is told to end; `resync`: seconds between full looks, plugin and all."""
    changes = Changes(target.conf_dir, target.bin_dir)
    told = ""
    writes: list[float] = []
    try:
        while True:
            now = time.monotonic()
            writes = [moment for moment in writes if now - moment < _CALM]
            pause = _PAUSES[min(len(writes), len(_PAUSES) - 1)]
            if writes and now - writes[-1] < pause:
                changes.wait(pause - (now - writes[-1]))
                continue
            trouble, found = look(target)
            if found.changed:
                writes.append(time.monotonic())
            if not trouble and not found.network:
                trouble = f"no network configuration in {target.conf_dir} yet: waiting for it"
            if trouble != told:
                tell(trouble or f"{target.conf_dir / found.network} is as it should be")
                told = trouble
            changes.wait(_RETRY if trouble else resync)
    finally:
        changes.close()


def look(target: Target) -> tuple[str, Found]:
    """One look that fails in words."""
    try:
        return "", install(target)
    except TROUBLES as error:
        return str(error), Found("", 0)


def wait_for_network(target: Target, seconds: float, tell: Callable[[str], None]) -> Found:
    """Puts the entry as soon as there is a network to put it into, and gives up after that time; raises TROUBLES.

    A file that is no JSON may be one that is just being written, so it is looked at again until then.
    """
    deadline = time.monotonic() + seconds
    changes = Changes(target.conf_dir)
    told = ""
    try:
        while True:
            trouble = None
            try:
                if (found := put_entry(target)).network:
                    return found
            except ConfigUnusable as error:
                trouble = error
            if time.monotonic() >= deadline:
                if trouble:
                    raise trouble
                return found
            text = str(trouble or f"no network configuration in {target.conf_dir} yet")
            if text != told:
                tell(f"{text}: waiting {seconds:g} s for it")
                told = text
            changes.wait(min(_RETRY, deadline - time.monotonic()))
    finally:
        changes.close()
