"""Loads of UDP: requests and answers that fit into a packet, and such as are fragmented."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque

from tests.faults.flows import OPENING, OPENING_SECONDS, STALL, Flow, Load

SO_RCVBUFFORCE = 33
DATAGRAM, FRAGMENTED = 64, 4000
"""Bytes of a request, and of its answer where that is fragmented; up to 255 more, by which requests differ."""


class Datagrams(Load):
    """UDP requests and their answers: COUNT flows, RATE requests a second in all, one under way in each flow."""

    size = DATAGRAM

    def start(self) -> None:
        self._interval = self.count / self.rate
        for _ in range(self.count):
            flow = self.make(socket.SOCK_DGRAM)
            flow.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
            flow.socket.connect(self.target)
            self.events.register(flow.socket, selectors.EVENT_READ, flow)
            flow.open = True
            self.flows.append(flow)
        self.opened = self.count
        deadline = time.monotonic() + OPENING_SECONDS
        left = self.flows
        while left and time.monotonic() < deadline:
            for flow in left[:OPENING]:
                self.send(flow, time.monotonic())
            while (events := self.events.select(0.2)) and any(flow.asked for flow in left[:OPENING]):
                for key, ready in events:
                    self.hear(key.data, ready, time.monotonic())
            left = [flow for flow in left if not flow.pod]
        if left:
            raise SystemExit(f"{len(left)} flows were not answered in {OPENING_SECONDS} s")
        self.requests = 0
        self.longest = 0.0
        self.stalls.clear()
        now = time.monotonic()
        self._due = deque((now + self._interval * n / self.count, flow) for n, flow in enumerate(self.flows))

    def send(self, flow: Flow, now: float) -> None:
        flow.sequence += 1
        flow.asked = now
        self.requests += 1
        # The answer says how many bytes came: so it says which request it answers.
        size = self.size + flow.sequence % 256
        text = b"big %d" % size if self.size > 1400 else b"ask"
        try:
            flow.socket.send(text.ljust(size))
        except OSError:
            return  # an ICMP error about the request before; this one stays without an answer

    def tick(self, now: float) -> float:
        while self._due and self._due[0][0] <= now and not self.ending:
            due, flow = self._due.popleft()
            if self.is_overdue(flow, now):
                self.lost_requests.append((flow.pod, flow.asked, now))
                flow.asked = 0.0
            if not flow.asked:
                self.send(flow, now)
            self._due.append((max(due, now - self._interval) + self._interval, flow))
        if self.ending:
            for flow in self.flows:
                if self.is_overdue(flow, now):
                    self.lost_requests.append((flow.pod, flow.asked, now))
                    self.send(flow, now)  # a flow is lost when nothing is answered any more
            return 0.2
        return self._due[0][0] - now

    def is_overdue(self, flow: Flow, now: float) -> bool:
        """Whether its answer is missing for too long: not only unread, because this program was late itself."""
        if flow.asked and now - flow.asked > STALL:
            self.hear(flow, selectors.EVENT_READ, now)
        return bool(flow.asked) and now - flow.asked > STALL

    def hear(self, flow: Flow, events: int, now: float) -> None:
        while True:
            try:
                words = flow.socket.recv(1 << 14).split()
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error in the place of an answer, which is missing then
            if flow.asked and int(words[3]) == self.size + flow.sequence % 256:
                self.answered(flow, words[0].decode(), flow.asked, now)
                flow.asked = 0.0

    def finish(self, now: float) -> None:
        super().finish(now)
        for flow in self.flows:
            if not flow.asked:
                self.send(flow, now)


class Fragments(Datagrams):
    """The same with datagrams that are fragmented, both ways."""

    size = FRAGMENTED
