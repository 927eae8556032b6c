"""Which tunnels a pod gets, and from whom it takes encapsulated packets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni_plugin.tunnel import GRE, PodTunnels
from node_helper.model import Node, ObjectKey, Pod, Snapshot
from node_helper.plan.attachments import bears_tunnels, find_pod, pod_tunnels, tunnel_sources
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService
from tests.unit.planning import VIPS, service


def node(name: str, *addresses: str, pods: tuple[str, ...] = ()) -> Node:
    return Node(name, {}, tuple(map(ip_address, addresses)), tuple(map(ip_network, pods)))


def pod(name: str = "web-1", namespace: str = "shop", **labels: str) -> Pod:
    return Pod(ObjectKey(namespace, name), "uid", "worker1", labels, {}, (), False, {})


def selecting(**selector: str) -> TunnelService:
    plain = service(mode=GRE)
    return TunnelService(
        plain.key, plain.uid, plain.vips, plain.mode, False, False, (), selector, plain.endpoints, plain.usable
    )


NODES = {n.name: n for n in (node("a", "10.1.1.2", "fd00:1::2", pods=("10.244.1.0/24", "fd00:44:1::/64")),)}


def test_a_pod_behind_a_service_has_its_vips_and_the_nodes_as_sources() -> None:
    found = pod_tunnels([selecting(app="web")], Snapshot(nodes=NODES), pod(app="web"))
    (tunnel,) = found.tunnels
    assert (tunnel.vips, tunnel.mode) == (VIPS, GRE)
    assert found.sources == tunnel_sources(NODES.values()) != ()


def test_a_pod_without_tunnels_has_no_sources_either() -> None:
    services = [selecting(app="web")]
    assert pod_tunnels(services, Snapshot(nodes=NODES), pod(app="db")) == PodTunnels()
    assert pod_tunnels(services, Snapshot(nodes=NODES), pod(namespace="other", app="web")) == PodTunnels()


def test_an_index_of_services_gives_the_same_answer() -> None:
    services, snapshot = [selecting(app="web")], Snapshot(nodes=NODES)
    for one in (pod(app="web"), pod(app="db")):
        assert pod_tunnels(ServiceIndex(services), snapshot, one) == pod_tunnels(services, snapshot, one)


def test_the_addresses_that_overlays_put_on_nodes_are_sources_too() -> None:
    assert tunnel_sources(NODES.values()) == (
        "10.1.1.2",
        "10.244.1.0",
        "10.244.1.1",
        "fd00:1::2",
        "fd00:44:1::",
        "fd00:44:1::1",
    )


def test_sources_are_the_same_whatever_the_order_of_nodes() -> None:
    one, two = node("a", "10.1.1.2"), node("b", "10.1.1.3", "10.1.1.2")
    assert tunnel_sources([one, two]) == tunnel_sources([two, one]) == ("10.1.1.2", "10.1.1.3")


def test_without_nodes_there_is_no_filter() -> None:
    assert tunnel_sources([]) == ()
    assert pod_tunnels([selecting(app="web")], Snapshot(), pod(app="web")).sources == ()


def test_a_node_with_a_range_of_one_address_has_no_second() -> None:
    assert "10.244.1.8" not in tunnel_sources([node("a", pods=("10.244.1.7/32",))])


def test_a_pod_is_found_by_namespace_and_name() -> None:
    one = pod()
    snapshot = Snapshot(pods={one.key: one})
    assert find_pod(snapshot, "shop", "web-1") is one
    assert find_pod(snapshot, "default", "web-1") is None


def test_tunnels_go_with_the_first_interface_of_a_container() -> None:
    attached = {("c1", "eth0"), ("c1", "net1"), ("c2", "net1")}
    assert bears_tunnels("c1", "eth0", attached)
    assert not bears_tunnels("c1", "net1", attached)
    assert bears_tunnels("c2", "net1", attached)
    assert bears_tunnels("c3", "eth0", set())
