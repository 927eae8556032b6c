"""A small API server without a cluster, which can be told to misbehave: hang, close, lie, refuse.

It has what the helper uses: lists, watches, patches of Services' status with resourceVersions, Events.
A real one cannot be made to send half an object; whether ours is like a real one, conformance/api sees to.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

KINDS = {
    "/api/v1/services": "Service",
    "/api/v1/pods": "Pod",
    "/api/v1/nodes": "Node",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
}
Fault = Callable[["Handler"], None]
"""Answers one request in place of the server."""


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    at: float
    """By the monotonic clock, seconds."""
    method: str
    path: str
    kind: str
    """Of a list or watch, otherwise empty."""
    watch: bool
    resource_version: str
    body: Any = None
    bookmarks: bool = False
    """Whether a watch wants them."""
    seconds: int = 0
    """For which a watch is to last."""


@dataclass
class _Kind:
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    watches: list[queue.SimpleQueue[dict[str, Any] | None]] = field(default_factory=list)


class FakeApi:
    """A context manager; `faults[what]` are used up one by one, `always[what]` stays.

    `what` is a kind, with ` watch` behind it for its watches (`Service watch`), or `PATCH`, `POST`.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: dict[str, deque[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.events: list[dict[str, Any]] = []
        self.stopping = threading.Event()
        self._kinds = {kind: _Kind() for kind in KINDS.values()}
        self._version = self._oldest = 100
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.end_watches()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(json.dumps(content))
        return path

    def put(self, thing: dict[str, Any]) -> dict[str, Any]:
        """An object as someone else would write it; returns it with its resourceVersion."""
        with self.lock:
            metadata = thing["metadata"]
            key = metadata.get("namespace", ""), metadata["name"]
            kind = self._kinds[thing["kind"]]
            self._version += 1
            metadata = {"uid": f"uid-{metadata['name']}", **metadata, "resourceVersion": str(self._version)}
            event = "MODIFIED" if key in kind.objects else "ADDED"
            kind.objects[key] = {**thing, "metadata": metadata}
            self._tell(kind, {"type": event, "object": kind.objects[key]})
            return kind.objects[key]

    def remove(self, kind_name: str, namespace: str, name: str) -> None:
        with self.lock:
            kind = self._kinds[kind_name]
            gone = kind.objects.pop((namespace, name))
            self._version += 1
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self._version)}}
            self._tell(kind, {"type": "DELETED", "object": gone})

    def get(self, kind_name: str, namespace: str, name: str) -> dict[str, Any]:
        with self.lock:
            return self._kinds[kind_name].objects[namespace, name]

    def send(self, kind_name: str, event: dict[str, Any]) -> None:
        """Something to every open watch of a kind, whatever it is."""
        with self.lock:
            for watch in self._kinds[kind_name].watches:
                watch.put(event)

    def forget_history(self) -> None:
        """As a server whose store was compacted: who comes with an older version has to list anew."""
        with self.lock:
            self._version += 1
            self._oldest = self._version

    def end_watches(self) -> None:
        with self.lock:
            for kind in self._kinds.values():
                for watch in kind.watches:
                    watch.put(None)

    def count(self, what: str) -> int:
        """Requests so far: of a kind's lists, `Service watch`, or by method."""
        return sum(name == what for name in map(_name, list(self.asked)))

    def _tell(self, kind: _Kind, event: dict[str, Any]) -> None:
        kind.history.append((self._version, event))
        for watch in kind.watches:
            watch.put(event)

    # --- for the handler ----------------------------------------------------------------------------------------

    def fault(self, asked: Asked) -> Fault | None:
        with self.lock:
            self.asked.append(asked)
            what = _name(asked)
            waiting = self.faults.get(what)
            return waiting.popleft() if waiting else self.always.get(what)

    def listed(self, kind: str) -> dict[str, Any]:
        with self.lock:
            items = [{k: v for k, v in thing.items() if k not in ("kind", "apiVersion")}
                     for thing in self._kinds[kind].objects.values()]  # fmt: skip
            return {"kind": f"{kind}List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def watch(self, kind_name: str, since: int) -> queue.SimpleQueue[dict[str, Any] | None] | None:
        """The events after a version, those to come too; None where that is too long ago."""
        with self.lock:
            kind = self._kinds[kind_name]
            if since < self._oldest:
                return None
            events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
            for version, event in kind.history:
                if version > since:
                    events.put(event)
            kind.watches.append(events)
            return events

    def unwatch(self, kind: str, events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        with self.lock:
            self._kinds[kind].watches.remove(events)

    def patch_service(self, namespace: str, name: str, patch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            found = self._kinds["Service"].objects.get((namespace, name))
            if found is None:
                return 404, _status(404, "NotFound", f'services "{name}" not found')
            metadata = patch["metadata"]
            if (
                metadata.get("resourceVersion", found["metadata"]["resourceVersion"])
                != (found["metadata"]["resourceVersion"])
            ):
                return 409, _status(409, "Conflict", "the object has been modified")
            annotations = {**found["metadata"].get("annotations", {}), **metadata.get("annotations", {})}
            annotations = {key: value for key, value in annotations.items() if value is not None}
            return 200, self.put({**found, "metadata": {**found["metadata"], "annotations": annotations}})


def _name(asked: Asked) -> str:
    if asked.method != "GET":
        return asked.method
    return f"{asked.kind} watch" if asked.watch else asked.kind


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message}  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    api: FakeApi


class Handler(BaseHTTPRequestHandler):
    """Where a fault answers: `send`, `begin_watch`, `event`, `raw`, `hang`."""

    protocol_version = "HTTP/1.1"
    server: _Server
    asked: Asked

    def log_message(self, *_: object) -> None:
        """Nothing: the test has `asked`."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_PATCH(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    do_POST = do_PATCH  # noqa: N815

    def _serve(self, body: Any) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.asked = Asked(
            time.monotonic(), self.command, parts.path, KINDS.get(parts.path, ""),
            query.get("watch", "").lower() == "true", query.get("resourceVersion", ""), body,
            query.get("allowWatchBookmarks", "").lower() == "true", int(query.get("timeoutSeconds", "0")),
        )  # fmt: skip
        api = self.server.api
        fault = api.fault(self.asked)
        try:
            if fault is not None:
                fault(self)
            elif self.asked.watch:
                self._watch(api)
            elif self.asked.kind:
                self.send(200, api.listed(self.asked.kind))
            elif self.command == "PATCH":
                _, namespace, _, name, _ = parts.path.removeprefix("/api/v1/").split("/")
                self.send(*api.patch_service(namespace, name, body))
            else:
                self._create_event(api)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _create_event(self, api: FakeApi) -> None:
        body = self.asked.body
        with api.lock:
            known = body["metadata"]["name"] in [event["metadata"]["name"] for event in api.events]
            if not known:
                api.events.append(body)
        if known:
            self.send(409, _status(409, "AlreadyExists", "there is one"))
        else:
            self.send(201, body)

    def _watch(self, api: FakeApi) -> None:
        events = api.watch(self.asked.kind, int(self.asked.resource_version or 0))
        self.begin_watch()
        if events is None:
            self.event({"type": "ERROR", "object": _status(410, "Expired", "too old resource version")})
            self.end_watch()
            return
        try:
            while not api.stopping.is_set() and (event := events.get()) is not None:
                if event.get("type") != "BOOKMARK" or self.asked.bookmarks:
                    self.event(event)
            self.end_watch()
        finally:
            api.unwatch(self.asked.kind, events)

    def send(self, code: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def begin_watch(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, event: Any) -> None:
        self.raw(json.dumps(event).encode() + b"\n")

    def raw(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()

    def end_watch(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def hang(self) -> None:
        """Says nothing more until the server ends, then closes."""
        self.server.api.stopping.wait(60)
        self.close_connection = True


# --- faults -------------------------------------------------------------------------------------------------


def refuse(code: int, reason: str = "Refused") -> Fault:
    return lambda handler: handler.send(code, _status(code, reason, f"told to say {code}"))


def close(handler: Handler) -> None:
    """Not a byte of an answer."""
    handler.close_connection = True


def hang(handler: Handler) -> None:
    handler.hang()


def stream_and_close(handler: Handler) -> None:
    """A watch that is taken and over at once."""
    handler.begin_watch()
    handler.end_watch()


def stream_and_break(handler: Handler) -> None:
    """A watch that ends in the middle of an event, and of a chunk."""
    handler.begin_watch()
    handler.wfile.write(b'500\r\n{"type":"ADDED","object":{"metadata"')
    handler.wfile.flush()
    handler.close_connection = True


def stream_error(code: int, reason: str = "Refused") -> Fault:
    def answer(handler: Handler) -> None:
        handler.begin_watch()
        handler.event({"type": "ERROR", "object": _status(code, reason, f"told to say {code}")})
        handler.end_watch()

    return answer


def stream(*events: Any) -> Fault:
    """A watch with just these events (bytes: as they are), which then ends."""

    def answer(handler: Handler) -> None:
        handler.begin_watch()
        for event in events:
            handler.raw(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")
        handler.end_watch()

    return answer


def body(anything: Any) -> Fault:
    """This in place of a list."""
    return lambda handler: handler.send(200, anything)
