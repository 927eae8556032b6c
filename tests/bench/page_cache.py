"""Files that are to come from disk: as at the first pod after a reboot, or after a long time without a new one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE = 5.0
"""Seconds for pages that something still holds, as a process that is only just ending."""


class StillCached(Exception):
    """The kernel does not let go of a file's pages; what would be measured is not a cold start."""


def files_below(folder: Path) -> tuple[str, ...]:
    """Every file of a program's folder, written to disk: a page that is not cannot be dropped."""
    found = tuple(str(path) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    for path in found:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return found


def drop(files: Iterable[str]) -> None:
    """Takes files out of the page cache, and looks whether they are; raises StillCached."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                if not _cached(descriptor):
                    break
                if time.monotonic() > deadline:
                    raise StillCached(f"{path} stays in the page cache (is it on a disk, and not running?)")
        finally:
            os.close(descriptor)


def _cached(descriptor: int) -> bool:
    """Whether the first page could be read without the disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
