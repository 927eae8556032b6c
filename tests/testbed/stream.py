"""A stream of datagrams to a VIP that goes on while things happen, each of them counted: one lost is one too many.

The program: `python stream.py VIP PORT FLOWS INTERVAL` sends a datagram over each of FLOWS sockets every INTERVAL
seconds, and counts the answers, which the pods' server sends one of for each. A line on standard input is answered by
one of JSON: what was sent so far, and how much of it was answered a second later at most. `Stream` drives it.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.testbed.namespaces import Place

PATIENCE = 2.0
"""Seconds for the last answers."""


@dataclass(frozen=True)
class Count:
    """Of all flows together."""

    sent: int
    answered: int

    @property
    def lost(self) -> int:
        return self.sent - self.answered


def _stream(vip: str, port: int, flows: int, interval: float) -> None:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(flows)]
    for each in sockets:
        each.connect((vip, port))
        each.setblocking(False)
    sent = answered = 0
    due = time.monotonic()
    asked_at = 0.0
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        if not asked_at and now >= due:
            for each in sockets:
                each.send(b"on it goes")
            sent += flows
            due += interval
        wait = 0.05 if asked_at else max(0.0, due - now)
        readable, _, _ = select.select([*sockets, sys.stdin], [], [], wait)
        answered += sum(_heard(each) for each in sockets if each in readable)
        if sys.stdin in readable:
            if not sys.stdin.readline():
                return
            asked_at = time.monotonic()
        if asked_at and (answered == sent or time.monotonic() > asked_at + PATIENCE):
            print(json.dumps([sent, answered]), flush=True)
            asked_at, due = 0.0, time.monotonic()


def _heard(datagrams: socket.socket) -> int:
    count = 0
    while True:
        try:
            datagrams.recv(1 << 12)
        except BlockingIOError:
            return count
        except ConnectionError:
            continue  # an ICMP error instead of an answer, which is missing then
        count += 1


class Stream:
    """The stream from a place, until `close` or the end of `with`."""

    def __init__(self, place: Place, vip: str, port: int, flows: int = 20, interval: float = 0.01) -> None:
        program = [sys.executable, "-ISE", str(Path(__file__)), vip, str(port), str(flows), str(interval)]
        self._process = place.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()

    def count(self) -> Count:
        """What was sent until now, and what came of it; the stream goes on afterwards."""
        assert self._process.stdin is not None
        self._process.stdin.write("count\n")
        self._process.stdin.flush()
        return Count(*json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the program that streams has ended")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    _stream(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
