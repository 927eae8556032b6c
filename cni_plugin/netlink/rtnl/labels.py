"""MPLS labels: routes by label, which pop it or put another in its place (`mpls_iptunnel.h`, RFC 3032)."""

from __future__ import annotations

from _struct import pack

from cni_plugin.netlink import CREATE, REPLACE, Message, Socket, attribute, attributes, number, u32
from cni_plugin.netlink.address import family, unpack
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.netlink.rtnl.routes import DEL_ROUTE, GET_ROUTE, NEW_ROUTE, TABLE_MAIN, UNICAST
from cni_plugin.record import Record

AF_MPLS = 28


class Label(Record):
    """The route of one label."""

    label: int
    protocol: int
    link: int
    gateway: str
    """Empty where the packet, its label popped, goes to the device itself."""
    swap_to: int
    """The label put in place of this one; 0 where it is popped."""


def stack_entry(label: int) -> bytes:
    """A label as it stands in a packet, as the only one of its stack."""
    return (label << 12 | 0x100).to_bytes(4, "big")


def dump_labels(socket: Socket) -> list[Label]:
    """All labels that have a route; none where the kernel has no MPLS."""
    labels = []
    for answer in socket.dump(GET_ROUTE, pack("=BBBBBBBBI", AF_MPLS, *[0] * 8), "listing MPLS routes"):
        if answer[0] != AF_MPLS:  # without MPLS routing the kernel answers with every family's routes
            continue
        found = attributes(answer, 12)
        via = found.get(18, b"")
        labels.append(
            Label(
                int.from_bytes(found[1], "big") >> 12,
                answer[5],
                number(found.get(4, b"")),
                unpack(via[2:]) if len(via) in (6, 18) else "",
                int.from_bytes(found.get(19, b""), "big") >> 12,
            )
        )
    return labels


def put_label(label: Label) -> Message:
    """Adds the route of a label, or replaces it."""
    body = _body(label.label, label.protocol) + u32(4, label.link)
    if label.gateway:
        body += attribute(18, pack("=H", family(label.gateway)) + pack_address(label.gateway))
    if label.swap_to:
        body += attribute(19, stack_entry(label.swap_to))
    return Message(NEW_ROUTE, CREATE | REPLACE, body, f"setting the route of MPLS label {label.label}")


def delete_label(label: int, protocol: int) -> Message:
    return Message(DEL_ROUTE, 0, _body(label, protocol), f"deleting the route of MPLS label {label}")


def _body(label: int, protocol: int) -> bytes:
    head = pack("=BBBBBBBBI", AF_MPLS, 20, 0, 0, TABLE_MAIN, protocol, 0, UNICAST, 0)
    return head + attribute(1, stack_entry(label))
