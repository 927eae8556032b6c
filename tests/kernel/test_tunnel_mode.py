"""The annotation `cmd.nu/tunnel-mode`, and running Services whose mode or VIPs become others."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import count

import pytest

from cni_plugin.tunnel import GRE, MODES, MPLS, POD_LABEL, VXLAN_GPE, VXLAN_GPE_PORT
from tests.kernel.pictures import picture_of_pod
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
USUAL = {4: "198.51.100.51", 6: "2001:db8::51"}
"""VIPs of the Service `usual`, in the helpers' default mode, before the same pods as `web`."""
NEW = {4: "198.51.100.52", 6: "2001:db8::52"}
MODE = "cmd.nu/tunnel-mode"
OUR_PODS = {"app": "web"}
client_ports = count(30000)
both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Scene(NODES, mode=VXLAN_GPE, rp_filter=1) as scene:
        # The module puts devices of its own into every namespace once it is loaded, as it is by the first GRE tunnel.
        scene.cluster.client.run("ip", "link", "add", "first", "type", "gre", "external", check=False)
        scene.apply_service()
        scene.apply_service("usual", ",".join(USUAL.values()), selector=OUR_PODS)
        scene.add_pods([("ingress1", "pod1"), ("worker1", "pod2")], OUR_PODS)
        scene.sync()
        scene.settle()
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """Both Services are in the default mode, before and after."""
    yield shared
    shared.manifests.annotate("web", {MODE: None, "cmd.nu/tunnel": ",".join(VIPS.values())})
    settle(shared, VXLAN_GPE)


def settle(scene: Scene, mode: str) -> None:
    """Until helpers and pods have `web` in this mode."""

    def changed() -> bool:
        services = [s for helper in scene.running_helpers() for s in helper.status()["services"]]
        return {service["mode"] for service in services if service["name"] == "default/web"} == {mode}

    scene.wait(changed, f"web in mode {mode}")
    scene.settle()
    scene.wait(lambda: all(mode in modes_of(scene, pod.name) for pod in scene.cluster.pods), f"pods with mode {mode}")


def modes_of(scene: Scene, name: str) -> set[str]:
    """The modes for which a pod has what takes packets out of their tunnels."""
    pod = next(pod for pod in scene.cluster.pods if pod.name == name)
    links = pod.place.run("ip", "-brief", "link").stdout
    labels = pod.place.run("ip", "-f", "mpls", "route", check=False).stdout
    found = {VXLAN_GPE: "svctun-gpe" in links, GRE: "svctun-gre" in links, MPLS: f"{POD_LABEL} dev lo" in labels}
    return {mode for mode, there in found.items() if there}


def encapsulation(packet: packets.Packet, vip: str) -> str:
    """The mode in which a packet to a VIP was sent that enters a pod; empty where it is another or in no tunnel."""
    if ipaddress.ip_address(vip).packed not in packet.content:
        return ""
    if packet.labels == (POD_LABEL,):
        return MPLS
    if packet.protocol == packets.UDP and packet.destination_port == VXLAN_GPE_PORT:
        return VXLAN_GPE
    return GRE if packet.protocol == 47 else ""


def modes_seen(scene: Scene, vip: str) -> set[str]:
    """In which modes 40 flows to a VIP come to the pods; each is answered, from the VIP.

    Each call has a client's port of its own: a pod with three VIPs remembers one of them for a UDP client.
    """
    version = 6 if ":" in vip else 4
    port = next(client_ports)
    flows = [(source, port) for source in scene.cluster.client_addresses(version, 40)]
    captures = [packets.Capture(pod.place, "eth0") for pod in scene.cluster.pods]
    try:
        assert len(scene.cluster.client.call(traffic.udp_flows, vip, 8080, flows)) == len(flows)
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]
        return {
            mode for seen in captures for packet in seen.packets(lambda p: p.direction == "in")
            if (mode := encapsulation(packet, vip))
        }  # fmt: skip
    finally:
        for capture in captures:
            capture.close()


@both_versions
@pytest.mark.parametrize("mode", [GRE, MPLS], scope="module")
def test_a_service_in_another_mode_works_beside_one_in_the_default_mode_before_the_same_pods(
    scene: Scene, mode: str, version: int
) -> None:
    scene.manifests.annotate("web", {MODE: mode})
    settle(scene, mode)
    assert modes_seen(scene, VIPS[version]) == {mode}
    assert modes_seen(scene, USUAL[version]) == {VXLAN_GPE}
    for pod in scene.cluster.pods:
        assert modes_of(scene, pod.name) == {mode, VXLAN_GPE}
        pod.check()


@pytest.mark.parametrize("mode", [GRE, MPLS], scope="module")
def test_a_running_service_changes_its_mode_and_back_and_nothing_of_it_is_left(scene: Scene, mode: str) -> None:
    """In pods that had the mode for this Service only. Flows stay with their pods, where both modes reach all."""
    scene.manifests.annotate("usual", {"cmd.nu/tunnel": None})
    try:
        settle(scene, VXLAN_GPE)
        before = {pod.name: picture_of_pod(scene, pod.name) for pod in scene.cluster.pods}
        flows = scene.cluster.client_flows(4, 40)
        usual = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
        scene.manifests.annotate("web", {MODE: mode})
        settle(scene, mode)
        for pod in scene.cluster.pods:
            scene.wait(lambda name=pod.name: modes_of(scene, name) == {mode}, "the old mode is gone")  # type: ignore[misc]
            pod.check()
        for vip in VIPS.values():
            assert modes_seen(scene, vip) == {mode}
        if mode != MPLS:
            assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == usual
        scene.manifests.annotate("web", {MODE: None})
        settle(scene, VXLAN_GPE)
        for pod in scene.cluster.pods:
            scene.wait(lambda name=pod.name: modes_of(scene, name) == {VXLAN_GPE}, "the mode is gone")  # type: ignore[misc]
            assert unordered(picture_of_pod(scene, pod.name)) == unordered(before[pod.name])
            pod.check()
        assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == usual
    finally:
        scene.manifests.annotate("usual", {"cmd.nu/tunnel": ",".join(USUAL.values())})


def unordered(shown: str) -> list[str]:
    """Without what is another for a device that was made anew: its number, its link-local address."""
    return sorted(re.sub(r"^\d+: ", "", line) for line in shown.splitlines() if "fe80::" not in line)


@pytest.mark.parametrize("mode", MODES, scope="module")
def test_vips_of_a_running_service_are_replaced_and_the_other_service_notices_nothing(scene: Scene, mode: str) -> None:
    """First one comes to them, without a break; then the old ones go, and are nowhere any more."""
    ingress = scene.cluster.nodes["ingress1"].host
    scene.manifests.annotate("web", {MODE: mode})
    settle(scene, mode)
    with (
        Held(scene.cluster.client, VIPS[4], 8080, 10) as kept,
        Held(scene.cluster.client, USUAL[4], 8080, 10) as others,
    ):
        scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join([VIPS[4], NEW[4], VIPS[6]])})
        scene.settle()
        scene.cluster.announce(NEW[4])
        assert modes_seen(scene, NEW[4]) == modes_seen(scene, VIPS[4]) == {mode}
        scene.wait(lambda: kept.report().kept == 10, "all connections to the VIP that stays, alive")
        assert kept.report().moved == 0
        scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(NEW.values())})
        scene.settle()
        scene.cluster.announce(NEW[6])
        for version in (4, 6):
            assert modes_seen(scene, NEW[version]) == {mode}
        scene.wait(lambda: others.report().kept == 10, "all connections to the other Service, alive")
        assert others.report().moved == 0
    for vip in VIPS.values():
        routes = ingress.run("ip", "route", "show", "table", "all").stdout
        routes += ingress.run("ip", "netns", "exec", "service-tunnel", "ip", "route", "show", "table", "all").stdout
        for node in scene.cluster.nodes.values():
            assert f" {vip}\n" not in node.host.run("ipset", "save").stdout
        assert f"{vip} " not in routes
        for pod in scene.cluster.pods:
            shown = picture_of_pod(scene, pod.name)
            assert not re.search(rf"\b{re.escape(vip)}(?![0-9a-f:])", shown), shown
            pod.check()


def test_the_annotation_counts_and_not_the_helpers_default(mode: str) -> None:
    default = VXLAN_GPE if mode != VXLAN_GPE else GRE
    with Scene([NodeSpec("ingress1", ingress=True)], mode=default) as scene:
        scene.apply_service(annotations={MODE: mode})
        scene.add_pods([("ingress1", "pod1")], OUR_PODS)
        scene.sync()
        settle(scene, mode)
        for vip in VIPS.values():
            assert modes_seen(scene, vip) == {mode}
        assert modes_of(scene, "pod1") == {mode}
