"""Whether a file still says what it said when it was read, without reading it again."""

from __future__ import annotations

import os
import time

FileStamp = tuple[int, int, int]
"""Modification time in nanoseconds, size in bytes, inode."""

_SETTLED = 100_000_000
"""Nanoseconds: a file changed more recently may change again without another time or size (ticks are coarse)."""


def stamp_of(status: os.stat_result) -> FileStamp:
    """To be taken before the file is read: what is written meanwhile then gives another one."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def is_settled(stamp: FileStamp) -> bool:
    """Whether the same stamp, from now on, means the same content."""
    return time.time_ns() - stamp[0] >= _SETTLED
