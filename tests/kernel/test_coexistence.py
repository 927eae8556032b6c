"""The node's own life goes on: other traffic, firewalls, strict settings, and nothing of ours where it need not be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni_plugin.tunnel import MODES
from tests.kernel.conftest import places
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Node
from tests.testbed.scene import VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")
both_versions = pytest.mark.parametrize("version", [4, 6])

OUR_PODS = {"app": "web"}


def picture(node: Node) -> dict[str, str]:
    """Everything on a node that an operator would look at, without counters."""
    commands = {
        "links": "ip -brief link | sort",
        "addresses": "ip -brief addr | sort",
        "routes": "ip route show table all | sort",
        "routes6": "ip -6 route show table all | grep -v 'fe80\\|ff00' | sort",
        "rules": "ip rule; ip -6 rule",
        "labels": "ip -f mpls route 2>/dev/null",
        "sets": "ipset list -name 2>/dev/null | while read n; do ipset save $n | grep ^add; done",
        "namespaces": "ls /run/netns 2>/dev/null",
        "sysctls": "sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6|mpls)' | grep -vE '_secret|_mem|_key|neigh'",
    }
    return {name: node.host.run("sh", "-c", command, check=False).stdout for name, command in commands.items()}


def host_wide(seen: dict[str, str]) -> list[str]:
    return [line for line in seen["sysctls"].splitlines() if ".all." in line or ".default." in line]


def picture_of_pod(scene: Scene, name: str) -> str:
    pod = next(pod for pod in scene.cluster.pods if pod.name == name)
    command = "ip addr | grep -v valid_lft; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; "
    command += "ip -f mpls route 2>/dev/null; nft list ruleset; "
    command += "sysctl -a 2>/dev/null | grep -E 'rp_filter|mpls' | grep -v svctun"
    return pod.place.run("sh", "-c", command).stdout


@pytest.fixture(scope="module")
def scene(mode: str) -> Iterator[Scene]:
    """A Service that is not annotated, and its running pods; hosts filter reverse paths strictly."""
    with Scene(mode=mode, rp_filter=1) as scene:
        scene.apply_service(vips="")
        scene.add_pods(places(mode), OUR_PODS)
        scene.sync()
        scene.settle()
        yield scene


@pytest.fixture
def annotated(scene: Scene) -> Iterator[Scene]:
    scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
    scene.settle()
    for vip in VIPS.values():
        scene.cluster.announce(vip)
    yield scene
    scene.manifests.annotate("web", {"cmd.nu/tunnel": None})
    scene.settle()


def reach(scene: Scene, version: int) -> None:
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080).client == CLIENT[version]
    assert scene.cluster.client.call(traffic.ask_udp, VIPS[version], 8080).client == CLIENT[version]


def test_a_service_annotated_later_is_served_and_leaves_nothing_when_it_is_not_any_more(scene: Scene) -> None:
    nodes_before = {name: picture(node) for name, node in scene.cluster.nodes.items()}
    pods_before = {pod.name: picture_of_pod(scene, pod.name) for pod in scene.cluster.pods}
    scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
    scene.settle()
    for version, vip in VIPS.items():
        scene.cluster.announce(vip)
        reach(scene, version)
    while_served = picture(scene.cluster.nodes["ingress1"])
    assert VIPS[4] in while_served["routes"] and VIPS[4] in while_served["sets"]
    assert host_wide(while_served) == host_wide(nodes_before["ingress1"])
    scene.manifests.annotate("web", {"cmd.nu/tunnel": None})
    scene.settle()
    for pod in scene.cluster.pods:
        assert picture_of_pod(scene, pod.name) == pods_before[pod.name]
    for name, node in scene.cluster.nodes.items():
        assert picture(node) == nodes_before[name]


@both_versions
def test_a_firewall_that_drops_invalid_packets_and_forwards_nothing_else_is_survived(
    annotated: Scene, version: int
) -> None:
    """What kube-proxy and a default policy of DROP do on real nodes."""
    tool = "iptables" if version == 4 else "ip6tables"
    cidrs = [str(node.pod_cidrs[0 if version == 4 else 1]) for node in annotated.cluster.nodes.values()]
    rules = [["-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]]
    rules += [[side, cidr, "-j", "ACCEPT"] for cidr in cidrs for side in ("-s", "-d")]
    kept = {}
    for node in annotated.cluster.nodes.values():
        saved = node.host.run(f"{tool}-save", "-t", "filter").stdout.splitlines()
        kept[node.name] = [line for line in saved if line.startswith("-A FORWARD")]
        appended = [" ".join(["-A", "FORWARD", *rule]) for rule in rules]
        text = "\n".join(["*filter", ":FORWARD DROP [0:0]", "-F FORWARD", *kept[node.name], *appended, "COMMIT", ""])
        node.host.run(f"{tool}-restore", "--noflush", input=text)
    try:
        reach(annotated, version)
        annotated.cluster.client.call(traffic.upload, VIPS[version], 8080, 300_000)
    finally:
        for node in annotated.cluster.nodes.values():
            text = "\n".join(["*filter", ":FORWARD ACCEPT [0:0]", "-F FORWARD", *kept[node.name], "COMMIT", ""])
            node.host.run(f"{tool}-restore", "--noflush", input=text)


@both_versions
def test_the_ingress_host_itself_can_use_the_vip_behind_a_stateful_firewall(annotated: Scene, version: int) -> None:
    tool = "iptables" if version == 4 else "ip6tables"
    host = annotated.cluster.nodes["ingress1"].host
    established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]
    others = ["-p", "tcp", "-j", "DROP"]
    for rule in (established, others):
        host.run(tool, "-A", "INPUT", *rule)
    try:
        assert host.call(traffic.ask_tcp, VIPS[version], 8080).name
        host.call(traffic.upload, VIPS[version], 8080, 300_000)
        host.call(traffic.download, VIPS[version], 8080, 300_000)
    finally:
        for rule in (established, others):
            host.run(tool, "-D", "INPUT", *rule)


@both_versions
def test_a_pod_can_use_the_vip_of_others(annotated: Scene, version: int) -> None:
    bystander = annotated.add_pods([("worker2", f"bystander{version}")], {"app": "other"})[0]
    try:
        assert bystander.place.call(traffic.ask_tcp, VIPS[version], 8080).client == bystander.address(version)
    finally:
        annotated.remove_pod(bystander)


@both_versions
def test_traffic_that_is_not_for_a_vip_meets_no_rule_of_ours_but_notrack(annotated: Scene, version: int) -> None:
    """It is not marked, is tracked as ever, and does not enter the router."""
    tool = "iptables" if version == 4 else "ip6tables"
    node = annotated.cluster.nodes["ingress1"]
    pod = annotated.cluster.pods[-1]
    via = annotated.cluster.nodes[pod.node].host
    family = ["-4"] if version == 4 else ["-6"]
    assert len(node.host.run("ip", *family, "rule").stdout.splitlines()) == (3 if version == 4 else 2)
    saved = node.host.run(f"{tool}-save").stdout
    chains = {line.split()[1] for line in saved.splitlines() if line.startswith("-A")}
    ours = {chain for chain in chains if chain.startswith("SERVICE-TUNNEL")}
    callers = {line for line in saved.splitlines() if "-j SERVICE-TUNNEL" in line}
    assert ours == {"SERVICE-TUNNEL", "SERVICE-TUNNEL-FORWARD"}
    assert callers == {"-A PREROUTING -j SERVICE-TUNNEL", "-A FORWARD -j SERVICE-TUNNEL-FORWARD"}
    assert "mangle" not in saved and "MARK" not in saved
    marked = ["FORWARD", "-m", "mark", "!", "--mark", "0"]
    tracked = ["FORWARD", "-p", "tcp", "-m", "conntrack", "--ctstate", "ESTABLISHED"]
    for rule in (marked, tracked):
        via.run(tool, "-I", *rule)
    try:
        with packets.Capture(node.host, "svctun") as entering:
            assert annotated.cluster.client.call(traffic.ask_tcp, pod.address(version), 8080).name == pod.name
            assert entering.packets(lambda packet: pod.address(version) in (packet.source, packet.destination)) == []
        counts = [line.split()[0] for line in via.run(tool, "-nvxL", "FORWARD").stdout.splitlines()[2:4]]
        assert int(counts[0]) > 0, "the connection to the pod's own address is tracked"
        assert int(counts[1]) == 0, "no packet is marked"
    finally:
        for rule in (marked, tracked):
            via.run(tool, "-D", *rule)
