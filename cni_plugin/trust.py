"""Whom to believe: root, and the user as whom this process runs. Nobody else's word decides what happens to pods."""

from __future__ import annotations

import posix

OVERFLOW = 65534
"""The uid that the kernel shows for all who have none in this user namespace (kernel.overflowuid's default)."""

_FILE_TYPE, _ORDINARY = 0o170000, 0o100000  # S_IFMT, S_IFREG
_OTHERS_WRITE = 0o022


def is_trusted(uid: int) -> bool:
    """Whether what this user says or owns counts."""
    return uid == 0 or (uid == posix.geteuid() and uid != OVERFLOW)


def read_file(path: str, limit: int) -> bytes:
    """An ordinary file that only root can have written, and of that at most `limit` bytes; raises OSError.

    PermissionError, in words, where somebody else could. A fifo is not waited for, a symlink not followed.
    """
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    try:
        found = posix.fstat(descriptor)
        if found.st_mode & _FILE_TYPE != _ORDINARY:
            raise PermissionError(1, "no ordinary file, so it is not read", path)
        if not is_trusted(found.st_uid) or found.st_mode & _OTHERS_WRITE:
            raise PermissionError(
                1, f"others than root can write it (owner uid {found.st_uid}), so it is not read", path
            )
        parts = []
        while limit > 0:
            part = posix.read(descriptor, limit)
            if not part:
                break
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        posix.close(descriptor)
