"""The flow hash against the kernel's own: packets through a real HMARK rule, their marks read at the receiver."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from node_helper.hmark import Flow, bucket

SEED = 0x1234ABCD
FLOWS = 600
CLONE_NEWNET = 0x40000000
SO_RCVMARK = 75
"""Linux 5.19; not in Python's socket module."""
FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
"""Bind to an address that only a route makes local (IP_FREEBIND, IPV6_FREEBIND)."""
MARK_SPACE = socket.CMSG_SPACE(4)
NETWORKS: dict[int, IPv4Network | IPv6Network] = {
    4: IPv4Network("198.51.100.0/24"),
    6: IPv6Network("2001:db8:ffff::/64"),
}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
COMMANDS = {4: "iptables-restore", 6: "ip6tables-restore"}
ECHO_REQUEST = {4: 8, 6: 128}


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
    _run("ip", "link", "set", "lo", "up")
    for version, network in NETWORKS.items():
        _run("ip", f"-{version}", "route", "add", "local", str(network), "dev", "lo")


def _run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, check=True)


def _mark_by_hash(version: int, size: int, hashed: str) -> None:
    rule = f"-A OUTPUT -j HMARK --hmark-tuple {hashed} --hmark-mod {size} --hmark-offset 1 --hmark-rnd {SEED}"
    _run(COMMANDS[version], "-w", "10", text=f"*mangle\n{rule}\nCOMMIT\n")


def _addresses(version: int, chance: random.Random) -> tuple[str, str]:
    network = NETWORKS[version]
    source, destination = (network[chance.randrange(1, min(network.num_addresses, 1 << 62) - 1)] for _ in "ab")
    return str(source), str(destination)


def _socket(version: int, kind: int, protocol: int, address: str, port: int = 0) -> socket.socket:
    bound = socket.socket(FAMILIES[version], kind, protocol)
    bound.setsockopt(*FREEBIND[version], 1)
    bound.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
    bound.settimeout(10)
    bound.bind((address, port))
    return bound


def _mark_of(receiver: socket.socket) -> int:
    _, ancillary, _, _ = receiver.recvmsg(2048, MARK_SPACE)
    marks: list[int] = [struct.unpack("=I", value)[0] for _, kind, value in ancillary if kind == socket.SO_MARK]
    assert len(marks) == 1, ancillary
    return marks[0]


def _udp_differences(version: int, size: int, hashed: str, addresses_only: bool) -> list[tuple[Flow, int, int]]:
    _mark_by_hash(version, size, hashed)
    chance = random.Random(size)
    differences = []
    for _ in range(FLOWS):
        source, destination = _addresses(version, chance)
        with (
            _socket(version, socket.SOCK_DGRAM, 0, destination, chance.choice([0, 1, 53, 443])) as receiver,
            _socket(version, socket.SOCK_DGRAM, 0, source, chance.choice([0, 0, 0, 2, 1023])) as sender,
        ):
            port = receiver.getsockname()[1]
            sender.sendto(b"x", (destination, port))
            flow = Flow("udp", ip_address(source), sender.getsockname()[1], ip_address(destination), port)
            seen = _mark_of(receiver)
        expected = bucket(flow, size, SEED, addresses_only)
        if seen - 1 != expected:
            differences.append((flow, seen - 1, expected))
    return differences


def _icmp_differences(version: int, size: int) -> list[tuple[Flow, int, int]]:
    _mark_by_hash(version, size, "src,dst,sport,dport")
    chance = random.Random(size)
    protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[version]
    differences = []
    for number in range(100):
        source, destination = _addresses(version, chance)
        with (
            _socket(version, socket.SOCK_RAW, protocol, destination) as receiver,
            _socket(version, socket.SOCK_RAW, protocol, source) as sender,
        ):
            # A raw receiver gets IPv4 with any checksum; for IPv6 the kernel fills it in.
            sender.sendto(struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0, number, 0), (destination, 0))
            seen = _mark_of(receiver)
        flow = Flow("icmp", ip_address(source), 0, ip_address(destination), 0)
        if seen - 1 != bucket(flow, size, SEED):
            differences.append((flow, seen - 1, bucket(flow, size, SEED)))
    return differences


@pytest.mark.parametrize("size", [3, 256, 4096])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_flows_have_the_kernels_bucket(scratch: ThreadPoolExecutor, version: int, size: int) -> None:
    assert scratch.submit(_udp_differences, version, size, "src,dst,sport,dport", False).result() == []


@pytest.mark.parametrize("version", [4, 6])
def test_hashes_of_addresses_only_are_the_kernels(scratch: ThreadPoolExecutor, version: int) -> None:
    assert scratch.submit(_udp_differences, version, 1024, "src,dst", True).result() == []


@pytest.mark.parametrize("version", [4, 6])
def test_echo_requests_have_the_kernels_bucket(scratch: ThreadPoolExecutor, version: int) -> None:
    assert scratch.submit(_icmp_differences, version, 256).result() == []
