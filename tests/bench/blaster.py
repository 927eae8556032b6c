"""Sends as many small packets of many flows as one processor can, without a program of C.

The packets lie in a ring that is shared with the kernel (PACKET_TX_RING, packet_mmap): each is written once, and from
then on one system call sends all of them, so that Python costs nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

FLOWS = 20_480
IP_BYTES = 64
"""Of each packet, with its IP header."""
_FRAME, _BLOCK = 128, 1 << 16
_DATA = 32
"""Where a frame's packet begins: after its struct tpacket2_hdr."""
_SOL_PACKET, _TX_RING, _VERSION, _QDISC_BYPASS = 263, 13, 10, 20
_TPACKET_V2 = 1
_SEND = 1
"""TP_STATUS_SEND_REQUEST, in a frame's first byte."""


def blast(device: str, gateway: str, destination: str, seconds: float, processor: int) -> float:
    """Sends UDP to port 3000 for so long, from this thread's namespace and one processor; returns the seconds taken.

    `gateway`: link-layer address of the next hop.
    """
    os.sched_setaffinity(0, {processor})
    with contextlib.suppress(PermissionError):  # then others on this processor make the figures noisy
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V2)
        sender.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
        size = FLOWS * _FRAME
        sender.setsockopt(_SOL_PACKET, _TX_RING, struct.pack("=IIII", _BLOCK, size // _BLOCK, _FRAME, FLOWS))
        sender.bind((device, 0x0800))
        with mmap.mmap(sender.fileno(), size) as ring:
            for index, packet in enumerate(packets(gateway, destination)):
                start = index * _FRAME
                struct.pack_into("=II", ring, start + 4, len(packet), len(packet))
                ring[start + _DATA : start + _DATA + len(packet)] = packet
            began = time.monotonic()
            with memoryview(ring) as whole:
                while time.monotonic() - began < seconds:
                    whole[::_FRAME] = bytes([_SEND]) * FLOWS
                    sender.send(b"")
            return time.monotonic() - began


def packets(gateway: str, destination: str) -> Iterator[bytes]:
    """One of each flow, as frames of Ethernet; half a thousand clients."""
    ethernet = bytes.fromhex(gateway.replace(":", "")) + b"\x02" * 6 + b"\x08\x00"
    for flow in range(FLOWS):
        source = IPv4Address("10.0.1.0") + flow % 512
        length = IP_BYTES - 20
        head = struct.pack("!BBHHHBBH", 0x45, 0, IP_BYTES, 0, 0, 64, 17, 0)
        head += source.packed + IPv4Address(destination).packed
        total = sum(struct.unpack("!10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        udp = struct.pack("!HHHH", 1024 + flow % 60_000, 3000, length, 0) + bytes(length - 8)
        yield ethernet + head[:10] + struct.pack("!H", checksum) + head[12:] + udp
