"""A pod that sends what nodes send: encapsulated packets with a node's address, which pods would believe.

On a bridge no router looks at what pods send each other, and IPv6 has no filter of reverse paths at all.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from cni_plugin.tunnel import GRE, VXLAN_GPE
from tests.kernel.test_tunnel_filter import encapsulated
from tests.testbed import packets
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import bridge_chain, ptp_chain
from tests.testbed.namespaces import Place, sysctl_path, write_sysctls
from tests.testbed.scene import VIPS, Scene

CHAINS = {"bridge": bridge_chain, "filtered bridge": bridge_chain, "ptp": ptp_chain}
"""On a filtered bridge iptables sees also what ports send each other, by br_netfilter, which Kubernetes asks for."""
FORGED, HONEST, GENUINE = 24010, 24011, 24012
"""Ports of the client in packets that pretend to come from a node, that do not, and that do come from one."""

pytestmark = [
    pytest.mark.parametrize("mode", [VXLAN_GPE, GRE], scope="module"),
    pytest.mark.parametrize(
        ("chain", "outer", "rp_filter"),
        [("bridge", 4, 1), ("bridge", 6, 1), ("filtered bridge", 4, 1), ("ptp", 4, 0), ("ptp", 6, 0)],
        scope="module",
    ),
]


def filter_bridges(wanted: bool) -> None:
    if wanted:
        subprocess.run(["modprobe", "-q", "br_netfilter"], check=False)  # it may be built in
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        if wanted or sysctl_path(f"net.bridge.{name}").exists():
            write_sysctls({f"net.bridge.{name}": int(wanted)})


@pytest.fixture(scope="module")
def shared(mode: str, chain: str, outer: int, rp_filter: int) -> Iterator[Scene]:
    """Pods have addresses of one IP version only, that of the outer packets."""
    nodes = (NodeSpec("ingress1", ingress=True), NodeSpec("ingress2", ingress=True))
    with Scene(nodes, mode=mode, chain=CHAINS[chain], pod_versions=(outer,), rp_filter=rp_filter) as scene:
        for node in scene.cluster.nodes.values():
            node.host.call(filter_bridges, chain == "filtered bridge")
        scene.apply_service(vips=VIPS[outer])
        scene.add_pods([("ingress1", "victim"), ("ingress1", "near"), ("ingress2", "far")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def test_a_pod_that_forges_a_nodes_address_reaches_no_other_pod(
    shared: Scene, mode: str, chain: str, outer: int
) -> None:
    """Neither with an address of a node, nor with one that a bridge or an overlay puts on one."""
    victim, *others = shared.cluster.pods
    nodes = shared.cluster.nodes.values()
    target = victim.address(outer)
    forged = {node.addresses[outer] for node in nodes} | {str(node.pod_cidrs[0][i]) for node in nodes for i in (0, 1)}

    def send(place: Place, source: str, client_port: int) -> None:
        packet = encapsulated(mode, outer, source, target, client_port=client_port)
        place.call(packets.send_packet, packet, target)

    with packets.Capture(victim.place, "eth0") as arriving:

        def arrived(source: str, client_port: int) -> bool:
            text = client_port.to_bytes(2, "big")
            return bool(arriving.packets(lambda packet: packet.source == source and text in packet.payload[:80]))

        for other in others:
            for source in sorted(forged):
                send(other.place, source, FORGED)
            # A pod with its own address is no forger: what comes of it is for the pod that it reaches to say.
            send(other.place, other.address(outer), HONEST)
        for node in nodes:
            send(node.host, node.addresses[outer], GENUINE)
        expected = [(other.address(outer), HONEST) for other in others]
        expected += [(node.addresses[outer], GENUINE) for node in nodes]
        for who in expected:
            shared.wait(partial(arrived, *who), f"the packet of {who}")
        assert {source for source in forged if arrived(source, FORGED)} == set()
