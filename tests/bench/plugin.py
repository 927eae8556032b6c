"""How long one call of the plugin takes, against the Go plugin `tuning` and against Python's own start.

A plugin is a new process for every pod, so nearly all of its time is start-up. Each pair is measured in one place, a
node of the testbed with the real helper, one call right after the other and with the order changing from pair to
pair; what a call did is undone before the next, outside of the timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench import page_cache
from tests.bench.figures import Figure, paired
from tests.bench.pods import OURS, TUNING, Node
from tests.bench.programs import Program, Programs, interpreter, programs
from tests.bench.progress import Tell
from tests.bench.spawning import Call, seconds_of

WARM_UP = 5
"""Pairs that are not counted."""
LIMIT = 3600.0
"""Seconds for one benchmark; it only keeps a hanging one from staying for ever."""

Make = Callable[[Programs, Node], Call]


@dataclass(frozen=True)
class Pair:
    """What is compared."""

    what: str
    ours: Make
    peer: str
    theirs: Make
    tunnels: bool = False
    """Whether the pod is to get tunnels; looked at once, before anything counts."""
    cold: bool = False
    """Whether both programs' files come from disk each time."""


def version(program: Program) -> Call:
    return Call((str(program.path),), {"CNI_COMMAND": "VERSION"}, files=program.files)


def our_version(programs: Programs, node: Node) -> Call:
    return version(programs.ours)


def their_version(programs: Programs, node: Node) -> Call:
    return version(programs.tuning)


def floor(programs: Programs, node: Node) -> Call:
    return Call((str(interpreter()), "-ISE", "-c", "pass"), {})


def our_add(programs: Programs, node: Node) -> Call:
    return node.add(programs.ours, OURS, node.pods[0])


def their_add(programs: Programs, node: Node) -> Call:
    return node.add(programs.tuning, TUNING, node.pods[0])


PYTHON = "python3 -ISE -c pass"
PAIRS = {
    "plugin-version": Pair("VERSION", our_version, "tuning", their_version),
    "plugin-version-cold": Pair(
        "VERSION, both programs read from disk", our_version, "tuning", their_version, cold=True
    ),
    "plugin-version-floor": Pair("VERSION against Python that does nothing", our_version, PYTHON, floor),
    "plugin-floor": Pair("Python that does nothing against tuning's VERSION", floor, "tuning", their_version),
    "plugin-add": Pair("ADD of a pod without tunnels, the helper answering", our_add, "tuning", their_add),
    "plugin-add-cold": Pair("the same, both programs read from disk", our_add, "tuning", their_add, cold=True),
    "plugin-add-tunnel": Pair(
        "ADD of a pod with an IPv4 and an IPv6 VIP, vxlan-gpe", our_add, "tuning", their_add, tunnels=True
    ),
    "plugin-add-tunnel-cold": Pair(
        "the same, both programs read from disk", our_add, "tuning", their_add, tunnels=True, cold=True
    ),
}
FIGURES: Mapping[str, str] = {name: pair.what for name, pair in PAIRS.items()}


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Milliseconds from the start of a process to its end."""
    tell("a node with a helper and a pod")
    with programs() as compared, Node(pods=1) as node:
        for name in wanted:
            pair = PAIRS[name]
            ours, theirs = pair.ours(compared, node), pair.theirs(compared, node)
            node.annotate(pair.tunnels)
            if pair.tunnels:
                node.check_tunnels([ours])
            samples = node.host.call(_interleaved, ours, theirs, runs, pair.cold, name, tell, mounts=True, limit=LIMIT)
            yield paired(name, "ms", samples[0], pair.peer, samples[1])


def _interleaved(
    ours: Call, theirs: Call, runs: int, cold: bool, name: str, tell: Tell
) -> tuple[list[float], list[float]]:
    """Milliseconds of the calls of each pair."""
    samples: tuple[list[float], list[float]] = ([], [])
    both = tuple(zip((ours, theirs), samples, strict=True))
    for number in range(-WARM_UP, runs):
        tell(f"{name}: {max(number, 0)} of {runs} pairs")
        for call, taken in both if number % 2 else reversed(both):
            if cold:
                page_cache.drop(call.files)
            taken.append(1000 * seconds_of(call))
    return samples[0][WARM_UP:], samples[1][WARM_UP:]
