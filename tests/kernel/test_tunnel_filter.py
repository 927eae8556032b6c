"""Who may send encapsulated packets to a pod: whoever can gets past every filter on the way.

In mode mpls there is nothing to send: a label reaches a pod only over its own veth, from its node.
"""

from __future__ import annotations

import struct

import pytest

from cni_plugin.tunnel import GRE, TUNNEL_ID, VXLAN_GPE, VXLAN_GPE_PORT
from tests.testbed import packets
from tests.testbed.cluster import CLIENT
from tests.testbed.scene import VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", [VXLAN_GPE, GRE], scope="module")


def encapsulated(mode: str, version: int, source: str, pod: str, to: str = "", client_port: int = 24003) -> bytes:
    """A datagram from the client to the VIP, or `to`, as an ingress node with the address `source` would send it."""
    client, vip = CLIENT[version], to or VIPS[version]
    inner = packets.ip_packet(client, vip, packets.UDP, packets.udp_packet(client, client_port, vip, 8080, b"hello"))
    if mode == VXLAN_GPE:
        # Flags I and P, next protocol (1 IPv4, 2 IPv6), VNI.
        header = struct.pack("!BBBBI", 0x0C, 0, 0, 1 if version == 4 else 2, TUNNEL_ID << 8)
        datagram = packets.udp_packet(source, 40000, pod, VXLAN_GPE_PORT, header + inner)
        return packets.ip_packet(source, pod, packets.UDP, datagram)
    header = struct.pack("!HH", 0, 0x0800 if version == 4 else 0x86DD)
    return packets.ip_packet(source, pod, 47, header + inner)


@pytest.mark.parametrize("version", [4, 6])
def test_encapsulated_packets_are_taken_from_nodes_only(scene: Scene, mode: str, version: int) -> None:
    pod = scene.cluster.pods[0]
    node = scene.cluster.nodes["ingress2"]
    bystander = next(other for other in scene.cluster.pods if other.node != pod.node)
    with packets.Capture(pod.place, f"svctun-{'gpe' if mode == VXLAN_GPE else 'gre'}") as decapsulated:

        def arrived(packet: packets.Packet) -> bool:
            return (packet.source, packet.source_port) == (CLIENT[version], 24003)

        for place, address in ((scene.cluster.client, CLIENT[4]), (bystander.place, bystander.ipv4)):
            place.call(packets.send_packet, encapsulated(mode, version, address, pod.ipv4), pod.ipv4)
        # The node's packet comes last: when it has arrived, the others would have arrived too.
        node.host.call(packets.send_packet, encapsulated(mode, version, node.addresses[4], pod.ipv4), pod.ipv4)
        decapsulated.wait_for(arrived)
        assert len(decapsulated.packets(arrived)) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_no_pod_can_forge_what_a_node_would_send(scene: Scene, mode: str, version: int) -> None:
    """With any source: its own, its node's, another node's, one that an overlay puts on a node, another pod's.

    Hosts let replies from VIPs in on pods' devices, where strict filtering of reverse paths would drop them;
    that must not open these devices to other sources.
    """
    victim = scene.cluster.pods[0]
    nodes = scene.cluster.nodes.values()
    sources = {node.addresses[4] for node in nodes} | {str(node.pod_cidrs[0][i]) for node in nodes for i in (0, 1)}
    sender = scene.cluster.nodes["ingress2"]
    with packets.Capture(victim.place, f"svctun-{'gpe' if mode == VXLAN_GPE else 'gre'}") as decapsulated:
        for pod in scene.cluster.pods:
            if pod is not victim:
                for source in (*sources, pod.ipv4):
                    forged = encapsulated(mode, version, source, victim.ipv4)
                    pod.place.call(packets.send_packet, forged, victim.ipv4)
        genuine = encapsulated(mode, version, sender.addresses[4], victim.ipv4, client_port=24004)
        sender.host.call(packets.send_packet, genuine, victim.ipv4)
        decapsulated.wait_for(lambda packet: packet.source_port == 24004)
        assert decapsulated.packets(lambda packet: packet.source_port == 24003) == []


def test_a_device_on_which_replies_from_vips_are_let_in_lets_no_other_source_in(scene: Scene) -> None:
    """Pods' devices are as strict as they were but for VIPs, or a pod could speak as any other."""
    pod, other = scene.cluster.pods[0], scene.cluster.pods[-1]
    with packets.Capture(scene.cluster.client, "eth0") as heard:
        for source in (other.ipv4, "203.0.113.200", VIPS[4], pod.ipv4):
            datagram = packets.udp_packet(source, 24005, CLIENT[4], 9, b"hello")
            forged = packets.ip_packet(source, CLIENT[4], packets.UDP, datagram)
            pod.place.call(packets.send_packet, forged, CLIENT[4])
        heard.wait_for(lambda packet: packet.source == pod.ipv4 and packet.source_port == 24005)
        assert {packet.source for packet in heard.packets(lambda p: p.source_port == 24005)} == {pod.ipv4, VIPS[4]}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_brings_packets_for_vips_only(scene: Scene, mode: str, version: int) -> None:
    """Not even a node gets to the pod's own address, or any other, by way of a tunnel."""
    pod = scene.cluster.pods[0]
    node = scene.cluster.nodes["ingress2"]
    own = pod.address(version)
    with packets.Capture(scene.cluster.client, "eth0") as heard:
        for to in (own, VIPS[version]):
            packet = encapsulated(mode, version, node.addresses[4], pod.ipv4, to)
            node.host.call(packets.send_packet, packet, pod.ipv4)
        # The answer from the VIP comes last: one from the pod's own address would have come before.
        heard.wait_for(lambda packet: packet.source == VIPS[version] and packet.source_port == 8080)
        assert not heard.packets(lambda packet: packet.source == own)
