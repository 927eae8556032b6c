"""Pods come and go, are unready and end: connections stay where they began, and none is lost but with its pod.

In each mode `test_moves` says the same of less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.testbed import traffic
from tests.testbed.cni import Pod
from tests.testbed.holding import Held
from tests.testbed.manifests import service_port
from tests.testbed.scene import VIPS, Scene

COUNT = 200
PLACES = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"), ("ingress1", "pod4"))
PORTS = (service_port(80, 8080), service_port(80, 8080, protocol="UDP"))
"""Also over a remapped port nothing may be lost."""
both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(rp_filter=1) as scene:
        scene.apply_service(ports=PORTS)
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


@contextmanager
def kept(scene: Scene, version: int, but: Pod | None = None) -> Iterator[Held]:
    """Connections of which none may be lost, nor answered by another pod; `but`: except with this pod's end."""
    sources = scene.cluster.client_addresses(version, 10)
    with Held(scene.cluster.client, VIPS[version], 80, COUNT, sources=sources) as held:
        before = held.each()
        assert all(each.outcome == "open" for each in before)
        yield held
        scene.wait(lambda: held.report().stalled == 0, "answers on all connections")
        # Once more from each, after all that has happened.
        answers = sum(each.answers for each in held.each())
        scene.wait(lambda: sum(each.answers for each in held.each()) > answers + 2 * COUNT, "further answers")
        after = held.each()
        assert all(len(each.pods) == 1 for each in after)
        lost = {now.pods[0] for was, now in zip(before, after, strict=True) if now.outcome != "open"}
        assert lost <= ({but.name} if but else set())


def reached(scene: Scene, version: int, count: int = 200) -> set[str]:
    """The pods that new connections come to."""
    flows = scene.cluster.client_flows(version, count)
    return set(scene.cluster.client.call(traffic.tcp_flows, VIPS[version], 80, flows).values())


@both_versions
def test_scaling_up_and_down_loses_no_connection(scene: Scene, version: int) -> None:
    with kept(scene, version):
        further = scene.add_pods([("worker2", "further")], {"app": "web"})
        scene.sync()
        scene.settle()
        scene.wait(lambda: "further" in reached(scene, version), "new connections at the new pod")
        with kept(scene, version, but=further[0]) as held:
            terminate(scene, further[0])
            scene.settle()
            assert "further" not in reached(scene, version)
            # It has time to end them, as after SIGTERM.
            assert held.report().lost == 0
            scene.cluster.delete_pod(further[0])
            scene.sync()
            scene.settle()


def terminate(scene: Scene, pod: Pod) -> None:
    pod.ready, pod.terminating = False, True
    scene.sync()


@both_versions
def test_a_pod_that_is_not_ready_for_a_while_keeps_its_connections(scene: Scene, version: int) -> None:
    pod = scene.cluster.pods[0]
    with kept(scene, version):
        for _ in range(2):
            pod.ready = False
            scene.sync()
            scene.settle()
            scene.wait(lambda: pod.name not in reached(scene, version), "no new connections")
            with kept(scene, version):  # which began while it was away
                pod.ready = True
                scene.sync()
                scene.settle()


@both_versions
def test_an_ingress_node_that_goes_in_the_middle_of_a_drain_loses_nothing(
    scene: Scene, mode: str, version: int
) -> None:
    further = scene.add_pods([("worker2", "further")], {"app": "web"})
    scene.sync()
    scene.settle()
    with kept(scene, version):
        terminate(scene, further[0])
        scene.cluster.withdraw(VIPS[version], "ingress1")
        scene.settle()
    scene.cluster.announce(VIPS[version])
    scene.cluster.delete_pod(further[0])
    scene.sync()
    scene.settle()


def test_when_no_pod_moved_lately_pods_are_as_they_were() -> None:
    with Scene(options=["--drain-time", "2"]) as scene:
        scene.apply_service()
        pods = scene.add_pods(PLACES[:2], {"app": "web"})
        scene.sync()
        scene.settle()
        scene.wait(lambda: not any(hands_on(pod) for pod in pods), "nothing to hand on")
        further = scene.add_pods([("worker1", "further")], {"app": "web"})[0]
        scene.sync()
        scene.wait(lambda: hands_on(further), "the new pod to hand on")
        scene.wait(lambda: not any(hands_on(pod) for pod in (*pods, further)), "the end of the drain time")


def hands_on(pod: Pod) -> bool:
    return "svctun-moved" in pod.place.run("nft", "list", "tables").stdout
