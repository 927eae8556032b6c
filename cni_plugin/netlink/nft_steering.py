"""Expressions of nf_tables that send packets another way: marks, chains that others jump to, copies to a device.

Only what hands packets on (`cni_plugin.pod.hand_on`) needs them; the pod's fixed rules are frozen as bytes and load
none of this. Formats: `include/uapi/linux/netfilter/nf_tables.h`.
"""

from __future__ import annotations

from cni_plugin.netlink import be32, be64, nested, text
from cni_plugin.netlink.nftables import (
    DATA,
    REGISTER,
    TCP,
    TRANSPORT_HEADER,
    Type,
    add_own_chain,
    bitwise,
    compare,
    expression,
    load,
    meta,
    transport,
)

INTERFACE_INDEX = Type(20, 4)
"""What a map to devices has."""
MARK_KEY = 3
"""Of `meta`: the packet's mark."""
_VERDICT_REGISTER = 0
_JUMP = -3 & 0xFFFFFFFF
_SYN, _FLAGS = b"\x02", b"\x17"
"""Of FIN, SYN, RST and ACK."""
_CLOSING = b"\x05"
_RST, _RST_OR_ACK = b"\x04", b"\x14"
TRANSPARENT, WILDCARD = 0, 2
"""What can be asked of the socket to which a packet would go."""


def set_mark(register: int = REGISTER) -> bytes:
    return expression("meta", be32(2, MARK_KEY), be32(3, register))


def mark(register: int = REGISTER) -> bytes:
    return meta(MARK_KEY, register)


def opening() -> bytes:
    """Only TCP packets that open a connection: SYN without ACK, RST or FIN."""
    flags = load(TRANSPORT_HEADER, 13, 1) + bitwise(_FLAGS, b"\0")
    return transport(TCP) + flags + compare(_SYN)


def closing() -> bytes:
    """Only TCP packets with FIN or RST."""
    flags = load(TRANSPORT_HEADER, 13, 1) + bitwise(_CLOSING, b"\0")
    return transport(TCP) + flags + compare(b"\0", equal=False)


def refusing() -> bytes:
    """Only TCP packets by which a kernel says that it has no such connection: RST without ACK (RFC 9293, 3.5.2).

    What a program ends by a reset has both.
    """
    flags = load(TRANSPORT_HEADER, 13, 1) + bitwise(_RST_OR_ACK, b"\0")
    return transport(TCP) + flags + compare(_RST)


def socket_is(key: int, register: int = REGISTER) -> bytes:
    """Only packets for which there is a socket, of which `key` can be said; what is said is in the register."""
    return expression("socket", be32(1, key), be32(2, register))


def jump(chain: str) -> bytes:
    verdict = nested(2, be32(1, _JUMP), text(2, chain))
    return expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, verdict))


def note(name: str, milliseconds: int = 0, register: int = REGISTER) -> bytes:
    """Puts a packet's key into a set, or begins its time anew; goes on only where there was room.

    `milliseconds`: another time than the set's.
    """
    parts = [text(1, name), be32(3, 1), be32(4, register)]
    if milliseconds:
        parts.append(be64(6, milliseconds))
    return expression("dynset", *parts)


def strike(name: str, register: int = REGISTER) -> bytes:
    """Takes a packet's key out of a set."""
    return expression("dynset", text(1, name), be32(3, 2), be32(4, register))


def copy_to(gateway: int = DATA, device: int = DATA + 4) -> bytes:
    """Sends a copy by a device as if by way of a gateway; both are in registers."""
    return expression("dup", be32(1, gateway), be32(2, device))


__all__ = [
    "INTERFACE_INDEX",
    "TRANSPARENT",
    "WILDCARD",
    "add_own_chain",
    "closing",
    "copy_to",
    "jump",
    "mark",
    "note",
    "opening",
    "refusing",
    "set_mark",
    "socket_is",
    "strike",
]
