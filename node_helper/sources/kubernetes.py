"""A Kubernetes API server as the source of objects: informers keep a copy, a snapshot is made from it.

Each role watches what it needs and no more: 500 nodes that all watched all pods would be what the API server does.
Every node sees Services, Nodes and its own pods; ingress nodes see EndpointSlices besides. Endpoints of a Service are
merged when one of its slices changes, so a snapshot costs little however many Services there are.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.informer import ADDED, BOOKMARK, DELETED, ERROR, MODIFIED, SharedInformer
from urllib3.exceptions import HTTPError

from node_helper.api import GONE, Api, is_named, reason
from node_helper.model import Endpoint, Node, ObjectKey, Pod, Problem, Service, Snapshot
from node_helper.settings import INGRESS, NODE
from node_helper.sources.kubernetes_objects import (
    EndpointSlice,
    Identity,
    KubernetesObject,
    ObjectError,
    identity_of,
    merged,
    read_object,
)

_API_VERSIONS = {"Service": "v1", "Pod": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}
_CLOSE_WAIT = 1.0
"""Seconds."""
_NAMELESS = "the watch told of something that has no name, which is passed over"
_STANDS = 1.0
"""Seconds after which a watch counts as one that stands."""
_WATCHED = {NODE: ("Service", "Node", "Pod"), INGRESS: ("Service", "Node", "EndpointSlice")}


class KubernetesSource:
    """For an event loop, as `ManifestFolder`: wait for `fileno()`, `drain()`, then `read()`."""

    def __init__(self, api: Api, roles: Iterable[str], node: str) -> None:
        """Begins to list and watch, in threads of its own."""
        self._api = api
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._notice = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._copy = ObjectCopy()
        self._troubles: dict[str, str] = {}
        self._opening: dict[str, int] = {}
        """By kind, how often a watch was opened or failed: whether it is still the same one."""
        self.when_current: Callable[[], None] = lambda: None
        """Called, in some thread, when everything is followed again."""
        kinds = dict.fromkeys(kind for role in sorted(roles) for kind in _WATCHED[role])
        self._unlisted = set(kinds)
        self._answered: set[str] = set()
        """The kinds of which a list was answered, and may not be taken in yet."""
        self._informers = [self._follow(kind, f"spec.nodeName={node}" if kind == "Pod" else "") for kind in kinds]

    def close(self) -> None:
        """Ends the watches. One that is just being opened cannot be interrupted; its thread ends with the process."""
        with self._lock:
            self._stop.set()
            os.close(self._notice)
        ends = [threading.Thread(target=informer.stop, daemon=True) for informer in self._informers]
        for end in ends:
            end.start()
        deadline = time.monotonic() + _CLOSE_WAIT
        for end in ends:
            end.join(max(0.0, deadline - time.monotonic()))

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._notice

    def drain(self) -> bool:
        """Takes the notices that wait; true when `read` may give something new."""
        try:
            return os.eventfd_read(self._notice) > 0
        except BlockingIOError:
            return False

    def wake(self) -> None:
        """Something that is not an object has changed, and whoever reads here should look again."""
        with self._lock:
            self._notify()

    def read(self) -> Snapshot | None:
        """What the API server says now; None until everything was listed once.

        Raises nothing: while the server is away the last copy stands, and a problem says so.
        """
        with self._lock:
            if self._unlisted:
                return None
            troubles = [f"{kind}: {trouble}" for kind, trouble in sorted(self._troubles.items())]
            return self._copy.snapshot([self._away(trouble) for trouble in troubles])

    def version_of(self, key: ObjectKey) -> str | None:
        """The resourceVersion of the copy's Service, None where there is none."""
        with self._lock:
            return self._copy.versions.get(key)

    def service(self, key: ObjectKey) -> Service | None:
        """The copy's Service."""
        with self._lock:
            return self._copy.service(key)

    def current(self) -> bool:
        """Whether everything was listed and is followed, as far as is known."""
        with self._lock:
            return not self._unlisted and not self._troubles

    def trouble(self) -> str:
        """What keeps objects from being listed or followed; empty where nothing does."""
        with self._lock:
            return "; ".join(f"{kind}: {trouble}" for kind, trouble in sorted(self._troubles.items()))

    def _away(self, trouble: str) -> Problem:
        message = f"{self._api.server} does not answer, the last known objects stay in use: {trouble}"
        return Problem("Source", ObjectKey("", "kubernetes"), "ApiUnreachable", message)

    def _follow(self, kind: str, field_selector: str) -> SharedInformer:
        lists = self._api.lists(kind, self._stop, field_selector)

        def listing(**wanted: Any) -> Any:
            """A list, or the open answer of a watch; a watch is asked for when the list was taken in.

            :rtype: object
            """
            if wanted.get("watch"):
                self._listed(kind)
                answer = lists(**wanted)
                self._opened(kind)
                return answer
            while True:
                try:
                    found = lists(**wanted)
                except Exception as error:  # whatever the server answers: the informer would wait without jitter
                    if self._stop.is_set():
                        raise
                    self._failed(kind, error)
                else:
                    self._answered.add(kind)
                    return found

        def failed(error: object) -> None:
            expired = isinstance(error, ApiException) and error.status == GONE
            # Neither HTTP's nor the network's fault, so it comes of what was said, and will again.
            not_understood = not isinstance(error, ApiException | HTTPError | OSError)
            # A server that has just started takes a watch from before its own memory, and says a quarter of a minute
            # later that it cannot. Meanwhile old endpoints would count as current, and be stored. (Who knows an old
            # Service writes in vain, by its resourceVersion.)
            if not_understood or (kind == "EndpointSlice" and not expired):
                lists.begin_anew()
            self._failed(kind, error)

        informer = SharedInformer(listing)
        informer.add_event_handler(ADDED, lambda found: self._changed(kind, found))
        informer.add_event_handler(MODIFIED, lambda found: self._changed(kind, found))
        informer.add_event_handler(DELETED, lambda found: self._gone(kind, found))
        informer.add_event_handler(BOOKMARK, lambda _: self._mended(kind))
        informer.add_event_handler(ERROR, failed)
        informer.start()
        return informer

    # --- what informers tell, in their threads ----------------------------------------------------------------

    def _changed(self, kind: str, plain: dict[str, Any]) -> None:
        if not is_named(plain):
            self._failed(kind, _NAMELESS)
            return
        with self._lock:
            if self._copy.put(kind, plain):
                self._notify()
        # The informer keeps the object for its next comparison, for which its name will do.
        metadata = plain["metadata"]
        plain.clear()
        plain["metadata"] = {"namespace": metadata.get("namespace"), "name": metadata["name"]}

    def _gone(self, kind: str, plain: dict[str, Any]) -> None:
        if not is_named(plain):
            self._failed(kind, _NAMELESS)
            return
        with self._lock:
            self._copy.remove(kind, plain)
            self._notify()

    def _listed(self, kind: str) -> None:
        """What was answered is in the copy: before, it would be the old one that counts as current."""
        with self._lock:
            if kind in self._unlisted:
                self._unlisted.remove(kind)
                self._notify()
        if kind in self._answered:
            self._answered.remove(kind)
            self._mended(kind)

    def _opened(self, kind: str) -> None:
        """A watch was taken, which says little: it has to stand for a moment until all counts as well again."""
        with self._lock:
            self._opening[kind] = self._opening.get(kind, 0) + 1
            if kind not in self._troubles:
                return
            timer = threading.Timer(_STANDS, self._stood, (kind, self._opening[kind]))
        timer.daemon = True
        timer.start()

    def _stood(self, kind: str, opening: int) -> None:
        with self._lock:
            if self._opening[kind] != opening:
                return
        self._mended(kind)

    def _mended(self, kind: str) -> None:
        with self._lock:
            if not self._troubles.pop(kind, None):
                return
            self._notify()
            whole = not self._troubles
        if whole:
            self.when_current()

    def _failed(self, kind: str, error: object) -> None:
        text = reason(error) if isinstance(error, BaseException) else str(error)
        with self._lock:
            self._opening[kind] = self._opening.get(kind, 0) + 1
            if self._troubles.get(kind) != text:
                self._troubles[kind] = text
                self._notify()

    def _notify(self) -> None:
        """With the lock held."""
        if not self._stop.is_set():
            os.eventfd_write(self._notice, 1)


class ObjectCopy:
    """The objects of the API server in the project's model, kept up one by one."""

    def __init__(self) -> None:
        self.versions: dict[ObjectKey, str] = {}
        """resourceVersion of each Service."""
        self._services: dict[ObjectKey, Service] = {}
        self._pods: dict[ObjectKey, Pod] = {}
        self._nodes: dict[str, Node] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._slices_of: dict[ObjectKey, dict[ObjectKey, EndpointSlice]] = {}
        self._endpoints: dict[ObjectKey, tuple[Endpoint, ...]] = {}
        self._faults: dict[Identity, Problem] = {}
        self._last: tuple[list[Problem], Snapshot] | None = None

    def service(self, key: ObjectKey) -> Service | None:
        return self._services.get(key)

    def put(self, kind: str, plain: dict[str, Any]) -> bool:
        """Takes in an object as the API server gave it; whether anything changed that counts.

        One that cannot be read leaves its last good version in use and a Problem.
        """
        metadata = plain["metadata"]
        key = ObjectKey(metadata.get("namespace") or "", metadata["name"])
        if kind == "Service":
            self.versions[key] = str(metadata.get("resourceVersion", ""))
        try:
            found = read_object({**plain, "apiVersion": _API_VERSIONS[kind], "kind": kind})
        except ObjectError as error:
            return self._fault((kind, key), Problem(kind, key, "UnreadableObject", f"{error}; it is passed over"))
        assert found is not None, kind
        mended = self._fault(identity_of(found), None)
        return self._store(found) or mended

    def remove(self, kind: str, plain: dict[str, Any]) -> None:
        metadata = plain["metadata"]
        key = ObjectKey(metadata.get("namespace") or "", metadata["name"])
        self._fault((kind, key), None)
        self._last = None
        if kind == "Service":
            self._services.pop(key, None)
            self.versions.pop(key, None)
        elif kind == "Pod":
            self._pods.pop(key, None)
        elif kind == "Node":
            self._nodes.pop(key.name, None)
        elif (before := self._slices.pop(key, None)) is not None:
            self._merge(before, None)

    def snapshot(self, problems: list[Problem]) -> Snapshot:
        """Everything; the same object as before where nothing changed."""
        told = sorted([*problems, *self._faults.values()])
        if self._last is None or self._last[0] != told:
            snapshot = Snapshot(
                dict(self._services), dict(self._endpoints), dict(self._pods), dict(self._nodes), tuple(told)
            )
            self._last = told, snapshot
        return self._last[1]

    def _fault(self, identity: Identity, problem: Problem | None) -> bool:
        if self._faults.get(identity) == problem:
            return False
        if problem is None:
            del self._faults[identity]
        else:
            self._faults[identity] = problem
        return True

    def _store(self, found: KubernetesObject) -> bool:
        if isinstance(found, EndpointSlice):
            before = self._slices.get(found.key)
            if before == found:
                return False
            self._slices[found.key] = found
            self._merge(before, found)
        elif isinstance(found, Service):
            if self._services.get(found.key) == found:
                return False
            self._services[found.key] = found
        elif isinstance(found, Pod):
            if self._pods.get(found.key) == found:
                return False
            self._pods[found.key] = found
        else:
            if self._nodes.get(found.name) == found:
                return False
            self._nodes[found.name] = found
        self._last = None
        return True

    def _merge(self, before: EndpointSlice | None, after: EndpointSlice | None) -> None:
        """Makes the endpoints of the Services anew to which a slice belonged and belongs."""
        for part, stays in ((before, False), (after, True)):
            if part is None or part.service is None:
                continue
            parts = self._slices_of.setdefault(part.service, {})
            if stays:
                parts[part.key] = part
            else:
                parts.pop(part.key, None)
        for service in {part.service for part in (before, after) if part is not None and part.service is not None}:
            parts = self._slices_of[service]
            if parts:
                self._endpoints |= merged(parts.values())
            else:
                del self._slices_of[service]
                self._endpoints.pop(service, None)
