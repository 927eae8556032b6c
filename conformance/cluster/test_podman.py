"""A runtime without Kubernetes, whose containers the ingress nodes of the cluster serve all the same."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.cluster.objects import PORT, proof, service
from conformance.cluster.podman import Podman
from conformance.cluster.stage import EDGE, Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT

VIPS = {4: "198.51.100.30", 6: "2001:db8::30"}


@pytest.fixture(scope="module")
def podman(stage: Stage) -> Podman:
    return Podman(stage.machines.nodes[EDGE.name], stage.root, list(VIPS.values()))


def endpoints(version: int, address: str) -> dict[str, Any]:
    """What nobody writes for a container that is no pod."""
    ports = [{"name": name.lower(), "protocol": name, "port": PORT} for name in ("TCP", "UDP")]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"edge-{version}", "labels": {"kubernetes.io/service-name": "edge"}},
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": ports,
    }


def test_a_container_has_its_vips_before_its_first_instruction(podman: Podman) -> None:
    assert podman.run("first", "sh", "-c", f"{proof(list(VIPS.values()))} && echo it has").endswith("it has\n")


def test_it_answers_a_client_outside_by_the_ingress_nodes_and_sees_it(stage: Stage, podman: Podman) -> None:
    server = ("python3", "-ISE", "/server.py", "--name=edge", f"--port={PORT}")
    podman.run("edge", *server, keep=True)
    own = podman.addresses("edge")
    without_pods = {**service("edge", list(VIPS.values()))}
    del without_pods["spec"]["selector"]
    for port in without_pods["spec"]["ports"]:
        port["targetPort"] = PORT
    slices = [endpoints(version, address) for version, address in own.items()]
    stage.control.apply(without_pods, *slices)
    for version, vip in VIPS.items():
        stage.machines.announce(vip)
        stage.wait(lambda vip=vip, version=version: seen(stage, vip) == ("edge", CLIENT[version]), f"it answers {vip}")  # type: ignore[misc]


def seen(stage: Stage, vip: str) -> tuple[str, str]:
    """Who answers, and whom that one sees."""
    try:
        found = stage.machines.client.call(traffic.ask_tcp, vip, PORT, timeout=1.0)
    except (traffic.NoAnswer, OSError):
        return "", ""
    return found.name, found.client


def test_started_again_it_has_another_namespace_with_its_vips(stage: Stage, podman: Podman) -> None:
    podman("restart", "--time=0", "edge")
    podman("exec", "edge", "sh", "-c", proof(list(VIPS.values())))


def test_it_is_deleted_without_a_trace(stage: Stage, podman: Podman) -> None:
    assert attachments(podman)
    podman("rm", "--force", "--time=0", "edge")
    assert not attachments(podman)
    stage.kubectl("delete", "service", "edge")
    for vip in VIPS.values():
        stage.machines.withdraw(vip)


def attachments(podman: Podman) -> list[str]:
    """The plugin's records."""
    return podman.machine.run("find", "/run/service-tunnel/attachments", "-type", "f").stdout.split()
