"""The plugin's log: one line of JSON per call, appended to a file, best effort.

A runtime shows a plugin's errors but not its successes; who asks later why a pod has no tunnel reads here.
The file keeps one predecessor and stays small, because nobody rotates it on an embedded node; who does
rotate it may, since it is opened anew for each line. Whatever goes wrong here is dropped, and nothing is
waited for: a full disk must not keep pods from starting. Only ordinary files are written: behind a symlink,
a device or a name in /proc the line could do something.
"""

from __future__ import annotations

import posix
from time import gmtime, monotonic, strftime

from cni_plugin import jsontext

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
SIZE_LIMIT = 4 << 20
"""Bytes; a bigger file becomes `<file>.1`."""
LINE_LIMIT = 16 << 10
FIELD_LIMIT = 500
"""Characters: in a line that is longer than the one, each field is cut to the other."""

BEGAN = monotonic()
"""When this process came here; the plugin is one process per call, so it is when the call began."""

_FLAGS = (
    posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC
    # A symlink is not followed, a fifo's reader not awaited, a terminal not taken for our own.
    | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY
)  # fmt: skip
_FILE_TYPE, _ORDINARY = 0o170000, 0o100000  # S_IFMT, S_IFREG
_NO_DISK = ("/proc/", "/sys/", "/dev/")
"""Not even opened: opening some of these does something already."""


def append(path: str, threshold: str, level: str, **fields: object) -> None:
    """One line with the time, the level, `fields`, and the milliseconds of this call.

    Nothing when `level` is below `threshold`, without a path, or when it cannot be written at once.
    """
    if not path or LEVELS[level] < LEVELS[threshold] or path.startswith(_NO_DISK):
        return
    milliseconds = round((monotonic() - BEGAN) * 1000, 1)
    whole = {"time": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()), "level": level, **fields, "ms": milliseconds}
    try:
        line = jsontext.dumps(whole)
        if len(line) > LINE_LIMIT:
            line = jsontext.dumps({name: _short(value) for name, value in whole.items()})
        _write(path, line.encode() + b"\n")
    except (OSError, ValueError):
        return


def _short(value: object) -> object:
    """The value, or the beginning of its text where that is long."""
    text = value if isinstance(value, str) else jsontext.dumps(value)
    return value if len(text) <= FIELD_LIMIT else f"{text[:FIELD_LIMIT]}… ({len(text)} characters)"


def _write(path: str, line: bytes) -> None:
    descriptor = posix.open(path, _FLAGS, 0o640)
    try:
        if posix.fstat(descriptor).st_mode & _FILE_TYPE != _ORDINARY:
            return
        # Folders on the way may be symlinks: what counts is where they led.
        if posix.readlink(f"/proc/thread-self/fd/{descriptor}").startswith(_NO_DISK):
            return
        posix.write(descriptor, line)  # one call: lines of several plugins do not mix
        found = posix.fstat(descriptor)
        if found.st_size > SIZE_LIMIT and posix.stat(path).st_ino == found.st_ino:
            posix.rename(path, f"{path}.1")  # unless another call has just done so
    finally:
        posix.close(descriptor)
