"""Many pods at once, as when a node has come up or a Deployment was scaled: the whole time, and the memory it takes.

Runtimes do not queue pods: every sandbox is set up as soon as it is asked for, so a hundred plugins run at once. One
run is one burst of ours and one of `tuning`, in changing order, each in a control group of its own; what a burst did
is undone before the next, outside of the timing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench import memory_peak
from tests.bench.figures import Figure, paired
from tests.bench.pods import OURS, TUNING, Node
from tests.bench.programs import programs
from tests.bench.progress import Tell
from tests.bench.spawning import Call, finish, start, undo

PODS = 100
RUNS_PER_BURST = 10
"""A burst takes so much longer than a pair that there are fewer of them: one for so many pairs."""
WARM_UP = 1
"""Bursts of each that are not counted."""
MIB = 1 << 20


@dataclass(frozen=True)
class Burst:
    """What is started at once."""

    what: str
    tunnels: bool


@dataclass(frozen=True)
class Taken:
    """What one burst took."""

    milliseconds: float
    mib: float


BURSTS = {
    "plugin-100-pods": Burst("ADD of 100 pods at once, without tunnels", tunnels=False),
    "plugin-100-pods-tunnels": Burst("ADD of 100 pods at once, each with an IPv4 and an IPv6 VIP", tunnels=True),
}
MEMORY = "-memory"
FIGURES: Mapping[str, str] = {
    name: what
    for burst_name, burst in BURSTS.items()
    for name, what in ((burst_name, burst.what), (burst_name + MEMORY, "memory at the peak of the same"))
}


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Milliseconds from the first start to the last end, and MiB; bursts are a tenth of `runs`, but at least two."""
    tell(f"a node with a helper and {PODS} pods")
    with programs() as compared, Node(PODS) as node:
        ours = [node.add(compared.ours, OURS, pod) for pod in node.pods]
        theirs = [node.add(compared.tuning, TUNING, pod) for pod in node.pods]
        for name, burst in BURSTS.items():
            if name in wanted or name + MEMORY in wanted:
                node.annotate(burst.tunnels)
                if burst.tunnels:
                    node.check_tunnels(ours)
                own, peer = _interleaved(node, ours, theirs, max(2, runs // RUNS_PER_BURST), name, tell)
                figures = (
                    paired(name, "ms", [t.milliseconds for t in own], "tuning", [t.milliseconds for t in peer]),
                    paired(name + MEMORY, "MiB", [t.mib for t in own], "tuning", [t.mib for t in peer]),
                )
                yield from (figure for figure in figures if figure.name in wanted)


def _interleaved(
    node: Node, ours: Sequence[Call], theirs: Sequence[Call], bursts: int, name: str, tell: Tell
) -> tuple[list[Taken], list[Taken]]:
    taken: tuple[list[Taken], list[Taken]] = ([], [])
    both = tuple(zip((ours, theirs), taken, strict=True))
    for number in range(-WARM_UP, bursts):
        tell(f"{name}: {max(number, 0)} of {bursts} bursts")
        for calls, samples in both if number % 2 else reversed(both):
            with memory_peak.group(f"service-tunnel-bench-{os.getpid()}") as group:
                samples.append(node.host.call(_all_at_once, calls, group, mounts=True))
            node.host.call(undo, calls, mounts=True)
    return taken[0][WARM_UP:], taken[1][WARM_UP:]


def _all_at_once(calls: Sequence[Call], group: memory_peak.Group) -> Taken:
    """Runs in a process of its own, which takes its children into the group and leaves it by ending."""
    before = group.enter()
    began = time.perf_counter()
    for running in [start(call) for call in calls]:
        finish(running)
    milliseconds = 1000 * (time.perf_counter() - began)
    return Taken(milliseconds, (group.peak() - before) / MIB)
