"""Pods on a bridge: replies enter the host by the bridge, not by the pod's own device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.testbed import traffic
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import bridge_chain
from tests.testbed.scene import Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
both_versions = pytest.mark.parametrize("version", [4, 6])


def vips(mode: str) -> dict[int, str]:
    number = MODES.index(mode) + 61
    return {4: f"198.51.100.{number}", 6: f"2001:db8::{number}"}


@pytest.fixture(scope="module")
def bridges() -> Iterator[Scene]:
    """Hosts and pods filter reverse paths strictly; two pods that no Service selects."""
    with Scene(NODES, chain=bridge_chain, rp_filter=1) as scene:
        scene.add_pods([("ingress1", "client1"), ("worker1", "client2")], {"app": "none"})
        yield scene


@pytest.fixture
def scene(bridges: Scene, mode: str) -> Scene:
    """With a Service of this mode before pods of its own, which stay there for the next test."""
    if mode not in {pod.labels["app"] for pod in bridges.cluster.pods}:
        bridges.apply_service(mode, ",".join(vips(mode).values()), annotations={"cmd.nu/tunnel-mode": mode})
        nodes = ["ingress1"] if mode == MPLS else ["ingress1", "worker1"]
        bridges.add_pods([(node, f"{mode}-{node}") for node in nodes], {"app": mode})
        bridges.sync()
    bridges.settle()
    return bridges


@both_versions
def test_pods_on_a_bridge_are_served_behind_strict_filters(scene: Scene, mode: str, version: int) -> None:
    vip = vips(mode)[version]
    pods = {pod.name for pod in scene.cluster.pods if pod.labels["app"] == mode}
    flows = scene.cluster.client_flows(version, 40)
    found = scene.cluster.client.call(traffic.udp_flows, vip, 8080, flows)
    assert len(found) == len(flows) and set(found.values()) == pods
    assert set(scene.cluster.client.call(traffic.tcp_flows, vip, 8080, flows).values()) == pods
    scene.cluster.client.call(traffic.ping, vip)
    scene.cluster.client.call(traffic.download, vip, 8080, 1_000_000)
    scene.cluster.client.call(traffic.upload, vip, 8080, 1_000_000)


@both_versions
def test_a_pod_uses_the_vip_of_others_on_its_own_and_on_another_bridge(scene: Scene, mode: str, version: int) -> None:
    for name in ("client1", "client2"):
        pod = next(pod for pod in scene.cluster.pods if pod.name == name)
        answer = pod.place.call(traffic.ask_tcp, vips(mode)[version], 8080)
        assert answer.client == pod.address(version)


def test_only_the_bridge_is_loose_and_only_for_vips(scene: Scene, mode: str) -> None:
    for node in {scene.cluster.nodes[pod.node] for pod in scene.cluster.pods if pod.labels["app"] == mode}:
        assert node.host.sysctl("net.ipv4.conf.cni0.rp_filter") == "2"
        for name in ("all", "default", *(pod.host_device for pod in node.pods.values())):
            assert node.host.sysctl(f"net.ipv4.conf.{name}.rp_filter") == "1"
        assert "0.0.0.0/0,cni0" in node.host.run("ipset", "save", "svctun-loose").stdout
