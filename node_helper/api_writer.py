"""What the helper writes to the Kubernetes API: bucket tables into Services, Events about problems; in a thread.

The cycle never waits for the API server. What it wants written is handed over and comes back, if it was taken, as a
changed object by the watch; what was refused is wanted again by a later cycle, if it still is.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Any

import structlog

from node_helper.api import Api, ApiError
from node_helper.bucket_store import BucketStore
from node_helper.model import ObjectKey, Problem, Service
from node_helper.services import TUNNEL_BUCKETS
from node_helper.sources.kubernetes import KubernetesSource

_JITTER = 0.1
"""Seconds at most before a write: of several ingress nodes that want the same table mostly one writes it."""
_CONFLICT = 409
_MESSAGE_LIMIT = 1024
"""Characters of an Event's message that the API server takes."""
_log = structlog.get_logger()


class ApiWriter:
    """A queue of requests, at most one for each thing, done one after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Hashable | None] = queue.SimpleQueue()
        self._waiting: dict[Hashable, Callable[[], bool]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._trouble = ""
        self.written = 0
        """Requests that the API server took."""
        self._thread = threading.Thread(target=self._run, name="api-writer", daemon=True)
        self._thread.start()

    def submit(self, what: Hashable, request: Callable[[], bool]) -> None:
        """Replaces a request for the same thing that still waits.

        `request` says whether there was anything left to write, and raises ApiError.
        """
        with self._lock:
            known = what in self._waiting
            self._waiting[what] = request
        if not known:
            self._queue.put(what)

    def close(self) -> None:
        """Drops what waits; returns when the request under way is over."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (what := self._queue.get()) is not None and not self._stop.is_set():
            self._stop.wait(random.uniform(0, _JITTER))  # noqa: S311 - spreads requests
            with self._lock:
                request = self._waiting.pop(what)
            try:
                self.written += request()
                self._trouble = ""
            except ApiError as error:
                # Conflicts are another helper's success.
                if error.status != _CONFLICT and str(error) != self._trouble:
                    self._trouble = str(error)
                    _log.warning("the API server did not take a change; it is tried again", error=self._trouble)


class AnnotationBucketStore(BucketStore):
    """Tables in the Services themselves, in the annotation `cmd.nu/tunnel-buckets`."""

    def __init__(self, api: Api, source: KubernetesSource, writer: ApiWriter) -> None:
        self._api = api
        self._source = source
        self._writer = writer

    def read(self, key: ObjectKey) -> str | None:
        """As the last watch event has it."""
        service = self._source.service(key)
        return None if service is None else service.annotations.get(TUNNEL_BUCKETS)

    def write(self, key: ObjectKey, text: str, expected: str | None) -> bool | None:
        """Hands the table over; None: what becomes of it, a change of the Service will tell."""
        version = self._source.version_of(key)
        if version is None or self.read(key) != expected:
            return False
        self._writer.submit(("table", key), lambda: self._store(key, version, text))
        return None

    def _store(self, key: ObjectKey, version: str, text: str) -> bool:
        """The jitter is over: perhaps another helper was quicker."""
        if self._source.version_of(key) != version:
            return False
        self._api.annotate_service(key, version, {TUNNEL_BUCKETS: text})
        return True


class EventTeller:
    """One Event for each problem of a Service, however many helpers see it: its name says what it is about."""

    def __init__(self, api: Api, writer: ApiWriter, node: str) -> None:
        self._api = api
        self._writer = writer
        self._node = node

    def tell(self, problem: Problem, service: Service) -> None:
        body = event(problem, service, self._node, datetime.now(UTC))

        def create() -> bool:
            self._api.create_event(service.key.namespace, body)
            return True

        self._writer.submit(("event", body["metadata"]["name"]), create)


def event(problem: Problem, service: Service, node: str, now: datetime) -> dict[str, Any]:
    """The Event that tells the Service's owner."""
    digest = hashlib.sha256(f"{service.uid}\0{problem.reason}\0{problem.message}".encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {"name": f"{service.key.name}.{digest}", "namespace": service.key.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": service.key.namespace,
            "name": service.key.name,
            "uid": service.uid,
        },
        "type": "Warning",
        "reason": problem.reason,
        "message": problem.message[:_MESSAGE_LIMIT],
        "source": {"component": "service-tunnel", "host": node},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
