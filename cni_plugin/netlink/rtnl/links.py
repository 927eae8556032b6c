"""Devices and their addresses: `if_link.h`, `if_addr.h` of the kernel's uapi headers."""

from __future__ import annotations

from _struct import pack, unpack_from

from cni_plugin.netlink import (
    CREATE,
    EXCL,
    REPLACE,
    Message,
    Socket,
    attribute,
    attributes,
    be16,
    nested,
    number,
    string,
    text,
    u8,
    u32,
)
from cni_plugin.netlink.address import family, unpack
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.record import Record
from cni_plugin.tunnel import FIRST_OUTER_PORT, GRE, OUTER_PORTS, VXLAN_GPE, VXLAN_GPE_PORT

NEW_LINK, DEL_LINK, GET_LINK = 16, 17, 18
NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESS = 20, 21, 22

IFF_UP = 1
SCOPE_GLOBAL, SCOPE_LINK, SCOPE_HOST = 0, 253, 254

ADDRESS_NODAD = 0x02
ADDRESS_TENTATIVE = 0x40
ADDRESS_DAD_FAILED = 0x08
_FOREVER = 0xFFFFFFFF


class Link(Record):
    index: int
    name: str
    kind: str
    """`veth`, `bridge`, `vxlan`, `gre` …; empty for devices without one."""
    mtu: int
    up: bool
    external: bool
    """The device takes the encapsulation from each packet's route (collect metadata)."""
    port: int
    """UDP port of a vxlan device, else 0."""
    gpe: bool


class Address(Record):
    link: int
    address: str
    prefix: int
    scope: int
    flags: int


# IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: counters are most of what the kernel has to say of a device.
_WITHOUT_COUNTERS = u32(29, 8)


def dump_links(socket: Socket) -> list[Link]:
    return [_link(answer) for answer in socket.dump(GET_LINK, bytes(16) + _WITHOUT_COUNTERS, "listing links")]


def link_named(socket: Socket, name: str) -> Link:
    """Raises NetlinkError ENODEV where there is no such device."""
    return _link(_answer(socket, name))


def link_alias(socket: Socket, name: str) -> str:
    """The words that somebody has given a device; raises NetlinkError ENODEV where there is no such device."""
    return string(attributes(_answer(socket, name), 16).get(20, b""))


def _answer(socket: Socket, name: str) -> bytes:
    return socket.get(GET_LINK, bytes(16) + text(3, name) + _WITHOUT_COUNTERS, f"looking up device {name}")


def _link(answer: bytes) -> Link:
    _, _, index, flags, _ = unpack_from("=BxHiII", answer)
    found = attributes(answer, 16)
    info = attributes(found.get(18, b""))
    kind = string(info.get(1, b""))
    details = attributes(info.get(2, b""))
    is_vxlan = kind == "vxlan"
    return Link(
        index,
        string(found.get(3, b"")),
        kind,
        number(found.get(4, b"")),
        bool(flags & IFF_UP),
        bool(number(details.get(25, b""))) if is_vxlan else 18 in details,
        int.from_bytes(details.get(15, b""), "big") if is_vxlan else 0,
        is_vxlan and 27 in details,
    )


def add_tunnel_device(name: str, mode: str, outer_version: int = 4, mtu: int = 0) -> Message:
    """A device that takes the encapsulation from each packet's route, or gives it to each packet's metadata."""
    if mode == VXLAN_GPE:
        # IFLA_VXLAN_LEARNING off (GPE refuses it), _UDP_ZERO_CSUM6_RX (they come so), _COLLECT_METADATA, _PORT, _GPE,
        # _PORT_RANGE (the last one is not in it).
        kind, ports = "vxlan", pack(">HH", FIRST_OUTER_PORT, FIRST_OUTER_PORT + OUTER_PORTS)
        settings = u8(7, 0) + u8(20, 1) + u8(25, 1) + be16(15, VXLAN_GPE_PORT) + attribute(27, b"")
        settings += attribute(10, ports)
    elif mode == GRE:
        kind, settings = ("gre" if outer_version == 4 else "ip6gre"), attribute(18, b"")
    else:
        raise ValueError(f"mode {mode} has no device")
    return Message(
        NEW_LINK,
        CREATE | EXCL,
        pack("=BxHiII", 0, 0, 0, IFF_UP, IFF_UP)
        + text(3, name)
        + (u32(4, mtu) if mtu else b"")
        + nested(18, text(1, kind), nested(2, settings)),
        f"adding device {name}",
    )


def add_veth(name: str, peer: str, peer_netns_fd: int, mtu: int) -> Message:
    """A veth pair, one end here and down, the other in another namespace."""
    peer_part = bytes(16) + text(3, peer) + u32(28, peer_netns_fd) + u32(4, mtu)
    return Message(
        NEW_LINK,
        CREATE | EXCL,
        bytes(16) + text(3, name) + u32(4, mtu) + nested(18, text(1, "veth"), nested(2, nested(1, peer_part))),
        f"adding veth {name} with peer {peer}",
    )


def set_alias(link: int, alias: str) -> Message:
    body = pack("=BxHiII", 0, 0, link, 0, 0)
    return Message(NEW_LINK, 0, body + text(20, alias), f"setting the alias of link {link} to {alias!r}")


def set_up(link: int, name: str) -> Message:
    return Message(NEW_LINK, 0, pack("=BxHiII", 0, 0, link, IFF_UP, IFF_UP), f"setting {name} up")


def delete_link(link: int, name: str) -> Message:
    return Message(DEL_LINK, 0, pack("=BxHiII", 0, 0, link, 0, 0), f"deleting device {name}")


def dump_addresses(socket: Socket) -> list[Address]:
    result = []
    for answer in socket.dump(GET_ADDRESS, bytes(8), "listing addresses"):
        _, prefix, flags, scope, link = unpack_from("=BBBBi", answer)
        found = attributes(answer, 8)
        raw = found.get(2) or found.get(1)
        if raw is not None and len(raw) in (4, 16):
            wide = number(found[8]) if 8 in found else flags
            result.append(Address(link, unpack(raw), prefix, scope, wide))
    return result


def add_address(
    address: str, link: int, name: str, scope: int = SCOPE_GLOBAL, deprecated: bool = False, prefix: int = 0
) -> Message:
    """An address, a host's own (/32 or /128) where no prefix length is given; IPv6 without DAD.

    `deprecated`: the kernel does not choose it as the source of new connections (preferred lifetime 0).
    """
    raw = pack_address(address)
    flags = ADDRESS_NODAD if len(raw) == 16 else 0
    head = pack("=BBBBi", family(address), prefix or len(raw) * 8, flags, scope, link)
    body = head + attribute(2, raw) + attribute(1, raw)
    if deprecated:
        body += attribute(6, pack("=IIII", 0, _FOREVER, 0, 0))
    return Message(NEW_ADDRESS, CREATE | REPLACE, body, f"adding {address} to {name}")


def delete_address(address: str, link: int, name: str) -> Message:
    raw = pack_address(address)
    body = pack("=BBBBi", family(address), len(raw) * 8, 0, 0, link) + attribute(2, raw) + attribute(1, raw)
    return Message(DEL_ADDRESS, 0, body, f"deleting {address} from {name}")
