"""How the cost of a node grows with VIPs, buckets and endpoints: a figure, and a plot of all of it.

Each point is a node of its own with the real helper (`tests/bench/one_node.py`). The plot goes to docs/scaling.svg.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import structlog

from tests.bench import one_node
from tests.bench.chart import Panel, svg
from tests.bench.convergence import LIMIT, UPLINK
from tests.bench.figures import Figure, paired
from tests.bench.progress import Tell
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

FIGURES: Mapping[str, str] = {
    "scaling": "removal of one endpoint among ten times as many VIPs, and a plot of how costs grow",
}
PLOT = REPOSITORY / "docs" / "scaling.svg"
REMOVALS = 10
Size = tuple[int, int, int]
"""VIPs, buckets of each, endpoints of each."""
_NOTE = "A node with the real helper; {0} VIPs, {1} buckets and {2} endpoints where nothing else is said."


def grown(base: Size, axis: int, values: Sequence[int]) -> list[Size]:
    """The base with one of its numbers replaced by each value."""
    return [(*base[:axis], value, *base[axis + 1 :]) for value in values]  # type: ignore[misc]  # three again


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Few runs make few small nodes, and their plot goes to build/."""
    base: Size = (300, 256, 5)
    axes: tuple[Sequence[int], ...] = ((100, 300, 1000), (64, 256, 1024), (2, 5, 20, 50))
    plot, removals = PLOT, REMOVALS
    if runs < 50:
        base, axes, plot, removals = (2, 8, 2), ((2, 20), (8, 16), (2, 3)), REPOSITORY / "build" / PLOT.name, 2
    sizes = sorted({size for axis, values in enumerate(axes) for size in grown(base, axis, values)})
    found: dict[Size, dict[str, list[float]]] = {}
    for number, size in enumerate(sizes, 1):
        tell("node {} of {} with {} VIPs, {} buckets, {} endpoints".format(number, len(sizes), *size))
        found[size] = _of_a_node(size, removals)
    panels = [
        Panel(title, across, _lines(found, grown(base, axis, axes[axis]), axis))
        for axis, (title, across) in enumerate(
            (("VIPs", "VIPs"), ("Buckets", "buckets of each VIP"), ("Endpoints", "endpoints of each Service"))
        )
    ]
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(svg(panels, _NOTE.format(*base)))
    few, many = (found[size]["removal"] for size in grown(base, 0, (axes[0][0], axes[0][-1])))
    for name in wanted:
        yield paired(name, "ms", [1000 * s for s in many], "a tenth of the VIPs", [1000 * s for s in few])


def _lines(
    found: Mapping[Size, Mapping[str, list[float]]], sizes: Sequence[Size], axis: int
) -> dict[str, list[tuple[float, float]]]:
    return {
        f"{what}, ms": [(size[axis], 1000 * median(found[size][key])) for size in sizes]
        for what, key in (("a removal", "removal"), ("start-up", "start-up"))
    }


def _of_a_node(size: Size, removals: int) -> dict[str, list[float]]:
    with Host(one_node.NODE) as host:
        host.run("sh", "-ec", UPLINK)
        program = (sys.executable, "-m", "tests.bench.scaling", *map(str, (*size, removals)))
        done = host.run("sh", "-c", 'cd "$0" && exec "$@"', str(REPOSITORY), *program, timeout=LIMIT)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def main(vips: int, buckets: int, endpoints: int, removals: int) -> dict[str, list[float]]:
    """Run in a network and mount namespace of its own."""
    folder = Path("/run/bench")
    folder.mkdir(parents=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    world = one_node.World(vips, folder, endpoints, buckets)
    found = {"start-up": [world.start()]}
    time.sleep(1.5)
    found["removal"] = []
    for number in range(removals):
        found["removal"].append(world.removal(number % vips))
        time.sleep(0.05)
    world.stop()
    return found


if __name__ == "__main__":
    json.dump(main(*(int(text) for text in sys.argv[1:5])), sys.stdout)
