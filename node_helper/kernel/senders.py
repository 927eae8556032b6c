"""What pods of this node may not send: packets of tunnels as if from a node, by which other pods would believe them.

Pods take encapsulated packets by their source address, so no pod may send them with an address of a node. The
host's filter of reverse paths would see to it, but it is often off, there is none for IPv6, and what goes from one
port of a bridge to another is not routed at all. So two tables of nf_tables look at what comes in by veths, the
devices by which pods are connected:

- family bridge: what ports receive, whoever it is for. No honest pod has one of these addresses, and what the host
  itself sends to a port does not come this way. Nor does an honest pod send labels in a cluster whose mode is mpls.
- family inet: what the host receives by other veths. Where nodes are containers themselves, their way to each other
  may be a veth, too; so only what would not go back by the same device is dropped. Each packet that is forwarded
  meets these rules, so the first ones let through what can be no tunnel.
"""

from __future__ import annotations

from ipaddress import ip_address

from cni_plugin.netlink import NetlinkError, Socket
from cni_plugin.netlink import nftables as nft
from cni_plugin.tunnel import VXLAN_GPE_PORT
from node_helper.kernel import own_table
from node_helper.kernel.own_table import TABLE
from node_helper.kernel.places import PLACES
from node_helper.plan.state import Senders

_CHAIN = {nft.BRIDGE: "ports", nft.INET: "routed"}
_ETHERTYPE, _DEVICE, _KIND = 1, 6, 26
"""What `meta` yields: `protocol`, `iifname` and `iifkind`."""
_NODES = {4: "nodes4", 6: "nodes6"}
_NEVER = "never"
"""Set of family bridge: ethertypes that no pod sends."""
_SETS = {"nodes4": nft.IPV4_ADDRESS, "nodes6": nft.IPV6_ADDRESS, _NEVER: nft.ETHERTYPE}
PARTS = (*_CHAIN.values(), *_SETS)
"""Names of what is in the tables."""
_IP = {4: (b"\x08\x00", 12), 6: (b"\x86\xdd", 8)}
"""IP version -> ethertype, and where in the header the source address is."""


def ensure(wanted: Senders) -> tuple[bool, list[NetlinkError]]:
    """Puts right what is not as wanted.

    Returns whether anything was put, and what the kernel refused, at most one error for each family.
    """
    changed, refused = False, []
    with nft.open_socket() as netfilter:
        for family in _CHAIN:
            try:
                changed |= _ensure(netfilter, family, wanted)
            except NetlinkError as error:
                refused.append(error)
    return changed, refused


def remove() -> None:
    """Takes the tables away. Raises NetlinkError."""
    with nft.open_socket() as netfilter:
        for family in _CHAIN:
            own_table.remove(netfilter, family)


def _ensure(netfilter: Socket, family: int, wanted: Senders) -> bool:
    chain, elements, rules = _CHAIN[family], _elements(family, wanted), _rules(family)
    content = [
        *(nft.add_set(TABLE, name, number, (_SETS[name],), family=family) for number, name in enumerate(elements, 1)),
        nft.add_chain(TABLE, chain, "filter", nft.PREROUTING, own_table.BEFORE_ALL, family=family),
        *(nft.add_rule(TABLE, chain, rule, family=family) for rule in rules),
    ]
    return own_table.ensure(netfilter, family, content, len(rules), elements)


def _elements(family: int, wanted: Senders) -> dict[str, set[bytes]]:
    packed = [ip_address(address).packed for address in wanted.nodes]
    found = {name: {raw for raw in packed if len(raw) == _SETS[name].size} for name in _NODES.values()}
    if family == nft.BRIDGE:
        found[_NEVER] = {nft.MPLS_ETHERTYPE} if wanted.labels else set()
    return found


def _rules(family: int) -> list[bytes]:
    by_other_devices = nft.meta(_KIND) + nft.compare(_name("veth"), equal=False)
    port = nft.load(nft.TRANSPORT_HEADER, 2, 2)
    gpe = VXLAN_GPE_PORT.to_bytes(2, "big")
    if family == nft.BRIDGE:
        rules = [
            by_other_devices + nft.accept(),
            *[nft.hidden_by(vlan) + nft.drop() for vlan in nft.VLAN_ETHERTYPES],
            nft.meta(_ETHERTYPE) + nft.lookup(_NEVER) + nft.drop(),
        ]
        forged = nft.drop()
    else:
        by_routers = [nft.meta(_DEVICE) + nft.compare(_name(place.host_device)) for place in PLACES]
        rules = [
            nft.transport(nft.TCP) + nft.accept(),
            nft.transport(nft.UDP) + port + nft.compare(gpe, equal=False) + nft.accept(),
            by_other_devices + nft.accept(),
            *[by_router + nft.accept() for by_router in by_routers],
        ]
        forged = nft.not_routed_back() + nft.drop()
    for tunnel in (nft.transport(nft.UDP) + port + nft.compare(gpe), nft.transport(nft.GRE)):
        for version, name in _NODES.items():
            ethertype, source_at = _IP[version]
            of_version = nft.meta(_ETHERTYPE) + nft.compare(ethertype)
            from_node = nft.load(nft.NETWORK_HEADER, source_at, _SETS[name].size) + nft.lookup(name)
            rules.append(tunnel + of_version + from_node + forged)
    return rules


def _name(text: str) -> bytes:
    return text.encode().ljust(16, b"\0")  # IFNAMSIZ
