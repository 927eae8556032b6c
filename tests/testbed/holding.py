"""Connections that stay open while things happen, and what became of each.

The program: `python holding.py VIP PORT COUNT [INTERVAL]` opens COUNT TCP connections, sends a line over each
every INTERVAL seconds and watches the answers. The lines `report` (counts) and `each` (connection by
connection) on standard input are answered by one line of JSON; the end of standard input ends it. `Held`
drives it from a test or the demo.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from tests.testbed.namespaces import Place

OPENING_SECONDS = 10.0


@dataclass(frozen=True)
class Report:
    """Counts of connections; `asked` = `kept` + `stalled` + `reset` + `closed` + `failed`."""

    asked: int
    kept: int
    """Open, and its last request was answered, or is not older than `STALL_SECONDS`."""
    stalled: int
    """Open, but a request has been without an answer for longer."""
    reset: int
    """Ended by a reset."""
    closed: int
    """Ended by the pod in an orderly way."""
    failed: int
    """Never came to be."""
    pods: Mapping[str, int]
    """Kept connections by the pod that answers."""
    moved: int
    """Connections that were answered by more than one pod: must be 0."""
    requests: int
    answers: int
    longest_gap: float
    """Seconds, the longest that an answer, or a request still unanswered, has taken."""

    @property
    def lost(self) -> int:
        return self.asked - self.kept


@dataclass(frozen=True)
class Connection:
    """One connection, as it is now."""

    source: str
    """The client's address and port; port 0 where the connection never came to be."""
    source_port: int
    outcome: str
    """`open`, or how it ended: `reset`, `closed` (by the pod, orderly), `failed` (never came to be)."""
    pods: Sequence[str]
    """Who has answered; more than one must never be."""
    answers: int


STALL_SECONDS = 1.0


@dataclass
class _Connection:
    stream: socket.socket
    source: tuple[str, int] = ("", 0)
    outcome: str = "opening"
    pods: list[str] = field(default_factory=list)
    asked_at: float = 0.0
    """When the request was sent that is not answered; 0 when there is none."""
    next_at: float = 0.0
    requests: int = 0
    answers: int = 0
    longest: float = 0.0


class _Holder:
    """Runs in the client's namespace."""

    def __init__(self, vip: str, port: int, interval: float) -> None:
        self._target = (vip, port)
        self._interval = interval
        self._events = selectors.DefaultSelector()
        self._all: list[_Connection] = []

    def open(self, sources: Sequence[str]) -> None:
        """Open a connection from each source ("" is the one the kernel takes), all at once."""
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        for source in sources:
            stream = socket.socket(family, socket.SOCK_STREAM)
            stream.setblocking(False)
            if source:
                stream.bind((source, 0))
            connection = _Connection(stream)
            self._all.append(connection)
            try:
                if stream.connect_ex(self._target) not in (0, 115):  # EINPROGRESS
                    self._end(connection, "failed")
                    continue
            except OSError:
                self._end(connection, "failed")
                continue
            self._events.register(stream, selectors.EVENT_WRITE, connection)
        deadline = time.monotonic() + OPENING_SECONDS
        # Each has its first answer, and with it a pod, before anything happens to the cluster.
        while any(each.outcome in ("opening", "open") and not each.pods for each in self._all):
            if time.monotonic() > deadline:
                break
            self._wait(0.05)
        for connection in self._all:
            if connection.outcome == "opening":
                self._end(connection, "failed")

    def run(self) -> None:
        """Ask and hear until standard input ends."""
        self._events.register(sys.stdin, selectors.EVENT_READ, None)
        print("ready", flush=True)
        while True:
            now = time.monotonic()
            due = now + self._interval
            for connection in self._all:
                if connection.outcome == "open" and not connection.asked_at:
                    if connection.next_at <= now:
                        self._ask(connection, now)
                    else:
                        due = min(due, connection.next_at)
            if not self._wait(max(0.0, due - time.monotonic())):
                return

    def _ask(self, connection: _Connection, now: float) -> None:
        try:
            connection.stream.send(b"hold\n")
        except OSError:
            self._end(connection, "reset")
            return
        connection.requests += 1
        connection.asked_at = now
        connection.next_at = now + self._interval

    def _wait(self, seconds: float) -> bool:
        """Handle what happens in this time; False when standard input has ended."""
        for key, _ in self._events.select(seconds):
            if key.data is None:
                line = sys.stdin.readline()
                if not line:
                    return False
                print(json.dumps(self._each() if line == "each\n" else self._report()), flush=True)
            elif key.data.outcome == "opening":
                self._opened(key.data)
            else:
                self._hear(key.data)
        return True

    def _opened(self, connection: _Connection) -> None:
        if connection.stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(connection, "failed")
            return
        connection.outcome = "open"
        connection.source = connection.stream.getsockname()[:2]
        # Spread over the interval, so that every moment has requests under way.
        connection.next_at = time.monotonic() + random.random() * self._interval
        self._events.modify(connection.stream, selectors.EVENT_READ, connection)
        self._ask(connection, time.monotonic())

    def _hear(self, connection: _Connection) -> None:
        try:
            answer = connection.stream.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, "reset")
            return
        if not answer:
            self._end(connection, "closed")
            return
        connection.longest = max(connection.longest, time.monotonic() - connection.asked_at)
        connection.asked_at = 0.0
        connection.answers += 1
        name = answer.split(b" ")[0].decode()
        if name not in connection.pods:
            connection.pods.append(name)

    def _end(self, connection: _Connection, outcome: str) -> None:
        connection.outcome = outcome
        if connection.stream in self._events.get_map():
            self._events.unregister(connection.stream)
        connection.stream.close()

    def _each(self) -> list[tuple[object, ...]]:
        return [(*each.source, each.outcome, each.pods, each.answers) for each in self._all]

    def _report(self) -> dict[str, object]:
        now = time.monotonic()
        kept, stalled, pods = 0, 0, dict[str, int]()
        longest = 0.0
        for each in self._all:
            waiting = now - each.asked_at if each.asked_at and each.outcome == "open" else 0.0
            longest = max(longest, each.longest, waiting)
            if each.outcome == "open" and waiting > STALL_SECONDS:
                stalled += 1
            elif each.outcome == "open":
                kept += 1
                for name in each.pods[-1:]:
                    pods[name] = pods.get(name, 0) + 1
        outcomes = [each.outcome for each in self._all]
        return {
            "asked": len(self._all),
            "kept": kept,
            "stalled": stalled,
            **{outcome: outcomes.count(outcome) for outcome in ("reset", "closed", "failed")},
            "pods": pods,
            "moved": sum(len(each.pods) > 1 for each in self._all),
            "requests": sum(each.requests for each in self._all),
            "answers": sum(each.answers for each in self._all),
            "longest_gap": longest,
        }


class Held:
    """Open connections to a VIP from a place, until `close` or the end of `with`."""

    def __init__(
        self, place: Place, vip: str, port: int, count: int, *, interval: float = 0.1, sources: Sequence[str] = ()
    ) -> None:
        """Open `count` connections, each asking every `interval` seconds; `sources` are used in turn."""
        program = [sys.executable, "-ISE", str(Path(__file__)), vip, str(port), str(count), str(interval), *sources]
        self._process = place.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()

    def report(self) -> Report:
        """How it stands with the connections now."""
        return Report(**self._ask("report"))

    def each(self) -> list[Connection]:
        """Every connection, always in the same order."""
        return [Connection(*fields) for fields in self._ask("each")]

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the program that holds connections has ended")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    vip, port, count, interval, *sources = sys.argv[1:]
    holder = _Holder(vip, int(port), float(interval))
    holder.open([sources[index % len(sources)] if sources else "" for index in range(int(count))])
    try:
        holder.run()
    except BrokenPipeError:  # whoever started it has gone meanwhile, and wants to hear nothing, at its exit neither
        os._exit(1)


if __name__ == "__main__":
    main()
