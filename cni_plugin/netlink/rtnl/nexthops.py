"""Nexthop objects, with the encapsulation in them: `nexthop.h`, `lwtunnel.h` of the kernel's uapi headers."""

from __future__ import annotations

from _struct import pack

from cni_plugin.netlink import CREATE, REPLACE, Message, Socket, attribute, attributes, nested, number, u8, u16, u32
from cni_plugin.netlink.address import FAMILY, unpack, version
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.netlink.rtnl.labels import stack_entry
from cni_plugin.record import Record

NEW_NEXTHOP, DEL_NEXTHOP, GET_NEXTHOP = 104, 105, 106

_ENCAP_MPLS, _ENCAP_IP, _ENCAP_IP6 = 1, 2, 4
_TUNNEL_KEY = 4
"""Flag of LWTUNNEL_IP_FLAGS (TUNNEL_KEY of if_tunnel.h): GRE sends the id, as its key."""


class Nexthop(Record):
    id: int
    version: int
    link: int
    gateway: str
    outer: str
    """Outer destination of an IP encapsulation, else empty."""
    outer_source: str
    label: int
    """MPLS label pushed, 0 for none."""
    protocol: int
    tunnel_id: int = 0
    """Of an IP encapsulation, else 0: VXLAN-GPE's VNI, which every packet has."""
    keyed: bool = False
    """In GRE the id is sent, too, in four bytes more."""


def dump_nexthops(socket: Socket) -> list[Nexthop]:
    result = []
    for answer in socket.dump(GET_NEXTHOP, bytes(8), "listing nexthop objects"):
        found = attributes(answer, 8)
        encap = attributes(found.get(8, b""))
        kind = number(found.get(7, b""))
        is_ip = kind in (_ENCAP_IP, _ENCAP_IP6)
        outer = encap.get(2, b"") if is_ip else b""
        outer_source = encap.get(3, b"") if is_ip else b""
        label = int.from_bytes(encap.get(1, b"")[:4], "big") >> 12 if kind == _ENCAP_MPLS else 0
        gateway = found.get(6, b"")
        result.append(
            Nexthop(
                number(found[1]),
                {value: key for key, value in FAMILY.items()}.get(answer[0], 0),
                number(found.get(5, b"")),
                unpack(gateway) if len(gateway) in (4, 16) else "",
                unpack(outer) if len(outer) in (4, 16) else "",
                unpack(outer_source) if len(outer_source) in (4, 16) and any(outer_source) else "",
                label,
                answer[2],
                int.from_bytes(encap.get(1, b""), "big") if is_ip else 0,
                is_ip and bool(int.from_bytes(encap.get(6, b""), "big") & _TUNNEL_KEY),
            )
        )
    return result


def put_nexthop(nexthop: Nexthop) -> Message:
    """Adds a nexthop object or replaces the one of its id, which moves every route that uses it at once."""
    parts = [u32(1, nexthop.id), u32(5, nexthop.link)]
    if nexthop.gateway:
        parts.append(attribute(6, pack_address(nexthop.gateway)))
    if nexthop.outer:
        # LWTUNNEL_IP_ID (64 bits, network order), _DST, _SRC, _TTL, _FLAGS (16 bits, network order); the same numbers
        # in the IPv6 form.
        inner = [attribute(1, nexthop.tunnel_id.to_bytes(8, "big")), attribute(2, pack_address(nexthop.outer))]
        if nexthop.outer_source:
            inner.append(attribute(3, pack_address(nexthop.outer_source)))
        inner.append(u8(4, 64))  # TTL or hop limit
        if nexthop.keyed:
            inner.append(attribute(6, _TUNNEL_KEY.to_bytes(2, "big")))
        parts += [u16(7, _ENCAP_IP if version(nexthop.outer) == 4 else _ENCAP_IP6), nested(8, *inner)]
    elif nexthop.label:
        parts += [u16(7, _ENCAP_MPLS), nested(8, attribute(1, stack_entry(nexthop.label)))]
    return Message(
        NEW_NEXTHOP,
        CREATE | REPLACE,
        pack("=BBBBI", FAMILY[nexthop.version], 0, nexthop.protocol, 0, 0) + b"".join(parts),
        f"setting nexthop {nexthop.id} to {nexthop.outer or nexthop.gateway or nexthop.link}",
    )


def delete_nexthop(identifier: int) -> Message:
    return Message(DEL_NEXTHOP, 0, bytes(8) + u32(1, identifier), f"deleting nexthop {identifier}")
