"""What a pod's netns is to hold, the wanted tunnels in the kernel's terms, beside what it holds; and our names there.

`plan` compares the two and says what has to change.
"""

from __future__ import annotations

from cni_plugin.netlink import nftables, rtnl
from cni_plugin.netlink.address import BITS, pack, version
from cni_plugin.pod import ruleset
from cni_plugin.record import Record
from cni_plugin.tunnel import GRE, KEY_OVERHEAD, MPLS, VXLAN_GPE, PodTunnels, overhead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugin.pod.hand_on.plan import HandOnState

DEVICE = {VXLAN_GPE: "svctun-gpe", GRE: "svctun-gre"}
"""The decapsulating device of each mode that has one."""
DEVICE_FOR_IPV6_UNDERLAY = {GRE: "svctun-gre6"}
"""GRE has another kind of device where pods have IPv6 addresses only."""
PROTOCOL = 116
"""Marks our routes and rules as ours (rtnetlink protocol number)."""
TABLE = 116
RULE_PRIORITY = 1160
HAND_ON_TABLE = 117
"""Of the routes by which packets are handed on."""
PLATFORM_LABELS = 1000
LABEL_INPUT = "mpls/conf/{}/input"
"""The sysctl by which a device takes labels."""
_TCP_HEADERS = {4: 40, 6: 60}


class PodState(Record):
    """What a pod's netns holds at this moment, as far as it concerns us."""

    interface: rtnl.Link
    """The pod's own interface (eth0)."""
    mtus: dict[int, int]
    """MTU of every device by its index."""
    links: tuple[rtnl.Link, ...]
    """Our devices."""
    addresses: tuple[rtnl.Address, ...]
    default_routes: tuple[rtnl.Route, ...]
    """Default routes of table main, by whichever device; of each IP version the preferred one first."""
    our_routes: tuple[rtnl.Route, ...]
    foreign_replies: tuple[rtnl.Route, ...]
    """Default routes of somebody else in our table."""
    our_rules: tuple[rtnl.Rule, ...]
    label_routed: bool
    label_guard: frozenset[bytes] | None
    """Link-layer addresses from which labels are taken; None where nobody asks."""
    gateways: frozenset[bytes] | None
    """Link-layer addresses of the interface's gateways, None without any; read where a label is wanted."""
    ruleset: bytes | None
    """Fingerprint of the nf_tables table, None where there is none."""
    elements: dict[str, frozenset[tuple[bytes, bytes]]]
    """Elements of the table's sets by name."""
    sysctls: dict[str, str]
    """Values of the sysctls that `SYSCTLS` names, those that exist."""
    loopback: int
    """Index of `lo`."""
    ipv6: bool = True
    """Whether `lo` takes IPv6 addresses."""
    hand_on: HandOnState | None = None
    """What hands packets on, None where there is nothing of it."""

    def addresses_of(self, ip_version: int) -> tuple[str, ...]:
        return tuple(
            found.address
            for found in self.addresses
            if found.link == self.interface.index and version(found.address) == ip_version and found.scope == 0
        )


def sysctls(interface: str) -> tuple[str, ...]:
    """The sysctls below /proc/sys/net that are looked at, and all but the first two changed, in a pod."""
    return (
        "ipv4/conf/all/rp_filter",
        "ipv4/conf/default/rp_filter",
        "ipv4/conf/lo/rp_filter",
        "mpls/platform_labels",
        LABEL_INPUT.format(interface),
        *(f"ipv4/conf/{device}/rp_filter" for device in (*DEVICE.values(), *DEVICE_FOR_IPV6_UNDERLAY.values())),
    )


class Unsupported(ValueError):
    """The wanted tunnels cannot be had in this pod; the text says why and what to do."""


class Target:
    """The wanted tunnels in the kernel's terms."""

    def __init__(self, wanted: PodTunnels, state: PodState) -> None:
        self.wanted = wanted
        outer = 4 if state.addresses_of(4) else 6
        self.outer_version = outer
        self.devices: dict[str, str] = {}
        self.label = self.hands_on = False
        self.device_vips: set[tuple[str, str]] = set()
        self.vip_overhead: dict[str, int] = {}
        for tunnel in wanted.tunnels:
            if tunnel.mode == MPLS:
                self.label = True
                if "mpls/platform_labels" not in state.sysctls:
                    raise Unsupported(
                        "mode mpls needs the kernel's MPLS routing, which this node lacks: "
                        "`modprobe mpls_router`, or another cmd.nu/tunnel-mode"
                    )
            moving = bool(tunnel.hand_ons or tunnel.peers)
            self.hands_on = self.hands_on or moving
            # Hosts take no labels from pods: what pods hand on to each other goes by VXLAN-GPE instead.
            by = VXLAN_GPE if moving and tunnel.mode == MPLS else tunnel.mode
            if by != MPLS:
                device = (DEVICE_FOR_IPV6_UNDERLAY if outer == 6 else DEVICE).get(by, DEVICE[by])
                self.devices[device] = by
                self.device_vips |= {(device, vip) for vip in tunnel.vips if version(vip) == 4}
            taken = overhead(by, outer) + (KEY_OVERHEAD if moving and by == GRE else 0)
            for vip in tunnel.vips:
                self.vip_overhead[vip] = max(self.vip_overhead.get(vip, 0), taken)
        self.vips = frozenset(self.vip_overhead)
        self.elements = _elements(wanted)
        if self.label:
            from cni_plugin.pod import labels  # only where the mode is used

            self.elements |= labels.remembered(state)
        self.routes = _routes(self.vip_overhead, state)
        self.rules = {
            rule_of(vip) for vip in self.vips if any(route.version == version(vip) for route in self.routes.values())
        }


def _elements(wanted: PodTunnels) -> dict[str, frozenset[tuple[bytes, bytes]]]:
    sets: dict[str, set[tuple[bytes, bytes]]] = {name: set() for name in ruleset.set_names()}
    protocols = {"tcp": bytes([6]), "udp": bytes([17])}
    for tunnel in wanted.tunnels:
        for vip in tunnel.vips:
            ip_version, raw = version(vip), pack(vip)
            sets[f"vips{ip_version}"].add((raw, b""))
            key = ruleset.key_type("remap", ip_version)
            for remap in tunnel.remaps:
                port, target = remap.port.to_bytes(2, "big"), remap.target_port.to_bytes(2, "big")
                seen = nftables.key_bytes(key, (raw, protocols[remap.protocol], port))
                real = nftables.key_bytes(key, (raw, protocols[remap.protocol], target))
                sets[f"remap{ip_version}"].add((seen, target))
                sets[f"unmap{ip_version}"].add((real, port))
        for peer in tunnel.peers:
            sets[f"peers{version(peer)}"].add((pack(peer), b""))
    for ip_version in (4, 6):
        sets[f"odd{ip_version}"] = set(sorted(sets[f"vips{ip_version}"])[1::2])
    for source in wanted.sources:
        sets[f"sources{version(source)}"].add((pack(source), b""))
    if wanted.sources:
        sets["guarded4"].add((bytes([nftables.IPV4]), b""))
        sets["guarded6"].add((bytes([nftables.IPV6]), b""))
    return {name: frozenset(members) for name, members in sets.items()}


def rule_of(vip: str) -> rtnl.Rule:
    ip_version = version(vip)
    return rtnl.rule(ip_version, RULE_PRIORITY, TABLE, source=f"{vip}/{BITS[ip_version]}", protocol=PROTOCOL)


def _routes(vip_overhead: dict[str, int], state: PodState) -> dict[int, rtnl.Route]:
    """Per IP version the pod's own default route with a segment size that fits the widest encapsulation."""
    routes = {}
    for route in state.default_routes:
        taken = [size for vip, size in vip_overhead.items() if version(vip) == route.version]
        if taken and route.version not in routes:
            link_mtu = state.mtus.get(route.link, state.interface.mtu)
            leaving = min(route.mtu or link_mtu, link_mtu)
            # Encapsulated packets come in by the pod's interface, whichever way its own packets go out.
            arriving = leaving if route.link == state.interface.index else state.interface.mtu
            advmss = min(arriving - max(taken), leaving) - _TCP_HEADERS[route.version]
            routes[route.version] = route.replace(
                table=TABLE, protocol=PROTOCOL, advmss=min(advmss, route.advmss or advmss), source=""
            )
    return routes
