"""The packets of the forwarding benchmark are whole: lengths, checksums, and as many flows as are promised."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from tests.bench.blaster import FLOWS, IP_BYTES, packets

SENT = list(packets("02:00:00:00:00:07", "198.51.100.7"))


def test_each_packet_is_a_flow_of_its_own() -> None:
    assert len({(p[26:30], p[34:36]) for p in SENT}) == len(SENT) == FLOWS


def test_each_packet_is_udp_of_the_promised_length_to_the_destination() -> None:
    for sent in SENT[:: FLOWS // 50]:
        assert sent[:6] == b"\x02\x00\x00\x00\x00\x07" and sent[12:14] == b"\x08\x00"
        assert len(sent) == 14 + IP_BYTES == 14 + int.from_bytes(sent[16:18], "big")
        assert sent[23] == 17 and IPv4Address(sent[30:34]) == IPv4Address("198.51.100.7")
        assert int.from_bytes(sent[38:40], "big") == IP_BYTES - 20


def test_headers_have_the_right_checksum() -> None:
    for sent in SENT[:: FLOWS // 500]:
        total = sum(struct.unpack("!10H", sent[14:34]))
        assert (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE - 0xFFFF)
