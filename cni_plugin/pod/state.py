"""Reads what a pod's netns holds; the calling thread is inside it."""

from __future__ import annotations

import posix

from cni_plugin.netlink import NetlinkError, Socket, nftables, rtnl
from cni_plugin.pod.ruleset import TABLE as RULESET_TABLE
from cni_plugin.pod.ruleset import set_names
from cni_plugin.pod.target import DEVICE, DEVICE_FOR_IPV6_UNDERLAY, HAND_ON_TABLE, PROTOCOL, TABLE, PodState, sysctls
from cni_plugin.tunnel import POD_LABEL

_OUR_DEVICES = {*DEVICE.values(), *DEVICE_FOR_IPV6_UNDERLAY.values()}


class NoInterface(LookupError):
    """The pod has no interface of the name that the runtime gave."""


def read(route: Socket, netfilter: Socket, interface: str, labels: bool = False, hands_on: bool = False) -> PodState:
    """The state of the netns to which the sockets belong; sysctls are those of the thread's netns.

    With `labels` the interface's gateways are met, too, which may take a moment; with `hands_on` what hands packets
    on is looked at also where no rule or route tells of it. Raises NoInterface,
    NetlinkError.
    """
    links = rtnl.dump_links(route)
    own = [link for link in links if link.name == interface]
    if not own:
        raise NoInterface(f"the pod has no interface {interface!r}, only {', '.join(link.name for link in links)}")
    routes = rtnl.dump_routes(route)
    # Of its own devices the kernel asks lo; without such a file there is no IPv6 at all.
    ipv6 = read_sysctl("ipv6/conf/lo/disable_ipv6") == "0"
    values = {name: value for name in sysctls(interface) if (value := read_sysctl(name)) is not None}
    fingerprint = nftables.table_userdata(netfilter, RULESET_TABLE)
    default_routes = tuple(
        found
        for found in routes
        if found.destination == "default" and found.table == rtnl.TABLE_MAIN and found.protocol != PROTOCOL
    )
    has_labels = "mpls/platform_labels" in values
    label_routed = has_labels and any(found.label == POD_LABEL for found in rtnl.dump_labels(route))
    gateways = guard = None
    if has_labels and (labels or label_routed or fingerprint is not None):
        from cni_plugin.pod.gateways import read_guard

        guard = read_guard(netfilter)
    if has_labels and labels:
        from cni_plugin.pod.gateways import meet_gateways

        in_main = [found for found in routes if found.table == rtnl.TABLE_MAIN]
        gateways = meet_gateways(route, in_main, own[0].index)
    rules = [found for found in rtnl.dump_rules(route) if found.protocol == PROTOCOL]
    elements = _elements(netfilter) if fingerprint is not None else {}
    hand_on = None
    # Peers are in the fixed rules' sets before they are anywhere else, and stay there for longer.
    traces = [found for found in routes if found.table == HAND_ON_TABLE and found.protocol == PROTOCOL]
    if hands_on or traces or any(rule.device for rule in rules) or elements.get("peers4") or elements.get("peers6"):
        from cni_plugin.pod.hand_on import kernel

        hand_on = kernel.read(route, netfilter, rules)
    return PodState(
        interface=own[0],
        mtus={link.index: link.mtu for link in links},
        links=tuple(link for link in links if link.name in _OUR_DEVICES),
        addresses=tuple(rtnl.dump_addresses(route)),
        default_routes=default_routes,
        our_routes=tuple(found for found in routes if found.table == TABLE and found.protocol == PROTOCOL),
        foreign_replies=tuple(
            found
            for found in routes
            if found.destination == "default" and found.table == TABLE and found.protocol != PROTOCOL
        ),
        our_rules=tuple(rule for rule in rules if not rule.device),
        label_routed=label_routed,
        label_guard=guard,
        gateways=gateways,
        ruleset=fingerprint,
        elements=elements,
        sysctls=values,
        loopback=next(link.index for link in links if link.name == "lo"),
        ipv6=ipv6,
        hand_on=hand_on,
    )


def _elements(netfilter: Socket) -> dict[str, frozenset[tuple[bytes, bytes]]]:
    elements = {}
    for name in set_names():
        try:
            elements[name] = frozenset(nftables.dump_elements(netfilter, RULESET_TABLE, name))
        except NetlinkError as error:
            if error.errno != 2:  # ENOENT: an older version's table may lack a set
                raise
    return elements


_sysctls = "/proc/sys/net"


def look_for_sysctls_at(folder: str) -> None:
    """Says where /proc/sys/net is writable: a container that is not privileged has it read-only at its own place."""
    global _sysctls
    _sysctls = folder


def read_sysctl(name: str) -> str | None:
    """The value of /proc/sys/net/`name`, None where there is no such."""
    try:
        descriptor = posix.open(f"{_sysctls}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return posix.read(descriptor, 64).decode().strip()
    finally:
        posix.close(descriptor)


def write_sysctl(name: str, value: str) -> None:
    """Raises OSError (EROFS where a container sees /proc/sys read-only)."""
    descriptor = posix.open(f"{_sysctls}/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(descriptor, value.encode())
    finally:
        posix.close(descriptor)
