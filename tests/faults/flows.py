"""Connections and flows of a client, and the notes of what went wrong with them: what all loads share.

Whatever goes wrong is noted with its time, by the monotonic clock that all processes share, and with the pod that
had answered before: whether it had to be so is judged elsewhere (`tests.faults.cells`).
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass, field

IP_BIND_ADDRESS_NO_PORT = 24
OPENING = 200
"""Connections that are being opened at once."""
OPENING_SECONDS = 60.0
LAST_ANSWERS = 20.0
"""Seconds for answers at the end: TCP may have sent a segment for the sixth time by then."""
PAUSE = 0.3
"""Seconds by which this program may be late itself before it says so."""
STALL = 1.0
"""Seconds without an answer after which a connection counts as stalled, and a datagram as lost."""


@dataclass
class Flow:
    """A connection, or the socket of a UDP flow."""

    socket: socket.socket
    began: float
    pod: str = ""
    """Who answered last."""
    asked: float = 0.0
    """When the request was sent that is not answered yet; 0 when there is none."""
    open: bool = False
    sequence: int = 0
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    expected: int = 0
    """Bytes of a download that are still to come."""
    offset: int = 0
    """Bytes of it that have come."""
    progress: float = 0.0
    """When a transfer last went on."""


class Load:
    """What all loads share: sockets, the loop's hooks, and the notes of what went wrong."""

    def __init__(self, vip: str, port: int, count: int, rate: float, sources: list[str]) -> None:
        self.target = (vip, port)
        self.count = count
        self.rate = rate
        self._sources = sources
        self._made = 0
        self.events = selectors.DefaultSelector()
        self.flows: list[Flow] = []
        self.ending = False
        self.requests = 0
        self.opened = 0
        self.moved = 0
        self.longest = 0.0
        self.lost: list[tuple[str, str, float, float]] = []
        """How a connection ended, the pod, when its request was sent or it was last well, when it ended."""
        self.lost_requests: list[tuple[str, float, float]] = []
        self.stalls: dict[int, tuple[str, float, float]] = {}
        """The longest stall of each connection."""
        self.pauses: list[tuple[float, float]] = []
        """When this program itself had no processor: what came meanwhile was not late, but heard late."""

    def make(self, kind: int) -> Flow:
        family = socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET
        made = socket.socket(family, kind)
        made.setblocking(False)
        if self._sources:
            made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, kind == socket.SOCK_STREAM)
            made.bind((self._sources[self._made % len(self._sources)], 0))
        self._made += 1
        return Flow(made, time.monotonic())

    def answered(self, flow: Flow, pod: str, since: float, now: float) -> None:
        """Notes who answered, and how long it took."""
        self.moved += bool(flow.pod) and flow.pod != pod
        flow.pod = pod
        self.waited(flow, since, now)

    def waited(self, flow: Flow, since: float, now: float) -> None:
        self.longest = max(self.longest, now - since)
        before = self.stalls.get(id(flow), ("", 0.0, 0.0))
        if now - since > max(STALL, before[2] - before[1]):
            self.stalls[id(flow)] = (flow.pod, since, now)

    def end(self, flow: Flow, how: str, now: float) -> None:
        """The connection is lost."""
        self.lost.append((how, flow.pod, flow.asked or now, now))
        if flow.asked:
            self.lost_requests.append((flow.pod, flow.asked, now))
        self.forget(flow)

    def forget(self, flow: Flow) -> None:
        flow.open = False
        flow.asked = 0.0
        self.events.unregister(flow.socket)
        flow.socket.close()

    # The loop's hooks.

    def start(self) -> None:
        """Opens what is to be open from the beginning."""

    def tick(self, now: float) -> float:
        """Sends what is due; returns seconds until there is more to be sent."""
        raise NotImplementedError

    def hear(self, flow: Flow, events: int, now: float) -> None:
        raise NotImplementedError

    def check(self, now: float) -> None:
        """Has flows ask that would not by themselves."""

    def checked(self, now: float) -> bool:
        """Whether those are answered, or lost."""
        return True

    def finish(self, now: float) -> None:
        """From now on nothing new is begun; each flow has to answer once more."""
        self.ending = True

    def waiting(self) -> list[Flow]:
        """Those whose last answer is still to come."""
        return [flow for flow in self.flows if flow.asked]

    def result(self, now: float) -> dict[str, object]:
        for flow in self.waiting():
            self.waited(flow, flow.asked, now)
            self.end(flow, "silent", now)
        return {
            "open": self.opened,
            "requests": self.requests,
            "moved": self.moved,
            "longest": self.longest,
            "lost": self.lost,
            "lost_requests": self.lost_requests,
            "stalls": list(self.stalls.values()),
            "pauses": self.pauses,
        }
