"""What is odd about Services, endpoints, pods and nodes, and still right: from a folder and an API server alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from conformance.api.cluster_api import ClusterApi, control_at_router
from conformance.api.control_plane import ControlPlane
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT, Cluster
from tests.testbed.cni import Pod
from tests.testbed.manifests import BOTH_8080, Object, service_port
from tests.testbed.scene import VIPS, Scene

PLACES = (("ingress1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"))
NAMES = {name for _, name in PLACES}
VIP = "198.51.100.40"
OF_A_NAMESPACE = "203.0.113.5"
RANGES = (
    "--vip-range=198.51.100.0/24",
    "--vip-range=2001:db8::/32",
    "--vip-range=10.0.0.0/8",
    "--vip-range=203.0.113.0/24=shop",
    "--service-range=10.96.0.0/16",
)


class Api(ClusterApi):
    """The ranges are those of the scene."""

    def __init__(self, control: ControlPlane) -> None:
        super().__init__(control)
        self.control = control

    @property
    def options(self) -> Sequence[str]:
        return self.account("both")


@pytest.fixture(scope="module", params=["folder", "API server"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Three pods, one of them on an ingress node; each has the label `is` with its own name."""
    with ExitStack() as stack:

        def api(cluster: Cluster) -> Api:
            return Api(control_at_router(cluster, stack))

        made = stack.enter_context(Scene(options=RANGES, objects=None if request.param == "folder" else api))
        made.apply_service()
        for node, name in PLACES:
            made.add_pods([(node, name)], {"app": "web", "is": name}, named_ports={"web": 8080})
        made.sync()
        made.settle()
        yield made


@contextmanager
def another(scene: Scene, vips: str = VIP, name: str = "another", **how: Any) -> Iterator[None]:
    """A further Service in front of the pods, while it lasts."""
    how.setdefault("selector", {"app": "web"})
    scene.apply_service(name, vips, **how)
    try:
        yield
    finally:
        scene.remove_service(name)
        scene.wait(lambda: service(scene, name) is None, f"no Service {name}")


def service(scene: Scene, name: str, at: str = "ingress1") -> dict[str, Any] | None:
    """What an ingress node shows of it."""
    shown: list[dict[str, Any]] = scene.helpers[at].status()["services"]
    return next((one for one in shown if one["name"] in (name, f"default/{name}")), None)


def reached(scene: Scene, vip: str, flows: Sequence[tuple[str, int]] = (), port: int = 8080) -> set[str]:
    """The pods that answer; every flow is answered."""
    asked = flows or scene.cluster.client_flows(6 if ":" in vip else 4, 60)
    found = scene.cluster.client.call(traffic.udp_flows, vip, port, asked)
    assert len(found) == len(asked)
    return set(found.values())


def wait_served(scene: Scene, vip: str, names: set[str]) -> None:
    """Until the pods behind a VIP are these.

    Meanwhile some flows may have no answer, or, where the VIP goes between question and answer, the pod's own.
    """
    flows = scene.cluster.client_flows(6 if ":" in vip else 4, 60)

    def served() -> bool:
        try:
            found = scene.cluster.client.call(traffic.udp_flows, vip, 8080, flows, tries=1, timeout=0.3)
        except traffic.WrongAnswer:
            return False
        return len(found) == len(flows) and set(found.values()) == names

    scene.wait(served, f"{vip} leads to {', '.join(sorted(names))}")


def messages(scene: Scene, reason: str) -> list[str]:
    return [p["message"] for p in scene.helpers["ingress2"].status()["problems"] if p["reason"] == reason]


def pod_of(scene: Scene, name: str) -> Pod:
    return next(pod for pod in scene.cluster.pods if pod.name == name)


def test_client_affinity_keeps_all_flows_of_a_client_together(scene: Scene) -> None:
    with another(scene, sessionAffinity="ClientIP"):
        scene.settle()
        clients = scene.cluster.client_addresses(4, 30)
        for client in clients[:3]:
            assert len(reached(scene, VIP, [(client, port) for port in range(20000, 20030)])) == 1
        assert reached(scene, VIP, [(client, 20000) for client in clients]) == NAMES


@pytest.mark.parametrize(
    "how",
    [
        {"annotations": {"cmd.nu/tunnel-traffic-policy": "Local"}},
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
    ],
    ids=["annotation", "spec"],
)
def test_policy_local_announces_and_serves_where_endpoints_are(scene: Scene, how: dict[str, Any]) -> None:
    with another(scene, **how):
        scene.wait(lambda: announced(scene, "ingress1") == [VIP], "ingress1 announces it")
        scene.cluster.announce(VIP, ["ingress1"])
        wait_served(scene, VIP, {"pod1"})
        assert announced(scene, "ingress2") == []


def announced(scene: Scene, at: str, name: str = "another") -> list[str]:
    shown = service(scene, name, at)
    return [] if shown is None else list(shown["announced"])


def test_all_vips_of_a_service_lead_to_the_same_pod(scene: Scene) -> None:
    vips = (VIP, "198.51.100.41", "2001:db8::40", "2001:db8::41")
    with another(scene, ",".join(vips)):
        scene.settle()
        for vip in vips:
            assert reached(scene, vip) == NAMES
            assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[6 if ":" in vip else 4]


def test_a_headless_service_with_a_named_target_port_is_served(scene: Scene) -> None:
    ports = (service_port(80, "web"), service_port(80, "web", protocol="UDP"))
    with another(scene, ports=ports, clusterIP="None"):
        scene.settle()
        assert reached(scene, VIP, port=80) == NAMES
        assert scene.cluster.client.call(traffic.ask_tcp, VIP, 80).client == CLIENT[4]


def slice_of(name: str, of: str, version: int, *endpoints: Object) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "addressType": f"IPv{version}",
        "ports": [{"name": "udp-8080", "protocol": "UDP", "port": 8080}],
        "endpoints": list(endpoints),
    }


def entry(pod: Pod, version: int = 4, name: str = "", **conditions: bool) -> Object:
    reference = {"kind": "Pod", "namespace": "default", "name": name or pod.name, "uid": pod.uid}
    if name:
        del reference["uid"]
    conditions = {"ready": True, "serving": True, "terminating": False, **conditions}
    target = {"addresses": [pod.address(version)], "nodeName": pod.node, "targetRef": reference}
    return {**target, "conditions": conditions}


def test_hand_made_slices_without_selector_serve_each_ip_version_by_its_own_endpoints(scene: Scene) -> None:
    vips = {4: VIP, 6: "2001:db8::40"}
    pods = [pod_of(scene, name) for name in ("pod1", "pod2", "pod3")]
    metadata = {"name": "by-hand", "annotations": {"cmd.nu/tunnel": ",".join(vips.values())}}
    ports = [dict(port) for port in BOTH_8080]
    scene.objects.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    scene.objects.apply(slice_of("by-hand-ipv4", "by-hand", 4, *(entry(pod, 4) for pod in pods[:2])))
    scene.objects.apply(slice_of("by-hand-ipv6", "by-hand", 6, *(entry(pod, 6) for pod in pods[1:])))
    for vip in vips.values():
        scene.cluster.announce(vip)
    try:
        wait_served(scene, vips[4], {"pod1", "pod2"})
        wait_served(scene, vips[6], {"pod2", "pod3"})
    finally:
        scene.remove_service("by-hand")
        scene.settle()


def test_slices_that_name_a_pod_twice_or_another_that_had_its_address_change_nothing(scene: Scene) -> None:
    """The endpoint slice controller moves endpoints between slices, and its caches lag behind reused addresses."""
    flows = scene.cluster.client_flows(4, 60)
    before = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    second, third = pod_of(scene, "pod2"), pod_of(scene, "pod3")
    ended = {"ready": False, "serving": False, "terminating": True}
    gone = {**entry(third, name="z-gone", **ended), "nodeName": "ingress1"}
    scene.objects.apply(slice_of("web-more", "web", 4, entry(second), gone))
    scene.objects.apply(slice_of("web-most", "web", 4, entry(second), entry(third, name="z-gone")))
    try:
        scene.wait(lambda: heard(scene, "web-most"), "the helper knows of the slices", 30)
        shown = service(scene, "web")
        assert shown is not None
        assert {e["pod"] for e in shown["endpoints"]} == {f"default/{name}" for name in NAMES}
        assert len(shown["endpoints"]) == len(NAMES)
        assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == before
        for (source, port), name in list(before.items())[:10]:
            traced = scene.helpers["ingress1"].trace("udp", source, port, VIPS[4], 8080)
            assert traced["pod"] == f"default/{name}"
    finally:
        for name in ("web-more", "web-most"):
            scene.objects.remove("EndpointSlice", name)
        scene.settle()


def heard(scene: Scene, name: str) -> bool:
    """By an endpoint that is added after what a test did: sources tell of changes in their order."""
    marker = f"marks-{name}"
    try:
        scene.objects.service(marker)
    except KeyError:
        scene.objects.apply_service(marker, {"cmd.nu/tunnel": "no-address"})
    seen = any(marker in message for message in messages(scene, "InvalidVIP"))
    if seen:
        scene.objects.remove("Service", marker)
    return seen


def test_an_endpoint_that_is_not_ready_or_terminates_gets_no_new_flows_until_there_is_no_other(scene: Scene) -> None:
    pods = {pod.name: pod for pod in scene.cluster.pods}
    try:
        pods["pod1"].ready = False
        pods["pod2"].terminating = True
        scene.sync()
        wait_served(scene, VIPS[4], {"pod3"})
        pods["pod3"].terminating = True
        scene.sync()
        wait_served(scene, VIPS[4], {"pod2", "pod3"})  # both still serve
    finally:
        for pod in pods.values():
            pod.ready, pod.terminating = True, False
        scene.sync()
        scene.settle()
    wait_served(scene, VIPS[4], NAMES)


def bare_pod(name: str, node: str, address: str, phase: str, **spec: Any) -> Object:
    containers = [{"name": "server"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": containers, **spec},
        "status": {"phase": phase, "podIPs": [{"ip": address}]},
    }


def test_pods_of_the_hosts_network_get_no_traffic_and_their_service_is_told(scene: Scene) -> None:
    node = scene.cluster.nodes["worker1"]
    on_host = bare_pod("on-host", node.name, node.addresses[4], "Running", hostNetwork=True)
    place = {"addresses": [node.addresses[4]], "nodeName": node.name, "conditions": {"ready": True}}
    target = {"kind": "Pod", "namespace": "default", "name": "on-host"}
    scene.objects.apply(on_host)
    scene.objects.apply(slice_of("web-host", "web", 4, {**place, "targetRef": target}))
    try:
        scene.wait(lambda: messages(scene, "HostNetworkPod") != [], "the problem")
        assert "default/on-host" in messages(scene, "HostNetworkPod")[0]
        wait_served(scene, VIPS[4], NAMES)
        if isinstance(scene.objects, Api):
            control = scene.objects.control
            scene.wait(lambda: "HostNetworkPod" in {e["reason"] for e in control.events("web")}, "the Event")
    finally:
        scene.objects.remove("EndpointSlice", "web-host")
        scene.objects.remove("Pod", "on-host")
    scene.wait(lambda: messages(scene, "HostNetworkPod") == [], "no problem any more")


def test_a_finished_pod_holds_neither_its_address_nor_traffic(scene: Scene) -> None:
    """A Job's pod stays as an object, with the address that the next pod has: here one that is a VIP, and a pod's."""
    living = pod_of(scene, "pod2")
    scene.objects.apply(bare_pod("job-1", "worker1", VIP, "Succeeded"))
    scene.objects.apply(bare_pod("job-2", "worker1", living.ipv4, "Succeeded"))
    scene.objects.apply(slice_of("web-jobs", "web", 4, entry(living, name="job-2")))
    try:
        # No `sync`, which would remove pods that the testbed does not have.
        metadata = {"name": "another", "annotations": {"cmd.nu/tunnel": VIP}}
        spec = {"selector": {"app": "web"}, "ports": [dict(port) for port in BOTH_8080]}
        scene.objects.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        scene.objects.sync_endpoints("another", scene.cluster.pods)
        scene.cluster.announce(VIP)
        wait_served(scene, VIP, NAMES)
        shown = service(scene, "web")
        assert shown is not None
        assert {e["pod"] for e in shown["endpoints"]} == {f"default/{name}" for name in NAMES}
        assert messages(scene, "VIPNotAllowed") == []
    finally:
        scene.objects.remove("EndpointSlice", "web-jobs")
        scene.remove_service("another")
        for name in ("job-1", "job-2"):
            scene.objects.remove("Pod", name)
        scene.settle()


def test_a_node_that_is_made_again_with_the_same_name_serves_as_before(scene: Scene) -> None:
    flows = scene.cluster.client_flows(4, 60)
    before = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    scene.objects.remove("Node", "ingress2", "")
    scene.wait(lambda: announced(scene, "ingress2", "web") == [], "without a Node it announces nothing")
    scene.objects.apply_node(scene.cluster.nodes["ingress2"])
    scene.wait(lambda: VIPS[4] in announced(scene, "ingress2", "web"), "it announces again")
    scene.settle()
    scene.cluster.announce(VIPS[4], ["ingress2"])
    try:
        assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == before
    finally:
        scene.cluster.announce(VIPS[4])


def test_a_vip_moves_from_service_to_service(scene: Scene) -> None:
    with another(scene, VIP, "left", selector={"is": "pod1"}), another(scene, "", "right", selector={"is": "pod2"}):
        wait_served(scene, VIP, {"pod1"})
        scene.objects.annotate("right", {"cmd.nu/tunnel": VIP})
        scene.objects.annotate("left", {"cmd.nu/tunnel": None})
        wait_served(scene, VIP, {"pod2"})
        scene.objects.annotate("left", {"cmd.nu/tunnel": VIP})
        scene.objects.annotate("right", {"cmd.nu/tunnel": None})
        wait_served(scene, VIP, {"pod1"})


def test_of_two_services_the_older_has_the_vip_and_the_other_gets_it_when_it_is_deleted(scene: Scene) -> None:
    with another(scene, "", "a-younger", selector={"is": "pod2"}):
        scene.objects.remove("Service", "a-younger")  # made again, and younger than what comes now
        scene.apply_service("older", VIP, selector={"is": "pod1"})
        created = datetime.now(UTC).replace(microsecond=0)
        scene.wait(lambda: datetime.now(UTC).replace(microsecond=0) > created, "another second")
        scene.objects.apply_service("a-younger", {"cmd.nu/tunnel": VIP}, {"is": "pod2"})
        scene.sync()
        scene.wait(lambda: messages(scene, "VIPTaken") != [], "the younger is told")
        wait_served(scene, VIP, {"pod1"})
        scene.objects.remove("Service", "older")
        started = time.monotonic()
        wait_served(scene, VIP, {"pod2"})
        assert time.monotonic() - started < 30, "at once, and not by the next full comparison"
        assert messages(scene, "VIPTaken") == []
        scene.objects.annotate("a-younger", {"cmd.nu/tunnel": None})
        scene.cluster.withdraw(VIP)


def test_addresses_of_nodes_pods_services_and_other_namespaces_are_refused_one_by_one(scene: Scene) -> None:
    refused = {
        scene.cluster.nodes["worker1"].addresses[4]: "node worker1",
        "10.244.1.77": "10.244.1.0/24, which is for the pods of a node",
        "10.96.7.7": "10.96.0.0/16, which is for cluster IPs",
        OF_A_NAMESPACE: "not for namespace default",
        "192.0.2.77": "--vip-range",
    }
    scene.objects.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    scene.objects.apply_service("greedy", {"cmd.nu/tunnel": ",".join([VIP, *refused])}, {"app": "web"})
    scene.objects.apply_service("shop", {"cmd.nu/tunnel": OF_A_NAMESPACE}, {"app": "shop"}, namespace="shop")
    scene.sync()
    scene.cluster.announce(VIP)
    try:
        wait_served(scene, VIP, NAMES)
        told = messages(scene, "VIPNotAllowed")
        assert len(told) == len(refused)
        for address, why in refused.items():
            assert [message for message in told if f" {address}: " in message and why in message], (address, told)
        scene.wait(lambda: service(scene, "shop/shop") is not None, "the Service of the range's namespace")
        shown = service(scene, "shop/shop")
        assert shown is not None and shown["vips"] == [OF_A_NAMESPACE]
    finally:
        scene.objects.remove("Service", "shop", "shop")
        scene.objects.remove("Service", "greedy")
        scene.cluster.withdraw(VIP)
        scene.settle()
