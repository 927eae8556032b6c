"""A stand-in for the node helper: speaks its socket, knows no Kubernetes, says what the test tells it to.

It is no test of the helper. It holds the questions it got, and a script of replies: a dict is packed with
the `msgpack` library (not our own encoder) and framed; bytes go out as they are; a callable makes the reply
from the question; None closes the connection without a word. The last reply is repeated.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack  # type: ignore[import-untyped]

Reply = dict[str, Any] | bytes | Callable[[dict[str, Any]], "Reply"] | None

NONE: dict[str, Any] = {"v": 1, "answer": "none"}
UNKNOWN: dict[str, Any] = {"v": 1, "answer": "unknown"}


def tunnels(*vips: str, mode: str = "vxlan-gpe") -> dict[str, Any]:
    """The reply for a pod behind one Service."""
    described = {"tunnels": [{"vips": list(vips), "mode": mode, "remaps": []}], "sources": []}
    return {"v": 1, "answer": "tunnels", "pod": described}


class FakeHelper:
    """Listens on `path` within a with-statement."""

    def __init__(self, path: Path, *replies: Reply) -> None:
        self.path = path
        self.questions: list[dict[str, Any]] = []
        self.connections = 0
        self._replies = list(replies)
        self._closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeHelper:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.settimeout(0.05)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(5)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def wait_closing(self, seconds: float) -> None:
        """For replies that are to be slow: returns after `seconds`, or at once when the test is over."""
        self._closing.wait(seconds)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            with connection:
                connection.settimeout(5)
                try:
                    self._answer(connection)
                except OSError:
                    continue  # the plugin went away: its right

    def _answer(self, connection: socket.socket) -> None:
        head = connection.recv(4, socket.MSG_WAITALL)
        length = int.from_bytes(head, "big")
        body = connection.recv(length, socket.MSG_WAITALL) if len(head) == 4 else b""
        if not body or len(body) != length:
            return  # the plugin was killed before it had asked
        question = msgpack.unpackb(body)
        self.questions.append(question)
        reply: Reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        while callable(reply):
            reply = reply(question)
        if isinstance(reply, dict):
            packed: bytes = msgpack.packb(reply)
            reply = len(packed).to_bytes(4, "big") + packed
        if reply is not None:
            connection.sendall(reply)
