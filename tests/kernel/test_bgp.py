"""VIPs announced by real BIRD and real FRR with BFD, by the examples that come with the project."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from node_helper.ingress_part import EXCLUDED
from tests.testbed import bird, traffic
from tests.testbed.announced import announced_scene, wait_for_paths
from tests.testbed.bird import Routing, dead
from tests.testbed.frr import Frr
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

BOTH = {"ingress1", "ingress2"}
NOT_VIPS = ("203.0.113.77/32", "198.51.100.128/25", "2001:db8:1::1/128", "2001:db8::100/120")
"""Destinations that somebody else routes; of each IP version one is within the VIPs' range, but no address."""
FURTHER = {4: "198.51.100.99", 6: "2001:db8::99"}


@pytest.fixture(scope="module", params=[bird.on_node, Frr], ids=["bird", "frr"])
def routed(request: pytest.FixtureRequest) -> Iterator[tuple[Scene, Routing]]:
    with announced_scene(request.param) as found:
        yield found


@pytest.fixture
def all_announce(routed: tuple[Scene, Routing]) -> tuple[Scene, Routing]:
    announced_by(routed, BOTH)
    return routed


def announced_by(routed: tuple[Scene, Routing], nodes: set[str]) -> None:
    wait_for_paths(*routed, nodes)


def test_vips_and_nothing_else_are_announced(all_announce: tuple[Scene, Routing]) -> None:
    scene, routing = all_announce
    host = scene.cluster.nodes["ingress1"].host
    host.batch([f"route add {route} dev svctun proto 50" for route in NOT_VIPS])
    with scene.helpers["ingress1"].halted():
        # The daemons hear of routes in the kernel's order: who has announced these has seen those.
        host.batch([f"route add {vip} dev svctun proto 116" for vip in FURTHER.values()])
        scene.wait(lambda: set(FURTHER.values()) <= routing.learned(), "VIPs that come")
        assert routing.learned() == {*VIPS.values(), *FURTHER.values()}
        host.batch([f"route del {vip} dev svctun proto 116" for vip in FURTHER.values()])
        scene.wait(lambda: routing.learned() == set(VIPS.values()), "VIPs that go")
    for vip in VIPS.values():
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).name


def test_a_node_that_drains_is_announced_no_more_and_goes_on_forwarding(all_announce: tuple[Scene, Routing]) -> None:
    scene, _ = all_announce
    with Held(scene.cluster.client, VIPS[4], 8080, 100) as held:
        scene.helper_command("ingress1", "drain")
        announced_by(all_announce, {"ingress2"})
        routes = scene.cluster.nodes["ingress1"].host.run("ip", "route", "show", VIPS[4]).stdout
        assert "proto 117" in routes
        # Whoever still sends his packets there is served.
        scene.cluster.announce(VIPS[4], ["ingress1"])
        assert scene.cluster.client.call(traffic.ask_tcp, VIPS[4], 8080).name
        scene.cluster.withdraw(VIPS[4])
        scene.helper_command("ingress1", "undrain")
        announced_by(all_announce, BOTH)
        assert held.report().lost == 0


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_helper_withdraws_nothing(all_announce: tuple[Scene, Routing], number: signal.Signals) -> None:
    scene, routing = all_announce
    helper = scene.helpers["ingress1"]
    helper.process.send_signal(number)
    helper.process.wait(20)
    try:
        assert all(routing.paths(vip) == BOTH for vip in VIPS.values())
        for vip in VIPS.values():
            assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).name
    finally:
        scene.start_helpers(["ingress1"])


def test_a_node_that_is_suddenly_dead_is_out_by_bfd_and_costs_no_connection(
    all_announce: tuple[Scene, Routing],
) -> None:
    """Its links stay up, as behind a switch: nothing but BFD tells."""
    scene, routing = all_announce
    node = scene.cluster.nodes["ingress1"]
    with Held(scene.cluster.client, VIPS[4], 8080, 300) as held:
        assert held.report().kept == 300
        with dead(node.host):
            scene.wait(lambda: all(routing.paths(vip) == {"ingress2"} for vip in VIPS.values()), "BFD")
            scene.wait(lambda: held.report().kept == 300, "all connections by way of the other node")
        announced_by(all_announce, BOTH)
        report = held.report()
        assert (report.lost, report.moved) == (0, 0)


def test_a_node_that_is_cordoned_is_announced_as_before(all_announce: tuple[Scene, Routing]) -> None:
    scene, routing = all_announce
    node = scene.cluster.nodes["ingress1"]
    scene.objects.apply_node(node, unschedulable=True)
    scene.helpers["ingress1"].process.send_signal(signal.SIGHUP)
    scene.settle()
    assert all(routing.paths(vip) == BOTH for vip in VIPS.values())
    scene.objects.apply_node(node)


@pytest.mark.parametrize("label", ["node", EXCLUDED])
def test_a_node_that_is_to_leave_is_announced_no_more_and_forwards_for_a_while(
    all_announce: tuple[Scene, Routing], label: str
) -> None:
    """By the loss of the ingress label, or by Kubernetes' label that keeps load balancers away."""
    scene, _ = all_announce
    node = scene.cluster.nodes["ingress1"]
    labels = dict(node.labels)
    with Held(scene.cluster.client, VIPS[4], 8080, 100) as held:
        if label == EXCLUDED:
            node.labels[EXCLUDED] = ""
        else:
            del node.labels[label]
        scene.objects.apply_node(node)
        announced_by(all_announce, {"ingress2"})
        assert "proto 117" in node.host.run("ip", "route", "show", VIPS[4]).stdout
        assert label in scene.helper_command("ingress1", "status")
        node.labels = labels
        scene.objects.apply_node(node)
        announced_by(all_announce, BOTH)
        assert held.report().lost == 0
