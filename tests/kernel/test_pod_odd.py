"""Pods of the real kernel that cannot have all that is wanted: IPv6 disabled, our table used by another, a path that
leads to another pod. What can be had is there, the rest is told, and nothing of others is touched.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin import pod
from cni_plugin.netns import NetnsReplaced, identity
from cni_plugin.pod import PodError
from cni_plugin.tunnel import VXLAN_GPE, PodTunnels, Tunnel
from tests.kernel.private_netns import private_netns, run, wait_until_delivered
from tests.kernel.test_pod_netns import ETH0, VIP, VIP6, picture, pod_netns, web

OTHER = PodTunnels((Tunnel(("203.0.113.9",), VXLAN_GPE),))


@pytest.fixture
def netns() -> Iterator[str]:
    with pod_netns("1") as path:
        yield path


def addresses(netns: str) -> str:
    return run(netns, "ip", "-o", "addr")


# --- IPv6 disabled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["all", "lo"])
def test_where_ipv6_is_disabled_the_pod_gets_its_ipv4_vips_and_a_warning(netns: str, mode: str, where: str) -> None:
    run(netns, "sysctl", "-q", "-w", f"net.ipv6.conf.{where}.disable_ipv6=1")
    warnings: list[str] = []
    assert pod.configure(netns, ETH0, web(mode), warn=warnings.append) != []
    assert f" {VIP}/32 " in addresses(netns)
    assert VIP6 not in addresses(netns)
    (warning,) = warnings
    assert VIP6 in warning and "IPv6 is disabled" in warning
    assert pod.missing(netns, ETH0, web(mode)) == []
    assert pod.configure(netns, ETH0, web(mode)) == []


def test_ipv6_that_is_disabled_later_is_nobodys_fault_and_comes_back_with_it(netns: str, mode: str) -> None:
    pod.configure(netns, ETH0, web(mode))
    run(netns, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    assert VIP6 not in addresses(netns)
    pod.configure(netns, ETH0, web(mode))
    assert pod.missing(netns, ETH0, web(mode)) == []
    run(netns, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=0")
    assert pod.missing(netns, ETH0, web(mode)) == [f"VIP {VIP6} is not on lo"]
    pod.configure(netns, ETH0, web(mode))
    assert VIP6 in addresses(netns)


def test_a_pod_without_ipv6_is_cleared_without_a_trace(netns: str, mode: str) -> None:
    run(netns, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    before = picture(netns)
    pod.configure(netns, ETH0, web(mode))
    pod.clear(netns, ETH0, web(mode))
    assert picture(netns) == before


# --- routes of somebody else in our table ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "route"),
    [
        ("-4", "default via 10.0.0.9 dev eth0 table 116 proto static"),
        ("-4", "default via 10.0.0.9 dev eth0 table 116 proto static metric 100"),
        ("-6", "default via fd00::9 dev eth0 table 116 proto static"),
        ("-4", "unreachable default table 116 proto static"),
    ],
)
def test_a_default_route_of_somebody_else_in_our_table_is_told_and_kept(netns: str, family: str, route: str) -> None:
    run(netns, "ip", family, "route", "add", *route.split())
    before = picture(netns)
    with pytest.raises(PodError) as caught:
        pod.configure(netns, ETH0, web(VXLAN_GPE))
    assert "116" in caught.value.details
    assert picture(netns) == before


def test_a_default_route_of_the_other_family_is_none_of_our_business(netns: str) -> None:
    run(netns, "ip", "-6", "route", "add", *"default via fd00::9 dev eth0 table 116 proto static".split())
    pod.configure(netns, ETH0, OTHER)
    assert pod.missing(netns, ETH0, OTHER) == []
    assert "default via fd00::9 dev eth0 proto static" in run(netns, "ip", "-6", "route", "show", "table", "116")


# --- differences in words --------------------------------------------------------------------------------

DIFFERENCES = {
    f"ip addr del {VIP}/32 dev lo": [f"VIP {VIP} is not on lo"],
    "ip link del svctun-gpe": ["device svctun-gpe is missing", f"VIP {VIP} is not on svctun-gpe"],
    "ip link set svctun-gpe down": ["device svctun-gpe is down"],
    f"ip rule del pref 1160 from {VIP}": [f"the rule by which replies from {VIP}/32 take table 116 is missing"],
    "ip route flush table 116 proto 116": ["the IPv4 default route for replies is missing in table 116"],
    "nft delete table inet svctun": ["the nf_tables rules (table inet svctun) are missing"],
    f"nft delete element inet svctun vips4 {{ {VIP} }}": [f"nf_tables set vips4 lacks {VIP}"],
    f"nft delete element inet svctun remap4 {{ {VIP} . tcp . 80 }}": [
        f"nf_tables set remap4 lacks {VIP} tcp 80 -> 8080"
    ],
    "nft add element inet svctun sources4 { 10.9.9.9 }": ["nf_tables set sources4 has 10.9.9.9 too much"],
}


@pytest.mark.parametrize("command", DIFFERENCES)
def test_each_difference_is_told_in_words(netns: str, command: str) -> None:
    pod.configure(netns, ETH0, web(VXLAN_GPE))
    wait_until_delivered(netns, VIP6)
    run(netns, *command.split())
    assert pod.missing(netns, ETH0, web(VXLAN_GPE)) == DIFFERENCES[command]


def test_what_is_too_much_is_told_in_words(netns: str) -> None:
    pod.configure(netns, ETH0, web(VXLAN_GPE))
    told = pod.missing(netns, ETH0, PodTunnels((Tunnel((VIP,), VXLAN_GPE),)))
    assert f"{VIP6} is on lo, but is no VIP of the pod" in told
    assert f"a rule sends replies from {VIP6}/128 to table 116, but that is no VIP of the pod" in told
    assert f"nf_tables set vips6 has {VIP6} too much" in told
    assert not any(words.startswith(("take", "put", "set", "delete", "add")) for words in told)


# --- another namespace at the path -----------------------------------------------------------------------


def test_another_pod_at_the_path_is_not_touched(netns: str) -> None:
    found = identity(netns)
    assert found
    with private_netns() as other:
        run(other, "ip", "link", "add", ETH0, "type", "veth", "peer", "name", "outside")
        before = picture(other)
        for call in (pod.configure, pod.missing):
            with pytest.raises(PodError) as caught:
                call(other, ETH0, web(VXLAN_GPE), inode=found[1])
            assert isinstance(caught.value.__cause__, NetnsReplaced)
        assert picture(other) == before
    pod.configure(netns, ETH0, web(VXLAN_GPE), inode=found[1])
    assert f" {VIP}/32 " in addresses(netns)
