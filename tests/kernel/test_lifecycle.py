"""The helper comes and goes, endpoints and nodes too; what was promised to connections is counted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from cni_plugin import attachment
from node_helper.tables import WRITE_INTERVAL
from tests.kernel.conftest import wait_for_answers
from tests.testbed import traffic
from tests.testbed.cni import PluginFailed
from tests.testbed.holding import Connection, Held
from tests.testbed.scene import VIPS, Scene
from tests.testbed.stream import Stream

FLOWS = 2000
BUCKETS = 256
Source = tuple[str, int]
"""The client's address and port."""
PLACES = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"), ("worker2", "pod4"))
ANNOUNCED_ROUTES = [("116", ""), ("116", "1024")]
"""Protocol and metric of the VIPs' routes, IPv4 first."""
FORWARDED_ROUTES = [("117", "1"), ("117", "1025")]


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Scene(rp_filter=1, options=["--resync", "2"]) as scene:
        scene.apply_service()
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """Whole again after each test: all helpers run."""
    yield shared
    stopped = [node for node, helper in shared.helpers.items() if helper.process.poll() is not None]
    shared.start_helpers(stopped)
    shared.sync()
    shared.settle()


def owners(scene: Scene, version: int = 4) -> dict[tuple[str, int], str]:
    """Which pod each of many flows reaches."""
    flows = scene.cluster.client_flows(version, FLOWS)
    seen = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    assert len(seen) == FLOWS
    return seen


def await_rest(scene: Scene) -> None:
    """Until the stored table has told of all that was before: nobody is away, or not quite back."""
    table = scene.manifests.folder / ".service-tunnel" / "buckets" / "default.web"

    def told() -> bool:
        return '"away"' not in table.read_text() and time.time() > table.stat().st_mtime + 2 * WRITE_INTERVAL

    scene.wait(told, "a table in which nobody is away, and no other for a while")


def held(scene: Scene, count: int = 100, version: int = 4) -> Held:
    sources = scene.cluster.client_addresses(version, 10)
    return Held(scene.cluster.client, VIPS[version], 8080, count, sources=sources)


def moved(before: dict[tuple[str, int], str], after: dict[tuple[str, int], str]) -> int:
    return sum(before[flow] != after[flow] for flow in before)


@pytest.mark.parametrize("version", [4, 6])
def test_a_killed_helper_takes_no_connection_with_it_nor_does_its_successor(scene: Scene, version: int) -> None:
    before = owners(scene, version)
    with held(scene, version=version) as connections:
        scene.helpers["ingress1"].kill()
        assert owners(scene, version) == before
        scene.start_helpers(["ingress1"])
        assert owners(scene, version) == before
        assert connections.report().lost == 0


def test_a_helper_that_is_told_to_stop_leaves_the_data_path_and_says_so(scene: Scene) -> None:
    before = owners(scene)
    scene.helpers["ingress1"].stop()
    assert scene.helpers["ingress1"].process.returncode == 0
    assert "traffic goes on" in scene.helpers["ingress1"].log.read_text()
    assert owners(scene) == before


def test_a_new_endpoint_takes_just_its_share_and_a_lost_one_gives_just_its_own(scene: Scene) -> None:
    before = owners(scene)
    new = scene.add_pods([("worker1", "pod5")], {"app": "web"})[0]
    scene.sync()
    scene.settle()
    grown = owners(scene)
    # A fifth of the flows, all of them to the newcomer.
    assert {pod for flow, pod in grown.items() if before[flow] != pod} == {"pod5"}
    assert FLOWS * 0.16 <= moved(before, grown) <= FLOWS * 0.24
    assert all(count >= FLOWS * 0.16 for count in Counter(grown.values()).values())
    scene.remove_pod(new)
    scene.settle()
    shrunk = owners(scene)
    assert {pod for flow, pod in grown.items() if shrunk[flow] != pod} == {"pod5"}


def seen_by(connections: Held) -> dict[Source, Connection]:
    """Each connection by its source."""
    return {(each.source, each.source_port): each for each in connections.each()}


def traced(scene: Scene, connections: Held, version: int) -> dict[Source, str]:
    """Where `trace` says that these connections go now."""
    helper, vip = scene.helpers["ingress1"], VIPS[version]
    return {each: helper.trace("tcp", *each, vip, 8080)["pod"].partition("/")[2] for each in seen_by(connections)}


@pytest.mark.parametrize("version", [4, 6])
def test_scaling_moves_buckets_and_costs_no_connection(scene: Scene, version: int) -> None:
    """The new pod hands on what it does not know to the pod that had the bucket, which has it again later."""
    with held(scene, 200, version) as connections:
        before = traced(scene, connections, version)
        assert {source: each.pods[0] for source, each in seen_by(connections).items()} == before
        new = scene.add_pods([("worker2", f"newcomer{version}")], {"app": "web"})[0]
        scene.sync()
        scene.settle()
        grown = traced(scene, connections, version)
        moved_there = {source for source, pod in grown.items() if before[source] != pod}
        assert moved_there and {grown[source] for source in moved_there} == {new.name}
        wait_for_answers(scene, connections)
        scene.remove_pod(new)
        scene.settle()
        shrunk = traced(scene, connections, version)
        assert {source for source, pod in shrunk.items() if grown[source] != pod} == moved_there
        wait_for_answers(scene, connections)
        assert connections.report().moved == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_that_is_not_ready_for_a_while_costs_no_connection(scene: Scene, version: int) -> None:
    """Neither of those that it has, nor of those that begin on its buckets while others have them."""
    pod = scene.cluster.pods[0]
    await_rest(scene)
    with held(scene, 100, version) as connections:
        pod.ready = False
        scene.sync()
        scene.settle()
        with held(scene, 100, version) as meanwhile:
            wait_for_answers(scene, connections)
            lent = traced(scene, meanwhile, version)
            assert {source: each.pods[0] for source, each in seen_by(meanwhile).items()} == lent
            pod.ready = True
            scene.sync()
            scene.settle()
            assert traced(scene, meanwhile, version) != lent, "some of them are on buckets that went back"
            wait_for_answers(scene, connections)
            wait_for_answers(scene, meanwhile)
            assert connections.report().moved == meanwhile.report().moved == 0


def test_an_endpoint_that_is_briefly_not_ready_finds_its_flows_again(scene: Scene) -> None:
    before = owners(scene)
    pod = scene.cluster.pods[0]
    pod.ready = False
    scene.sync()
    scene.settle()
    away = owners(scene)
    assert pod.name not in away.values()
    assert all(away[flow] == owner for flow, owner in before.items() if owner != pod.name)
    pod.ready = True
    scene.sync()
    scene.settle()
    assert owners(scene) == before


def test_any_ingress_node_routes_alike_also_one_with_an_empty_state(scene: Scene) -> None:
    before = owners(scene)
    helper = scene.helpers["ingress2"]
    helper.stop()
    host = helper.host
    host.run("sh", "-c", "ip netns del service-tunnel; ip link del svctun; rm -rf /var/lib/service-tunnel/*")
    scene.start_helpers(["ingress2"])
    scene.settle()
    for vip in VIPS.values():
        scene.cluster.announce(vip, ["ingress2"])
    after = owners(scene)
    for vip in VIPS.values():
        scene.cluster.announce(vip)
    assert after == before


def test_what_strangers_break_is_mended_within_the_resync_time(scene: Scene) -> None:
    before = owners(scene)
    host = scene.cluster.nodes["ingress1"].host
    inside = ["ip", "netns", "exec", "service-tunnel"]
    for vip in VIPS.values():
        scene.cluster.announce(vip, ["ingress1"])
    try:
        for command in (
            [*inside, "ip", "route", "del", VIPS[4], "table", "1007"],
            [*inside, "ip", "rule", "del", "pref", "1000"],
            [*inside, "iptables", "-t", "mangle", "-F"],
            [*inside, "ip", "nexthop", "flush"],
            ["ip", "link", "del", "svctun"],
            ["ip", "netns", "del", "service-tunnel"],
            ["iptables", "-t", "raw", "-F"],
            ["ip", "route", "del", VIPS[4]],
        ):
            host.run(*command)
            scene.wait(lambda: _all_there(scene, before), f"after {' '.join(command)} all as before", 60)
        assert "-A PREROUTING -j SERVICE-TUNNEL" in host.run("iptables-save", "-t", "raw").stdout
    finally:
        for vip in VIPS.values():
            scene.cluster.announce(vip)


def _all_there(scene: Scene, before: dict[tuple[str, int], str]) -> bool:
    flows = list(before)
    seen = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows, tries=1, timeout=0.3)
    raw = scene.cluster.nodes["ingress1"].host.run("iptables-save", "-t", "raw").stdout
    return seen == before and "-A PREROUTING -j SERVICE-TUNNEL" in raw


def test_draining_takes_the_announcement_away_and_goes_on_forwarding(scene: Scene) -> None:
    before = owners(scene)
    assert vip_routes(scene) == ANNOUNCED_ROUTES
    scene.helpers["ingress1"].ask("drain", draining=True)
    await_routes(scene, FORWARDED_ROUTES)
    assert owners(scene) == before
    scene.helpers["ingress1"].ask("drain", draining=False)
    await_routes(scene, ANNOUNCED_ROUTES)


def vip_routes(scene: Scene) -> list[tuple[str, str]]:
    """Protocol and metric of every route of the VIPs in the main table of ingress1, IPv4 first."""
    found = []
    for version, vip in VIPS.items():
        text = scene.cluster.nodes["ingress1"].host.run("ip", f"-{version}", "-j", "route", "show", vip).stdout
        found += [(route["protocol"], str(route.get("metric", ""))) for route in json.loads(text)]
    return found


def await_routes(scene: Scene, routes: list[tuple[str, str]]) -> None:
    scene.wait(lambda: vip_routes(scene) == routes, f"{routes} as the VIPs' routes, and no others")


def test_no_datagram_is_lost_while_a_node_begins_and_stops_to_drain(scene: Scene) -> None:
    """The route that is announced and that which is not stand beside each other for a moment."""
    for vip in VIPS.values():
        scene.cluster.announce(vip, ["ingress1"])
    try:
        with (
            Stream(scene.cluster.client, VIPS[4], 8080) as stream4,
            Stream(scene.cluster.client, VIPS[6], 8080) as stream6,
        ):
            for _ in range(10):
                for draining, routes in ((True, FORWARDED_ROUTES), (False, ANNOUNCED_ROUTES)):
                    scene.helpers["ingress1"].ask("drain", draining=draining)
                    await_routes(scene, routes)
            for stream in (stream4, stream6):
                assert stream.count().lost == 0
    finally:
        for vip in VIPS.values():
            scene.cluster.announce(vip)


def test_a_helper_that_was_killed_between_two_routes_of_a_vip_leaves_one_to_its_successor(scene: Scene) -> None:
    scene.helpers["ingress1"].kill()
    host = scene.cluster.nodes["ingress1"].host
    for vip, gateway, metric in ((VIPS[4], "169.254.74.2", 1), (VIPS[6], "fe80::74:2", 1025)):
        host.batch([f"route add {vip} via {gateway} dev svctun proto 117 metric {metric}"])
    assert len(vip_routes(scene)) == 4
    scene.start_helpers(["ingress1"])
    await_routes(scene, ANNOUNCED_ROUTES)


def test_a_node_that_loses_its_label_is_no_ingress_node_any_more(scene: Scene) -> None:
    """Once the drain time is over, in which it forwards what still comes."""
    node = scene.cluster.nodes["ingress2"]
    labels = dict(node.labels)
    scene.helpers["ingress2"].stop()
    scene.start_helpers(["ingress2"], ["--drain-time", "1"])
    node.labels.pop("node")
    scene.sync()
    try:
        scene.wait(lambda: not scene.helpers["ingress2"].status()["ingress"], "ingress2 without its role")
        assert node.host.run("ip", "route", "show", "proto", "116").stdout == ""
        assert "service-tunnel" not in node.host.run("ip", "netns").stdout
    finally:
        node.labels.update(labels)
        scene.sync()
        scene.helpers["ingress2"].stop()  # the fixture starts it as it was


def test_a_pod_has_its_vip_before_its_program_begins(scene: Scene) -> None:
    """When ADD has returned all is there; nobody has to wait for anything."""
    seen: list[str] = []
    pod = scene.cluster.add_pod("worker1", "early", {"app": "web"}, scheduled=scene.manifests.apply_pod)
    try:
        seen = pod.place.run("ip", "-brief", "addr", "show", "dev", "lo").stdout.split()
        assert f"{VIPS[4]}/32" in seen and f"{VIPS[6]}/128" in seen
        assert pod.place.run("ip", "link", "show", "svctun-gpe").stdout
        pod.check()
    finally:
        scene.cluster.delete_pod(pod)
        scene.sync()
    records, _ = attachment.read_all(str(scene.cluster.nodes["worker1"].host.path("/run/service-tunnel")))
    assert "early" not in {record.name for record in records}


def test_without_helper_a_pod_of_a_tunnelled_namespace_has_to_wait_and_others_pass() -> None:
    with Scene(plugin={"helperWait": 0.3}) as scene:
        scene.apply_service()
        scene.settle()
        scene.helpers["worker1"].kill()
        with pytest.raises(PluginFailed) as refused:
            scene.cluster.add_pod("worker1", "waits", {"app": "web"})
        assert refused.value.code == 11
        free = scene.cluster.add_pod("worker1", "passes", {"app": "web"}, namespace="elsewhere")
        assert VIPS[4] not in free.place.run("ip", "addr").stdout
        # The helper is back: the same pod gets through, tunnels and all.
        scene.start_helpers(["worker1"])
        pod = scene.cluster.add_pod("worker1", "waits", {"app": "web"}, scheduled=scene.manifests.apply_pod)
        assert VIPS[4] in pod.place.run("ip", "addr").stdout


def test_a_dead_ingress_node_breaks_no_connection() -> None:
    """Last in this file: its own scene, of which a node is killed."""
    with Scene() as scene:
        scene.apply_service()
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        before = owners(scene)
        with held(scene, 200) as connections:
            scene.cluster.kill_node("ingress1")
            assert owners(scene) == before
            report = connections.report()
        assert (report.asked, report.lost, report.moved) == (200, 0, 0)
