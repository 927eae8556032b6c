"""A router of another layout is built anew, in every mode: no packet is lost."""

from __future__ import annotations

from tests.kernel.test_renewal import NODES, age, is_new, picture, serve, unharmed
from tests.testbed.scene import Scene


def test_a_router_of_another_layout_is_built_anew_and_no_packet_is_lost(mode: str) -> None:
    with Scene(NODES, mode=mode) as scene:
        serve(scene)
        node = scene.cluster.nodes["ingress1"]
        assert is_new(node.host)
        before = picture(node)
        scene.helpers["ingress1"].stop()
        age(node.host)
        assert picture(node) != before
        with unharmed(scene):
            scene.start_helpers(["ingress1"])
        assert is_new(node.host)
        assert picture(node) == before
        assert scene.helpers["ingress1"].log.read_text().count("built anew") == 1
        scene.helpers["ingress1"].stop()
        scene.start_helpers(["ingress1"])
        assert scene.helpers["ingress1"].log.read_text().count("built anew") == 1, "once is enough"
