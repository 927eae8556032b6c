"""The networks that all VIPs are in: by two comparisons most packets are known to be none of ours.

Our chains look each packet's addresses up in sets, which costs more than all else that they do. So they compare with a
network first, and look up only what is in it. It is no smaller than `_LONGEST`, so that a VIP more seldom changes it:
then the chains are written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

_LONGEST = {4: 24, 6: 64}
_BYTES = {4: 4, 6: 16}

Covers = Mapping[int, IPv4Network | IPv6Network]
"""IP version -> the network; a version without VIPs has none."""


@lru_cache(maxsize=1)
def covers(vips: frozenset[str]) -> Covers:
    """The smallest networks that hold these VIPs; what was asked last is known without a look at each VIP."""
    found: dict[int, IPv4Network | IPv6Network] = {}
    for version, longest in _LONGEST.items():
        addresses = sorted(int(address) for address in map(ip_address, vips) if address.version == version)
        if addresses:
            width = 8 * _BYTES[version]
            common = width - (addresses[0] ^ addresses[-1]).bit_length()
            first = addresses[0].to_bytes(_BYTES[version], "big")
            found[version] = ip_network((first, min(common, longest)), strict=False)
    return found


def covered(vip: str, by: Covers) -> bool:
    """Whether a VIP is in them."""
    address = ip_address(vip)
    return address.version in by and address in by[address.version]
