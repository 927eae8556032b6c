"""Neighbours: which link-layer address an address of the same link has (`neighbour.h` of the kernel's uapi headers)."""

from __future__ import annotations

from _struct import pack

from cni_plugin.netlink import CREATE, Message, NetlinkError, Socket, attribute, attributes
from cni_plugin.netlink.address import family
from cni_plugin.netlink.address import pack as pack_address

NEW_NEIGHBOUR, GET_NEIGHBOUR = 28, 30

_USE = 0x01
"""NTF_USE: the kernel asks the link as if a packet were to be sent."""
_NOT_THERE = 2


def link_layer_address(socket: Socket, link: int, address: str) -> bytes:
    """Of a neighbour that the kernel knows; empty where it does not, or not yet."""
    try:
        answer = socket.get(GET_NEIGHBOUR, _body(link, address), f"looking up neighbour {address}")
    except NetlinkError as error:
        if error.errno != _NOT_THERE:
            raise
        return b""
    return attributes(answer, 12).get(2, b"")


def seek(link: int, address: str) -> Message:
    """Has the kernel find out a neighbour; it is known by and by."""
    return Message(NEW_NEIGHBOUR, CREATE, _body(link, address, _USE), f"asking for neighbour {address}")


def _body(link: int, address: str, flags: int = 0) -> bytes:
    return pack("=BxxxiHBB", family(address), link, 0, flags, 0) + attribute(1, pack_address(address))
