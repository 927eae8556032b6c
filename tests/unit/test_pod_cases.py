"""What is done in a pod in single cases: repairs, room for the encapsulation, what a kernel or a pod lacks."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from cni_plugin import pod as pod_side
from cni_plugin.netlink import rtnl
from cni_plugin.pod import PodError, rules, ruleset
from cni_plugin.pod.ruleset import FINGERPRINT, TABLE
from cni_plugin.pod.target import Unsupported
from cni_plugin.tunnel import GRE, MPLS, VXLAN_GPE, PodTunnels, Remap, Tunnel
from tests.unit.simulated_pod import ETH0, GATEWAY, LO, Kind, SimulatedPod

SOURCES = ("10.0.1.1", "10.0.1.2", "fd00:1::1")
WEB = PodTunnels((Tunnel(("198.51.100.7", "2001:db8::7"), VXLAN_GPE, (Remap("tcp", 80, 8080),)),), ("10.0.1.1",))


@pytest.mark.parametrize(("mode", "device"), [(VXLAN_GPE, "svctun-gpe"), (GRE, "svctun-gre")])
def test_a_device_that_was_deleted_or_put_down_comes_back(mode: str, device: str) -> None:
    wanted = PodTunnels((Tunnel(("198.51.100.7",), mode),))
    pod = Kind().build()
    pod.configure(wanted)
    before = pod.contents()
    index = next(index for index in pod.links if pod.name(index) == device)
    pod.run(rtnl.delete_link(index, device))
    assert pod.configure(wanted)[0] == f"add device {device}"
    assert pod.contents() == before
    index = next(index for index in pod.links if pod.name(index) == device)
    pod.links[index] = pod.links[index][:8] + bytes(4) + pod.links[index][12:]
    assert pod.configure(wanted) == [f"set {device} up"]


def test_a_rule_that_was_deleted_comes_back() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    pod.run(rtnl.delete_rule(rtnl.rule(4, 1160, 116, source="198.51.100.7/32", protocol=116)))
    assert pod.configure(WEB) == ["replies from 198.51.100.7/32 take table 116"]


def test_a_changed_default_route_is_followed() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    pod.run(rtnl.put_route(rtnl.route(4, "default", link=ETH0, gateway="10.0.0.254", mtu=1400)))
    assert pod.configure(WEB) == [f"default route for IPv4 replies with advmss {1400 - 16 - 20 - 40}"]
    assert pod.plan(WEB) == []


@pytest.mark.parametrize(
    ("mode", "underlay", "segment"),
    [
        (VXLAN_GPE, "10.0.0.2", {4: 1424, 6: 1404}),
        (VXLAN_GPE, "fd00::2", {4: 1404, 6: 1384}),
        (GRE, "10.0.0.2", {4: 1436, 6: 1416}),
        (MPLS, "10.0.0.2", {4: 1456, 6: 1436}),
    ],
)
def test_replies_leave_room_for_the_encapsulation(mode: str, underlay: str, segment: dict[int, int]) -> None:
    pod = Kind(addresses=(underlay,)).build()
    pod.configure(PodTunnels((Tunnel(("198.51.100.7", "2001:db8::7"), mode),)))
    assert {route.version: route.advmss for route in pod.state().our_routes} == segment


def test_two_modes_on_one_pod_leave_room_for_the_wider() -> None:
    pod = Kind().build()
    pod.configure(PodTunnels((Tunnel(("198.51.100.7",), MPLS), Tunnel(("198.51.100.8",), VXLAN_GPE))))
    assert [route.advmss for route in pod.state().our_routes] == [1424]


def test_a_smaller_segment_size_of_the_pods_own_route_stays() -> None:
    pod = Kind(gateways=()).build()
    pod.run(rtnl.put_route(rtnl.route(4, "default", link=ETH0, gateway="10.0.0.1", advmss=900)))
    pod.configure(WEB)
    assert [route.advmss for route in pod.state().our_routes] == [900]


def test_a_kernel_without_mpls_is_named_with_the_way_out() -> None:
    pod = SimulatedPod(mpls=False)
    before = pod.contents()
    wanted = PodTunnels((Tunnel(("198.51.100.7",), MPLS),))
    with pytest.raises(Unsupported, match=r"MPLS.*modprobe mpls_router.*cmd\.nu/tunnel-mode"):
        pod.plan(wanted)
    with pytest.raises(PodError) as raised:
        pod.configure(wanted)
    assert "modprobe mpls_router" in raised.value.details
    assert pod.contents() == before


def test_a_pod_on_ipv6_only_has_gre_of_ipv6() -> None:
    pod = Kind(addresses=("fd00::2",), gateways=("fd00::1",)).build()
    pod.configure(PodTunnels((Tunnel(("2001:db8::7", "198.51.100.7"), GRE),)))
    assert [link.name for link in pod.state().links] == ["svctun-gre6"]


def test_room_for_labels_that_is_there_already_is_left_as_it_is() -> None:
    pod = Kind().build()
    pod.sysctls["mpls/platform_labels"] = "50000"
    pod.configure(PodTunnels((Tunnel(("198.51.100.7",), MPLS),)))
    pod.configure(PodTunnels())
    assert pod.sysctls["mpls/platform_labels"] == "50000"


def test_a_change_of_a_service_changes_elements_only() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    other = PodTunnels((WEB.tunnels[0].replace(remaps=(Remap("tcp", 80, 9090), Remap("udp", 53, 5353))),), SOURCES)
    assert pod.configure(other) == ["change the elements of nf_tables sets"]
    more = PodTunnels((*other.tunnels, Tunnel(("203.0.113.9",))), SOURCES)
    assert pod.configure(more) == [
        "change the elements of nf_tables sets",
        "replies from 203.0.113.9/32 take table 116",
        "put 203.0.113.9 on svctun-gpe",
        "put 203.0.113.9 on lo",
    ]


def test_a_filter_counts_for_both_ip_versions_as_soon_as_one_source_is_known() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    assert pod.elements["guarded4"] and pod.elements["guarded6"]
    pod.configure(WEB.replace(sources=()))
    assert not pod.elements["guarded4"] and not pod.elements["guarded6"] and not pod.elements["sources4"]


@pytest.mark.parametrize(
    ("flags", "waits"),
    [(0, False), (rtnl.ADDRESS_TENTATIVE, True), (rtnl.ADDRESS_TENTATIVE | rtnl.ADDRESS_DAD_FAILED, False)],
)
def test_ipv6_vips_wait_for_the_pods_own_address_where_it_is_tentative(flags: int, waits: bool) -> None:
    pod = Kind().build()
    raw = bytearray(pod.addresses[ETH0, "fd00::2"])
    raw[2] = flags
    pod.addresses[ETH0, "fd00::2"] = bytes(raw)
    planned = [operation.what for operation in pod.plan(WEB)]
    waiting = planned.index("wait for the addresses of eth0") if waits else -1
    assert waits == ("wait for the addresses of eth0" in planned)
    assert waiting < planned.index("put 2001:db8::7 on lo")
    assert planned[-1] == "wait until packets to the IPv6 VIPs are delivered"


def test_ipv6_vips_are_never_chosen_as_source() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    raw = pod.addresses[LO, "2001:db8::7"]
    assert raw[2] == rtnl.ADDRESS_NODAD
    assert b"\x14\0\6\0" + bytes(4) + b"\xff" * 4 in raw, "preferred for no time, valid for ever"


LABELLED = PodTunnels((Tunnel(("198.51.100.7",), MPLS),))


def test_labels_are_taken_from_the_gateway_only_before_they_are_taken_at_all() -> None:
    pod = Kind().build()
    done = pod.configure(LABELLED)
    assert done.index("take MPLS labels from the gateway of eth0 only") < done.index("deliver MPLS label 100")
    assert set(pod.elements["gateways"]) == {GATEWAY}
    assert "netdev svctun" in pod.tables
    pod.configure(PodTunnels((Tunnel(("198.51.100.7",), VXLAN_GPE),)))
    assert "netdev svctun" not in pod.tables


def test_a_gateway_that_is_another_device_now_is_followed_and_nothing_to_complain_of() -> None:
    pod = Kind().build()
    pod.configure(LABELLED)
    pod.neighbour = bytes.fromhex("020000000002")
    (change,) = pod.plan(LABELLED)
    assert change.follows
    pod.configure(LABELLED)
    assert set(pod.elements["gateways"]) == {pod.neighbour}
    pod.neighbour = b""  # and one that is silent now is the one that it was
    with mock.patch("cni_plugin.pod.gateways._PATIENCE", 0):
        assert pod.plan(LABELLED) == []


def test_labels_are_taken_from_nobody_while_the_gateway_does_not_answer() -> None:
    pod = Kind().build()
    pod.neighbour = b""
    with mock.patch("cni_plugin.pod.gateways._PATIENCE", 0):
        pod.configure(LABELLED)
    assert "netdev svctun" in pod.tables
    assert not pod.elements["gateways"]


def test_an_interface_without_a_gateway_leads_to_the_node_alone() -> None:
    pod = Kind(gateways=()).build()
    pod.configure(LABELLED)
    assert "netdev svctun" not in pod.tables
    assert pod.plan(LABELLED) == []


def test_the_table_carries_this_versions_fingerprint() -> None:
    pod = Kind().build()
    pod.configure(WEB)
    assert pod.tables[TABLE] == FINGERPRINT
    assert FINGERPRINT.startswith(b"svctun1:")


def test_the_frozen_rules_are_those_that_are_described() -> None:
    """After a change of `rules`: python -m cni_plugin.pod.rules"""
    assert Path(rules.__file__).with_name("frozen_rules.py").read_text() == rules.frozen()
    assert ruleset.install()[1:] == rules.messages()


def test_a_pod_without_its_interface_is_told_with_those_it_has() -> None:
    pod = SimulatedPod()
    del pod.links[ETH0]
    with pytest.raises(PodError) as raised:
        pod.configure(WEB)
    assert raised.value.details == "the pod has no interface 'eth0', only lo"


@pytest.mark.parametrize("call", ["configure", "missing"])
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("cni_plugin.pod.Socket", OSError(24, "Too many open files")),
        ("cni_plugin.pod.state.read_sysctl", PermissionError(13, "Permission denied", "/proc/sys/net/x")),
    ],
    ids=["no socket", "a sysctl that cannot be read"],
)
def test_whatever_the_system_refuses_is_the_pods_trouble(call: str, target: str, error: OSError) -> None:
    """Not that of the record, whose failures are told in the same way."""
    simulated = Kind().build()
    with simulated.entered(), mock.patch(target, side_effect=error), pytest.raises(PodError) as caught:
        getattr(pod_side, call)("/run/netns/simulated", "eth0", WEB)
    assert str(error.strerror) in caught.value.details
    assert str(error.filename or "") in caught.value.details
