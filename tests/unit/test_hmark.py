"""The flow hash: what must hold of it without a kernel; tests/kernel/test_hmark.py compares it with the kernel."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_helper.hmark import Flow, bucket

PORTS = st.integers(0, 65535)
SIZES = st.integers(0, 12).map(lambda power: 1 << power)
SEEDS = st.integers(0, 0xFFFFFFFF)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    addresses = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    return Flow(
        draw(st.sampled_from(["tcp", "udp", "icmp"])), draw(addresses), draw(PORTS), draw(addresses), draw(PORTS)
    )


@given(flows(), SIZES, SEEDS, st.booleans())
def test_both_directions_of_a_flow_have_one_bucket(flow: Flow, size: int, seed: int, addresses_only: bool) -> None:
    back = Flow(flow.protocol, flow.destination, flow.destination_port, flow.source, flow.source_port)
    there = bucket(flow, size, seed, addresses_only)
    assert 0 <= there < size
    assert there == bucket(back, size, seed, addresses_only)


@given(flows(), PORTS, PORTS, SEEDS)
def test_affinity_to_a_client_ignores_ports(flow: Flow, source_port: int, destination_port: int, seed: int) -> None:
    other = Flow(flow.protocol, flow.source, source_port, flow.destination, destination_port)
    assert bucket(flow, 4096, seed, addresses_only=True) == bucket(other, 4096, seed, addresses_only=True)


@given(flows(), SEEDS)
def test_doubling_the_buckets_splits_each_in_two(flow: Flow, seed: int) -> None:
    assert bucket(flow, 512, seed) // 2 == bucket(flow, 256, seed)


def test_icmp_has_no_ports_to_hash() -> None:
    client, vip = ip_address("203.0.113.9"), ip_address("198.51.100.7")
    assert bucket(Flow("icmp", client, 7, vip, 9), 4096, 1) == bucket(Flow("icmp", client, 0, vip, 0), 4096, 1)
    assert bucket(Flow("icmp", client, 0, vip, 0), 4096, 1) == bucket(Flow("udp", client, 0, vip, 0), 4096, 1)


def test_flows_of_one_client_spread_evenly() -> None:
    client, vip = ip_address("2001:db8::9"), ip_address("2001:db8:1::7")
    counts = [0] * 16
    for port in range(16000):
        counts[bucket(Flow("tcp", client, 20000 + port, vip, 443), 16, 0x5EED)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_a_flow_of_two_ip_versions_is_refused() -> None:
    with pytest.raises(ValueError, match="mixes IP versions"):
        bucket(Flow("tcp", ip_address("203.0.113.9"), 1, IPv6Address("2001:db8::1"), 2), 256, 0)


def test_no_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="0 buckets"):
        bucket(Flow("tcp", ip_address("203.0.113.9"), 1, ip_address("198.51.100.7"), 2), 0, 0)
