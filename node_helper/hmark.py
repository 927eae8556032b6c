"""The bucket of a flow, computed as the kernel's HMARK target computes it, so that `trace` says what packets do.

A bit-exact copy of net/netfilter/xt_HMARK.c for the tuple `src,dst,sport,dport` without masks: both
directions of a flow and the ICMP errors that quote it give one hash, since addresses and ports are ordered
first. HMARK's default protocol mask is 0, so TCP and UDP of the same numbers share a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass

from node_helper.model import IPAddress

PROTOCOLS_WITH_PORTS = frozenset({"tcp", "udp"})

_U32 = 0xFFFFFFFF
_JHASH_INITVAL = 0xDEADBEEF
"""include/linux/jhash.h: an arbitrary initial parameter."""
_THREE_WORDS = 3 << 2


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow as its client sends it."""

    protocol: str
    """`tcp`, `udp` or `icmp`, in lower case (`icmp` also for ICMPv6)."""
    source: IPAddress
    source_port: int
    """0 where the protocol has no ports."""
    destination: IPAddress
    destination_port: int


def bucket(flow: Flow, buckets: int, seed: int, addresses_only: bool = False) -> int:
    """The flow's bucket in 0 … buckets - 1, for HMARK with `--hmark-mod buckets --hmark-rnd seed`.

    `addresses_only` is the tuple `src,dst`, as for Services with client affinity. Raises ValueError where the
    two addresses are not of one IP version or `buckets` is not positive.
    """
    if flow.source.version != flow.destination.version:
        raise ValueError(f"a flow from {flow.source} to {flow.destination} mixes IP versions")
    if buckets < 1:
        raise ValueError(f"a flow cannot be spread over {buckets} buckets")
    low, high = sorted((_folded(flow.source), _folded(flow.destination)))
    ports = 0
    if not addresses_only and flow.protocol in PROTOCOLS_WITH_PORTS:
        ports = max(flow.source_port, flow.destination_port) << 16 | min(flow.source_port, flow.destination_port)
    return _reciprocal_scale(_jhash_3words(low, high, ports, seed), buckets)


def _folded(address: IPAddress) -> int:
    """An address as one 32-bit word: IPv6 is the XOR of its four words."""
    value = int(address)
    if address.version == 4:
        return value
    return (value >> 96 ^ value >> 64 ^ value >> 32 ^ value) & _U32


def _reciprocal_scale(value: int, end: int) -> int:
    """include/linux/math.h: spreads 32 bits over [0, end) without a division."""
    return value * end >> 32


def _rotated(word: int, shift: int) -> int:
    return (word << shift | word >> (32 - shift)) & _U32


def _jhash_3words(a: int, b: int, c: int, seed: int) -> int:
    """include/linux/jhash.h: jhash_3words with its __jhash_final."""
    start = seed + _JHASH_INITVAL + _THREE_WORDS
    a, b, c = a + start & _U32, b + start & _U32, c + start & _U32
    c = (c ^ b) - _rotated(b, 14) & _U32
    a = (a ^ c) - _rotated(c, 11) & _U32
    b = (b ^ a) - _rotated(a, 25) & _U32
    c = (c ^ b) - _rotated(b, 16) & _U32
    a = (a ^ c) - _rotated(c, 4) & _U32
    b = (b ^ a) - _rotated(a, 14) & _U32
    return (c ^ b) - _rotated(b, 24) & _U32
