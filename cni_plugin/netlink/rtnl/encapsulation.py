"""Routes that encapsulate in IP (lightweight tunnels): `lwtunnel.h` of the kernel's uapi headers."""

from __future__ import annotations

from _struct import pack, unpack_from

from cni_plugin.netlink import CREATE, REPLACE, Message, Socket, attribute, attributes, nested, number, u8, u16, u32
from cni_plugin.netlink.address import BITS, FAMILY, VERSION, unpack, version
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.netlink.rtnl.routes import GET_ROUTE, NEW_ROUTE, UNICAST
from cni_plugin.record import Record

_ENCAP_IP, _ENCAP_IP6 = 2, 4
_HAS_KEY = b"\0\4"
"""TUNNEL_KEY in the order of the network: GRE sends the id only where this is said."""
_TTL = 64


class EncapsulatedRoute(Record):
    """To one address by a collect-metadata device, in an outer header of the route's own."""

    version: int
    destination: str
    table: int
    protocol: int
    link: int
    outer: str
    """Outer destination address."""
    tunnel_id: int
    keyed: bool = False
    """Whether GRE carries the id."""


def put_encapsulated(route: EncapsulatedRoute) -> Message:
    """Adds the route, or replaces the one of the same destination and table."""
    inner = [attribute(1, route.tunnel_id.to_bytes(8, "big")), attribute(2, pack_address(route.outer)), u8(4, _TTL)]
    if route.keyed:
        inner.append(attribute(6, _HAS_KEY))
    kind = _ENCAP_IP if version(route.outer) == 4 else _ENCAP_IP6
    parts = [
        attribute(1, pack_address(route.destination)),
        u32(15, route.table),
        u32(4, route.link),
        u16(21, kind),
        nested(22, *inner),
    ]
    head = pack("=BBBBBBBBI", FAMILY[route.version], BITS[route.version], 0, 0, 0, route.protocol, 0, UNICAST, 0)
    what = f"setting the route to {route.destination} in table {route.table} by a tunnel to {route.outer}"
    return Message(NEW_ROUTE, CREATE | REPLACE, head + b"".join(parts), what)


def dump_encapsulated(socket: Socket, table: int, protocol: int) -> list[EncapsulatedRoute]:
    """The routes of one table and protocol that encapsulate in IP."""
    found = []
    for answer in socket.dump(GET_ROUTE, pack("=BBBBBBBBI", *[0] * 9), "listing routes"):
        family, _, _, _, _, made_by, _, kind, _ = unpack_from("=BBBBBBBBI", answer)
        if kind != UNICAST or made_by != protocol or family not in VERSION:
            continue
        parts = attributes(answer, 12)
        if number(parts.get(15, b"")) != table or number(parts.get(21, b"")) not in (_ENCAP_IP, _ENCAP_IP6):
            continue
        encap = attributes(parts.get(22, b""))
        found.append(
            EncapsulatedRoute(
                VERSION[family],
                unpack(parts[1]),
                table,
                protocol,
                number(parts.get(4, b"")),
                unpack(encap[2]),
                int.from_bytes(encap.get(1, b""), "big"),
                bool(encap.get(6, b"\0\0")[1] & _HAS_KEY[1]),
            )
        )
    return found
