"""How fast a node of a large cluster follows: 1,000 Services of 5 endpoints, 256 buckets each, real kernel writes.

There is no peer for this; what is measured, and where, says `tests/bench/one_node.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import quantiles

from tests.bench.figures import Figure, alone
from tests.bench.progress import Tell
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

SERVICES = 1000
IDLE = 125.0
"""Seconds: four full comparisons, of which one looks at every route."""
FLOOD = 60.0
"""Seconds."""
LIMIT = 900.0
"""Seconds."""
FIGURES: Mapping[str, str] = {
    "convergence-p50": "removal of one endpoint among 5,000, from the source to the kernel: the median",
    "convergence-p99": "the same: the 99th percentile",
    "convergence-addition": "one endpoint more, which goes through a stored table: the median",
    "convergence-flood": "ten removals in a minute of 100 changes a second: the median",
    "start-up": "from the helper's begin to everything programmed, 256,000 routes",
    "memory": "the most that the helper and its source held",
    "idle-cpu": "processor time while nothing changes, full comparisons among it",
}
UPLINK = """
ip link set lo up
ip link add up0 type veth peer name up1
ip link set up1 up
ip link set up0 up
ip addr add 192.0.2.6/24 dev up0
ip route add default via 192.0.2.1
"""


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Of two nodes, one after the other, each with half of the changes; few runs make small nodes."""
    services, idle, flood = (SERVICES, IDLE, FLOOD) if runs >= 50 else (50, 0.3, 0.3)
    nodes = []
    for number in (1, 2):
        tell(f"node {number} of 2 with {services} Services")
        nodes.append(_of_a_node(services, max(2, runs // 2), idle, flood))
    samples = {
        "convergence-p50": ("ms", [1000 * second for node in nodes for second in node["removal"]]),
        "convergence-p99": ("ms", [1000 * quantiles(node["removal"], n=100, method="inclusive")[98] for node in nodes]),
        "convergence-addition": ("ms", [1000 * second for node in nodes for second in node["addition"]]),
        "convergence-flood": ("ms", [1000 * second for node in nodes for second in node["flood"]]),
        "start-up": ("s", [node["start-up"][0] for node in nodes]),
        "memory": ("MiB", [node["memory"][0] for node in nodes]),
        "idle-cpu": ("%", [node["idle-cpu"][0] for node in nodes]),
    }
    for name in wanted:
        unit, values = samples[name]
        yield alone(name, unit, values)


def _of_a_node(services: int, changes: int, idle: float, flood: float) -> dict[str, list[float]]:
    with Host("node5") as host:
        host.run("sh", "-ec", UPLINK)
        command = 'cd "$0" && exec "$@"'
        program = (sys.executable, "-m", "tests.bench.one_node", *map(str, (services, changes, idle, flood)))
        done = host.run("sh", "-c", command, str(REPOSITORY), *program, timeout=LIMIT)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found
