"""IP addresses between text and bytes, by the C library's parser.

`ipaddress` costs a millisecond and a half to import, as much as a tenth of the plugin's whole start.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

FAMILY = {4: AF_INET, 6: AF_INET6}
VERSION = {AF_INET: 4, AF_INET6: 6}
BITS = {4: 32, 6: 128}


def version(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def family(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def pack(address: str) -> bytes:
    """Network-order bytes; raises ValueError on what is no address."""
    try:
        return inet_pton(family(address), address)
    except (OSError, ValueError):
        raise ValueError(f"{address!r} is not an IP address") from None


def unpack(raw: bytes) -> str:
    """Canonical text of 4 or 16 bytes."""
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)


def canonical(address: str) -> str:
    """The one text form of an address; raises ValueError on what is no address."""
    return unpack(pack(address))
