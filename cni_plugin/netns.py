"""Network namespaces of pods: telling them from whatever else a path may name, and entering them.

The one place that enters. Only the calling thread moves. Sockets and /proc/sys/net belong to the namespace
in which the thread is; /proc/net does not (it shows the process's first thread), so nothing here reads it.
"""

from __future__ import annotations

import posix

OWN = "/proc/thread-self/ns/net"
"""The namespace in which this thread is: the host's, unless `entered` is at work."""

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h: which CLONE_… flag makes a namespace of this kind

# Not blocking: at a path from outside there may be a fifo, and nobody at its other end.
_OPEN = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY


class NetnsError(OSError):
    """A network namespace could not be opened or entered."""


class NetnsReplaced(NetnsError):
    """At the path there is another network namespace than the one that is meant: that one is gone."""

    def __init__(self, path: str) -> None:
        super().__init__(116, f"{path} is another network namespace by now")  # ESTALE


class NoPodNetns(ValueError):
    """A path that does not lead to a pod's network namespace; the text says what it leads to instead."""


def _setns(descriptor: int) -> None:
    """Raises OSError with the kernel's errno."""
    if hasattr(posix, "setns"):
        posix.setns(descriptor, _CLONE_NEWNET)
        return
    from _ctypes import get_errno

    from cni_plugin.libc import function

    if function("setns")(descriptor, _CLONE_NEWNET) != 0:
        code = get_errno()
        raise OSError(code, posix.strerror(code))


class entered:  # noqa: N801 - used as a with-statement's verb
    """Context manager: this thread is in the namespace at `path`, not its own, and back in its own afterwards.

    `inode`: that of the namespace which is meant, 0: whichever is there. Between a look at a path and its opening
    seconds may pass, and a path below /proc is another pod's as soon as its process is another's.
    """

    def __init__(self, path: str, inode: int = 0) -> None:
        self._path = path
        self._inode = inode

    def __enter__(self) -> None:
        self._home = posix.open(OWN, _OPEN)
        try:
            target = posix.open(self._path, _OPEN)
            try:
                found = posix.fstat(target).st_ino
                if self._inode and found != self._inode:
                    raise NetnsReplaced(self._path)
                if found == posix.fstat(self._home).st_ino:
                    # Whatever a record or a variable says: what is meant for a pod is not done to the host.
                    raise OSError(1, "it is this process's own, the host's")
                _setns(target)
            finally:
                posix.close(target)
        except NetnsReplaced:
            posix.close(self._home)
            raise
        except OSError as error:
            posix.close(self._home)
            raise NetnsError(
                error.errno, f"cannot enter the network namespace {self._path}: {error.strerror}"
            ) from None

    def __exit__(self, *_: object) -> None:
        try:
            _setns(self._home)
        except OSError as error:
            raise NetnsError(
                error.errno, f"cannot leave the network namespace {self._path}: {error.strerror}"
            ) from None
        finally:
            posix.close(self._home)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a namespace, or None when the path is gone or is not a namespace any more."""
    try:
        status = posix.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def of_pod(path: str) -> tuple[int, int]:
    """Like `identity`, for a path that must lead to a pod's network namespace; raises NoPodNetns.

    Never the namespace in which this thread is: what is meant for a pod would change the host.
    """
    try:
        found = posix.stat(path)
        own = posix.stat(OWN)
        if found.st_dev != own.st_dev:
            raise NoPodNetns(f"{path!r} is no network namespace")
        # All namespaces are files of one filesystem, so what is opened from here on is one of some kind.
        descriptor = posix.open(path, _OPEN)
        try:
            from fcntl import ioctl

            found = posix.fstat(descriptor)  # of what was opened: the path may lead elsewhere by now
            kind = ioctl(descriptor, _NS_GET_NSTYPE)
        finally:
            posix.close(descriptor)
    except OSError as error:
        # Where it is not the path that is missing but /proc, a search of the path would be in vain.
        at = f"{error.filename}: " if error.filename == OWN else ""
        raise NoPodNetns(f"{path!r} is not there, or cannot be looked at: {at}{error.strerror}") from None
    if kind != _CLONE_NEWNET:
        raise NoPodNetns(f"{path!r} is a namespace of another kind, no network namespace")
    if found.st_ino == own.st_ino:
        raise NoPodNetns(f"{path!r} is the host's own network namespace: pods with hostNetwork cannot have tunnels")
    return found.st_dev, found.st_ino
