"""Reads and changes what hands packets on in the netns in which the calling thread is."""

from __future__ import annotations

from cni_plugin.netlink import NetlinkError, Socket, nftables, rtnl, tcp_sockets
from cni_plugin.netlink.address import BITS, pack, version
from cni_plugin.netlink.rtnl.encapsulation import dump_encapsulated, put_encapsulated
from cni_plugin.pod.hand_on import rules as ruleset
from cni_plugin.pod.hand_on.plan import (
    MAPS,
    RULE_PRIORITY,
    SETS,
    VERSIONS,
    Difference,
    HandOnState,
    HandOnWanted,
    encapsulated,
    gateway,
    index_bytes,
)
from cni_plugin.pod.target import HAND_ON_TABLE, PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_plugin.netlink import Message
    from cni_plugin.pod.hand_on.plan import Elements

_GONE = (2, 3)
"""ENOENT, ESRCH: what a deletion wanted is so already."""


def read(route: Socket, netfilter: Socket, rules: Sequence[rtnl.Rule]) -> HandOnState:
    """`rules`: all of the namespace that are ours."""
    tables = {}
    elements: Elements = {}
    for ip_version in VERSIONS:
        family = ruleset.FAMILY[ip_version]
        found = nftables.table_userdata(netfilter, ruleset.TABLE, family)
        if found is None:
            continue
        tables[ip_version] = found
        if found != ruleset.fingerprint(ip_version):
            continue
        try:
            for name in (*SETS, *MAPS):
                members = nftables.dump_elements(netfilter, ruleset.TABLE, name, family)
                elements[ip_version, name] = frozenset(members)
        except NetlinkError as error:
            if error.errno not in _GONE:
                raise
            tables[ip_version] = b""  # somebody took a part away: it is put anew
    own_rules = tuple(rule for rule in rules if rule.priority == RULE_PRIORITY)
    return HandOnState(tables, elements, tuple(dump_encapsulated(route, HAND_ON_TABLE, PROTOCOL)), own_rules)


def carry_out(change: Difference, route: Socket, netfilter: Socket) -> None:
    """In the namespace of the thread. A packet finds all that it needs, or is treated as if none of it were there."""
    index = {device: rtnl.link_named(route, device).index for device in _devices(change)}
    removed = list(_removals(change))
    if removed:
        nftables.commit(netfilter, removed)
    for gone in change.drop_routes:
        destination = f"{gone.destination}/{BITS[gone.version]}"
        _delete(
            route, rtnl.delete_route(rtnl.route(gone.version, destination, HAND_ON_TABLE, PROTOCOL, link=gone.link))
        )
    for rule in change.drop_rules:
        _delete(route, rtnl.delete_rule(rule))
    added: list[Message] = [message for v in change.install for message in ruleset.install(v)]
    for (v, name), members in change.add_members.items():
        added += nftables.add_elements(ruleset.TABLE, name, sorted(members), ruleset.FAMILY[v])
    if added:
        nftables.commit(netfilter, added)
    route.run(*(rtnl.add_rule(rule) for rule in change.add_rules))
    route.run(*(put_encapsulated(encapsulated(v, s, device, index[device])) for v, s, device in change.put_routes))
    if change.learn:
        _learn(change.wanted, netfilter)
    steps: list[Message] = []
    for v, tunnel_id, device in change.add_steps:
        mark, family = ruleset.mark_of(tunnel_id), ruleset.FAMILY[v]
        steps += nftables.add_elements(ruleset.TABLE, "gateways", [(mark, pack(gateway(tunnel_id, v)))], family)
        steps += nftables.add_elements(ruleset.TABLE, "devices", [(mark, index_bytes(index[device]))], family)
    if steps:
        nftables.commit(netfilter, steps)


def _delete(route: Socket, message: Message) -> None:
    try:
        route.run(message)
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise


def _devices(change: Difference) -> set[str]:
    return {device for _, _, device in change.put_routes} | {device for _, _, device in change.add_steps}


def _removals(change: Difference) -> Iterator[Message]:
    for v in change.drop_tables:
        yield nftables.delete_table(ruleset.TABLE, ruleset.FAMILY[v])
    for (v, name), members in change.drop_elements.items():
        yield from nftables.delete_elements(ruleset.TABLE, name, sorted(members), ruleset.FAMILY[v])


def _learn(wanted: HandOnWanted, netfilter: Socket) -> None:
    """The pod's connections of before: they are its own, although nobody saw them open.

    By now packets that open connections are noted, so none can fall between.
    """
    try:
        with tcp_sockets.open_socket() as diagnosis:
            present = tcp_sockets.connections(diagnosis)
    except (NetlinkError, OSError):
        return  # A kernel without sock_diag: only those that begin from now on are known.
    keys: dict[int, set[bytes]] = {4: set(), 6: set()}
    for one in present:
        if one.local in wanted.vips:
            port = wanted.remaps.get((one.local, one.local_port), one.local_port)
            parts = (pack(one.remote), one.remote_port.to_bytes(2, "big"), pack(one.local), port.to_bytes(2, "big"))
            v = version(one.local)
            keys[v].add(nftables.key_bytes(ruleset.mine_key(v), parts))
    messages: list[Message] = []
    for v, found in keys.items():
        elements = [(key, b"") for key in sorted(found)]
        messages += nftables.add_elements(ruleset.TABLE, "mine", elements, ruleset.FAMILY[v])
    if messages:
        nftables.commit(netfilter, messages)
