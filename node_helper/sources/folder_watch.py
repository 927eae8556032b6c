"""Notices changes in a folder of manifests, also when the folder itself, or what leads to it, is replaced.

inotify watches inodes, not paths. So besides the folder the nearest directory above it is watched, both as
the path is written and as its symlinks lead, and all watches are set anew whenever one of those changes.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags

_SUFFIXES = (".yaml", ".yml", ".json")
_NO_FIRST = (".", "#", "~")
"""Names of hidden files, of locks and of editors' own files begin so."""
_CONFIG_MAP_LINK = ".."
"""A mounted ConfigMap is changed by renaming the symlink `..data`, through which its files are symlinks."""

_ENTRIES = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
_SELF = flags.DELETE_SELF | flags.MOVE_SELF
_GONE = _SELF | flags.IGNORED | flags.UNMOUNT
_ABOVE = _ENTRIES | _SELF | flags.ONLYDIR
_FOLDER = _ABOVE | flags.MODIFY | flags.CLOSE_WRITE

_WRITER_PAUSE = 10.0
"""Seconds without a write after which a file that was never closed counts as written."""


def is_manifest(name: str) -> bool:
    """Whether a file of this name is read: YAML or JSON, no hidden file and no editor's backup."""
    return name.endswith(_SUFFIXES) and not name.startswith(_NO_FIRST)


class FolderWatch:
    """One folder's changes, for an event loop: wait for `fileno()` to be readable, then `drain()`."""

    def __init__(self, folder: Path) -> None:
        """Begin to watch; the folder need not exist. Raises OSError where the kernel gives no inotify."""
        self._folder = str(folder.absolute())
        self._inotify = INotify()
        self._recall = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._inotify.fileno(), select.EPOLLIN)
        self._epoll.register(self._recall, select.EPOLLIN)
        self._folder_watch: int | None = None
        self._above: dict[int, set[str]] = {}
        """By watch: the names in that directory that lead to the folder."""
        self._written: dict[str, float] = {}
        """Files that were written to and not closed since, with the time of the last write."""
        self._changed = False
        self.fault: str | None = None
        """Why changes may be missed, if they may."""
        self.arm()

    def close(self) -> None:
        self._epoll.close()
        self._inotify.close()
        os.close(self._recall)

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._epoll.fileno()

    def drain(self) -> bool:
        """Take what happened; true when a manifest, or the folder itself, may have changed since the last drain."""
        with suppress(BlockingIOError):  # Nothing was left by `collect`.
            os.eventfd_read(self._recall)
        self._take()
        changed, self._changed = self._changed, False
        return changed

    def collect(self) -> None:
        """Take what happened without answering for it: the next `drain` still does, and `fileno()` stays readable."""
        self._take()
        if self._changed:
            os.eventfd_write(self._recall, 1)

    def being_written(self, name: str) -> bool:
        """Whether somebody has written to the file and not closed it yet, as far as was collected."""
        return time.monotonic() - self._written.get(name, -_WRITER_PAUSE) < _WRITER_PAUSE

    def arm(self) -> None:
        """Set the watches as the paths lead now; costs a few system calls where nothing changed."""
        self.fault = None
        watches = self._set()
        # What appears between two of these system calls is found by the next round.
        while (again := self._set()) != watches:
            watches = again
        folder, above = watches
        if folder != self._folder_watch:
            self._written.clear()
            self._changed = True
        for stale in {self._folder_watch, *self._above} - {None, folder, *above}:
            with suppress(OSError):  # The kernel drops the watch of a deleted inode by itself.
                self._inotify.rm_watch(stale)
        self._folder_watch, self._above = folder, above

    def _set(self) -> tuple[int | None, dict[int, set[str]]]:
        above: dict[int, set[str]] = {}
        for start in dict.fromkeys((self._folder, os.path.realpath(self._folder))):
            for directory, name in _upwards(start):
                watch = self._add(directory, _ABOVE)
                if watch is not None:
                    above.setdefault(watch, set()).add(name)
                    break
        # Last, and with all flags: where it is also a directory above, its watch is one and the same.
        return self._add(self._folder, _FOLDER), above

    def _add(self, path: str, mask: int) -> int | None:
        try:
            return int(self._inotify.add_watch(path, mask))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.fault = f"{path} cannot be watched: {error.strerror}"
            return None

    def _take(self) -> None:
        paths_changed = False
        for watch, mask, _, name in self._inotify.read(timeout=0):
            if mask & flags.Q_OVERFLOW:
                self._written.clear()
                self._changed = paths_changed = True
            if name in self._above.get(watch, ()) or (watch in self._above and mask & _GONE):
                self._changed = paths_changed = True
            if watch == self._folder_watch:
                if mask & _GONE:
                    self._changed = paths_changed = True
                elif is_manifest(name) or name.startswith(_CONFIG_MAP_LINK):
                    self._entry(name, mask)
        if paths_changed:
            self.arm()

    def _entry(self, name: str, mask: int) -> None:
        if mask & flags.MODIFY:
            self._written[name] = time.monotonic()
        else:
            self._written.pop(name, None)
            self._changed = True


def _upwards(path: str) -> Iterator[tuple[str, str]]:
    """Each directory above a path with the name in it that leads there, from the nearest to the root."""
    while path != "/":
        directory, name = os.path.split(path)
        yield directory, name
        path = directory
