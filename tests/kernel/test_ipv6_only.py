"""A pod network of IPv6 alone: the outer packets are IPv6, too, and GRE has a device of its own for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES, overhead
from tests.kernel.conftest import places
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.manifests import service_port
from tests.testbed.scene import MAPPED_VIPS, VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")

VIP, MAPPED_VIP = VIPS[6], MAPPED_VIPS[6]
REMAPPED = (service_port(80, 8080), service_port(80, 8080, protocol="UDP"))


@pytest.fixture(scope="module")
def scene(mode: str) -> Iterator[Scene]:
    with Scene(mode=mode, pod_versions=(6,), detect_duplicates=True) as scene:
        scene.apply_service(vips=VIP)
        scene.apply_service("mapped", MAPPED_VIP, REMAPPED, selector={"app": "web"})
        scene.add_pods(places(mode), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def test_every_pod_is_reached_and_sees_the_client(scene: Scene, mode: str) -> None:
    client = scene.cluster.client
    flows = scene.cluster.client_flows(6, 200)
    for ask in (traffic.tcp_flows, traffic.udp_flows):
        assert set(client.call(ask, VIP, 8080, flows).values()) == {pod.name for pod in scene.cluster.pods}
    assert client.call(traffic.ask_tcp, VIP, 8080).client == CLIENT[6]
    assert client.call(traffic.ask_udp, MAPPED_VIP, 80, connected=False).client == CLIENT[6]
    assert client.call(traffic.ping, VIP)


def test_pods_have_no_ipv4_and_the_outer_packets_are_ipv6(scene: Scene, mode: str) -> None:
    pod = scene.cluster.pods[0]
    assert "inet " not in pod.place.run("ip", "-4", "addr", "show", "dev", "eth0").stdout
    with packets.Capture(pod.place, "eth0") as arriving:
        for source_port in range(24300, 24340):
            scene.cluster.client.call(traffic.ask_udp, VIP, 8080, source_port=source_port)
        arriving.wait_for(
            lambda packet: packet.labels == (100,) or packet.protocol == 47 or packet.destination_port == 4790
        )
        assert {packet.version for packet in arriving.packets()} == {6}
    devices = pod.place.run("ip", "-brief", "link").stdout
    assert ("svctun-gre6" in devices, "svctun-gpe" in devices) == (mode == "gre", mode == "vxlan-gpe")


def test_large_transfers_and_large_datagrams_fit(scene: Scene, mode: str) -> None:
    client = scene.cluster.client
    for vip, port in ((VIP, 8080), (MAPPED_VIP, 80)):
        client.call(traffic.upload, vip, port, 3_000_000)
        client.call(traffic.download, vip, port, 3_000_000)
        answer = client.call(packets.ask_udp_in_fragments, vip, port, source=CLIENT[6], source_port=24301, size=4000)
        assert answer.size == 4000
    shown = scene.cluster.nodes["ingress1"].host.run("ip", "-6", "route", "show", VIP).stdout
    assert f"mtu {1500 - overhead(mode, 6)}" in shown
    scene.cluster.narrow_client_path(1300)
    try:
        client.call(traffic.download, MAPPED_VIP, 80, 1_000_000)
    finally:
        scene.cluster.narrow_client_path(1500)


def test_a_service_that_is_annotated_no_more_leaves_nothing(scene: Scene, mode: str) -> None:
    pod = scene.cluster.pods[0]
    commands = ("ip -brief link", "ip -6 addr show dev lo", "ip -6 rule", "nft list tables")
    vips = {"web": VIP, "mapped": MAPPED_VIP}
    try:
        for name in vips:
            scene.manifests.annotate(name, {"cmd.nu/tunnel": None})
        scene.settle()
        left = "".join(pod.place.run("sh", "-c", command).stdout for command in commands)
        assert "2001:db8:" not in left and "svctun" not in left
    finally:
        for name, vip in vips.items():
            scene.manifests.annotate(name, {"cmd.nu/tunnel": vip})
        scene.settle()
    assert scene.cluster.client.call(traffic.ask_tcp, VIP, 8080).client == CLIENT[6]
