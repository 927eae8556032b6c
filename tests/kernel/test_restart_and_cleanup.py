"""In every mode: a helper that comes back changes nothing, and `cleanup` leaves a node as it was before any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.kernel_features import lacking_modes
from tests.testbed import traffic
from tests.testbed.cluster import NodeSpec
from tests.testbed.namespaces import Place
from tests.testbed.pictures import differences, picture
from tests.testbed.scene import VIPS, Scene
from tests.testbed.watching import Watch

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("ingress2", ingress=True), NodeSpec("worker1"))
PLACES = (("ingress1", "pod1"), ("ingress1", "pod2"), ("ingress2", "pod3"), ("worker1", "pod4"))
FLOWS = 200
STRANGERS = """
ip link add stranger0 type veth peer name stranger1
ip route add 203.0.113.0/24 dev lo proto 50
ip rule add pref 4000 fwmark 0x1000 lookup 50
ip netns add stranger
ipset create strangers hash:ip
ipset add strangers 203.0.113.9
for tool in iptables ip6tables; do
    $tool -t raw -A PREROUTING -p udp --dport 9 -j ACCEPT
    $tool -t filter -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
done
nft add table inet strangers
"""
"""What others have on a node, by the same means as we."""
SEEN_ON_NODES = {
    "links",
    "addresses",
    "routes",
    "routes6",
    "sets",
    "iptables",
    "ip6tables",
    "nft",
    "namespaces",
    "sysctls",
}
SEEN_IN_PODS = {"addresses", "routes", "routes6", "rules", "nft"}
"""In which parts of a picture we are to be seen while the Service is served."""
OURS = ("svctun", "SERVICE-TUNNEL", "service-tunnel", "proto 116", "proto 117", *VIPS.values())


@dataclass
class Standing:
    """A scene whose Service is served, and what was there before the first helper began."""

    scene: Scene
    before: dict[str, dict[str, str]]

    def places(self) -> dict[str, Place]:
        """Nodes and pods that have a picture."""
        return {
            **{name: node.host for name, node in self.scene.cluster.nodes.items()},
            **{pod.name: pod.place for pod in self.scene.cluster.pods},
        }

    def routers(self) -> list[Place]:
        return [
            node.host.place(f"the router of {node.name}", "/run/netns/service-tunnel")
            for node in self.scene.cluster.ingress_nodes
        ]

    def owners(self) -> dict[tuple[int, tuple[str, int]], str]:
        """Which pod each of many flows reaches, TCP's too: the first ones of IPv4 and IPv6."""
        found: dict[tuple[int, tuple[str, int]], str] = {}
        for version, vip in VIPS.items():
            flows = self.scene.cluster.client_flows(version, FLOWS)
            seen = self.scene.cluster.client.call(traffic.udp_flows, vip, 8080, flows)
            few = flows[:20]
            assert self.scene.cluster.client.call(traffic.tcp_flows, vip, 8080, few) == {f: seen[f] for f in few}
            found |= {(version, flow): pod for flow, pod in seen.items()}
        assert len(found) == 2 * FLOWS
        return found

    def changed(self, name: str) -> set[str]:
        """The parts of a picture that are not as they were before the first helper."""
        return {line.split()[0] for line in differences(self.before[name], picture(self.places()[name]))}

    def sets(self) -> dict[str, str]:
        return {name: node.host.run("ipset", "save").stdout for name, node in self.scene.cluster.nodes.items()}


@pytest.fixture(scope="module")
def standing(mode: str) -> Iterator[Standing]:
    assert mode not in lacking_modes()  # and what the mode needs is loaded, which leaves its devices and sysctls
    with Scene(NODES, mode=mode, rp_filter=1, helpers=False, plugin={"helperWait": 0.1}) as scene:
        standing = Standing(scene, {})
        scene.add_pods(PLACES, {"app": "web"})
        for node in scene.cluster.nodes.values():
            node.host.run("sh", "-ec", STRANGERS)
        standing.before = {name: picture(place) for name, place in standing.places().items()}
        scene.start_helpers(scene.cluster.nodes)
        scene.apply_service()
        scene.settle()
        # In mode mpls each ingress node serves its own pods only: which one a flow takes must not be chance.
        for vip in VIPS.values():
            scene.cluster.announce(vip, ["ingress1"])
        yield standing


def test_helpers_that_are_killed_take_nothing_with_them_and_their_successors_change_nothing(standing: Standing) -> None:
    scene = standing.scene
    before, sets = standing.owners(), standing.sets()
    for helper in scene.helpers.values():
        helper.kill()
    assert standing.owners() == before
    with Watch([*standing.places().values(), *standing.routers()]) as watch:
        scene.start_helpers(scene.cluster.nodes)
        scene.resync()
        assert standing.owners() == before
    assert watch.changes == []
    assert standing.sets() == sets


def test_cleanup_leaves_nodes_and_pods_byte_for_byte_as_they_were_before(standing: Standing, mode: str) -> None:
    scene = standing.scene
    before = standing.owners()
    assert standing.changed("ingress1") >= SEEN_ON_NODES | ({"labels"} if mode == MPLS else set())
    assert standing.changed("pod1") >= SEEN_IN_PODS | ({"labels"} if mode == MPLS else {"links"})
    late = scene.add_pods([("ingress1", "late")], {"app": "other"})[0]
    scene.apply_service("other", "198.51.100.9")
    scene.settle()
    for node in scene.cluster.nodes:
        scene.helpers[node].stop()
    for node in scene.cluster.nodes:
        scene.helper_command(node, "cleanup")
        scene.helper_command(node, "cleanup")  # there is nothing more to do, and that is no error
    assert [mark for mark in (*OURS, "198.51.100.9") if mark in str(picture(late.place))] == []
    scene.remove_service("other")
    scene.remove_pod(late)
    left = {name: differences(was, picture(standing.places()[name])) for name, was in standing.before.items()}
    assert not any(left.values()), left
    # Bucket tables are left: a helper that begins anew leads every flow where it went.
    scene.start_helpers(scene.cluster.nodes)
    scene.settle()
    assert standing.owners() == before
