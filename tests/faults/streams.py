"""Loads of TCP: connections that stay, new ones, and large transfers."""

from __future__ import annotations

import selectors
import socket
import time
import zlib
from collections import deque

from tests.faults.flows import LAST_ANSWERS, OPENING, OPENING_SECONDS, Flow, Load

TRANSFER = 1_000_000
"""Bytes of one transfer."""
_PATTERN = bytes(range(256)) * 2048
_UPLOAD = (_PATTERN * (TRANSFER // len(_PATTERN) + 1))[:TRANSFER]
_UPLOAD_SUM = zlib.crc32(_UPLOAD)


class Streams(Load):
    """TCP connections that stay: each asks every COUNT / RATE seconds, with RATE 0 only when it has to."""

    def __init__(self, vip: str, port: int, count: int, rate: float, sources: list[str]) -> None:
        super().__init__(vip, port, count, rate, sources)
        self._interval = count / rate if rate else 0.0
        self._due: deque[tuple[float, Flow]] = deque()

    def start(self) -> None:
        deadline = time.monotonic() + OPENING_SECONDS
        opening: list[Flow] = []
        while len(self.flows) < self.count or opening:
            while len(self.flows) < self.count and len(opening) < OPENING:
                flow = self.make(socket.SOCK_STREAM)
                flow.socket.connect_ex(self.target)
                self.events.register(flow.socket, selectors.EVENT_WRITE, flow)
                self.flows.append(flow)
                opening.append(flow)
            self._handle(0.1)
            opening = [flow for flow in opening if not flow.pod and flow.socket.fileno() >= 0]
            if time.monotonic() > deadline:
                raise SystemExit(f"{len(opening)} connections were not answered in {OPENING_SECONDS} s")
        if self.lost:
            raise SystemExit(f"{len(self.lost)} connections were refused: {self.lost[0]}")
        self.opened = self.count
        self.longest = 0.0
        self.stalls.clear()
        now = time.monotonic()
        for number, flow in enumerate(self.flows):
            self._due.append((now + self._interval * number / self.count, flow))

    def _handle(self, seconds: float) -> None:
        for key, events in self.events.select(seconds):
            self.hear(key.data, events, time.monotonic())

    def tick(self, now: float) -> float:
        if not self._interval or self.ending:
            return 1.0
        while self._due and self._due[0][0] <= now:
            due, flow = self._due.popleft()
            if flow.open and not flow.asked:
                self.ask(flow, now)
            if flow.open:
                # A client that is late does not ask twice as often afterwards.
                self._due.append((max(due, now - self._interval) + self._interval, flow))
        return self._due[0][0] - now if self._due else 1.0

    def check(self, now: float) -> None:
        if not self._interval:
            for flow in self.flows:
                if flow.open and not flow.asked:
                    self.ask(flow, now)

    def checked(self, now: float) -> bool:
        if self._interval:
            return True
        for flow in self.waiting():
            if now - flow.asked > LAST_ANSWERS:
                self.end(flow, "silent", now)
        return not self.waiting()

    def ask(self, flow: Flow, now: float) -> None:
        flow.asked = now
        self.requests += 1
        try:
            flow.socket.send(b"fault\n")
        except OSError:
            self.end(flow, "reset", now)

    def hear(self, flow: Flow, events: int, now: float) -> None:
        if not flow.open and not self._connected(flow, now):
            return
        try:
            received = flow.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(flow, "reset" if isinstance(error, ConnectionError) else "failed", now)
            return
        if not received:
            self.end(flow, "closed", now)
            return
        self.receive(flow, received, now)

    def _connected(self, flow: Flow, now: float) -> bool:
        if number := flow.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.end(flow, "reset" if number in (104, 111) else "failed", now)
            return False
        flow.open = True
        self.events.modify(flow.socket, selectors.EVENT_READ, flow)
        self.ask(flow, now)
        return False

    def receive(self, flow: Flow, received: bytes, now: float) -> None:
        if flow.asked:
            self.answered(flow, received.split(b" ")[0].decode(), flow.asked, now)
        flow.asked = 0.0

    def finish(self, now: float) -> None:
        super().finish(now)
        for flow in self.flows:
            if flow.open and not flow.asked:
                self.ask(flow, now)


class Newcomers(Streams):
    """RATE new connections a second, each of which asks once and is closed."""

    def start(self) -> None:
        self._next = time.monotonic()

    def tick(self, now: float) -> float:
        while self._next <= now and not self.ending:
            self._next += 1 / self.rate
            flow = self.make(socket.SOCK_STREAM)
            flow.asked = flow.began
            self.opened += 1
            flow.socket.connect_ex(self.target)
            self.events.register(flow.socket, selectors.EVENT_WRITE, flow)
            self.flows.append(flow)
        return self._next - now

    def ask(self, flow: Flow, now: float) -> None:
        super().ask(flow, now)
        flow.asked = flow.asked and flow.began

    def receive(self, flow: Flow, received: bytes, now: float) -> None:
        super().receive(flow, received, now)
        self.forget(flow)

    def check(self, now: float) -> None:
        """They ask all the time."""

    def checked(self, now: float) -> bool:
        return True

    def finish(self, now: float) -> None:
        self.ending = True

    def waiting(self) -> list[Flow]:
        self.flows = [flow for flow in self.flows if flow.asked]
        return self.flows


class Transfers(Streams):
    """Downloads and uploads in turn, without a pause, each byte compared."""

    def tick(self, now: float) -> float:
        for flow in self.flows:
            if flow.open and not flow.asked and flow.pod and not self.ending:
                self._begin(flow, now)
        return 1.0

    def check(self, now: float) -> None:
        """They are never idle."""

    def checked(self, now: float) -> bool:
        return True

    def _begin(self, flow: Flow, now: float) -> None:
        flow.sequence += 1
        flow.asked = flow.progress = now
        flow.offset = 0
        self.requests += 1
        if flow.sequence % 2:
            flow.expected = TRANSFER
            flow.to_send = memoryview(b"big %d\n" % TRANSFER)
        else:
            flow.to_send = memoryview(b"sink %d\n" % TRANSFER + _UPLOAD)
        self.events.modify(flow.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, flow)

    def hear(self, flow: Flow, events: int, now: float) -> None:
        if flow.open and events & selectors.EVENT_WRITE:
            try:
                flow.to_send = flow.to_send[flow.socket.send(flow.to_send[: 1 << 16]) :]
            except BlockingIOError:
                pass
            except OSError:
                self.end(flow, "reset", now)
                return
            self._goes_on(flow, now)
            if not flow.to_send:
                self.events.modify(flow.socket, selectors.EVENT_READ, flow)
        if not flow.open or events & selectors.EVENT_READ:
            super().hear(flow, events, now)

    def _goes_on(self, flow: Flow, now: float) -> None:
        self.waited(flow, flow.progress or now, now)
        flow.progress = now

    def receive(self, flow: Flow, received: bytes, now: float) -> None:
        self._goes_on(flow, now)
        if flow.expected:
            start = flow.offset % 256
            flow.offset += len(received)
            flow.expected -= len(received)
            if flow.expected < 0 or received != _PATTERN[start : start + len(received)]:
                self.end(flow, "corrupt", now)
            elif not flow.expected:
                flow.asked = 0.0
        elif flow.sequence:
            words = received.split()
            if words[-1] != str(_UPLOAD_SUM).encode():
                self.end(flow, "corrupt", now)
            flow.asked = 0.0
        else:
            super().receive(flow, received, now)  # the first request, which says who the pod is
        if flow.open and not flow.asked and not self.ending:
            self._begin(flow, now)

    def finish(self, now: float) -> None:
        self.ending = True  # the transfer that is under way is the last
