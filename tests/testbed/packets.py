"""Packets made by hand, and packets seen on the way: fragments, ICMP errors, captures.

Plain sockets and struct: what is sent here is what a decent program could not be made to send, and what
is decoded is no more than tests ask for.
"""

from __future__ import annotations

import ipaddress
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.testbed.namespaces import Place
from tests.testbed.server import SO_RCVBUFFORCE
from tests.testbed.traffic import Answer, hear_udp, internet_checksum

ETH_P_ALL = 3
ETHERTYPES = {0x0800: 4, 0x86DD: 6}
MPLS_ETHERTYPE = 0x8847
TCP, UDP, ICMP, ICMPV6, FRAGMENT = 6, 17, 1, 58, 44
ICMP_ERRORS = {ICMP: (3, 11), ICMPV6: (1, 2, 3)}
"""Types of messages that quote a packet."""


@dataclass(frozen=True)
class Packet:
    """An IP packet, decoded as far as tests ask."""

    version: int
    source: str
    destination: str
    protocol: int
    source_port: int = 0
    """Of TCP and UDP, but not in later fragments."""
    destination_port: int = 0
    icmp: tuple[int, int] | None = None
    """Type and code."""
    mtu: int = 0
    """What frag-needed or packet-too-big says."""
    quoted: Packet | None = None
    """The packet that an ICMP error is about."""
    length: int = 0
    """Bytes of the whole IP packet."""
    ttl: int = 0
    fragment: tuple[int, bool] | None = None
    """Offset in bytes, and whether more follow; None when it is no fragment."""
    tcp_flags: int = 0
    payload: bytes = b""
    """What follows the transport header."""
    labels: tuple[int, ...] = ()
    """MPLS labels in front of it, outermost first."""
    direction: str = ""
    """`in` or `out` of the device where it was captured."""
    content: bytes = field(default=b"", repr=False, compare=False)
    """The whole packet, from its IP header on."""


def decode_frame(frame: bytes, *, ethernet: bool = True) -> Packet | None:
    """An IP packet, perhaps behind MPLS labels; None for anything else."""
    if not ethernet:
        return decode(frame)
    kind = struct.unpack_from("!H", frame, 12)[0]
    rest = frame[14:]
    if kind != MPLS_ETHERTYPE:
        return decode(rest) if kind in ETHERTYPES else None
    labels = []
    while True:
        entry = struct.unpack_from("!I", rest)[0]
        labels.append(entry >> 12)
        rest = rest[4:]
        if entry & 0x100:
            inner = decode(rest)
            return None if inner is None else replace(inner, labels=tuple(labels))


def decode(content: bytes) -> Packet | None:
    """An IP packet from its first byte on; a quoted one may be cut off. None when it is none."""
    if len(content) >= 20 and content[0] >> 4 == 4:
        length, ident_fragment, ttl, protocol = struct.unpack_from("!HxxHBB", content, 2)
        head = Packet(
            version=4,
            source=socket.inet_ntop(socket.AF_INET, content[12:16]),
            destination=socket.inet_ntop(socket.AF_INET, content[16:20]),
            protocol=protocol,
            length=length,
            ttl=ttl,
            fragment=_fragment((ident_fragment & 0x1FFF) * 8, bool(ident_fragment & 0x2000)),
            content=content[:length],
        )
        return _transport(head, content[(content[0] & 15) * 4 : length])
    if len(content) >= 40 and content[0] >> 4 == 6:
        length, protocol, ttl = struct.unpack_from("!HBB", content, 4)
        head = Packet(
            version=6,
            source=socket.inet_ntop(socket.AF_INET6, content[8:24]),
            destination=socket.inet_ntop(socket.AF_INET6, content[24:40]),
            protocol=protocol,
            length=length + 40,
            ttl=ttl,
            content=content[: length + 40],
        )
        rest = content[40 : length + 40]
        if protocol == FRAGMENT and len(rest) >= 8:
            following, offset = struct.unpack_from("!BxH", rest)
            head = replace(head, protocol=following, fragment=_fragment(offset & 0xFFF8, bool(offset & 1)))
            rest = rest[8:]
        return _transport(head, rest)
    return None


def _fragment(offset: int, more: bool) -> tuple[int, bool] | None:
    return (offset, more) if offset or more else None


def _transport(head: Packet, rest: bytes) -> Packet:
    if head.fragment is not None and head.fragment[0]:
        return replace(head, payload=rest)
    if head.protocol in (TCP, UDP) and len(rest) >= 8:
        ports = dict(zip(("source_port", "destination_port"), struct.unpack_from("!HH", rest), strict=True))
        if head.protocol == UDP:
            return replace(head, **ports, payload=rest[8:])
        if len(rest) >= 20:
            return replace(head, **ports, tcp_flags=rest[13], payload=rest[(rest[12] >> 4) * 4 :])
        return replace(head, **ports)
    if head.protocol in (ICMP, ICMPV6) and len(rest) >= 8:
        kind, code = rest[0], rest[1]
        message = replace(head, icmp=(kind, code), payload=rest[8:])
        if kind not in ICMP_ERRORS[head.protocol]:
            return message
        mtu = struct.unpack_from("!H", rest, 6)[0] if head.protocol == ICMP else struct.unpack_from("!I", rest, 4)[0]
        return replace(message, mtu=mtu, quoted=decode(rest[8:]))
    return replace(head, payload=rest)


class Capture:
    """What passes a device, from construction on; use it with `with`, or `close` it.

    The socket is made in the device's namespace and handed over: a socket stays in the namespace that it
    was made in, so nothing has to run there.
    """

    def __init__(self, place: Place, device: str) -> None:
        self._socket = open_socket(place, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        # Until here frames of all devices came in.
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)
        self._seen: list[Packet] = []
        while self._read() is not None:
            pass

    def packets(self, wanted: Callable[[Packet], bool] = lambda _: True) -> list[Packet]:
        """All that has passed up to now and is wanted, oldest first."""
        while (got := self._read()) is not None:
            self._keep(*got)
        return [packet for packet in self._seen if wanted(packet)]

    def wait_for(self, wanted: Callable[[Packet], bool], seconds: float = 5.0) -> Packet:
        """The first packet that is wanted, already passed or still to come; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.packets(wanted)
            if found:
                return found[0]
            ready, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no such packet among the {len(self._seen)} of {seconds} s")

    def _read(self) -> tuple[bytes, tuple[object, ...]] | None:
        try:
            frame, address = self._socket.recvfrom(1 << 17)
        except BlockingIOError:
            return None
        return frame, address

    def _keep(self, frame: bytes, address: tuple[object, ...]) -> None:
        _, _, kind, hardware, *_ = address
        # Devices without a link layer (tunnels) have other hardware types; lo (772) has Ethernet headers.
        packet = decode_frame(frame, ethernet=hardware in (1, 772))
        if packet is not None:
            self._seen.append(replace(packet, direction="out" if kind == socket.PACKET_OUTGOING else "in"))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_socket(place: Place, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of another network namespace, usable by the caller."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def open_and_hand_over() -> None:
            with socket.socket(family, kind, protocol) as made:
                socket.send_fds(theirs, [b"."], [made.fileno()])

        place.call(open_and_hand_over)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(family, kind, protocol, fileno=descriptors[0])


def udp_packet(source: str, source_port: int, destination: str, destination_port: int, payload: bytes) -> bytes:
    """A UDP header with its checksum, and the payload."""
    length = 8 + len(payload)
    header = struct.pack("!HHHH", source_port, destination_port, length, 0)
    checksum = internet_checksum(_pseudo_header(source, destination, UDP, length) + header + payload) or 0xFFFF
    return header[:6] + struct.pack("!H", checksum) + payload


def tcp_packet(source: str, source_port: int, destination: str, destination_port: int, flags: int) -> bytes:
    """A TCP header with its checksum, of no connection in particular."""
    header = struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 5 << 4, flags, 1024, 0, 0)
    checksum = internet_checksum(_pseudo_header(source, destination, TCP, len(header)) + header)
    return header[:16] + struct.pack("!H", checksum) + header[18:]


def ip_packet(
    source: str, destination: str, protocol: int, content: bytes, *, fragment: int = 0, ident: int = 0
) -> bytes:
    """An IPv4 or IPv6 packet; `fragment` is IPv4's field of flags and offset."""
    if ":" in source:
        return (
            struct.pack("!IHBB", 6 << 28, len(content), protocol, 64)
            + _address(source)
            + _address(destination)
            + content
        )
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), ident, fragment, 64, protocol, 0)
    head += _address(source) + _address(destination)
    return head[:10] + struct.pack("!H", internet_checksum(head)) + head[12:] + content


def fragments(
    source: str, source_port: int, destination: str, destination_port: int, payload: bytes, size: int = 1208
) -> list[bytes]:
    """A UDP datagram as IP packets, each with at most `size` bytes (a multiple of 8) of it, in order."""
    whole = udp_packet(source, source_port, destination, destination_port, payload)
    ident = random.getrandbits(32)
    made = []
    for offset in range(0, len(whole), size):
        part, more = whole[offset : offset + size], offset + size < len(whole)
        if ":" in source:
            header = struct.pack("!BBHI", UDP, 0, offset | more, ident)
            made.append(ip_packet(source, destination, FRAGMENT, header + part))
        else:
            field = offset // 8 | (0x2000 if more else 0)
            made.append(ip_packet(source, destination, UDP, part, fragment=field, ident=ident & 0xFFFF))
    return made


def ask_udp_in_fragments(
    vip: str,
    port: int,
    *,
    source: str,
    source_port: int,
    size: int = 3000,
    order: Callable[[Sequence[bytes]], Sequence[bytes]] = lambda parts: parts[::-1],
    timeout: float = 5.0,
) -> Answer:
    """One datagram of `size` bytes in fragments, last one first unless `order` says otherwise; raises NoAnswer."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as answers:
        answers.bind((source, source_port))
        answers.settimeout(timeout)
        for packet in order(fragments(source, source_port, vip, port, os.urandom(size))):
            send_packet(packet, vip)
        return hear_udp(answers, vip, port)


def send_packet(packet: bytes, destination: str) -> None:
    """Send a packet as it is, with its IP header, by the routes of this namespace."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (destination, 0))


def too_big(
    vip: str, vip_port: int, client: str, client_port: int, *, mtu: int, protocol: int = TCP, sender: str | None = None
) -> bytes:
    """Frag-needed or packet-too-big about a packet of a flow from the VIP to the client.

    `sender` is the router that tells it; the client itself unless given.
    """
    version = ipaddress.ip_address(vip).version
    ports = struct.pack("!HH", vip_port, client_port)
    transport = ports + (struct.pack("!HH", 1400, 0) if protocol == UDP else bytes(8) + b"\x50\x10" + bytes(6))
    quoted = ip_packet(vip, client, protocol, transport + bytes(1400))[: 20 + 28 if version == 4 else 40 + 60]
    source = sender or client
    if version == 4:
        body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
        return ip_packet(source, vip, ICMP, _summed(body, b""))
    body = struct.pack("!BBHI", 2, 0, 0, mtu) + quoted
    return ip_packet(source, vip, ICMPV6, _summed(body, _pseudo_header(source, vip, ICMPV6, len(body))))


def _summed(message: bytes, pseudo_header: bytes) -> bytes:
    """An ICMP message with its checksum filled in."""
    return message[:2] + struct.pack("!H", internet_checksum(pseudo_header + message)) + message[4:]


def _pseudo_header(source: str, destination: str, protocol: int, length: int) -> bytes:
    """RFC 768 and RFC 8200, section 8.1."""
    layout = ("!I3xB", (length, protocol)) if ":" in source else ("!xBH", (protocol, length))
    return _address(source) + _address(destination) + struct.pack(layout[0], *layout[1])


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed
