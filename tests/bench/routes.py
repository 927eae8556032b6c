"""How fast routes get into the kernel: our bulk path against `ip -batch`, in pairs, in a namespace of its own.

`ip -batch` is what one would use without code of one's own: one process, one socket, and an answer for each message.
Ours is a process, too, from the start of the interpreter to its end; `-daemon` leaves the start out, as it is when a
helper runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cni_plugin.netns import entered
from tests.bench import spawning
from tests.bench.figures import Figure, alone, paired
from tests.bench.programs import interpreter
from tests.bench.progress import Tell
from tests.bench.put_routes import GATEWAY, address, places
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

FIGURES: Mapping[str, str] = {
    "routes": "65,536 routes in 64 tables by gateway and device, as a process: routes a second",
    "routes-nhid": "the same by a nexthop object",
    "routes-vips": "1,000 VIPs of 256 buckets, as a process: routes a second",
    "routes-daemon": "65,536 routes in 64 tables by gateway and device, without the interpreter's start",
    "routes-nhid-daemon": "the same by a nexthop object",
    "routes-vips-daemon": "1,000 VIPs of 256 buckets, without the interpreter's start",
    "routes-memory": "the most memory that the process of routes-vips held",
}
PEER = "ip -batch"
PROGRAM = REPOSITORY / "tests" / "bench" / "put_routes.py"
PAIRS = 7
_SET_UP = f"""
ip link add bench0 type veth peer name bench1
ip link set bench1 up
ip link set bench0 up
ip addr add 10.244.0.1/24 dev bench0
ip nexthop add id 1 via {GATEWAY} dev bench0
"""


@dataclass(frozen=True)
class Work:
    """A number of routes to write."""

    kind: str
    first: int
    second: int

    @property
    def routes(self) -> int:
        return self.first * self.second

    def lines(self) -> Iterator[str]:
        """The same routes for `ip -batch`."""
        by = f"via {GATEWAY} dev bench0 onlink" if self.kind == "plain" else "nhid 1"
        found = ((address(vip), 1000 + bucket) for vip in range(self.first) for bucket in range(self.second))
        mtu = " mtu 1400" if self.kind == "vips" else ""
        for destination, table in found if self.kind == "vips" else places(self.first, self.second):
            yield f"route replace {'.'.join(map(str, destination))}/32 table {table} {by}{mtu} proto 116\n"


def works(quick: bool) -> Mapping[str, Work]:
    """By figure, without `-daemon`; few runs make small work."""
    size = 8 if quick else 1
    return {
        "routes": Work("plain", 64, 1024 // size),
        "routes-nhid": Work("nhid", 64, 1024 // size),
        "routes-vips": Work("vips", 1000 // size, 256),
    }


@dataclass(frozen=True)
class Times:
    """Seconds of pairs, one after the other, and what ours held."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    """Of ours, without the interpreter's start."""
    held: list[float] = field(default_factory=list)
    """MiB."""


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Each process begins with a namespace without routes."""
    quick = runs < 50
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder, Host("routes") as host:
        host.run("ip", "link", "set", "lo", "up")
        for name, work in works(quick).items():
            of_it = {name, f"{name}-daemon", *(["routes-memory"] if name == "routes-vips" else [])}
            if not of_it & set(wanted):
                continue
            batch = Path(folder) / name
            batch.write_text("".join(work.lines()))
            tell(name)
            times = _pairs(host, work, batch, 2 if quick else PAIRS)
            ours, theirs, inside = (
                [work.routes / seconds for seconds in each] for each in (times.ours, times.theirs, times.inside)
            )
            found = {
                name: paired(name, "routes/s", ours, PEER, theirs),
                f"{name}-daemon": paired(f"{name}-daemon", "routes/s", inside, PEER, theirs),
                "routes-memory": alone("routes-memory", "MiB", times.held),
            }
            yield from (found[figure] for figure in found if figure in of_it & set(wanted))


def _pairs(host: Host, work: Work, batch: Path, pairs: int) -> Times:
    times = Times()
    ours = (str(interpreter()), "-ISE", str(PROGRAM), work.kind, str(work.first), str(work.second))
    theirs = (shutil.which("ip") or "ip", "-batch", str(batch))
    for pair in range(-1, pairs):
        first = pair % 2 == 0
        order = (ours, theirs) if first else (theirs, ours)
        seconds, said = zip(*[_process(host, arguments) for arguments in order], strict=True)
        if pair < 0:
            continue  # which warms up
        own = 0 if first else 1
        inside, held = map(float, said[own].split())
        times.ours.append(seconds[own])
        times.theirs.append(seconds[1 - own])
        times.inside.append(inside)
        times.held.append(held / 1024)
    return times


def _process(host: Host, arguments: tuple[str, ...]) -> tuple[float, str]:
    """Seconds from start to end, and what it printed."""
    host.run("sh", "-ec", _SET_UP)
    with entered(f"/proc/{host.pid}/ns/net"):
        running = spawning.start(spawning.Call(arguments, {}))
    said = os.read(running.output, 1 << 12).decode()
    seconds = spawning.finish(running)
    host.run("ip", "link", "del", "bench0")  # and with it, its routes
    return seconds, said
