"""`trace` against the kernel: thousands of flows through the router's own rules, their marks read at the receiver."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from node_helper.buckets import rebalance
from node_helper.hmark import Flow
from node_helper.kernel import ipsets, xtables
from node_helper.model import IPAddress
from node_helper.plan.state import MARK, RouterWanted
from node_helper.services import TunnelService
from node_helper.tracing import trace
from tests.unit.planning import ME, endpoint, facts, service

SEED = 0x1234ABCD
FLOWS = 600
"""Of each kind, IP version, way of hashing and number of buckets: 28,800 in all."""
BATCH = 50
CLONE_NEWNET = 0x40000000
SO_RCVMARK = 75
"""Linux 5.19; not in Python's socket module."""
MARK_SPACE = socket.CMSG_SPACE(4)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
NUMBERS = {"tcp": {4: 6, 6: 6}, "udp": {4: 17, 6: 17}, "icmp": ICMP, "icmp-error": ICMP}
ECHO_REQUEST = {4: 8, 6: 128}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
"""Type and code: frag-needed, packet-too-big."""
NETWORKS = {4: ip_network("198.51.100.0/25"), 6: ip_network("2001:db8:ffff::/121")}
ENDS = tuple(endpoint(f"10.244.2.{number}") for number in range(1, 8))
REACH = tuple(str(end.address) for end in ENDS)


def services_of(version: int) -> tuple[TunnelService, TunnelService]:
    """Two Services with half of the network's addresses each; the second hashes addresses only."""
    vips = tuple(NETWORKS[version].hosts())
    half = len(vips) // 2
    return (
        service("by-flow", vips=tuple(map(str, vips[:half])), endpoints=ENDS),
        service("by-client", vips=tuple(map(str, vips[half:])), endpoints=ENDS, affinity=True),
    )


@pytest.fixture
def scratch() -> Iterator[ThreadPoolExecutor]:
    """One thread in a network namespace without a name, which goes when the thread does."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_enter_new_namespace).result()
        yield thread


def _enter_new_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("ip", "link", "add", "client0", "type", "veth", "peer", "name", "host0")
    for name in ("lo", "client0", "host0"):
        _run("ip", "link", "set", name, "up")
    for version, network in NETWORKS.items():
        _run("ip", f"-{version}", "route", "add", "local", str(network), "dev", "lo")
        # Where an answer would go; nobody takes it.
        _run("ip", f"-{version}", "route", "add", "default", "dev", "client0")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


class Wire:
    """Sends packets by hand to `host0`, and reads with which mark they arrived."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._open = ExitStack()
        self._sender = self._open.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._sender.bind(("client0", 0))
        self._receivers = {}
        for number in sorted({numbers[version] for numbers in NUMBERS.values()}):
            receiver = self._open.enter_context(socket.socket(FAMILIES[version], socket.SOCK_RAW, number))
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            receiver.settimeout(10)
            self._receivers[number] = receiver
        link = {4: b"\x08\x00", 6: b"\x86\xdd"}[version]
        self._ethernet = _mac("host0") + b"\x02" * 6 + link

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def marks(self, kind: str, flows: Sequence[Flow]) -> list[int]:
        """The mark of each flow's packet; `kind` is a protocol, or an ICMP error about a reply of each flow."""
        number = NUMBERS[kind][self._version]
        receiver, found = self._receivers[number], dict[int, int]()
        for start in range(0, len(flows), BATCH):
            batch = flows[start : start + BATCH]
            for index, flow in enumerate(batch, start):
                self._sender.send(self._ethernet + packet(kind, flow, index))
            while len(found) < start + len(batch):
                received, ancillary, _, _ = receiver.recvmsg(2048, MARK_SPACE)
                (mark,) = (struct.unpack("=I", v)[0] for _, k, v in ancillary if k == socket.SO_MARK)
                if received[-8:-4] == b"flow":  # and no error or neighbour discovery of the kernel's own
                    found[int.from_bytes(received[-4:], "big")] = mark
        return [found[index] for index in range(len(flows))]


def _mac(device: str) -> bytes:
    shown = subprocess.run(["ip", "-br", "link", "show", device], check=True, capture_output=True, text=True).stdout
    return bytes.fromhex(shown.split()[2].replace(":", ""))


def packet(kind: str, flow: Flow, index: int) -> bytes:
    """An IP packet of the flow, its last bytes `flow` and the index."""
    tail = b"flow" + index.to_bytes(4, "big")
    version = flow.source.version
    if kind == "icmp-error":
        # What a router on the way to the client says of a reply too big: it quotes that, and comes to the VIP.
        reply = ip_header(6, flow.destination, flow.source, 1400)
        reply += struct.pack("!HHII", flow.destination_port, flow.source_port, 1, 1)
        body = struct.pack("!BBHI", *TOO_BIG[version], 0, 1400) + reply + bytes(8) + tail
    elif kind == "icmp":
        body = struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0, flow.source_port, index & 0xFFFF) + tail
    elif kind == "udp":
        body = struct.pack("!HHHH", flow.source_port, flow.destination_port, 8 + len(tail), 0) + tail
    else:
        # A RST, which the kernel does not answer.
        body = struct.pack("!HHIIBBHHH", flow.source_port, flow.destination_port, 1, 0, 0x50, 0x04, 0, 0, 0) + tail
    number = NUMBERS[kind][version]
    if number == socket.IPPROTO_ICMPV6:
        pseudo = flow.source.packed + flow.destination.packed + struct.pack("!II", len(body), number)
        body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    elif number == socket.IPPROTO_ICMP:
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return ip_header(number, flow.source, flow.destination, len(body)) + body


def ip_header(protocol: int, source: IPAddress, destination: IPAddress, length: int) -> bytes:
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + source.packed + destination.packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, protocol, 0) + source.packed + destination.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def checksum(octets: bytes) -> int:
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets + bytes(len(octets) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def random_flows(protocol: str, vips: Sequence[IPAddress], chance: random.Random) -> list[Flow]:
    """From any client that is none of the kernel's own special addresses, ports at the edges among them."""
    flows = []
    for _ in range(FLOWS):
        vip = chance.choice(vips)
        client: IPAddress
        if vip.version == 4:
            client = IPv4Address(chance.randrange(0x0B000000, 0x7F000000))
        else:
            client = IPv6Address(0x2000 << 112 | chance.getrandbits(112))
        ports = [chance.choice([chance.randrange(65536), chance.choice([0, 1, 53, 443, 1023, 65535])]) for _ in "ab"]
        if protocol == "icmp":
            ports = [0, 0]
        flows.append(Flow(protocol, client, ports[0], vip, ports[1]))
    return flows


def _differences(kind: str, version: int, buckets: int) -> list[tuple[Flow, Mapping[str, object], int]]:
    both = services_of(version)
    by_address = frozenset(map(str, both[1].vips))
    ipsets.keep_affinity(by_address)
    xtables.ensure_router_chains(RouterWanted(buckets, SEED, (), by_address=by_address))
    tables = {one.key: rebalance(None, one.uid, REACH, buckets) for one in both}
    chance = random.Random(f"{kind} {version} {buckets}")
    differences: list[tuple[Flow, Mapping[str, object], int]] = []
    seen = 0
    with Wire(version) as wire:
        for one in both:
            flows = random_flows("tcp" if kind == "icmp-error" else kind, one.vips, chance)
            for flow, mark in zip(flows, wire.marks(kind, flows), strict=True):
                told = trace(flow, both, tables, facts(REACH), ME, buckets, SEED)
                seen += 1
                if MARK + told["bucket"] != mark:
                    differences.append((flow, told, mark))
    assert seen == 2 * FLOWS
    return differences


@pytest.mark.parametrize("buckets", [2, 256, 4096])
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp", "icmp-error"])
@pytest.mark.parametrize("version", [4, 6])
def test_trace_names_the_bucket_that_the_kernel_chooses(
    scratch: ThreadPoolExecutor, version: int, kind: str, buckets: int
) -> None:
    assert scratch.submit(_differences, kind, version, buckets).result() == []


def test_hashes_differ_where_the_flow_does() -> None:
    """That nothing differs above would be worth little, were all flows in one bucket."""
    both = services_of(4)
    tables = {one.key: rebalance(None, one.uid, REACH, 256) for one in both}
    flows = random_flows("tcp", both[0].vips, random.Random(1))
    found = {trace(flow, both, tables, facts(REACH), ME, 256, SEED)["bucket"] for flow in flows}
    assert len(found) > 200
