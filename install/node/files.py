"""Changes of files in a folder that others read and write at any time: each is there whole, or as it was before.

A new file is written aside under a name that no runtime takes for configuration, synced, and put in place by a rename
within the folder, which is also what containerd notices (it passes over files that are created). What was in its place
is looked at *after* that: the two are exchanged, and where the other file is not the one that was read, somebody has
written in between, so they are exchanged back. That loses nobody's change, which looking before a rename would.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from _ctypes import get_errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cni_plugin.libc import function
from install.node.chain import DROP_IN, Change, Remove, Write, is_configuration

ASIDE = ".service-tunnel-tmp"
"""Ends the names of files that are being written."""
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Changed(Exception):
    """Somebody has changed a file since it was read; nothing was done to it."""


class FileTrouble(OSError):
    """A file or folder could not be read or changed; the text names it, the reason and the way out."""


def telling(error: OSError, doing: str, path: Path) -> FileTrouble:
    """An error with what was being done, and what may help."""
    ways = {
        errno.EROFS: "mount it writable",
        errno.EACCES: "run this as root",
        errno.EPERM: "run this as root; is it immutable (lsattr)?",
        errno.ENOSPC: "make room; nothing was changed",
        errno.EDQUOT: "make room; nothing was changed",
        errno.ENOENT: "name the right folder",
        errno.ENOTDIR: "name a folder",
        errno.ELOOP: "mend the symlinks",
    }
    way = f": {ways[error.errno]}" if error.errno in ways else ""
    return FileTrouble(error.errno, f"cannot {doing} {path}: {error.strerror}{way}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other installers out of the folder meanwhile; raises FileTrouble."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise telling(error, "open", folder) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path) -> dict[str, bytes]:
    """The configuration files of a folder and our drop-ins below it, by name; raises FileTrouble."""
    found: dict[str, bytes] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise telling(error, "list", folder) from None
    for listed in names:
        name = f"{listed}/{DROP_IN}" if (folder / listed).is_dir() else listed
        path = folder / name
        if not is_configuration(name):
            continue
        try:
            found[name] = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise FileTrouble(
                    errno.ENOENT, f"{path} is a symlink to {os.readlink(path)}, which is not there: mend or remove it"
                ) from None
        except OSError as error:
            raise telling(error, "read", path) from None
    return found


def sweep(folder: Path) -> None:
    """Removes what an installer that was killed has left behind; nobody else may be at work (`locked`)."""
    for name in os.listdir(folder):
        if name.endswith(ASIDE):
            with suppress(OSError):  # A leftover does no harm, and the next sweep comes.
                (folder / name).unlink()


def make(folder: Path, change: Change) -> None:
    """One change; raises Changed, FileTrouble."""
    path = folder / change.name
    # Behind a symlink it is the file that is changed, beside which the new one is written.
    real = Path(os.path.realpath(path))
    try:
        if isinstance(change, Write):
            if real.parent != folder and change.before is None:
                real.parent.mkdir(exist_ok=True)
            _write(real, change, folder / change.like)
        else:
            _remove(real if not path.is_symlink() else path, change)
        if real.parent.is_dir():
            _sync(real.parent)
        if real.parent != folder:
            _nudge(folder)
    except FileNotFoundError:  # the file, or what is to have its mode, or the folder: a new look will tell
        raise Changed(path) from None
    except OSError as error:
        raise telling(error, "change", path) from None


def _write(path: Path, change: Write, like: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    model = like.stat()
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(descriptor, model.st_uid, model.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(model.st_mode))
            file.write(change.content)
            file.flush()
            os.fsync(descriptor)
        if change.before is None:
            _put_new(aside, path)
        else:
            _put_in_place(aside, path, change.content, change.before)
    finally:
        with suppress(FileNotFoundError):  # it has the file's name by now
            aside.unlink()


def _put_new(aside: Path, path: Path) -> None:
    code = _rename(aside, path, _RENAME_NOREPLACE)
    if code in _NOT_SUPPORTED:
        if os.path.lexists(path):
            raise Changed(path)
        aside.rename(path)
    elif code == errno.EEXIST:
        raise Changed(path)
    elif code:
        raise OSError(code, os.strerror(code))


def _put_in_place(aside: Path, path: Path, content: bytes, before: bytes) -> None:
    code = _rename(aside, path, _RENAME_EXCHANGE)
    if code == errno.ENOENT:  # it has been removed
        raise Changed(path)
    if code in _NOT_SUPPORTED:  # by this file system; what remains is to look just before
        if path.read_bytes() != before:
            raise Changed(path)
        aside.rename(path)
        return
    if code:
        raise OSError(code, os.strerror(code))
    taken = aside.read_bytes()
    if taken == before:
        return
    # Back again, until it is an older file that is aside: somebody may write once more meanwhile.
    older = content
    while True:
        put_back = taken
        code = _rename(aside, path, _RENAME_EXCHANGE)
        if code == errno.ENOENT:  # and removed it: so be it
            break
        if code:
            raise OSError(code, os.strerror(code))
        taken = aside.read_bytes()
        if taken == older:
            break
        older = put_back
    raise Changed(path)


def _remove(path: Path, change: Remove) -> None:
    if path.read_bytes() != change.before:
        raise Changed(path)
    path.unlink()
    if "/" in change.name:
        with suppress(OSError):  # others' files are in it
            path.parent.rmdir()


def _rename(source: Path, target: Path, flags: int) -> int:
    """0, or the errno."""
    done = function("renameat2")(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags)
    return 0 if done == 0 else int(get_errno())


def _nudge(folder: Path) -> None:
    """Lets those who watch the folder look again, although what changed is elsewhere."""
    first, second = (folder / f".{number}.{os.getpid()}{ASIDE}" for number in (1, 2))
    first.touch()
    first.rename(second)
    second.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
