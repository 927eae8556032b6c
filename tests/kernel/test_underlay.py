"""Pods whose own links are narrower than the network of the nodes, as behind overlays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.kernel.conftest import announce_where_served, places
from tests.testbed import traffic
from tests.testbed.scene import Scene

VIPS = {4: "198.51.100.4", 6: "2001:db8::4"}


@pytest.fixture(scope="module")
def narrow(scene: Scene, mode: str) -> Iterator[Scene]:
    scene.apply_service("narrow", ",".join(VIPS.values()))
    pods = scene.add_pods([(places(mode)[0][0], "narrow")], {"app": "narrow"}, mtu=1400)
    scene.sync()
    scene.settle()
    announce_where_served(scene, mode, VIPS)
    yield scene
    scene.remove_service("narrow")
    scene.remove_pod(pods[0])


@pytest.mark.parametrize("mode", MODES, scope="module")
@pytest.mark.parametrize("version", [4, 6])
def test_large_transfers_reach_pods_with_a_small_mtu(narrow: Scene, mode: str, version: int) -> None:
    narrow.cluster.client.call(traffic.upload, VIPS[version], 8080, 3_000_000)
    narrow.cluster.client.call(traffic.download, VIPS[version], 8080, 3_000_000)
    if mode == MPLS:
        # A label route drops what is too big without a word, so the router has to know the pod's link.
        route = narrow.cluster.nodes["ingress1"].host.run("ip", f"-{version}", "route", "show", VIPS[version]).stdout
        assert "mtu 1396" in route
