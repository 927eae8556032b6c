"""Buckets that move, in every mode: connections stay with the pod in which they began."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.kernel.conftest import announce_where_served, places, wait_for_answers
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

# In mode mpls a pod takes what is handed on once its helper has configured it, a moment after it has the buckets: on a
# slow machine that costs connections (docs/draining.md).
pytestmark = pytest.mark.parametrize("mode", [mode for mode in MODES if mode != MPLS], scope="module")


@pytest.fixture(scope="module")
def scene(mode: str) -> Iterator[Scene]:
    """Of its own: for as long as moves are recent, pods take packets from each other."""
    with Scene(mode=mode, rp_filter=1) as scene:
        scene.apply_service()
        scene.add_pods(places(mode), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def test_a_pod_that_comes_and_then_terminates_costs_no_connection(scene: Scene, mode: str) -> None:
    """There, and with those that begin in it back: they go on in it although its buckets are others' again."""
    announce_where_served(scene, mode, VIPS)
    node = places(mode)[0][0]
    with Held(scene.cluster.client, VIPS[4], 8080, 40) as old:
        new = scene.add_pods([(node, "newcomer")], {"app": "web"})[0]
        try:
            scene.sync()
            scene.settle()
            wait_for_answers(scene, old)
            with Held(scene.cluster.client, VIPS[4], 8080, 40) as young:
                assert any(new.name in each.pods for each in young.each())
                new.ready, new.terminating = False, True
                scene.sync()
                scene.settle()
                wait_for_answers(scene, old, young)
                assert old.report().moved == young.report().moved == 0
        finally:
            scene.remove_pod(new)
            scene.sync()
            scene.settle()
