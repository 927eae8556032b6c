"""From whom a pod takes labelled packets in mode mpls: from its gateway, though others share the link with it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from cni_plugin.netlink import Socket, nftables, rtnl
from cni_plugin.netns import entered
from cni_plugin.pod import gateways, labels
from cni_plugin.tunnel import MPLS, POD_LABEL
from tests.kernel.private_netns import batch, private_netns, run, wait_until_up
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.cni import bridge_chain
from tests.testbed.scene import VIPS, Scene

GATEWAY, STRANGER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PRIORITY_TAG = bytes.fromhex("81000000")
"""An 802.1Q tag of VLAN 0, which the kernel takes for none, even where there are two."""
OTHER_PRIORITY_TAG = bytes.fromhex("88a8e000")
"""The same of 802.1ad, and with a priority."""


@pytest.fixture
def link() -> Iterator[str]:
    """A pod and, in the same namespace, the other end of its link."""
    with private_netns() as path:
        batch(
            path,
            "link add eth0 type veth peer name outside",
            "link set outside addrgenmode none up",
            "link set eth0 addrgenmode none up",
        )
        wait_until_up(path, "eth0")
        yield path


def frame(source: bytes, inner: bytes = b"", destination: bytes = b"\xff" * 6, tag: bytes = b"") -> bytes:
    label = struct.pack("!I", POD_LABEL << 12 | 0x100 | 64)
    return destination + source + tag + struct.pack("!H", packets.MPLS_ETHERTYPE) + label + inner


def test_frames_with_labels_are_taken_from_the_gateway_and_nobody_else(link: str) -> None:
    with entered(link), nftables.open_socket() as netfilter:
        kind = socket.htons(packets.MPLS_ETHERTYPE)
        # A receiver of this one ethertype gets what the kernel's own MPLS would get: what is left after filters.
        taken, sending = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol) for protocol in (kind, 0))
        with taken, sending:
            taken.bind(("eth0", packets.MPLS_ETHERTYPE))
            taken.settimeout(5)
            sending.bind(("outside", 0))

            def sources() -> list[bytes]:
                """Who gets through; the last that is sent always does."""
                twice = (PRIORITY_TAG * 2, OTHER_PRIORITY_TAG + PRIORITY_TAG, PRIORITY_TAG + OTHER_PRIORITY_TAG)
                for tag in (*twice, PRIORITY_TAG, b""):
                    sending.send(frame(STRANGER, bytes(40), tag=tag))
                for tag in (PRIORITY_TAG, b""):
                    sending.send(frame(GATEWAY, bytes(40), tag=tag))
                found: list[bytes] = []
                while not found or found[-2:] != [GATEWAY, GATEWAY]:
                    found.append(taken.recv(100)[6:12])
                return found

            assert sources() == [STRANGER] * 5 + [GATEWAY] * 2
            assert gateways.read_guard(netfilter) is None
            nftables.commit(netfilter, labels.guard("eth0", frozenset({STRANGER}), anew=False))
            nftables.commit(netfilter, labels.guard("eth0", frozenset({GATEWAY}), anew=True))
            assert gateways.read_guard(netfilter) == frozenset({GATEWAY})
            assert sources() == [GATEWAY, GATEWAY]
            nftables.commit(netfilter, labels.unguard())
            assert gateways.read_guard(netfilter) is None
            assert sources() == [STRANGER] * 5 + [GATEWAY] * 2


def test_nobody_is_believed_while_no_gateway_is_known(link: str) -> None:
    with entered(link), nftables.open_socket() as netfilter:
        nftables.commit(netfilter, labels.guard("eth0", frozenset(), anew=False))
        assert gateways.read_guard(netfilter) == frozenset()
        kind = socket.htons(packets.MPLS_ETHERTYPE)
        taken, sending = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol) for protocol in (kind, 0))
        with taken, sending:
            taken.bind(("eth0", packets.MPLS_ETHERTYPE))
            taken.settimeout(0.3)
            sending.bind(("outside", 0))
            sending.send(frame(GATEWAY, bytes(40)))
            with pytest.raises(TimeoutError):
                taken.recv(100)


@pytest.mark.parametrize("shape", ["subnet", "link-local", "IPv6", "another interface's default"])
def test_gateways_are_asked_who_they_are(shape: str) -> None:
    """Not known yet when the pod begins: nothing has been sent. Who does not answer in time would be missing."""
    own, gateway, default = {
        "subnet": ("10.0.0.2/24", "10.0.0.1", "default via 10.0.0.1 dev eth0"),
        "link-local": ("10.0.0.2/32", "169.254.1.1", "default via 169.254.1.1 dev eth0 onlink"),
        "IPv6": ("fd00::2/64", "fd00::1", "::/0 via fd00::1 dev eth0"),
        "another interface's default": ("10.0.0.2/24", "10.0.0.1", "10.96.0.0/12 via 10.0.0.1 dev eth0"),
    }[shape]
    with private_netns() as path, private_netns() as node, open(node, "rb") as descriptor:
        with entered(path):
            here = Socket()
        with here:
            run(path, "sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")  # a runtime's plugins wait for it
            here.run(rtnl.add_veth("eth0", "outside", descriptor.fileno(), 1500))
            batch(
                node,
                f"link set outside address {GATEWAY.hex(':')} up",
                f"addr add {gateway}/{64 if ':' in gateway else 24} dev outside" + " nodad" * (":" in gateway),
                f"route replace {own.partition('/')[0]} dev outside",
            )
            batch(
                path, "link set eth0 up", f"addr add {own} dev eth0" + " nodad" * (":" in own), f"route add {default}"
            )
            wait_until_up(path, "eth0")
            eth0 = rtnl.link_named(here, "eth0").index
            assert GATEWAY.hex(":") not in run(path, "ip", "neigh")
            assert gateways.meet_gateways(here, rtnl.dump_routes(here), eth0) == frozenset({GATEWAY})


# --- on a bridge ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bridge(mode: str) -> Iterator[Scene]:
    """One node with its pods on a bridge."""
    with Scene((NodeSpec("ingress1", ingress=True),), mode=mode, chain=bridge_chain) as scene:
        scene.apply_service()
        scene.add_pods([("ingress1", "victim"), ("ingress1", "other")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def hardware_address(device: str = "eth0") -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as bound:
        bound.bind((device, 0))
        address: bytes = bound.getsockname()[4]
        return address


def send_frame(content: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
        sending.bind(("eth0", 0))
        sending.send(content)


@pytest.mark.parametrize("mode", [MPLS], scope="module")
@pytest.mark.parametrize("version", [4, 6])
def test_pods_of_a_bridge_cannot_label_packets_for_each_other(bridge: Scene, version: int) -> None:
    """Neither by their own link-layer address nor by one that they forge: that of the gateway, which is the bridge."""
    victim, other = bridge.cluster.pods
    client, vip = CLIENT[version], VIPS[version]
    datagram = packets.udp_packet(client, 24006, vip, 8080, b"hello")
    inner = packets.ip_packet(client, vip, packets.UDP, datagram)
    with packets.Capture(victim.place, "lo") as delivered:
        own, destination = (pod.place.call(hardware_address) for pod in (other, victim))
        gateway = bridge.cluster.nodes["ingress1"].host.call(hardware_address, "cni0")
        for source in (own, gateway):
            for tag in (b"", PRIORITY_TAG, PRIORITY_TAG * 2):
                other.place.call(send_frame, frame(source, inner, destination, tag))
        # As many flows of the real client as it takes to meet both pods.
        for source_port in range(24100, 24140):
            bridge.cluster.client.call(traffic.ask_udp, vip, 8080, source_port=source_port)
        delivered.wait_for(lambda packet: packet.source_port in range(24100, 24140))
        assert delivered.packets(lambda packet: packet.source_port == 24006) == []
