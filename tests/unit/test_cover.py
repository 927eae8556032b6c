"""Networks that hold all VIPs: no VIP is outside, and they are no larger than they must be."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_helper.plan.cover import covered, covers


@given(st.frozensets(st.ip_addresses().map(str), max_size=20))
def test_every_vip_is_covered_and_a_smaller_network_would_not_do(vips: frozenset[str]) -> None:
    found = covers(vips)
    assert set(found) == {ip_address(vip).version for vip in vips}
    for version, network in found.items():
        of_version = [vip for vip in vips if ip_address(vip).version == version]
        assert all(covered(vip, found) for vip in of_version)
        if network.prefixlen < {4: 24, 6: 64}[version]:
            halves = [str(half) for half in network.subnets()]
            assert not any(all(ip_address(vip) in ip_network(half) for vip in of_version) for half in halves)


@pytest.mark.parametrize(
    ("vips", "expected"),
    [
        (["198.51.100.7"], "198.51.100.0/24"),
        (["198.51.100.7", "198.51.100.200"], "198.51.100.0/24"),
        (["198.51.100.7", "198.51.101.7"], "198.51.100.0/23"),
        (["1.1.1.1", "203.0.113.1"], "0.0.0.0/0"),
        (["2001:db8::1"], "2001:db8::/64"),
        (["2001:db8::1", "2001:db8:0:1::1"], "2001:db8::/63"),
    ],
)
def test_a_network_is_no_smaller_than_changes_are_worth(vips: list[str], expected: str) -> None:
    (network,) = covers(frozenset(vips)).values()
    assert str(network) == expected
    assert not covered("9.9.9.9" if network.version == 6 else "2001:db8::1", covers(frozenset(vips)))
