"""Which tunnels a pod gets, and from whom it takes encapsulated packets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni_plugin.tunnel import GRE, MODES, MPLS, TUNNEL_ID, HandOn, PodTunnels, Tunnel
from node_helper.buckets import BucketTable, fresh, rebalance
from node_helper.chains import chain_id
from node_helper.model import Node, ObjectKey, Pod, Snapshot
from node_helper.plan.attachments import bears_tunnels, find_pod, pod_tunnels, tunnel_sources
from node_helper.plan.handovers import HandoverPlanner, Handovers
from node_helper.plan.ingress import plan_ingress
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService
from tests.unit.planning import ME, OTHER, VIPS, endpoint, facts, service


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


# --- what pods hand on ----------------------------------------------------------------------------------

OLD, NEW, OTHERS = "10.244.2.1", "10.244.2.2", "10.244.2.3"


def moved(served: TunnelService, before: list[str]) -> BucketTable:
    """The table after a change from these endpoints to those that are usable now."""
    everybody = [str(one.address) for one in served.endpoints]
    return rebalance(fresh(served.uid, before, 8), served.uid, served.usable, 8, served.usable, everybody)


def pod_of(address: str) -> Pod:
    return Pod(ObjectKey("shop", f"pod-{address}"), "uid", OTHER, {}, {}, (), False, {})


def tunnel_of(served: TunnelService, table: BucketTable, address: str, node: str = OTHER) -> Tunnel:
    (tunnel,) = pod_tunnels([served], Snapshot(), pod_of(address), planned(served, table, node)).tunnels
    return tunnel


def planned(served: TunnelService, table: BucketTable, node: str = OTHER, pods: Iterable[Pod] = ()) -> Handovers:
    planner = HandoverPlanner(node)
    local = planner.local([served], ServiceIndex([served]), {pod.key: pod for pod in pods})
    return planner.plan([served], {served.key: table}, local)


@pytest.mark.parametrize("mode", MODES)
def test_a_new_owner_hands_on_to_the_old_one_and_the_old_one_takes_that(mode: str) -> None:
    served = service(endpoints=[endpoint(OLD), endpoint(NEW)], mode=mode)
    table = moved(served, [OLD])
    new, old = tunnel_of(served, table, NEW), tunnel_of(served, table, OLD)
    assert (new.hand_ons, new.peers) == ((HandOn(chain_id([OLD]), OLD, TUNNEL_ID),), ())
    assert (old.hand_ons, old.peers) == ((), (NEW,))


def test_pods_know_who_is_not_ready_before_a_table_says_so() -> None:
    served = service(endpoints=[endpoint(OLD, ready=False), endpoint(NEW)])
    table = fresh(served.uid, [OLD, NEW], 8)
    assert tunnel_of(served, table, NEW).hand_ons == (HandOn(chain_id([OLD]), OLD, TUNNEL_ID),)
    assert tunnel_of(served, table, OLD).peers == (NEW,)


def test_what_an_ingress_node_sends_is_known_to_the_pods_of_the_node() -> None:
    ends = [endpoint(OLD, terminating=True), endpoint(NEW), endpoint(OTHERS, ME)]
    for local, mode in ((False, GRE), (True, GRE), (False, MPLS)):
        served = service(endpoints=ends, mode=mode, local=local)
        table = moved(served, [OLD, NEW, OTHERS])
        reach = facts([NEW, OTHERS], labels={NEW: 16000})
        router, _, _ = plan_ingress([served], {served.key: table}, reach, OTHER, 8, 1)
        known = {step.tunnel_id for step in tunnel_of(served, table, NEW).hand_ons}
        sent = {hop.tunnel_id for hop in router.vips[VIPS[0]].hops if hop and hop.endpoint == NEW}
        assert sent - {TUNNEL_ID} and sent - {TUNNEL_ID} <= known


def test_at_rest_a_pod_is_configured_as_if_buckets_never_moved() -> None:
    served = service(endpoints=[endpoint(OLD), endpoint(NEW)])
    table = fresh(served.uid, [OLD, NEW], 8)
    assert planned(served, table) == {}
    assert tunnel_of(served, table, OLD) == Tunnel(VIPS)


def test_a_node_without_endpoints_of_the_service_works_nothing_out() -> None:
    served = service(endpoints=[endpoint(OLD), endpoint(NEW)])
    assert planned(served, moved(served, [OLD]), ME) == {}


@pytest.mark.parametrize(("mode", "local"), [(GRE, False), (GRE, True), (MPLS, False)])
def test_a_helper_that_sees_no_endpoints_goes_by_the_table_and_its_own_pods(mode: str, local: bool) -> None:
    """As one of role node with the Kubernetes API."""
    seen = service(endpoints=[endpoint(OLD, terminating=True), endpoint(NEW)], mode=mode, local=local)
    table = moved(seen, [OLD, NEW])
    blind = replace(seen, endpoints=(), usable=(), selector={"app": "web"})
    addresses = {OLD: (ip_address("fd00::1"), ip_address(OLD)), NEW: (ip_address(NEW),)}
    pods = [replace(pod(f"web-{n}", app="web"), node=OTHER, ips=ips) for n, ips in enumerate(addresses.values())]
    handovers = planned(blind, table, pods=pods)
    old, new = (pod_tunnels([blind], Snapshot(), one, handovers).tunnels[0] for one in pods)
    assert (new.hand_ons, old.peers) == ((HandOn(chain_id([OLD]), OLD, TUNNEL_ID),), (NEW,))
    assert planned(blind, table, pods=[replace(one, node=ME) for one in pods]) == {}
    assert planned(blind, table, pods=[replace(one, ips=()) for one in pods]) == {}


def test_what_did_not_change_is_not_worked_out_again() -> None:
    served = service(endpoints=[endpoint(OLD), endpoint(NEW)])
    planner, table, index = HandoverPlanner(OTHER), moved(served, [OLD]), ServiceIndex([served])
    pods: dict[ObjectKey, Pod] = {}
    local = planner.local([served], index, pods)
    assert planner.local([served], index, pods) is local
    first = planner.plan([served], {served.key: table}, local)
    assert planner.plan([served], {served.key: table}, local)[served.key] is first[served.key]
    assert planner.plan([served], {served.key: fresh(served.uid, [OLD, NEW], 8)}, local) == {}
    assert planner.plan([], {}, {}) == {}
