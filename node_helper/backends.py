"""Where the objects come from and the bucket tables go to: a folder of manifests, or a Kubernetes API server.

A backend is a source of snapshots for the event loop together with the store that fits it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from node_helper.bucket_store import BucketStore, FolderBucketStore
from node_helper.kernel.router import Router
from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.settings import INGRESS, Settings
from node_helper.sources.last_objects import LastObjects
from node_helper.sources.manifests import ManifestFolder

FROM_STATE_AFTER = 10.0
"""Seconds that the API server has after the start, until the state folder is looked at."""


class BackendError(Exception):
    """The objects cannot be had from there at all; the text says why."""


class Backend(ABC):
    """For an event loop: wait for `fileno()`, `drain()`, and where that is true `read()`."""

    name: str
    """For logs."""
    store: BucketStore
    tables_folder: Path | None = None
    """The folder whose changes are changes of tables."""

    @abstractmethod
    def fileno(self) -> int: ...

    @abstractmethod
    def drain(self) -> bool: ...

    @abstractmethod
    def read(self) -> Snapshot | None:
        """Everything known at this moment; None before everything has been read once."""

    def trouble(self) -> str:
        """Why `read` has nothing yet, as far as that is known."""
        return ""

    @abstractmethod
    def tell(self, problems: Iterable[Problem], snapshot: Snapshot) -> None:
        """Brings new problems to the owners of the objects, where there is a way to."""

    @abstractmethod
    def close(self) -> None: ...


def backend(settings: Settings) -> Backend:
    """The backend that the settings name. Raises BackendError where it cannot even be looked for."""
    return _Kubernetes(settings) if settings.manifests is None else _Manifests(settings.manifests)


class _Manifests(Backend):
    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = ManifestFolder(folder)
        self.store = FolderBucketStore(folder)
        self.tables_folder = self.store.directory

    def fileno(self) -> int:
        return self._folder.fileno()

    def drain(self) -> bool:
        return self._folder.drain()

    def read(self) -> Snapshot:
        return self._folder.read()

    def tell(self, problems: Iterable[Problem], snapshot: Snapshot) -> None:
        """Logs, metrics and `status` have them; files have no owner to tell."""

    def close(self) -> None:
        self._folder.close()


class _Kubernetes(Backend):
    def __init__(self, settings: Settings) -> None:
        # Half a second and forty megabytes, which a folder of manifests does without.
        from node_helper.api import Api, ApiError
        from node_helper.api_writer import AnnotationBucketStore, EventTeller
        from node_helper.sources.kubernetes import KubernetesSource

        try:
            api = Api.connect(settings.kubeconfig)
        except ApiError as error:
            raise BackendError(str(error)) from error
        self.name = api.server
        self._source = KubernetesSource(api, settings.roles, settings.node)
        self._tables = AnnotationBucketStore(api, self._source)
        self.store = self._tables
        self._last = LastObjects(settings.state_dir)
        self._patience = threading.Timer(FROM_STATE_AFTER, self._lose_patience)
        self._patience.daemon = True
        self._patience.start()
        self._kept: Snapshot | None = None
        """What is served while the API server has not been reached at all, and the kernel is empty, too."""
        # Of all helpers that see a problem those of ingress nodes may write Events.
        self._events = EventTeller(api, settings.node) if INGRESS in settings.roles else None

    def fileno(self) -> int:
        return self._source.fileno()

    def drain(self) -> bool:
        return self._source.drain()

    def read(self) -> Snapshot | None:
        snapshot = self._source.read()
        if snapshot is None:
            return self._kept
        self._kept = None
        self._last.offer(snapshot)
        return snapshot

    def _lose_patience(self) -> None:
        """The API server has had its time: a node that forwards nothing yet begins with what was known last.

        One that forwards goes on with what its kernel has, which is no older. Runs in a thread of its own.
        """
        if self._source.read() is not None or Router().stands() or (found := self._last.load()) is None:
            return
        snapshot, age = found
        why = f"it was not reached since the start; what was known {age:.0f} s before is in use: {self.trouble()}"
        problem = Problem("Source", ObjectKey("", "kubernetes"), "ApiUnreachable", f"{self.name}: {why}")
        self._kept = replace(snapshot, problems=(*snapshot.problems, problem))
        self._source.wake()

    def trouble(self) -> str:
        return self._source.trouble()

    def tell(self, problems: Iterable[Problem], snapshot: Snapshot) -> None:
        for problem in problems:
            service = snapshot.services.get(problem.key) if problem.kind == "Service" else None
            if service is not None and self._events is not None:
                self._events.tell(problem, service)

    def close(self) -> None:
        self._patience.cancel()
        self._source.close()
        self._last.close()
        self._tables.close()
        if self._events is not None:
            self._events.close()
