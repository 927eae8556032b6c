"""Errors about IPv6 fragments: their quotes are put so that HMARK finds the ports of the flow.

A pod's answer that is larger than its link leaves in fragments. Where the way to the client is narrower, a router says
so and quotes the first fragment, in which UDP's header comes after the one that makes it a fragment. HMARK takes no
ports then, and the error went to the bucket of the addresses alone: mostly to another pod, and the flow stayed without
answer. So before the hash the quote is made into one of a packet that is no fragment: the four bytes of the ports move
to the front, and its header says UDP. Pods' kernels look no further. (IPv4's routers make fragments smaller instead.)
"""

from __future__ import annotations

from cni_plugin.netlink import nftables as nft
from node_helper.kernel import own_table
from node_helper.kernel.own_table import TABLE

_CHAIN = "quotes"
PARTS = (_CHAIN,)
"""Names of what is in the table."""
_QUOTE = 8
"""Where the quoted packet begins, counted from ICMP's header on."""
_PROTOCOL, _FRAGMENT, _PORTS = _QUOTE + 6, _QUOTE + 40, _QUOTE + 48
"""From there on: a byte of the IPv6 header, the header of a fragment, UDP's."""
_CHECKSUM = 2
"""ICMP's."""


def ensure() -> bool:
    """The rule in the namespace of this thread, as it is here; whether it was put anew. Raises NetlinkError."""
    chain = nft.add_chain(TABLE, _CHAIN, "filter", nft.PREROUTING, own_table.BEFORE_ALL)
    with nft.open_socket() as netfilter:
        return own_table.ensure(netfilter, nft.INET, [chain, nft.add_rule(TABLE, _CHAIN, _rule())], 1, {})


def remove() -> None:
    """Takes the rule away, where it is. Raises NetlinkError."""
    with nft.open_socket() as netfilter:
        own_table.remove(netfilter, nft.INET)


def _rule() -> bytes:
    def byte(at: int) -> bytes:
        return nft.load(nft.TRANSPORT_HEADER, at, 1)

    offset = nft.load(nft.TRANSPORT_HEADER, _FRAGMENT + 2, 2) + nft.bitwise(b"\xff\xf8", b"\0\0")
    return b"".join(
        [
            nft.transport(nft.ICMPV6),
            byte(0) + nft.below(b"\x80"),
            byte(_PROTOCOL) + nft.compare(bytes([nft.FRAGMENT])),
            byte(_FRAGMENT) + nft.compare(bytes([nft.UDP])),
            offset + nft.compare(b"\0\0"),
            byte(_FRAGMENT) + nft.store(nft.TRANSPORT_HEADER, _PROTOCOL, 1, nft.REGISTER, checksum_at=_CHECKSUM),
            nft.load(nft.TRANSPORT_HEADER, _PORTS, 4),
            nft.store(nft.TRANSPORT_HEADER, _FRAGMENT, 4, nft.REGISTER, checksum_at=_CHECKSUM),
        ]
    )
