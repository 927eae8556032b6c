"""The loads of the matrix: what each is, and the programs that make it, one for each family."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.faults.cells import Outcome
from tests.testbed.cluster import Cluster
from tests.testbed.namespaces import TestbedError
from tests.testbed.scene import PATIENCE, VIPS

FAMILIES: Mapping[str, int] = {"v4": 4, "v6": 6}
MOST_REQUESTS = 1000.0
"""A second, of each family: what a program in Python does beside the cluster, on two processors."""
_SOURCES = 20
_PORT = 8080


@dataclass(frozen=True)
class LoadKind:
    """One kind of load."""

    what: str
    program: str
    """Name in `tests.faults.client`."""
    tcp: bool
    each: float = 0.0
    """Requests a second of each connection or flow, of all together `MOST_REQUESTS` at most."""
    rate: float = 0.0
    """Requests a second in all, where that does not depend on their number."""
    share: float = 1.0
    """How many of the connections that are asked for."""

    def count(self, connections: int) -> int:
        return max(min(4, connections), round(connections * self.share))

    def requests_per_second(self, connections: int) -> float:
        return self.rate or min(MOST_REQUESTS, self.each * self.count(connections))


LOADS: Mapping[str, LoadKind] = {
    "idle": LoadKind(
        "TCP connections that ask at their beginning, before an endpoint is deleted, and at their end",
        "streams",
        tcp=True,
    ),
    "busy": LoadKind("TCP connections that ask every 0.1 s", "streams", tcp=True, each=10.0),
    "new": LoadKind("new TCP connections, 500 a second", "newcomers", tcp=True, rate=500.0),
    "udp": LoadKind("UDP requests and answers, every 0.1 s in each flow", "datagrams", tcp=False, each=10.0),
    "transfers": LoadKind(
        "TCP connections that download and upload 1 MB in turn, without a pause", "transfers", tcp=True, share=0.02
    ),
    "fragments": LoadKind(
        "UDP requests and answers of 4,000 bytes, every second in each flow",
        "fragments",
        tcp=False,
        each=1.0,
        share=0.5,
    ),
}


class Running:
    """A load on the VIP of one family, from its beginning until `finish`, or the end of `with`."""

    def __init__(self, cluster: Cluster, kind: LoadKind, family: str, connections: int) -> None:
        version = FAMILIES[family]
        numbers = (kind.count(connections), kind.requests_per_second(connections))
        self._what = f"{kind.program} over {family}"
        self._process = cluster.client.popen(
            *(sys.executable, "-S", "-m", "tests.faults.client", kind.program, VIPS[version], str(_PORT)),
            *(*map(str, numbers), *cluster.client_addresses(version, _SOURCES)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.began = 0.0

    def wait_ready(self) -> None:
        """Until all connections are open. Raises TestbedError."""
        if self._line() != "ready\n":
            raise TestbedError(f"{self._what} has not begun")
        self.began = time.monotonic()

    def begin_check(self) -> None:
        """Have connections that are idle ask once."""
        self._tell("check")

    def wait_checked(self) -> None:
        """Until they are answered, or have not been for too long, which makes them lost. Raises TestbedError."""
        if self._line() != "checked\n":
            raise TestbedError(f"{self._what} says something else than `checked`")

    def end(self) -> None:
        """Have it come to its end; `outcome` waits for that."""
        self._tell("finish")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._line()  # which says why it has ended

    def outcome(self) -> Outcome:
        """Raises TestbedError when the program tells none."""
        found: Mapping[str, Any] = json.loads(self._line())
        return Outcome.of(found)

    def _line(self) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line: str = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            raise TestbedError(f"{self._what} has ended, or hangs: {self._process.stderr.read()[-2000:]}")
        return line

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                # What was not yet written to a program that has ended is of no use.
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
