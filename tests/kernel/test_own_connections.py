"""Who is near the router asks VIPs, too: ingress nodes themselves, their pods, and pods behind the VIP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.testbed import traffic
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import bridge_chain, ptp_chain
from tests.testbed.manifests import service_port
from tests.testbed.namespaces import Place
from tests.testbed.scene import MAPPED_VIPS, VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
HERE, THERE = ("near1", "near2"), "far"
FLOWS = 24
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


def reaches_all(place: Place, address: str, version: int, mode: str) -> None:
    """From this address, which is what it uses when it does not choose, by TCP and UDP, also in large transfers."""
    flows = [(address, 31000 + number) for number in range(FLOWS)]
    for vip, port in targets(version):
        for ask in (traffic.tcp_flows, traffic.udp_flows):
            assert set(place.call(ask, vip, port, flows).values()) == endpoints(mode), (vip, ask)
        assert place.call(traffic.ask_tcp, vip, port).client == address
        for _ in range(3):
            place.call(traffic.upload, vip, port, 300_000)
            place.call(traffic.download, vip, port, 300_000)


@both_versions
def test_the_ingress_node_reaches_every_endpoint(scene: Scene, mode: str, version: int) -> None:
    node = scene.cluster.nodes["ingress1"]
    reaches_all(node.host, node.addresses[version], version, mode)


@both_versions
def test_another_pod_of_the_ingress_node_reaches_every_endpoint_and_is_seen(
    scene: Scene, mode: str, version: int
) -> None:
    pod = next(pod for pod in scene.cluster.pods if pod.name == "bystander")
    reaches_all(pod.place, pod.address(version), version, mode)


@both_versions
def test_a_pod_behind_the_vip_is_answered_by_itself(scene: Scene, mode: str, version: int) -> None:
    """The VIP is its own address, so its packets never leave it: no hairpin, whoever the bucket belongs to."""
    for pod in scene.cluster.pods:
        if pod.name == "bystander":
            continue
        for vip, port in targets(version):
            for ask in (traffic.ask_tcp, traffic.ask_udp):
                assert pod.place.call(ask, vip, port).name == pod.name, (vip, ask)
