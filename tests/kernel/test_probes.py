"""Ingress nodes probe VIPs through their tunnels, and do not announce one of which no endpoint answers from there."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.cni import Pod
from tests.testbed.scene import VIPS, Scene

INGRESS = "ingress1"
NODES = (NodeSpec(INGRESS, ingress=True), NodeSpec("worker1"), NodeSpec("worker2"))
INTERVAL = 0.2
"""Seconds."""
DEAF = "table inet deaf { chain in { type filter hook input priority 0; policy drop; }; }\n"
"""In a pod: nothing that comes is answered, as by a program that hangs on a node that does."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(NODES, options=["--probe-interval", str(INTERVAL)]) as scene:
        scene.apply_service()
        scene.add_pods([("worker1", "pod1"), ("worker2", "pod2")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def pods(scene: Scene) -> list[Pod]:
    return [scene.cluster.nodes[node].pods[name] for node, name in (("worker1", "pod1"), ("worker2", "pod2"))]


def protocol(scene: Scene, vip: str) -> str:
    """Of the VIP's route, by which it is announced or not; empty without one."""
    version = 6 if ":" in vip else 4
    shown = scene.cluster.nodes[INGRESS].host.run("ip", f"-{version}", "route", "show", "dev", "svctun").stdout
    words = next((line.split() for line in shown.splitlines() if line.startswith(f"{vip} ")), ["proto", ""])
    return words[words.index("proto") + 1]


def silent(scene: Scene) -> set[str]:
    """VIPs of which `status` says that nobody answers any more."""
    (helper,) = [helper for helper in scene.running_helpers() if helper.node == INGRESS]
    found = [problem for problem in helper.status()["problems"] if problem["reason"] == "EndpointsSilent"]
    return {vip for vip in VIPS.values() if any(f" {vip} " in problem["message"] for problem in found)}


def deafen(pod: Pod) -> None:
    pod.place.run("nft", "-f", "-", input=DEAF)


def heal(pod: Pod) -> None:
    pod.place.run("nft", "delete table inet deaf", check=False)


def wait_for_more(scene: Scene, capture: packets.Capture) -> None:
    seen = len(capture.packets())
    scene.wait(lambda: len(capture.packets()) > seen, "another packet comes")


def answers(vip: str, packet: packets.Packet) -> bool:
    return packet.source == vip and packet.tcp_flags == 0x12  # SYN, ACK


def answered(scene: Scene) -> None:
    """Waits until a probe of each VIP was answered."""
    with packets.Capture(scene.cluster.nodes[INGRESS].host, "eth0") as capture:
        for vip in VIPS.values():
            capture.wait_for(functools.partial(answers, vip))


def test_a_vip_of_which_nobody_answers_is_withdrawn_until_somebody_does(scene: Scene) -> None:
    answered(scene)
    one, two = pods(scene)
    try:
        deafen(one)
        with packets.Capture(one.place, "eth0") as capture, packets.Capture(two.place, "eth0") as other:
            for _ in range(3):
                for place in (capture, other):
                    wait_for_more(scene, place)
        assert [protocol(scene, vip) for vip in VIPS.values()] == ["116", "116"], "one that answers is enough"
        deafen(two)
        scene.wait(lambda: all(protocol(scene, vip) == "117" for vip in VIPS.values()), "the VIPs are withdrawn")
        scene.wait(lambda: silent(scene) == set(VIPS.values()), "status says why")
        heal(one)
        scene.wait(lambda: all(protocol(scene, vip) == "116" for vip in VIPS.values()), "the VIPs are announced again")
        scene.wait(lambda: not silent(scene), "status says no more of it")
    finally:
        for pod in (one, two):
            heal(pod)


def test_probes_are_no_connections_to_the_pods_programs_clients(scene: Scene) -> None:
    """They are reset as soon as they stand; what clients ask meanwhile is answered as ever."""
    for vip in VIPS.values():
        for _ in range(5):
            assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[6 if ":" in vip else 4]


def test_a_vip_that_never_answered_is_announced(scene: Scene) -> None:
    """A policy that keeps nodes out of pods must not take the VIP from clients, whom it lets in."""
    vip = "198.51.100.77"
    (pod,) = scene.add_pods([("worker1", "deaf")], {"app": "deaf"})
    deafen(pod)
    scene.apply_service("deaf", vip)
    try:
        scene.settle()
        with packets.Capture(pod.place, "eth0") as capture:
            for _ in range(8):
                wait_for_more(scene, capture)
        assert protocol(scene, vip) == "116"
    finally:
        scene.remove_service("deaf")
        scene.remove_pod(pod)
