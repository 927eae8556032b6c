"""Flows and connections of the demo's client: where they go, and what became of them after a change.

A flow is known by VIP, source address and source port. HMARK leaves the protocol out, so a UDP flow and a
TCP connection of the same numbers go the same way, and what `trace` says of one holds for the other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.testbed import traffic
from tests.testbed.holding import Connection, Held
from tests.testbed.scene import VIPS, Helper, Scene

Flow = tuple[str, str, int]
"""VIP, source address, source port."""
Owners = Mapping[Flow, str]
"""The pod that each flow reaches."""

PORT = 8080


@dataclass(frozen=True)
class Moves:
    """Two looks at the same flows, compared."""

    total: int
    moved: Mapping[Flow, tuple[str, str]]
    """Flows that have changed pod, from which and to which."""
    silent: int
    """Flows without an answer at the second look."""

    def beyond(self, *, to: str = "", away_from: str = "") -> int:
        """Moves that are neither to the one pod nor away from the other: those that nothing made necessary."""
        return sum(new != to and old != away_from for old, new in self.moved.values())


def compare(before: Owners, after: Owners) -> Moves:
    """What changed from one look to the next."""
    moved = {flow: (pod, after[flow]) for flow, pod in before.items() if flow in after and after[flow] != pod}
    return Moves(len(before), moved, sum(flow not in after for flow in before))


def shares(owners: Owners) -> dict[str, float]:
    """Each pod's part of the flows, 0 to 1, by the pod's name."""
    counts = Counter(owners.values())
    return {name: counts[name] / len(owners) for name in sorted(counts)}


def udp_owners(scene: Scene, count: int, *, timeout: float) -> dict[Flow, str]:
    """Asks by one datagram per flow, `count` flows per IP version; those without an answer are left out.

    Raises WrongAnswer when a pod sees another client than the real one.
    """
    found: dict[Flow, str] = {}
    for version, vip in VIPS.items():
        flows = scene.cluster.client_flows(version, count)
        asked = scene.cluster.client.call(traffic.udp_flows, vip, PORT, flows, timeout=timeout, limit=120.0)
        found |= {(vip, *flow): name for flow, name in asked.items()}
    return found


def tcp_owners(scene: Scene, count: int, *, timeout: float) -> dict[Flow, str]:
    """The same by TCP connections, one after the other; raises NoAnswer, ConnectionError, WrongAnswer."""
    found: dict[Flow, str] = {}
    for version, vip in VIPS.items():
        flows = scene.cluster.client_flows(version, count)
        asked = scene.cluster.client.call(traffic.tcp_flows, vip, PORT, flows, timeout=timeout, limit=120.0)
        found |= {(vip, *flow): name for flow, name in asked.items()}
    return found


def traced(helper: Helper, flows: Iterable[Flow]) -> dict[Flow, str]:
    """Where an ingress node's helper says that these flows go."""
    return {
        (vip, source, port): str(helper.trace("tcp", source, port, vip, PORT)["pod"]).partition("/")[2]
        for vip, source, port in flows
    }


@dataclass(frozen=True)
class Fates:
    """What became of held connections."""

    kept: frozenset[Flow]
    lost: frozenset[Flow]
    longest_wait: float
    """Seconds, the longest that any answer has taken."""

    @property
    def total(self) -> int:
        return len(self.kept) + len(self.lost)


class Connections:
    """TCP connections to both VIPs, each asking again and again, until the end of `with`."""

    def __init__(self, scene: Scene, count: int, interval: float) -> None:
        """Open `count` per IP version; each asks every `interval` seconds."""
        self._held: dict[str, Held] = {}
        try:
            for version, vip in VIPS.items():
                sources = scene.cluster.client_addresses(version, 16)
                self._held[vip] = Held(scene.cluster.client, vip, PORT, count, interval=interval, sources=sources)
        except BaseException:
            self.close()
            raise

    def owners(self) -> dict[Flow, str]:
        """The pods of the open connections."""
        return {flow: each.pods[-1] for flow, each in self._look().items() if each.outcome == "open" and each.pods}

    def fates(self, of: Iterable[Flow], seconds: float) -> Fates:
        """Waits until each connection has answered anew, or has ended; what is silent for `seconds` is lost."""
        before = self._look()
        deadline = time.monotonic() + seconds
        while True:
            now = self._look()
            # The first answer may belong to a question from before; the second cannot.
            kept = {flow for flow, each in now.items() if each.answers >= before[flow].answers + 2}
            if time.monotonic() > deadline or not [
                f for f, each in now.items() if each.outcome == "open" and f not in kept
            ]:
                break
            time.sleep(0.05)
        kept = {flow for flow in kept if now[flow].outcome == "open" and len(now[flow].pods) == 1}
        wait = max(held.report().longest_gap for held in self._held.values())
        wanted = frozenset(of)
        return Fates(wanted & kept, wanted - kept, wait)

    def _look(self) -> dict[Flow, Connection]:
        return {(vip, each.source, each.source_port): each for vip, held in self._held.items() for each in held.each()}

    def close(self) -> None:
        for held in self._held.values():
            held.close()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bars(owners: Owners, names: Sequence[str]) -> str:
    """The pods' parts of the flows, drawn."""
    counts, total = Counter(owners.values()), len(owners)
    percents = {name: 100 * counts[name] / total for name in names}
    return "\n".join(
        f"{name:<6}{counts[name]:>6} flows {percents[name]:>6.1f} %  {'#' * round(percents[name])}" for name in names
    )
