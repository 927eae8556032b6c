"""The sets that our chains match, so that a packet meets one rule however many members there are.

VIPs, one set of each IP version; and the devices whose reverse-path filter we loosened. By netlink and not
by a library or the `ipset` program: the sets need a few messages, while the library that has them (pyroute2)
takes nearly half of the helper's start. Format: `include/uapi/linux/netfilter/ipset`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from cni_plugin.netlink import (
    ACK,
    CREATE,
    DUMP,
    EXCL,
    NETLINK_NETFILTER,
    Message,
    NetlinkError,
    Socket,
    attribute,
    attribute_list,
    attributes,
    nested,
    string,
    text,
    u8,
)
from cni_plugin.netlink.address import FAMILY, pack, unpack

NAMES = {4: "svctun-vips4", 6: "svctun-vips6"}
AFFINITY = {4: "svctun-affinity4", 6: "svctun-affinity6"}
"""In the router: the VIPs that are hashed by addresses only."""
LOOSE = "svctun-loose"
"""Devices on which we let sources in that strict reverse-path filtering would drop (IPv4: IPv6 has no such)."""

_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _LIST, _ADD, _DEL = 2, 3, 7, 9, 10
_PROTOCOL, _SETNAME, _TYPENAME, _REVISION, _FAMILY, _DATA, _ADT = 1, 2, 3, 4, 5, 7, 8
_ADDRESS, _PREFIX_LENGTH, _DEVICE = 1, 3, 23
_PROTOCOL_VERSION = 6
_HASH_IP = ("hash:ip", 0)
_HASH_NET_IFACE = ("hash:net,iface", 2)
"""Type and revision; from this one on a network may be 0.0.0.0/0."""
_NETORDER = 0x4000
_NOT_THERE = 2


def add(vips: frozenset[str]) -> None:
    """Makes the sets where they are missing and puts VIPs into them. Raises NetlinkError."""
    with Socket(NETLINK_NETFILTER) as netfilter:
        for version, name in NAMES.items():
            members = _members(netfilter, name)
            if members is None:
                netfilter.run(_create(name, _HASH_IP, version))
            _add(netfilter, name, version, vips - (members or set()))
        if _members(netfilter, LOOSE) is None:
            netfilter.run(_create(LOOSE, _HASH_NET_IFACE, 4))


def keep_affinity(vips: frozenset[str]) -> None:
    """Makes the router's sets have these members and no others; the thread is in its namespace. Raises NetlinkError."""
    with Socket(NETLINK_NETFILTER) as netfilter:
        for version, name in AFFINITY.items():
            members = _members(netfilter, name)
            if members is None:
                netfilter.run(_create(name, _HASH_IP, version))
            _add(netfilter, name, version, vips - (members or set()))
            _delete(netfilter, name, (members or set()) - vips)


def keep_devices(devices: frozenset[str]) -> None:
    """Makes these, and no others, the members of the set of loosened devices. Raises NetlinkError."""
    with Socket(NETLINK_NETFILTER) as netfilter:
        members = _members(netfilter, LOOSE)
        if members is None:
            netfilter.run(_create(LOOSE, _HASH_NET_IFACE, 4))
        present = members or set()
        for kind, changed in ((_ADD, devices - present), (_DEL, present - devices)):
            for device in sorted(changed):
                netfilter.run(_change_device(kind, device))


def keep_only(vips: frozenset[str]) -> None:
    """Takes everything else out of the sets. Raises NetlinkError."""
    with Socket(NETLINK_NETFILTER) as netfilter:
        for name in NAMES.values():
            _delete(netfilter, name, (_members(netfilter, name) or set()) - vips)


def remove() -> None:
    """Deletes the sets; the chains that name them must be gone. Raises NetlinkError."""
    with Socket(NETLINK_NETFILTER) as netfilter:
        for name in (*NAMES.values(), LOOSE):
            if _members(netfilter, name) is not None:
                netfilter.run(_message(_DESTROY, 0, text(_SETNAME, name), f"deleting ipset {name}"))


def _add(netfilter: Socket, name: str, version: int, vips: Iterable[str]) -> None:
    """Those of this IP version."""
    for vip in sorted(vips):
        if ip_address(vip).version == version:
            netfilter.run(_change(_ADD, name, vip, f"adding {vip} to ipset {name}"))


def _delete(netfilter: Socket, name: str, vips: Iterable[str]) -> None:
    for vip in sorted(vips):
        netfilter.run(_change(_DEL, name, vip, f"deleting {vip} from ipset {name}"))


def _message(kind: int, flags: int, body: bytes, what: str, version: int = 4) -> Message:
    head = bytes([FAMILY[version], 0, 0, 0])
    return Message(_SUBSYSTEM | kind, flags | ACK, head + u8(_PROTOCOL, _PROTOCOL_VERSION) + body, what)


def _create(name: str, kind: tuple[str, int], version: int) -> Message:
    typename, revision = kind
    body = text(_SETNAME, name) + text(_TYPENAME, typename) + u8(_REVISION, revision) + u8(_FAMILY, FAMILY[version])
    return _message(_CREATE, CREATE | EXCL, body + nested(_DATA), f"adding ipset {name}", version)


def _change(kind: int, name: str, vip: str, what: str) -> Message:
    raw = pack(vip)
    # IPSET_ATTR_IPADDR_IPV4 is 1, _IPV6 is 2; both in network order, and flagged so.
    address = nested(_ADDRESS, attribute((1 if len(raw) == 4 else 2) | _NETORDER, raw))
    return _message(kind, 0, text(_SETNAME, name) + nested(_DATA, address), what)


def _change_device(kind: int, device: str) -> Message:
    """Whatever comes by a device: the network is 0.0.0.0/0."""
    anywhere = nested(_ADDRESS, attribute(1 | _NETORDER, bytes(4))) + u8(_PREFIX_LENGTH, 0)
    body = text(_SETNAME, LOOSE) + nested(_DATA, anywhere, text(_DEVICE, device))
    what = f"{'adding' if kind == _ADD else 'deleting'} {device} {'to' if kind == _ADD else 'from'} ipset {LOOSE}"
    return _message(kind, 0, body, what)


def _members(netfilter: Socket, name: str) -> set[str] | None:
    """The addresses in a set, or its devices; None where there is no such set."""
    question = _message(_LIST, 0, text(_SETNAME, name), f"reading ipset {name}")
    try:
        answers = netfilter.dump(question.type, question.body, question.what, flags=DUMP)
    except NetlinkError as error:
        if error.errno == _NOT_THERE:
            return None
        raise
    found = set()
    for answer in answers:
        members = attributes(answer, 4)
        if string(members.get(_SETNAME, b"")) != name:
            continue
        for _, member in attribute_list(members.get(_ADT, b"")):
            found_in = attributes(member)
            address = attributes(found_in.get(_ADDRESS, b""))
            raw = address.get(1) or address.get(2)
            if _DEVICE in found_in:
                found.add(string(found_in[_DEVICE]))
            elif raw is not None:
                found.add(unpack(raw))
    return found
