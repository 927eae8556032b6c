"""A folder of ordinary Kubernetes YAML as the source of objects: no API server needed.

People write here, with editors, `kubectl … -o yaml > file` or a mounted ConfigMap, so whatever is found is
expected to be broken at times. What cannot be read costs only itself: its last good version stays in use
and a `Problem` names file and line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node_helper.file_stamp import FileStamp, is_settled, stamp_of
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.sources.documents import DocumentError, Lines, documents
from node_helper.sources.folder_watch import FolderWatch, is_manifest
from node_helper.sources.kubernetes_objects import (
    FieldPath,
    Identity,
    KubernetesObject,
    ObjectError,
    flatten,
    identity_of,
    read_object,
    snapshot_of,
)

_NO_STAMP: FileStamp = (-1, -1, -1)
"""Of a version that is read again in any case."""


@dataclass(frozen=True, slots=True)
class _Version:
    """What a file said when it was read."""

    stamp: FileStamp
    objects: Mapping[Identity, KubernetesObject]
    problems: tuple[Problem, ...] = ()


class ManifestFolder:
    """Every `*.yaml`, `*.yml` and `*.json` of one folder, in the order of their names; no subfolders.

    For an event loop: wait for `fileno()`, `drain()`, and where that is true `read()` (after a moment, since
    changes come in groups). Where nothing changed, `read` opens the files and parses none.
    """

    def __init__(self, path: str | Path) -> None:
        """Begin to watch; the folder may be missing. Raises OSError where the kernel gives no inotify."""
        self.path = Path(path)
        self._watch = FolderWatch(self.path)
        self._versions: dict[str, _Version] = {}
        self._snapshot: tuple[list[_Version], tuple[Problem, ...], Snapshot] | None = None

    def close(self) -> None:
        self._watch.close()

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._watch.fileno()

    def drain(self) -> bool:
        """Take the notices that wait; true when `read` may give something new."""
        return self._watch.drain()

    def read(self) -> Snapshot:
        """What the folder says now; the same object as before where nothing changed. Raises nothing.

        A folder that is gone is empty, one that cannot be read keeps what it said.
        """
        self._watch.arm()
        problems: tuple[Problem, ...] = ()
        try:
            names = sorted(name for name in os.listdir(self.path) if is_manifest(name))
        except (FileNotFoundError, NotADirectoryError):
            names = []
            problems = (self._folder_problem("is no folder: make it and put manifests there"),)
        except OSError as error:
            names = list(self._versions)
            problems = (self._folder_problem(f"cannot be read ({error.strerror}); what it said stays in use"),)
        if self._watch.fault is not None:
            problems += (self._folder_problem(f"is followed only at intervals: {self._watch.fault}"),)
        versions = {}
        for name in names:
            version = self._version(name, self._versions.get(name))
            if version is not None:
                versions[name] = version
        self._versions = versions
        return self._assembled(list(versions.values()), problems)

    def _folder_problem(self, fault: str) -> Problem:
        return Problem("File", ObjectKey("", self.path.name), "UnreadableFolder", f"{self.path} {fault}")

    def _problem(self, name: str, reason: str, line: int | None, fault: str) -> Problem:
        place = f"{self.path / name}" + ("" if line is None else f":{line}")
        return Problem("File", ObjectKey("", name), reason, f"{place}: {fault}")

    def _unreadable(self, name: str, line: int | None, fault: str, kept: bool) -> Problem:
        after = "; its last good version stays in use" if kept else "; it is left out until it is mended"
        return self._problem(name, "UnreadableFile", line, fault + after)

    def _version(self, name: str, before: _Version | None) -> _Version | None:
        """The file's present version; None for what is gone, is no file, or is being written for the first time."""
        path = self.path / name
        try:
            # Not blocking, in case somebody put a FIFO there.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return None
                stamp = stamp_of(status)
                if before is not None and before.stamp == stamp:
                    return before
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read()
            finally:
                os.close(descriptor)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None
            return self._kept(name, before, None, f"it cannot be read ({error.strerror})")
        self._watch.collect()
        if self._watch.being_written(name):
            return before
        if not is_settled(stamp):
            stamp = _NO_STAMP
        return self._parsed(name, content, stamp, before)

    def _kept(
        self, name: str, before: _Version | None, line: int | None, fault: str, stamp: FileStamp = _NO_STAMP
    ) -> _Version:
        objects = before.objects if before is not None else {}
        return _Version(stamp, objects, (self._unreadable(name, line, fault, bool(objects)),))

    def _parsed(self, name: str, content: bytes, stamp: FileStamp, before: _Version | None) -> _Version:
        try:
            found = documents(content, is_json=name.endswith(".json"))
        except DocumentError as error:
            return self._kept(name, before, error.line, str(error), stamp)
        lines = Lines(content)
        objects: dict[Identity, KubernetesObject] = {}
        problems: list[Problem] = []
        faults: list[tuple[int, FieldPath, ObjectError]] = []
        for number, document in enumerate(found):
            try:
                items = list(flatten(document))
            except ObjectError as error:
                faults.append((number, error.path, error))
                continue
            for way, item in items:
                try:
                    read = read_object(item)
                except ObjectError as error:
                    faults.append((number, (*way, *error.path), error))
                    continue
                if read is not None and objects.setdefault(identity_of(read), read) is not read:
                    problems.append(self._duplicate(name, identity_of(read), name, lines.of(number, way)))
        kept = _last_good(objects, {fault.identity for _, _, fault in faults}, before)
        for number, way, fault in faults:
            last_good = fault.identity in kept if fault.identity is not None else bool(kept)
            problems.append(self._unreadable(name, lines.of(number, way), str(fault), last_good))
        return _Version(stamp, {**objects, **kept}, tuple(problems))

    def _duplicate(self, name: str, identity: Identity, first: str, line: int | None = None) -> Problem:
        kind, key = identity
        where = "earlier in this file" if first == name else f"in {first}"
        return self._problem(
            name, "DuplicateObject", line, f"{kind} {key} is {where} already, which counts; remove one"
        )

    def _assembled(self, versions: list[_Version], problems: tuple[Problem, ...]) -> Snapshot:
        if self._snapshot is not None:
            before, problems_before, snapshot = self._snapshot
            if problems == problems_before and versions == before:
                return snapshot
        holders: dict[Identity, str] = {}
        objects: list[KubernetesObject] = []
        told = list(problems)
        for name, version in zip(self._versions, versions, strict=True):
            told.extend(version.problems)
            for identity, found in version.objects.items():
                holder = holders.setdefault(identity, name)
                if holder == name:
                    objects.append(found)
                else:
                    told.append(self._duplicate(name, identity, holder))
        snapshot = snapshot_of(objects, told)
        self._snapshot = (versions, problems, snapshot)
        return snapshot


def _last_good(
    objects: Mapping[Identity, KubernetesObject], broken: set[Identity | None], before: _Version | None
) -> dict[Identity, KubernetesObject]:
    """What the file said before of the objects that are broken now.

    One that does not even have a name may stand for any object that is missing, so all of those stay.
    """
    if before is None:
        return {}
    return {
        identity: found
        for identity, found in before.objects.items()
        if identity not in objects and (identity in broken or None in broken)
    }
