"""Takes captured netlink messages apart, for tests of our encoder; shares nothing with the parser of the project."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from


def items(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, flags of their numbers removed."""
    while payload:
        length, kind = unpack_from("=HH", payload)
        assert 4 <= length <= len(payload)
        yield kind & 0x3FFF, payload[4:length]
        payload = payload[(length + 3) & ~3 :]


def split(message: bytes) -> tuple[int, int, bytes]:
    """Type, flags and body of a whole message."""
    length, kind, flags = unpack_from("=IHH", message)
    assert length == len(message)
    return kind, flags, message[16:]
