"""Who is near the router asks VIPs, too: ingress nodes themselves, their pods, and pods behind the VIP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.testbed import traffic
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import bridge_chain, ptp_chain
from tests.testbed.manifests import service_port
from tests.testbed.scene import MAPPED_VIPS, VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
HERE, THERE = ("near1", "near2"), "far"
SEVERAL = 24
MAPPED = (service_port(80, 8080), service_port(80, 8080, protocol="UDP"))
both_versions = pytest.mark.parametrize("version", [4, 6])
pytestmark = [
    pytest.mark.parametrize("mode", MODES, scope="module"),
    pytest.mark.parametrize("network", ["ptp", "bridge"], scope="module"),
]


@pytest.fixture(scope="module")
def scene(mode: str, network: str) -> Iterator[Scene]:
    """Two of three pods are on the ingress node; hosts and pods filter reverse paths strictly."""
    chain = bridge_chain if network == "bridge" else ptp_chain
    with Scene(NODES, mode=mode, rp_filter=1, chain=chain) as scene:
        scene.apply_service()
        scene.apply_service("mapped", ",".join(MAPPED_VIPS.values()), MAPPED, selector={"app": "web"})
        scene.add_pods([*(("ingress1", name) for name in HERE), ("worker1", THERE)], {"app": "web"})
        scene.add_pods([("ingress1", "bystander")], {"app": "other"})
        scene.sync()
        scene.settle()
        yield scene


def endpoints(mode: str) -> set[str]:
    """A label leads to pods of the ingress node only."""
    return set(HERE) if mode == MPLS else {*HERE, THERE}


def targets(version: int) -> tuple[tuple[str, int], ...]:
    return (VIPS[version], 8080), (MAPPED_VIPS[version], 80)


@both_versions
def test_the_ingress_node_reaches_every_endpoint(scene: Scene, mode: str, version: int) -> None:
    host = scene.cluster.nodes["ingress1"].host
    for vip, port in targets(version):
        for ask in (traffic.ask_tcp, traffic.ask_udp):
            seen = Counter(host.call(ask, vip, port, source_port=31000 + n).name for n in range(SEVERAL))
            assert set(seen) == endpoints(mode), (vip, ask)
        for _ in range(4):
            host.call(traffic.upload, vip, port, 300_000)
            host.call(traffic.download, vip, port, 300_000)


@both_versions
def test_another_pod_of_the_ingress_node_reaches_every_endpoint_and_is_seen(
    scene: Scene, mode: str, version: int
) -> None:
    pod = next(pod for pod in scene.cluster.pods if pod.name == "bystander")
    for vip, port in targets(version):
        for ask in (traffic.ask_tcp, traffic.ask_udp):
            answers = [pod.place.call(ask, vip, port, source_port=31000 + n) for n in range(SEVERAL)]
            assert {answer.name for answer in answers} == endpoints(mode), (vip, ask)
            assert {answer.client for answer in answers} == {pod.address(version)}
        for _ in range(4):
            pod.place.call(traffic.upload, vip, port, 300_000)
            pod.place.call(traffic.download, vip, port, 300_000)


@both_versions
def test_a_pod_behind_the_vip_is_answered_by_itself(scene: Scene, mode: str, version: int) -> None:
    """The VIP is its own address, so its packets never leave it: no hairpin, whoever the bucket belongs to."""
    for pod in scene.cluster.pods:
        if pod.name == "bystander":
            continue
        for vip, port in targets(version):
            for ask in (traffic.ask_tcp, traffic.ask_udp):
                assert {pod.place.call(ask, vip, port).name for _ in range(4)} == {pod.name}, (vip, ask)
