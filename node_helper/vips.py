"""Which addresses may be VIPs, and of which namespaces: an annotation must not let anyone take any address.

Two questions are kept apart. `VipRules` is what the operator said; `AddressesInUse` is what the cluster
itself holds at this moment. A refusal is a clause that completes "198.51.100.7 is refused: …".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from node_helper.model import Endpoint, IPAddress, IPNetwork, ObjectKey, Pod, Snapshot, changed_keys

VipRange = tuple[IPNetwork, frozenset[str]]
"""Addresses, and the namespaces that may use them (none: all may)."""

_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_COMPATIBLE = IPv6Network("::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")
_BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class VipRules:
    """What the operator said about VIPs."""

    ranges: tuple[VipRange, ...] = ()
    require_range: bool = False
    """Without any range, no address may be a VIP; otherwise any may."""
    pod_ranges: tuple[IPNetwork, ...] = ()
    service_ranges: tuple[IPNetwork, ...] = ()
    every_pod_known: bool = True
    """Every helper knows every pod. Where each knows its own node's, their addresses refuse no VIP: ingress nodes would
    not agree on which VIPs there are. `pod_ranges` and Nodes' podCIDRs do, which all know."""


def vip_range(text: str) -> VipRange:
    """`CIDR[=namespace,…]` as of `--vip-range`; raises ValueError with a sentence for the operator."""
    network, separator, names = text.partition("=")
    namespaces = frozenset(name.strip() for name in names.split(",") if name.strip())
    if separator and not namespaces:
        raise ValueError(f"{text!r} names no namespace behind '=': leave '=' out to allow all")
    try:
        return ip_network(network.strip()), namespaces
    except ValueError as error:
        raise ValueError(f"{text!r} is no CIDR[=namespace,…]: {error}") from None


def vips_in(annotation: str) -> Iterator[tuple[str, IPAddress | None]]:
    """The members of a comma separated annotation: the text, and the address that it is, if it is one."""
    for member in annotation.split(","):
        text = member.strip()
        try:
            address = ip_address(text)
        except ValueError:
            yield text, None
        else:
            yield text, None if "%" in text else address


class _Networks:
    """Addresses that lie in any of many networks: one lookup per prefix length, not one per network."""

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self._prefixes: dict[tuple[int, int], dict[int, IPNetwork]] = {}
        for network in networks:
            host_bits = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes.setdefault((network.version, host_bits), {})
            prefixes[int(network.network_address) >> host_bits] = network

    def around(self, address: IPAddress) -> IPNetwork | None:
        for (version, host_bits), prefixes in self._prefixes.items():
            if version == address.version:
                network = prefixes.get(int(address) >> host_bits)
                if network is not None:
                    return network
        return None


_Holder = tuple[int, ObjectKey]
"""Index of `_HOLDERS`, and which object."""
_HOLDERS = ("the address of an endpoint of", "the address of pod", "the cluster IP of Service", "an address of node")


class AddressesInUse:
    """What the cluster holds already, and so cannot be a VIP.

    Follows one snapshot after the other, at the price of what changed between them.
    """

    def __init__(self, rules: VipRules, snapshot: Snapshot | None = None) -> None:
        self._rules = rules
        self._holders: dict[IPAddress, tuple[_Holder, ...]] = {}
        self._seen = Snapshot()
        self._ranges = (
            (_Networks(rules.pod_ranges), "pods"),
            (_Networks(rules.service_ranges), "cluster IPs"),
        )
        self._pods_of_nodes = _Networks(())
        if snapshot is not None:
            self.follow(snapshot)

    def follow(self, snapshot: Snapshot) -> frozenset[IPAddress] | None:
        """Takes a newer snapshot in; the addresses that are held by others than before, None: perhaps any.

        Endpoints count only where the operator gave no ranges: anyone who may write an EndpointSlice could
        otherwise take the VIP of another's Service down by naming it as an endpoint.
        """
        before, self._seen = self._seen, snapshot
        changed: set[IPAddress] = set()
        if not self._rules.ranges:
            for key in changed_keys(before.endpoints, snapshot.endpoints):
                old, new = before.endpoints.get(key, ()), snapshot.endpoints.get(key, ())
                changed |= self._hold((0, key), _addresses(old), _addresses(new))
        for key in changed_keys(before.pods, snapshot.pods) if self._rules.every_pod_known else ():
            old_pod, new_pod = before.pods.get(key), snapshot.pods.get(key)
            changed |= self._hold((1, key), _ips(old_pod), _ips(new_pod))
        for key in changed_keys(before.services, snapshot.services):
            old_service, new_service = before.services.get(key), snapshot.services.get(key)
            held = frozenset(old_service.cluster_ips if old_service else ())
            changed |= self._hold((2, key), held, frozenset(new_service.cluster_ips if new_service else ()))
        cidrs_changed = False
        for name in changed_keys(before.nodes, snapshot.nodes):
            old_node, new_node = before.nodes.get(name), snapshot.nodes.get(name)
            held = frozenset(old_node.addresses if old_node else ())
            changed |= self._hold((3, ObjectKey("", name)), held, frozenset(new_node.addresses if new_node else ()))
            cidrs_changed |= (old_node.pod_cidrs if old_node else ()) != (new_node.pod_cidrs if new_node else ())
        if cidrs_changed:
            self._pods_of_nodes = _Networks(cidr for node in snapshot.nodes.values() for cidr in node.pod_cidrs)
            return None
        return frozenset(changed)

    def _hold(self, holder: _Holder, before: frozenset[IPAddress], now: frozenset[IPAddress]) -> frozenset[IPAddress]:
        for address in before - now:
            left = tuple(other for other in self._holders[address] if other != holder)
            if left:
                self._holders[address] = left
            else:
                del self._holders[address]
        for address in now - before:
            self._holders[address] = (*self._holders.get(address, ()), holder)
        return before ^ now

    def refusal(self, address: IPAddress) -> str | None:
        holders = self._holders.get(address)
        if holders:
            kind, key = max(holders)
            return f"it is {_HOLDERS[kind]} {key}"
        for networks, purpose in ((self._pods_of_nodes, "the pods of a node"), *self._ranges):
            network = networks.around(address)
            if network is not None:
                return f"it lies in {network}, which is for {purpose}"
        return None


def _addresses(endpoints: Iterable[Endpoint]) -> frozenset[IPAddress]:
    return frozenset([address for endpoint in endpoints for address in endpoint.addresses])


def _ips(pod: Pod | None) -> frozenset[IPAddress]:
    return frozenset(() if pod is None or pod.finished else pod.ips)


def kind_refusal(address: IPAddress) -> str | None:
    """Why an address can never be a VIP, or None: only unicast addresses that are routed can."""
    if address.is_unspecified:
        return "it is the unspecified address"
    if address.is_loopback:
        return "it is a loopback address"
    if address.is_multicast:
        return "it is a multicast address"
    if address == _BROADCAST:
        return "it is the broadcast address"
    if address.version == 6 and address in _MAPPED:
        return "it is an IPv4 address written as IPv6: write the IPv4 address"
    if address.is_link_local:
        return "it is a link-local address"
    if address in _THIS_NETWORK or address in _COMPATIBLE:
        return "it is no unicast address"
    return None


def range_refusal(address: IPAddress, namespace: str, rules: VipRules) -> str | None:
    """Why the operator's ranges do not allow an address to a namespace, or None."""
    if not rules.ranges:
        return "no --vip-range is given to the helper, so none is allowed" if rules.require_range else None
    around = [namespaces for network, namespaces in rules.ranges if address in network]
    if not around:
        return "it is outside of the helper's --vip-range"
    if not any(not namespaces or namespace in namespaces for namespaces in around):
        return f"its --vip-range is not for namespace {namespace}"
    return None
