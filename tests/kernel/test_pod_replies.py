"""Which way a pod's replies from a VIP go: the pod's own default way, whatever it looks like, and after each change.

The shapes are those that CNI plugins make: gateways on a subnet (bridge), by a route to the gateway alone (ptp), of
link-local addresses (Calico), on-link, by device alone; several interfaces, nexthop objects, several next hops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cni_plugin import pod
from cni_plugin.netns import entered
from cni_plugin.pod.state import write_sysctl
from cni_plugin.tunnel import VXLAN_GPE, PodTunnels, Tunnel
from tests.kernel.private_netns import batch, private_netns, run, wait_until_up
from tests.kernel.test_pod_netns import ETH0, picture

VIP, CLIENT = {4: "198.51.100.7", 6: "2001:db8::7"}, {4: "203.0.113.9", 6: "2001:db8:1::9"}
BOTH = PodTunnels((Tunnel((VIP[4], VIP[6]), VXLAN_GPE),), ("10.0.1.1",))
ANY = {4: "0.0.0.0/0", 6: "::/0"}
DEFAULTS = ("route add default via 10.0.0.1 dev eth0", "route add default via fd00::1 dev eth0")


@contextmanager
def pod_with(*lines: str) -> Iterator[str]:
    """A pod with eth0 and a second interface, net1, which is narrower; `lines` are `ip` commands for its routes."""
    with private_netns() as path:
        batch(
            path,
            *(
                line
                for device, mtu in ((ETH0, 1500), ("net1", 1400))
                for line in (
                    f"link add {device} mtu {mtu} type veth peer name {device}-peer",
                    f"link set {device}-peer addrgenmode none up",  # no link-local addresses: they settle late
                    f"link set {device} addrgenmode none up",
                )
            ),
            "addr add 10.0.0.2/24 dev eth0",
            "addr add fd00::2/64 dev eth0 nodad",
            "addr add 172.16.0.2/24 dev net1",
            "addr add fd01::2/64 dev net1 nodad",
            *lines,
        )
        wait_until_up(path, ETH0, "net1")
        yield path


def way(netns: str, version: int, *source: str) -> str:
    """Gateway and device of the way to a client."""
    shown = run(netns, "ip", f"-{version}", "route", "get", CLIENT[version], *source)
    found = re.search(r"(via (inet6 )?\S+ )?dev \S+", shown)
    assert found, shown
    return found[0]


def reply_route(netns: str, version: int) -> str:
    return " ".join(run(netns, "ip", f"-{version}", "route", "show", "table", "116").split())


SHAPES = {
    "by a subnet": DEFAULTS,
    "by a route to the gateway alone": (
        "addr flush dev eth0",
        "addr add 10.0.0.2/32 dev eth0",
        "addr add fd00::2/128 dev eth0 nodad",
        "route add 10.0.0.1 dev eth0 scope link src 10.0.0.2",
        "route add fd00::1 dev eth0",
        *DEFAULTS,
    ),
    "link-local gateways": (
        "addr flush dev eth0",
        "addr add 10.0.0.2/32 dev eth0",
        "addr add fd00::2/128 dev eth0 nodad",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        "route add default via fe80::1 dev eth0",
    ),
    "on-link": ("route add default via 192.0.2.1 dev eth0 onlink", "route add default via fd07::1 dev eth0 onlink"),
    "by device alone": ("route add default dev eth0 scope link", "route add ::/0 dev eth0"),
    "a gateway of the other version": (DEFAULTS[1], "route add 0.0.0.0/0 via inet6 fe80::1 dev eth0"),
    "by another interface": ("route add default via 172.16.0.1 dev net1", "route add default via fd01::1 dev net1"),
    "one for each version": ("route add default via 172.16.0.1 dev net1", DEFAULTS[1]),
    "several, of which one is preferred": (
        "route add default via 10.0.0.1 dev eth0 metric 300",
        "route add default via 172.16.0.1 dev net1 metric 200",
        "route add default via fd00::1 dev eth0 metric 300",
        "route add default via fd01::1 dev net1 metric 200",
    ),
    "one for a kind of service": (*DEFAULTS, "route add default via 172.16.0.1 dev net1 tos 0x10"),
    "one for a source": (*DEFAULTS, "route add default from fd01::/64 via fd01::1 dev net1"),
    "nexthop objects": (
        "nexthop add id 5 via 10.0.0.1 dev eth0",
        "nexthop add id 6 via fd00::1 dev eth0",
        "route add default nhid 5",
        "route add ::/0 nhid 6",
    ),
    "with other metrics": (
        f"{DEFAULTS[0]} initcwnd 20 quickack 1 mtu lock 1300",
        f"{DEFAULTS[1]} initcwnd 20 congctl reno",
    ),
    "in another scope and protocol": (f"{DEFAULTS[0]} proto dhcp src 10.0.0.2", f"{DEFAULTS[1]} proto ra pref high"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_replies_go_the_pods_own_default_way(shape: str) -> None:
    with pod_with(*SHAPES[shape]) as netns:
        before = picture(netns)
        own = {version: way(netns, version) for version in (4, 6)}
        assert pod.configure(netns, ETH0, BOTH)
        assert {version: way(netns, version, "from", VIP[version]) for version in (4, 6)} == own
        assert {version: way(netns, version) for version in (4, 6)} == own, "the pod's own way is as it was"
        assert pod.configure(netns, ETH0, BOTH) == []
        assert pod.missing(netns, ETH0, BOTH) == []
        for version in (4, 6):
            for metric in re.findall(r"initcwnd \d+|quickack \d|congctl \w+|mtu lock \d+", " ".join(SHAPES[shape])):
                in_main = metric in run(netns, "ip", f"-{version}", "route", "show", "default")
                assert (metric in reply_route(netns, version)) == in_main
        pod.clear(netns, ETH0)
        assert picture(netns) == before


@pytest.mark.parametrize("kind", ["hops", "nexthop objects"])
def test_all_of_several_next_hops_are_taken(kind: str) -> None:
    hops = {4: ("10.0.0.1", "172.16.0.1"), 6: ("fd00::1", "fd01::1")}
    if kind == "hops":
        lines = [f"route add default nexthop via {a} dev eth0 nexthop via {b} dev net1" for a, b in hops.values()]
        lines[0] += " weight 3"
    else:
        lines = []
        for version, (a, b) in hops.items():
            lines += [f"nexthop add id {version}1 via {a} dev eth0", f"nexthop add id {version}2 via {b} dev net1"]
            lines += [
                f"nexthop add id {version} group {version}1/{version}2",
                f"route add {ANY[version]} nhid {version}",
            ]
    with pod_with(*lines) as netns:
        before = picture(netns)
        pod.configure(netns, ETH0, BOTH)
        for version in (4, 6):
            own = run(netns, "ip", f"-{version}", "route", "show", "default")
            gateways = re.findall(r"via \S+ dev \S+(?: weight \d+)?", own)
            assert len(gateways) == 2
            assert re.findall(r"via \S+ dev \S+(?: weight \d+)?", reply_route(netns, version)) == gateways
        assert pod.configure(netns, ETH0, BOTH) == []
        # A next hop whose carrier is away is the same next hop; the kernel marks it in what it lists.
        run(netns, "ip", "link", "set", "net1-peer", "down")
        assert pod.configure(netns, ETH0, BOTH) == []
        run(netns, "ip", "link", "set", "net1-peer", "up")
        for version, (a, _) in hops.items():
            run(netns, *f"ip -{version} route replace default via {a} dev eth0".split())
        assert len(pod.configure(netns, ETH0, BOTH)) == 2
        assert pod.configure(netns, ETH0, BOTH) == []
        pod.clear(netns, ETH0)
        for version in (4, 6):
            assert not reply_route(netns, version)
        assert picture(netns)["nft"] == before["nft"]


def test_nexthop_objects_are_followed_where_the_kernel_does_not_spell_them_out() -> None:
    with pod_with(*SHAPES["nexthop objects"]) as netns:
        with entered(netns):
            write_sysctl("ipv4/nexthop_compat_mode", "0")
        pod.configure(netns, ETH0, BOTH)
        assert [way(netns, v, "from", VIP[v]) for v in (4, 6)] == ["via 10.0.0.1 dev eth0", "via fd00::1 dev eth0"]
        assert pod.configure(netns, ETH0, BOTH) == []


@pytest.mark.parametrize(
    ("defaults", "advmss"),
    [
        # 1500 comes in less 36 of encapsulation; 1400 goes out: 1400 less 40.
        (("route add default via 172.16.0.1 dev net1",), 1360),
        (("route add default via 172.16.0.1 dev net1 mtu 1450",), 1360),
        (("route add default via 172.16.0.1 dev net1 mtu 1200",), 1160),
        (("route add default via 10.0.0.1 dev eth0",), 1424),
        (("route add default via 10.0.0.1 dev eth0 mtu 1450",), 1374),
        (("route add default via 10.0.0.1 dev eth0 mtu 9000",), 1424),
        (("route add default via 10.0.0.1 dev eth0 advmss 1000",), 1000),
    ],
)
def test_segments_fit_both_the_way_in_and_the_way_out(defaults: tuple[str, ...], advmss: int) -> None:
    with pod_with(*defaults) as netns:
        pod.configure(netns, ETH0, BOTH)
        assert f"advmss {advmss}" in reply_route(netns, 4)


# --- changes of the pod's own, while it runs ------------------------------------------------------------

CHANGES: dict[str, tuple[str, ...]] = {
    "another gateway": (
        "route replace default via 10.0.0.99 dev eth0",
        "-6 route replace default via fd00::99 dev eth0",
    ),
    "another interface": (
        "route replace default via 172.16.0.1 dev net1",
        "-6 route replace default via fd01::1 dev net1",
    ),
    "several": (
        "route replace default nexthop via 10.0.0.1 dev eth0 nexthop via 172.16.0.1 dev net1",
        "-6 route replace default nexthop via fd00::1 dev eth0 nexthop via fd01::1 dev net1",
    ),
    "one of another metric before it": ("route add default via 172.16.0.1 dev net1 metric 0",),
    "another MTU": ("link set eth0 mtu 1300",),
    "none of one version": ("-6 route del default",),
    "none": ("route del default", "-6 route del default"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_default_way_is_put_up_with_and_followed(change: str) -> None:
    """CHECK has nothing to complain of: it is the pod's own business; the next look puts the replies right."""
    defaults = [line.replace(" dev", " metric 50 dev") if "metric" in change else line for line in DEFAULTS]
    with pod_with(*defaults) as netns:
        pod.configure(netns, ETH0, BOTH)
        for line in CHANGES[change]:
            run(netns, "ip", *line.split())
        assert pod.missing(netns, ETH0, BOTH) == []
        assert pod.configure(netns, ETH0, BOTH) != []
        assert pod.configure(netns, ETH0, BOTH) == []
        for version in (4, 6):
            own = run(netns, "ip", f"-{version}", "route", "show", "default")
            if not own:
                assert not reply_route(netns, version)
                assert VIP[version] not in run(netns, "ip", f"-{version}", "rule")
            elif "nexthop" in own:
                assert reply_route(netns, version).count("nexthop via") == 2
            else:
                assert way(netns, version, "from", VIP[version]) == way(netns, version)
        if change == "another MTU":
            assert "advmss 1224" in reply_route(netns, 4)


def test_a_default_way_that_comes_later_is_put_up_with_and_followed() -> None:
    with pod_with() as netns:
        pod.configure(netns, ETH0, BOTH)
        assert pod.missing(netns, ETH0, BOTH) == []
        for version, line in zip((4, 6), DEFAULTS, strict=True):
            run(netns, "ip", *line.split())
            assert pod.missing(netns, ETH0, BOTH) == []
            assert len(pod.configure(netns, ETH0, BOTH)) == 2
            assert way(netns, version, "from", VIP[version]) == way(netns, version)
        assert pod.configure(netns, ETH0, BOTH) == []


OWNERS_RIGHT: dict[str, str] = {
    "addresses": (
        "ip addr add 10.0.0.77/24 dev eth0; ip addr add 192.0.2.7/32 dev lo; ip addr add fd00::77/64 dev eth0 nodad"
    ),
    "a VIP of his own": "ip addr add 203.0.113.77/32 dev lo",
    "rules": "ip rule add pref 50 fwmark 7 table 77; ip -6 rule add pref 50 from fd00::2 table 77",
    "rules beside ours": "ip rule add pref 1160 from 10.0.0.2 table 116; ip rule add from 198.51.100.7 table 77 pref 9",
    "routes": "ip route add 10.9.0.0/16 via 10.0.0.1; ip route add 10.9.0.0/16 via 10.0.0.1 table 116",
    "a default route that is not preferred": "ip route add default via 172.16.0.1 dev net1 metric 900",
    "tables of nf_tables": "nft add table inet filter; nft add table inet svctun2; nft add table ip svctun",
    "connection tracking": "iptables -t nat -A POSTROUTING -s 10.0.0.2 -j MASQUERADE",
    "sysctls": "sysctl -q -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.eth0.rp_filter=1 net.ipv4.ip_forward=1"
    " net.ipv6.conf.eth0.accept_ra=0 net.ipv4.conf.all.arp_ignore=1",
    "no filter anywhere": "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done",
    "a device of his own": "ip link add wg0 type vxlan id 7 dstport 4789 remote 10.0.0.3",
}


@pytest.mark.parametrize("change", OWNERS_RIGHT)
def test_what_the_pods_owner_may_change_is_nothing_to_complain_of(change: str) -> None:
    with pod_with(*DEFAULTS) as netns:
        pod.configure(netns, ETH0, BOTH)
        run(netns, "sh", "-e", "-c", OWNERS_RIGHT[change])
        changed = picture(netns)
        assert pod.missing(netns, ETH0, BOTH) == []
        if change != "no filter anywhere":
            assert pod.configure(netns, ETH0, BOTH) == []
            assert picture(netns) == changed
        pod.clear(netns, ETH0)
        if change == "a VIP of his own":
            assert "203.0.113.77" in run(netns, "ip", "addr", "show", "lo")


def test_a_filter_that_drops_what_the_tunnel_brings_is_complained_of() -> None:
    """0 on the device counts for nothing where `all` is strict."""
    with pod_with(*DEFAULTS) as netns:
        pod.configure(netns, ETH0, BOTH)
        with entered(netns):
            write_sysctl("ipv4/conf/svctun-gpe/rp_filter", "0")
            write_sysctl("ipv4/conf/all/rp_filter", "1")
        assert pod.missing(netns, ETH0, BOTH) == ["net.ipv4.conf.svctun-gpe.rp_filter is 0, not 2"]
