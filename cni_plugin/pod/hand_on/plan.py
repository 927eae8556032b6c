"""What is to change in a pod so that it hands on what it is to hand on: pure, from wanted tunnels and present state."""

from __future__ import annotations

from sys import byteorder

from cni_plugin.netlink import rtnl
from cni_plugin.netlink.address import pack, unpack, version
from cni_plugin.netlink.rtnl.encapsulation import EncapsulatedRoute
from cni_plugin.pod.hand_on.rules import fingerprint, mark_of
from cni_plugin.pod.target import HAND_ON_TABLE, PROTOCOL
from cni_plugin.record import Record
from cni_plugin.tunnel import GRE, TUNNEL_ID, HandOn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_plugin.tunnel import PodTunnels

    Elements = dict[tuple[int, str], frozenset[tuple[bytes, bytes]]]
    """(key, data) by IP version and set."""

RULE_PRIORITY = 1161
VERSIONS = (4, 6)
SETS = ("peers", "vips4", "vips6", "own")
"""Who may hand on to this pod, and for which VIPs; and all VIPs: configuration, as the two maps of steps are."""
MAPS = ("gateways", "devices")


class HandOnState(Record):
    """What a pod's namespace holds of it."""

    tables: dict[int, bytes]
    """Fingerprint of the rules of each IP version that there are any of."""
    elements: Elements
    """By IP version and set."""
    routes: tuple[EncapsulatedRoute, ...]
    rules: tuple[rtnl.Rule, ...]


class HandOnWanted(Record):
    """What it is to hold, with devices by name: they may not be there yet."""

    steps: dict[int, tuple[HandOn, str]]
    """By tunnel id: where to, and by which device."""
    peers: frozenset[tuple[str, str]]
    """Who may hand on, and for which VIP."""
    vips: frozenset[str]
    remaps: dict[tuple[str, int], int]
    """(VIP, port of the program) -> port that clients see; TCP only."""

    def __bool__(self) -> bool:
        return bool(self.steps or self.peers)


def wanted_of(wanted: PodTunnels, device_of: Mapping[str, str]) -> HandOnWanted:
    """`device_of`: the pod's device for each mode."""
    steps: dict[int, tuple[HandOn, str]] = {}
    peers: set[tuple[str, str]] = set()
    remaps: dict[tuple[str, int], int] = {}
    for tunnel in wanted.tunnels:
        for step in tunnel.hand_ons:
            steps.setdefault(step.tunnel_id, (step, device_of[tunnel.mode]))
        peers.update((peer, vip) for peer in tunnel.peers for vip in tunnel.vips)
        remaps.update(
            ((vip, remap.target_port), remap.port)
            for remap in tunnel.remaps
            if remap.protocol == "tcp"
            for vip in tunnel.vips
        )
    vips = frozenset(vip for tunnel in wanted.tunnels for vip in tunnel.vips)
    return HandOnWanted(steps, frozenset(peers), vips, remaps)


def gateway(tunnel_id: int, ip_version: int) -> str:
    """The name of a step as an address; it is met in table 117 only, where nothing else is looked up."""
    name = tunnel_id.to_bytes(3, "big")
    return unpack(b"\x0a" + name if ip_version == 4 else b"\xfd" + bytes(12) + name)


class Difference(Record):
    """What is to change."""

    install: tuple[int, ...]
    """IP versions whose rules are to be put."""
    add_rules: tuple[rtnl.Rule, ...]
    drop_elements: Elements
    drop_routes: tuple[EncapsulatedRoute, ...]
    put_routes: tuple[tuple[int, HandOn, str], ...]
    """(IP version, step, device)."""
    add_members: Elements
    learn: bool
    """Whether the rules are new or steps come, so that the pod's present connections have to be noted."""
    add_steps: tuple[tuple[int, int, str], ...]
    """(IP version, tunnel id, device)."""
    drop_tables: tuple[int, ...]
    drop_rules: tuple[rtnl.Rule, ...]
    wanted: HandOnWanted

    @property
    def what(self) -> str:
        """In words."""
        if not self.wanted:
            return "hand nothing on any more"
        ways = sorted({step.endpoint for step, _ in self.wanted.steps.values()})
        return f"hand on what does not begin here to {', '.join(ways)}" if ways else "take what peers hand on"


def difference(
    wanted: HandOnWanted, state: HandOnState, indices: Mapping[str, int], versions: tuple[int, ...] = VERSIONS
) -> Difference | None:
    """Pure; `indices`: of the pod's devices that there are; `versions`: of IP, those that the pod has.

    None where all is as it should be.
    """
    if not wanted:
        nothing = not (state.tables or state.routes or state.rules)
        none: Elements = {}
        gone = Difference((), (), none, state.routes, (), none, False, (), tuple(state.tables), state.rules, wanted)
        return None if nothing else gone
    install = tuple(v for v in versions if state.tables.get(v) != fingerprint(v))
    devices = {device for _, device in wanted.steps.values()}
    rules = {
        rtnl.rule(v, RULE_PRIORITY, HAND_ON_TABLE, protocol=PROTOCOL, device=device)
        for v in versions
        for device in devices
    }
    configured = _elements(wanted)
    drop: Elements = {}
    add_members: Elements = {}
    put_routes, add_steps, stale_routes = [], [], set(state.routes)
    for v in versions:
        present = {} if v in install else state.elements  # what is put anew comes without elements
        have = {name: present.get((v, name), frozenset()) for name in (*SETS, *MAPS)}
        for name in SETS:
            add_members[v, name] = configured[v, name] - have[name]
            drop[v, name] = have[name] - configured[v, name]
        right: dict[str, set[tuple[bytes, bytes]]] = {name: set() for name in MAPS}
        for tunnel_id, (step, device) in wanted.steps.items():
            mark, index = mark_of(tunnel_id), indices.get(device, 0)
            route = encapsulated(v, step, device, index)
            gateways = (mark, pack(route.destination))
            device_is = (mark, index_bytes(index))
            if route not in stale_routes:
                put_routes.append((v, step, device))
            stale_routes.discard(route)
            if gateways in have["gateways"] and device_is in have["devices"]:
                right["gateways"].add(gateways)
                right["devices"].add(device_is)
            else:
                add_steps.append((v, tunnel_id, device))
        for name in MAPS:
            drop[v, name] = have[name] - right[name]
    # A route that another one replaces need not go before.
    put_destinations = {gateway(step.tunnel_id, v) for v, step, _ in put_routes}
    drop_routes = tuple(
        route for route in state.routes if route in stale_routes and route.destination not in put_destinations
    )
    found = Difference(
        install,
        tuple(sorted(rules - set(state.rules), key=repr)),
        {place: members for place, members in drop.items() if members and place[0] not in install},
        drop_routes,
        tuple(put_routes),
        {place: members for place, members in add_members.items() if members},
        bool(add_steps or install),
        tuple(add_steps),
        tuple(v for v in install if v in state.tables),
        tuple(sorted(set(state.rules) - rules, key=repr)),
        wanted,
    )
    changes = (found.install, found.add_rules, found.drop_elements, found.drop_routes, found.put_routes)
    return found if any(changes) or found.add_members or found.add_steps or found.drop_rules else None


def encapsulated(ip_version: int, step: HandOn, device: str, index: int) -> EncapsulatedRoute:
    """The route of one step."""
    keyed = step.next_id != TUNNEL_ID and device.startswith(f"svctun-{GRE}")
    return EncapsulatedRoute(
        ip_version,
        gateway(step.tunnel_id, ip_version),
        HAND_ON_TABLE,
        PROTOCOL,
        index,
        step.endpoint,
        step.next_id,
        keyed,
    )


def _elements(wanted: HandOnWanted) -> Elements:
    """Of the sets. A peer's address says by which IP version it sends, and so in which table it belongs."""
    found: dict[tuple[int, str], set[tuple[bytes, bytes]]] = {(v, name): set() for v in VERSIONS for name in SETS}
    for peer, vip in wanted.peers:
        found[version(peer), "peers"].add((pack(peer), b""))
        found[version(peer), f"vips{version(vip)}"].add((pack(peer) + pack(vip), b""))
    for vip in wanted.vips:
        found[version(vip), "own"].add((pack(vip), b""))
    return {place: frozenset(members) for place, members in found.items()}


def index_bytes(index: int) -> bytes:
    """A device's index as the kernel has it in a register."""
    return index.to_bytes(4, byteorder)
