"""Pods that are reached through an overlay network: which address packets come from, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.scene import VIPS, Scene

both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def overlay() -> Iterator[Scene]:
    """Pods are reached through a VXLAN device between the nodes, as with flannel; the worker filters strictly."""
    nodes = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
    with Scene(nodes, rp_filter=1, pod_mtu=1450) as scene:
        ends = list(scene.cluster.nodes.values())
        for here, there in (ends, ends[::-1]):
            mine, theirs = here.pod_cidrs[0].network_address, there.pod_cidrs[0]
            local, remote = here.addresses[4], there.addresses[4]
            here.host.batch(
                [
                    f"link add flannel.1 mtu 1450 type vxlan id 1 local {local} remote {remote} dstport 8472",
                    f"addr add {mine}/32 dev flannel.1",
                    "link set flannel.1 up",
                    f"route add {theirs} via {theirs.network_address} dev flannel.1 onlink",
                ]
            )
        scene.apply_service()
        scene.add_pods([("worker1", "pod1"), ("worker1", "pod2")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


@both_versions
def test_an_overlay_sees_the_source_address_that_it_expects(overlay: Scene, version: int) -> None:
    worker = overlay.cluster.nodes["worker1"].host
    with packets.Capture(worker, "flannel.1") as seen:
        assert overlay.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080).client == CLIENT[version]
        outer = seen.wait_for(lambda packet: packet.destination_port == 4790)
    assert outer.source == str(overlay.cluster.nodes["ingress1"].pod_cidrs[0].network_address)


@both_versions
def test_large_transfers_fit_both_encapsulations(overlay: Scene, version: int) -> None:
    overlay.cluster.client.call(traffic.upload, VIPS[version], 8080, 3_000_000)
    overlay.cluster.client.call(traffic.download, VIPS[version], 8080, 3_000_000)
    route = overlay.cluster.nodes["ingress1"].host.run("ip", f"-{version}", "route", "show", VIPS[version]).stdout
    assert f"mtu {1450 - 36}" in route
