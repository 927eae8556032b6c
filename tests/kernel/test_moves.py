"""Buckets that move, in every mode: connections stay with the pod in which they began."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from cni_plugin.tunnel import MODES, MPLS, VXLAN_GPE
from node_helper.bucket_store import FolderBucketStore
from node_helper.bucket_text import decode
from node_helper.model import ObjectKey
from tests.kernel.conftest import LOCAL, places, wait_for_answers
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

ELSEWHERE = (("ingress2", "pod6"), ("worker1", "pod7"))
COUNT, INTERVAL = 100, 0.8
"""Connections, so many that mostly one is in the few buckets that move twice; seconds between each one's questions."""
CLUSTER, LOCAL_POLICY = "Cluster", "Local"
CASES = [*((mode, CLUSTER) for mode in MODES), (VXLAN_GPE, LOCAL_POLICY)]
pytestmark = pytest.mark.parametrize(("mode", "policy"), CASES, scope="module")


def places_of(mode: str, policy: str) -> tuple[tuple[str, str], ...]:
    """Under policy Local with many buckets that are other nodes' in the table: here they fall to pods of one node."""
    return (*LOCAL, *ELSEWHERE) if policy == LOCAL_POLICY else places(mode)


@pytest.fixture(scope="module")
def scene(mode: str, policy: str) -> Iterator[Scene]:
    """Of its own: for as long as moves are recent, pods take packets from each other."""
    with Scene(mode=mode, rp_filter=1) as scene:
        scene.apply_service(annotations={"cmd.nu/tunnel-traffic-policy": policy})
        scene.add_pods(places_of(mode, policy), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def test_a_pod_that_comes_and_then_terminates_costs_no_connection(scene: Scene, mode: str, policy: str) -> None:
    """There, and with those that begin in it back: they go on in it although its buckets are others' again."""
    node = places_of(mode, policy)[0][0]
    for vip in VIPS.values():
        scene.cluster.announce(vip, [node] if policy == LOCAL_POLICY or mode == MPLS else None)
    with Held(scene.cluster.client, VIPS[4], 8080, COUNT, interval=INTERVAL) as old:
        new = scene.add_pods([(node, "newcomer")], {"app": "web"})[0]
        try:
            scene.sync()
            scene.settle()
            wait_for_answers(scene, old)
            with Held(scene.cluster.client, VIPS[4], 8080, COUNT, interval=INTERVAL) as young:
                assert any(new.name in each.pods for each in young.each())
                new.ready, new.terminating = False, True
                scene.sync()
                scene.settle()
                wait_for_answers(scene, old, young)
                # From then on who had what is known by the next table alone.
                scene.wait(lambda: str(new.ips[0]) not in stored_endpoints(scene), "the table without it")
                scene.apply_service("later", "198.51.100.9")
                scene.settle()  # a round that has the one Service has the other's table
                wait_for_answers(scene, old, young)
                assert old.report().moved == young.report().moved == 0
            scene.remove_service("later")
        finally:
            scene.remove_pod(new)
            scene.sync()
            scene.settle()


def stored_endpoints(scene: Scene) -> Sequence[str]:
    text = FolderBucketStore(scene.manifests.folder).read(ObjectKey("default", "web"))
    assert text is not None
    return decode(text, json.loads(text)["uid"]).endpoints
