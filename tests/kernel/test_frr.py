"""VIPs announced by real FRR with BFD, by the example that comes with the project, to a router that is BIRD."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed import traffic
from tests.testbed.bird import Routing, dead
from tests.testbed.frr import Frr
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

PLACES = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"))
BOTH = {"ingress1", "ingress2"}
NOT_VIPS = ("203.0.113.77/32", "198.51.100.128/25", "2001:db8:1::1/128", "2001:db8::100/120")
"""The second of each IP version is within the VIPs' range, but no address."""


@pytest.fixture(scope="module")
def routed() -> Iterator[tuple[Scene, Routing]]:
    with Scene(rp_filter=1) as scene:
        scene.apply_service()
        for vip in VIPS.values():
            scene.cluster.withdraw(vip)
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        with Routing(scene.cluster, Frr) as routing:
            yield scene, routing


@pytest.fixture
def all_announce(routed: tuple[Scene, Routing]) -> tuple[Scene, Routing]:
    announced_by(routed, BOTH)
    return routed


def announced_by(routed: tuple[Scene, Routing], nodes: set[str]) -> None:
    scene, routing = routed
    scene.wait(lambda: all(routing.paths(vip) == nodes for vip in VIPS.values()), f"VIPs by way of {nodes or 'nobody'}")


def test_vips_and_nothing_else_are_announced(all_announce: tuple[Scene, Routing]) -> None:
    scene, routing = all_announce
    for node in BOTH:
        scene.cluster.nodes[node].host.batch([f"route add {route} dev svctun proto 50" for route in NOT_VIPS])
    # FRR tells its routes in the order in which it sees them: when it has told these, it has seen the others.
    last = {4: "198.51.100.99", 6: "2001:db8::99"}
    for vip in last.values():
        scene.cluster.nodes["ingress1"].host.run("ip", "route", "add", vip, "dev", "svctun", "proto", "50")
    expected = {*VIPS.values(), *last.values()}
    scene.wait(lambda: expected <= routing.learned(), "a route of the VIPs' range")
    assert routing.learned() == expected
    for vip in last.values():
        scene.cluster.nodes["ingress1"].host.run("ip", "route", "del", vip)
    scene.wait(lambda: routing.learned() == set(VIPS.values()), "it is withdrawn")
    for vip in VIPS.values():
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).name


def test_a_service_without_usable_endpoints_is_announced_by_nobody(all_announce: tuple[Scene, Routing]) -> None:
    scene, _ = all_announce
    pods = scene.cluster.pods
    for pod in pods:
        pod.ready = False
    scene.sync()
    announced_by(all_announce, set())
    for pod in pods:
        pod.ready = True
    scene.sync()
    announced_by(all_announce, BOTH)


def test_the_sudden_end_of_a_helper_withdraws_nothing(all_announce: tuple[Scene, Routing]) -> None:
    scene, routing = all_announce
    scene.helpers["ingress1"].kill()
    try:
        assert all(routing.paths(vip) == BOTH for vip in VIPS.values())
        for vip in VIPS.values():
            assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).name
    finally:
        scene.start_helpers(["ingress1"])
    assert all(routing.paths(vip) == BOTH for vip in VIPS.values())


def test_a_node_that_is_suddenly_dead_is_out_by_bfd_and_costs_no_connection(
    all_announce: tuple[Scene, Routing],
) -> None:
    """Its links stay up, as behind a switch: nothing but BFD tells before BGP's hold time is over, minutes."""
    scene, _ = all_announce
    with Held(scene.cluster.client, VIPS[4], 8080, 300) as held:
        assert held.report().kept == 300
        with dead(scene.cluster.nodes["ingress1"].host):
            announced_by(all_announce, {"ingress2"})
            scene.wait(lambda: held.report().kept == 300, "all connections by way of the other node")
        announced_by(all_announce, BOTH)
        report = held.report()
        assert (report.lost, report.moved) == (0, 0)


def test_a_node_that_drains_is_announced_until_its_sessions_are_shut_down(
    all_announce: tuple[Scene, Routing],
) -> None:
    """FRR does not know the protocol numbers, so draining takes two commands."""
    scene, routing = all_announce
    frr = routing.nodes["ingress1"]
    assert isinstance(frr, Frr)
    with Held(scene.cluster.client, VIPS[4], 8080, 100) as held:
        frr.configure("router bgp 65010", "bgp shutdown")
        announced_by(all_announce, {"ingress2"})
        scene.helper_command("ingress1", "drain")
        host = scene.cluster.nodes["ingress1"].host
        scene.wait(lambda: "proto 117" in host.run("ip", "route", "show", VIPS[4]).stdout, "the node drains")
        frr.configure("router bgp 65010", "no bgp shutdown")
        announced_by(all_announce, BOTH)  # although it drains
        scene.helper_command("ingress1", "undrain")
        scene.wait(lambda: "proto 116" in host.run("ip", "route", "show", VIPS[4]).stdout, "the node drains no more")
        assert held.report().lost == 0
