"""What the helper writes to the Kubernetes API: bucket tables into Services, Events about problems; in threads.

The cycle never waits for the API server. What it wants written is handed over, tried until the server takes it or
nobody wants it any more, and comes back as a changed object by the watch.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from node_helper.api import Api, ApiError
from node_helper.backoff import Backoff
from node_helper.bucket_store import BucketStore
from node_helper.model import ObjectKey, Problem, Service
from node_helper.services import TUNNEL_BUCKETS
from node_helper.sources.kubernetes import KubernetesSource
from node_helper.tables import WRITE_INTERVAL

JITTER = 0.1
"""Seconds at most before a write: of several ingress nodes that want the same table mostly one writes it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before another try of what was refused; doubled each time, with jitter."""
TABLE_THREADS = 4
"""Tables that are written at once: a thousand fresh Services must not wait for each other's answers."""
_EVENT_TRIES = 12
"""Then, after some ten minutes, an Event would tell of the past; log, metrics and `status` have it anyway."""
_NOT_FOUND, _CONFLICT = 404, 409
_MESSAGE_LIMIT = 1024
"""Characters of an Event's message that the API server takes."""
_log = structlog.get_logger()

Request = Callable[[], bool]
"""Says whether there was anything left to write; raises ApiError."""


@dataclass(slots=True)
class _Thing:
    """What is to be written in one place."""

    request: Request | None
    """None: written, and for a while not to be written again."""
    due: float
    spacing: float
    backoff: Backoff
    under_way: bool = False
    trouble: str = ""
    tries: int = 0
    limit: int = 0
    """Tries at most; 0: no limit."""


@dataclass(order=True, slots=True)
class _Due:
    at: float
    what: Hashable = field(compare=False)


class ApiWriter:
    """Requests, at most one at a time for each thing, each at its time, some at once, again where they fail."""

    def __init__(self, threads: int = 1, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called, in a thread of ours, when a thing begins or ceases to have trouble."""
        self._changed = changed
        self._things: dict[Hashable, _Thing] = {}
        self._dues: list[_Due] = []
        self._state = threading.Condition()
        self._stopping = False
        self._told = ""
        self.written = 0
        """Requests that the API server took."""
        self.refused = 0
        """Requests that failed, conflicts among them."""
        self._threads = [
            threading.Thread(target=self._run, name=f"api-writer-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, what: Hashable, request: Request, spacing: float = 0.0, tries: int = 0) -> None:
        """Has something written; replaces a request for the same thing that still waits, at that one's time.

        `spacing`: seconds from one request for this thing that was taken to the next.
        """
        with self._state:
            thing = self._things.get(what)
            if thing is not None:
                thing.request = request
                return
            due = time.monotonic() + random.uniform(0, JITTER)  # noqa: S311 - spreads requests
            self._things[what] = _Thing(request, due, spacing, Backoff(FIRST_PAUSE, LONGEST_PAUSE), limit=tries)
            self._push(what, due)

    def waits(self, what: Hashable) -> bool:
        """Whether a request for this thing has not been taken yet."""
        with self._state:
            thing = self._things.get(what)
            return thing is not None and thing.request is not None

    def trouble(self, what: Hashable) -> str:
        """Why the API server has not taken the request for this thing so far."""
        with self._state:
            thing = self._things.get(what)
            return "" if thing is None or thing.request is None else thing.trouble

    def withdraw(self, what: Hashable) -> None:
        """A request that is just being sent is not called back, but not repeated either."""
        with self._state:
            thing = self._things.get(what)
            if thing is not None:
                thing.request, thing.trouble = None, ""

    def hurry(self) -> None:
        """What failed for a while may work again: tries it now."""
        with self._state:
            for due in self._dues:
                thing = self._things[due.what]
                if thing.tries and thing.request is not None:
                    due.at = time.monotonic() + random.uniform(0, JITTER)  # noqa: S311 - spreads requests
                    thing.backoff.reset()
            heapq.heapify(self._dues)
            self._state.notify_all()

    def close(self) -> None:
        """Drops what waits; returns when the requests under way are over."""
        with self._state:
            self._stopping = True
            self._state.notify_all()
        for thread in self._threads:
            thread.join()

    def _push(self, what: Hashable, due: float) -> None:
        """With the state held."""
        heapq.heappush(self._dues, _Due(due, what))
        self._state.notify()

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            what, thing, request = taken
            error: ApiError | None = None
            wrote = False
            try:
                wrote = request()
            except ApiError as caught:
                error = caught
            except Exception:  # whatever it is, a fault of ours: it must not end the thread, which others need
                _log.exception("a change could not even be sent to the API server", about=str(what))
            if self._over(what, thing, request, wrote, error):
                self._changed()

    def _next(self) -> tuple[Hashable, _Thing, Request] | None:
        with self._state:
            while not self._stopping:
                wait = self._dues[0].at - time.monotonic() if self._dues else None
                if wait is None or wait > 0:
                    self._state.wait(wait)
                    continue
                what = heapq.heappop(self._dues).what
                thing = self._things[what]
                if thing.request is None:
                    del self._things[what]
                    continue
                thing.under_way = True
                thing.tries += 1
                return what, thing, thing.request
            return None

    def _over(self, what: Hashable, thing: _Thing, request: Request, wrote: bool, error: ApiError | None) -> bool:
        """Notes what became of a request; whether the thing's trouble is another than before."""
        with self._state:
            before, now = thing.trouble, time.monotonic()
            thing.under_way = False
            self.written += wrote
            self.refused += error is not None
            if error is None or error.status == _NOT_FOUND or thing.tries == thing.limit:
                if thing.request is request:
                    thing.request = None
                thing.trouble, thing.tries = "", 0
                thing.backoff.reset()
                thing.due = now + (thing.spacing if wrote else 0.0)
            else:
                # A conflict is another helper's success, of which the watch has not told yet; no trouble.
                thing.trouble = "" if error.status == _CONFLICT else str(error)
                thing.due = now + thing.backoff.pause()
            self._push(what, thing.due)
            if thing.trouble and thing.trouble != self._told:
                _log.warning("the API server did not take a change; it is tried again", error=thing.trouble)
            self._told = thing.trouble or self._told
            return thing.trouble != before


class AnnotationBucketStore(BucketStore):
    """Tables in the Services themselves, in the annotation `cmd.nu/tunnel-buckets`."""

    def __init__(self, api: Api, source: KubernetesSource, threads: int = TABLE_THREADS) -> None:
        self._api = api
        self._source = source
        self._lock = threading.Lock()
        self._stored = 0
        self.writer = ApiWriter(threads, source.wake)
        source.when_current = self.writer.hurry

    def close(self) -> None:
        self.writer.close()

    def read(self, key: ObjectKey) -> str | None:
        """As the last watch event has it."""
        service = self._source.service(key)
        return None if service is None else service.annotations.get(TUNNEL_BUCKETS)

    def write(self, key: ObjectKey, text: str, expected: str | None) -> bool | None:
        """Hands the table over; None: what becomes of it, a change of the Service will tell."""
        if self._source.version_of(key) is None or self.read(key) != expected:
            return False
        self.writer.submit(key, lambda: self._store(key, text, expected), WRITE_INTERVAL)
        return None

    def under_way(self, key: ObjectKey) -> bool:
        return self.writer.waits(key)

    def trouble(self, key: ObjectKey) -> str:
        return self.writer.trouble(key)

    def withdraw(self, key: ObjectKey) -> None:
        self.writer.withdraw(key)

    def take_stored(self) -> int:
        with self._lock:
            stored, self._stored = self._stored, 0
        return stored

    def _store(self, key: ObjectKey, text: str, expected: str | None) -> bool:
        """Only in the place of what was expected: perhaps another helper was quicker.

        Of the Service's versions the newest that is known counts: one that differs in something else is no obstacle.
        """
        version = self._source.version_of(key)
        if version is None or self.read(key) != expected:
            return False
        if not self._source.current():
            # Who knows the endpoints of a while ago would take back what others have stored since.
            raise ApiError("objects are not followed at this moment", _CONFLICT)
        self._api.annotate_service(key, version, {TUNNEL_BUCKETS: text})
        with self._lock:
            self._stored += 1
        return True


class EventTeller:
    """One Event for each problem of a Service, however many helpers see it: its name says what it is about."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self.writer = ApiWriter()

    def close(self) -> None:
        self.writer.close()

    def tell(self, problem: Problem, service: Service) -> None:
        body = event(problem, service, self._node, datetime.now(UTC))

        def create() -> bool:
            try:
                self._api.create_event(service.key.namespace, body)
            except ApiError as error:
                if error.status != _CONFLICT:
                    raise
                return False  # another helper has told
            return True

        self.writer.submit((service.key.namespace, body["metadata"]["name"]), create, tries=_EVENT_TRIES)


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
