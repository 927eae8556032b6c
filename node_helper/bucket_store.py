"""Keeps bucket tables as files: beside the manifests, which users own and which are never rewritten.

A table has memory, so it must outlive the helper and be the same for every helper that reads the folder.
Writing is compare-and-swap, as with an API server's resourceVersion: of several helpers that saw the same
table one writes the next, the others read it.
"""

from __future__ import annotations

import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node_helper.file_stamp import FileStamp, is_settled, stamp_of
from node_helper.model import ObjectKey

_PLACE = Path(".service-tunnel") / "buckets"
_LOCK = ".lock"
_LOCK_WAIT = 2.0
"""Seconds; a lock is held for a fraction of a millisecond, so longer means that its holder hangs."""
_LOCK_PAUSE = 0.005
_LONGEST = 262144
"""Bytes: Kubernetes allows as much for all annotations of an object."""


class BucketStoreError(Exception):
    """A table could not be read or written; the caller goes on with a copy of its own."""


class BucketStore(ABC):
    """Where tables are kept; writing is compare-and-swap."""

    @abstractmethod
    def read(self, key: ObjectKey) -> str | None:
        """The stored text, which may be rubbish; None where there is none. Raises BucketStoreError."""

    @abstractmethod
    def write(self, key: ObjectKey, text: str, expected: str | None) -> bool | None:
        """Store the text where what is stored is still what was expected (None: nothing).

        True: it is stored. False: something else was there. None: it is on its way, and the source will tell of
        a changed Service; it replaces what was on its way before. Raises BucketStoreError.
        """

    def under_way(self, key: ObjectKey) -> bool:
        """Whether a table is on its way, which may take more than one try."""
        del key
        return False

    def trouble(self, key: ObjectKey) -> str:
        """Why the table on its way was not taken so far; empty while nothing went wrong."""
        del key
        return ""

    def withdraw(self, key: ObjectKey) -> None:
        """What is on its way is not wanted any more."""
        del key

    def take_stored(self) -> int:
        """How many tables of those on their way were stored since the last call."""
        return 0


class FolderBucketStore(BucketStore):
    """Tables of one folder: the text of `buckets.encode` in `<folder>/.service-tunnel/buckets/<namespace>.<name>`.

    Also the place of a helper's own copies of what it applied last, with its state directory as the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.directory = Path(folder) / _PLACE
        self._folder = str(self.directory)
        self._read: dict[ObjectKey, tuple[FileStamp, str]] = {}
        """What files said, and their stamps then: the same file says the same."""

    def read(self, key: ObjectKey) -> str | None:
        """The stored text, which may be rubbish; None where there is none. Raises BucketStoreError."""
        path = self._path(key)
        known = self._read.get(key)
        try:
            if known is not None and known[0] == stamp_of(os.stat(path)):
                return known[1]
            with open(path, "rb") as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                # More than the limit is rubbish in any case, and enough of it to be seen as such.
                text = file.read(_LONGEST + 1).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            self._read.pop(key, None)
            return None
        except OSError as error:
            raise BucketStoreError(f"{path} cannot be read: {error.strerror}") from error
        if is_settled(stamp):
            self._read[key] = stamp, text
        return text

    def write(self, key: ObjectKey, text: str, expected: str | None) -> bool:
        """Whether it was stored. Raises BucketStoreError, for instance where the folder is a read-only mount."""
        path = self._path(key)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if self.read(key) != expected:
                    return False
                # Not synced to the disk: readers see through rubbish, and a table can be made anew.
                fresh = f"{self._folder}/.{os.path.basename(path)}.new"
                with open(fresh, "wb") as file:
                    file.write(text.encode())
                os.replace(fresh, path)
        except OSError as error:
            raise BucketStoreError(f"{path} cannot be written: {error.strerror}") from error
        return True

    def remove(self, key: ObjectKey) -> None:
        """Forget a Service's table; nothing where there is none. Raises BucketStoreError."""
        path = self._path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise BucketStoreError(f"{path} cannot be removed: {error.strerror}") from error

    def keys(self) -> frozenset[ObjectKey]:
        """The Services that have a table here. Raises BucketStoreError."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except OSError as error:
            raise BucketStoreError(f"{self._folder} cannot be read: {error.strerror}") from error
        # A namespace has no dot in it; files that begin with one are not finished.
        parts = [name.partition(".") for name in names]
        return frozenset(ObjectKey(namespace, name) for namespace, _, name in parts if namespace and name)

    def _path(self, key: ObjectKey) -> str:
        name = f"{key.namespace}.{key.name}"
        if "/" in name or "\0" in name or name.startswith(".") or not key.name:
            raise BucketStoreError(f"no file can be named after {key}")
        return f"{self._folder}/{name}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_WAIT
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise BucketStoreError(f"{self.directory / _LOCK} is held by another process") from None
                    time.sleep(_LOCK_PAUSE)
            yield
        finally:
            os.close(descriptor)
