"""Which connections show whether the endpoints of a VIP answer from here, and what their outcomes mean.

A probe goes the way of clients' packets: to the VIP, through the router, in the tunnel; and the answer comes by the
pod's own way. The hash of its ports decides which endpoint gets it, so its source port is chosen by that hash.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf

from node_helper.hmark import Flow, bucket
from node_helper.plan.state import VipBuckets

_FIRST_PORT, _LAST_PORT = 61_000, 65_535
"""Beyond what kernels take for other connections (`ip_local_port_range`, by default)."""
PROBES_A_SECOND = 20
"""While all VIPs answer: so many cost next to nothing; with more VIPs each is probed more seldom."""
AGAIN = 1.0
"""Seconds to the next probe of a VIP that did not answer."""
STRIKES = 3
"""Times, one after the other, that no endpoint of a VIP has answered: then it is silent."""


@dataclass(frozen=True, slots=True)
class Aim:
    """How to reach each endpoint of a VIP."""

    vip: str
    port: int
    """Of the VIP."""
    source: str
    """Address of this node."""
    source_ports: tuple[int, ...]
    """Of each endpoint that has a bucket one that leads there."""


def aim(vip: str, port: int, source: str, ways: VipBuckets, seed: int, addresses_only: bool) -> Aim | None:
    """None where some endpoint cannot be reached by any port of ours, so that nothing could be said of the VIP.

    `addresses_only`: the VIP is hashed so, and all that this node sends to it goes to one endpoint.
    """
    owners = [hop and (hop.endpoint, hop.label) for hop in ways.hops]
    flow = Flow("tcp", ip_address(source), _FIRST_PORT, ip_address(vip), port)
    if addresses_only:
        owner = owners[bucket(flow, len(owners), seed, addresses_only=True)]
        return Aim(vip, port, source, (_FIRST_PORT,)) if owner is not None else None
    missing = {owner for owner in owners if owner is not None}
    found = []
    for source_port in range(_FIRST_PORT, _LAST_PORT + 1):
        if not missing:
            break
        flow = Flow("tcp", flow.source, source_port, flow.destination, port)
        owner = owners[bucket(flow, len(owners), seed)]
        if owner in missing:
            missing.remove(owner)
            found.append(source_port)
    return Aim(vip, port, source, tuple(found)) if found and not missing else None


@dataclass(slots=True)
class _State:
    next_at: float
    turn: int = 0
    strikes: int = 0
    """Probes in a row without an answer: the first was of one endpoint, the others of all."""
    has_answered: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """A VIP that is to be probed now."""

    vip: str
    turn: int
    """Counts the probes of a VIP: endpoints take turns."""
    all_endpoints: bool


class Answers:
    """Follows what probes found. A VIP is silent after `STRIKES` probes in a row that no endpoint answered.

    One that has never answered is not: then probes themselves may be what does not get through, by a network policy
    that keeps nodes out, and clients' packets do.
    """

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two probes of a VIP that answers, at least."""
        self._interval = self._pause = interval
        self._states: dict[str, _State] = {}

    @property
    def silent(self) -> frozenset[str]:
        return frozenset([vip for vip, state in self._states.items() if state.silent])

    def due(self, vips: Collection[str], now: float) -> list[Due]:
        """Of these VIPs, which are all there are, those whose time has come; `note` is to follow for each."""
        self._pause = max(self._interval, len(vips) / PROBES_A_SECOND)
        for vip in self._states.keys() - set(vips):
            del self._states[vip]
        for number, vip in enumerate(vips):
            if vip not in self._states:
                # Spread over the time that there is, so that they stay spread.
                self._states[vip] = _State(now + self._pause * number / len(vips))
        found = []
        for vip, state in self._states.items():
            if now >= state.next_at:
                found.append(Due(vip, state.turn, state.strikes > 0 or state.silent))
                state.turn += 1
                state.next_at = inf  # one at a time: a second from the same port would be refused
        return found

    def note(self, vip: str, answered: bool | None, now: float) -> None:
        """What a probe found: whether any of the endpoints that it asked answered; None where it could not be made."""
        state = self._states.get(vip)
        if state is None:
            return
        state.next_at = now + self._pause
        if answered is None:
            return
        if answered:
            state.strikes, state.has_answered, state.silent = 0, True, False
            return
        state.strikes += 1
        # The first strike was of a single endpoint.
        if state.strikes > STRIKES and state.has_answered:
            state.silent = True
        if state.has_answered:
            state.next_at = min(state.next_at, now + (self._interval if state.silent else AGAIN))

    def next_at(self) -> float | None:
        return min([state.next_at for state in self._states.values()], default=None)
