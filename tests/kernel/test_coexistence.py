"""The node's own life goes on: other traffic, firewalls, strict settings, and nothing of ours where it need not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from cni_plugin.tunnel import MODES, MPLS
from tests.kernel import footprint
from tests.kernel.conftest import places
from tests.kernel.pictures import picture, picture_of_pod, sysctls
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Node
from tests.testbed.namespaces import Place
from tests.testbed.scene import VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")
both_versions = pytest.mark.parametrize("version", [4, 6])

OUR_PODS = {"app": "web"}


OTHER = {4: "198.51.100.44", 6: "2001:db8::44"}
"""VIPs of a second Service before the same pods, which is annotated all the time."""
BEFORE_OURS = ("-t", "mangle")
"""Where a test's rules see forwarded packets: in the table filter our chain is put before them again at once."""


@dataclass(frozen=True)
class Pictures:
    """Before the first helper was started: pods were there, our chains and devices were not."""

    nodes: dict[str, dict[str, str]]
    pods: dict[str, str]


@pytest.fixture(scope="module")
def shown(mode: str) -> Iterator[tuple[Scene, Pictures]]:
    """Two Services before the same running pods; hosts filter reverse paths strictly."""
    with Scene(mode=mode, rp_filter=1, helpers=False, plugin={"helperWait": 0.0}) as scene:
        scene.apply_service(vips="")
        scene.apply_service("other", ",".join(OTHER.values()), selector=OUR_PODS)
        scene.add_pods(places(mode), OUR_PODS)
        scene.sync()
        nodes = {name: picture(node) for name, node in scene.cluster.nodes.items()}
        before = Pictures(nodes, {pod.name: picture_of_pod(scene, pod.name) for pod in scene.cluster.pods})
        scene.change_plugin(helperWait=10.0)
        scene.start_helpers(scene.cluster.nodes)
        scene.settle()
        yield scene, before


@pytest.fixture(scope="module")
def scene(shown: tuple[Scene, Pictures]) -> Scene:
    """`web` is not annotated, `other` is."""
    return shown[0]


@pytest.fixture(scope="module")
def before(shown: tuple[Scene, Pictures]) -> Pictures:
    return shown[1]


@pytest.fixture
def annotated(scene: Scene) -> Iterator[Scene]:
    scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
    scene.settle()
    for vip in VIPS.values():
        scene.cluster.announce(vip)
    yield scene
    scene.manifests.annotate("web", {"cmd.nu/tunnel": None})
    scene.settle()


def reach(scene: Scene, version: int, vips: dict[int, str] = VIPS) -> None:
    assert scene.cluster.client.call(traffic.ask_tcp, vips[version], 8080).client == CLIENT[version]
    assert scene.cluster.client.call(traffic.ask_udp, vips[version], 8080).client == CLIENT[version]


def differences(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that went and those that came."""
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_a_service_annotated_later_is_served_and_leaves_nothing_when_it_is_not_any_more(scene: Scene) -> None:
    """In hosts, routers and pods; what another Service has before the same pods stays as it is."""
    nodes_before = {name: picture(node) for name, node in scene.cluster.nodes.items()}
    pods_before = {pod.name: picture_of_pod(scene, pod.name) for pod in scene.cluster.pods}
    scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
    scene.settle()
    for version, vip in VIPS.items():
        scene.cluster.announce(vip)
        reach(scene, version)
        reach(scene, version, OTHER)
    while_served = picture(scene.cluster.nodes["ingress1"])
    assert all(VIPS[4] in while_served[name] for name in ("routes", "sets", "router's routes"))
    assert VIPS[6] in while_served["router's routes6"] and OTHER[6] in nodes_before["ingress1"]["router's routes6"]
    scene.manifests.annotate("web", {"cmd.nu/tunnel": None})
    scene.settle()
    for pod in scene.cluster.pods:
        assert VIPS[4] not in pods_before[pod.name] and OTHER[4] in pods_before[pod.name]
        assert picture_of_pod(scene, pod.name) == pods_before[pod.name]
    for name, node in scene.cluster.nodes.items():
        now = picture(node)
        assert now.keys() == nodes_before[name].keys()
        for kind, text in nodes_before[name].items():
            assert differences(text, now[kind]) == ([], []), (name, kind)
    for version in OTHER:
        reach(scene, version, OTHER)


def test_a_host_has_of_us_what_is_listed_and_nothing_else(annotated: Scene, before: Pictures, mode: str) -> None:
    """Compared with what it was before the helper's first start."""
    for name, node in annotated.cluster.nodes.items():
        now = picture(node)
        ingress = node in annotated.cluster.ingress_nodes
        allowed = footprint.lines([*VIPS.values(), *OTHER.values()], ingress=ingress, labels=ingress and mode == MPLS)
        for kind, text in before.nodes[name].items():
            gone, come = differences(text, now[kind])
            if kind != "sysctls":
                assert gone == [], (name, kind)
                assert footprint.not_listed(come, allowed.get(kind, ())) == [], (name, kind)
        for kind in allowed:
            assert now[kind] != before.nodes[name][kind] or kind == "tables", f"{name}: something of ours is there"


def changed_sysctls(before: Mapping[str, str], node: Node) -> tuple[list[str], list[str]]:
    """Those that are others than before, and those that came, as `name = value`."""
    old = dict(line.split(" = ", 1) for line in before["sysctls"].splitlines() if " = " in line)
    now = sysctls(node)
    assert len(old) > 500 and old.keys() <= now.keys()
    changed = [f"{name} = {now[name]}" for name in old if now[name] != old[name]]
    return changed, [f"{name} = {value}" for name, value in now.items() if name not in old]


def test_no_sysctl_changes_but_those_that_are_listed(annotated: Scene, before: Pictures, mode: str) -> None:
    for name, node in annotated.cluster.nodes.items():
        changed, come = changed_sysctls(before.nodes[name], node)
        labels = mode == MPLS and node in annotated.cluster.ingress_nodes
        assert footprint.not_listed(changed, footprint.CHANGED_SYSCTLS) == [], name
        assert footprint.not_listed(come, footprint.ADDED_SYSCTLS) == [], name
        assert any("platform_labels" in line for line in changed) == labels
        loose = {line.split("/")[3] for line in changed if line.endswith("/rp_filter = 2")}
        # Replies of pods of other nodes may come in by the uplink of an ingress node, whose route for the VIP leads
        # into the router.
        assert loose - {"eth0"} == {pod.host_device for pod in node.pods.values()}
        assert "eth0" not in loose or node in annotated.cluster.ingress_nodes


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
    """It comes out as it went in, is not marked, is tracked as ever, and does not enter the router.

    The pod is one of the ingress node's own, so that its packets pass where those for VIPs are taken out.
    """
    tool = "iptables" if version == 4 else "ip6tables"
    node = annotated.cluster.nodes["ingress1"]
    pod = next(iter(node.pods.values()))
    assert len(node.host.run("ip", f"-{version}", "rule").stdout.splitlines()) == (3 if version == 4 else 2)
    saved = node.host.run(f"{tool}-save").stdout
    chains = {line.split()[1] for line in saved.splitlines() if line.startswith("-A")}
    ours = {chain for chain in chains if chain.startswith("SERVICE-TUNNEL")}
    callers = {line for line in saved.splitlines() if "-j SERVICE-TUNNEL" in line}
    assert ours == {"SERVICE-TUNNEL", "SERVICE-TUNNEL-FORWARD"}
    assert callers == {"-A PREROUTING -j SERVICE-TUNNEL", "-A FORWARD -j SERVICE-TUNNEL-FORWARD"}
    assert "mangle" not in saved and "MARK" not in saved
    marked = ["FORWARD", "-m", "mark", "!", "--mark", "0"]
    tracked = ["FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED"]
    for rule in (marked, tracked):
        node.host.run(tool, *BEFORE_OURS, "-I", *rule)
    try:
        annotated.cluster.announce(VIPS[version], ["ingress1"])
        own = pod.address(version)

        def of_this(packet: packets.Packet) -> bool:
            return {packet.source, packet.destination} == {own, CLIENT[version]}

        with (
            packets.Capture(node.host, "svctun") as entering,
            packets.Capture(node.host, "eth0") as uplink,
            packets.Capture(node.host, pod.host_device) as downlink,
        ):
            for ask in (traffic.ask_tcp, traffic.ask_udp):
                answer = annotated.cluster.client.call(ask, own, 8080)
                assert (answer.name, answer.client) == (pod.name, CLIENT[version])
            downlink.wait_for(lambda packet: packet.protocol == packets.UDP and packet.source == own)
            for here, there in ((uplink, downlink), (downlink, uplink)):
                came = here.packets(lambda packet: of_this(packet) and packet.direction == "in")
                went = there.packets(lambda packet: of_this(packet) and packet.direction == "out")
                assert {packet.protocol for packet in came} == {packets.TCP, packets.UDP}
                assert {packet.ttl - 1 for packet in came} == {packet.ttl for packet in went}
                # In whatever order: two packets of a connection may be forwarded by two processors at once.
                assert sorted(map(unchanging, came)) == sorted(map(unchanging, went))
            # The last is for a VIP and does enter: the others would have been seen before.
            annotated.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080)
            entering.wait_for(lambda packet: packet.destination == VIPS[version])
            assert entering.packets(of_this) == []
        counts = [
            line.split()[0] for line in node.host.run(tool, *BEFORE_OURS, "-nvxL", "FORWARD").stdout.splitlines()[2:4]
        ]
        assert int(counts[0]) > 0, "connections to the pod's own address are tracked"
        assert int(counts[1]) == 0, "no packet is marked"
    finally:
        annotated.cluster.announce(VIPS[version])
        for rule in (marked, tracked):
            node.host.run(tool, *BEFORE_OURS, "-D", *rule)


def unchanging(packet: packets.Packet) -> bytes:
    """The bytes of a packet that a router has to leave alone: all but TTL and the header's checksum."""
    content = packet.content
    return content[:8] + content[9:10] + content[12:] if packet.version == 4 else content[:7] + content[8:]


@both_versions
def test_no_connection_of_a_vip_is_tracked_anywhere(annotated: Scene, version: int) -> None:
    """Not on a host, where others' rules have connection tracking switched on; and neither router nor pod has it.

    Fragments are put together there all the same, which is what connection tracking would do it for.
    """
    tool = "iptables" if version == 4 else "ip6tables"
    vip = VIPS[version]
    nodes = annotated.cluster.nodes.values()
    tracked = ["-m", "conntrack", "!", "--ctstate", "UNTRACKED"]
    rules = [["FORWARD", side, vip, *match] for side in ("-s", "-d") for match in ([], tracked)]
    for node in nodes:
        for rule in reversed(rules):
            node.host.run(tool, *BEFORE_OURS, "-I", *rule)
    try:
        flows = annotated.cluster.client_flows(version, 100)
        annotated.cluster.announce(vip, ["ingress1"])
        ingress = annotated.cluster.nodes["ingress1"].host
        before = tracked_connections(ingress)
        assert len(annotated.cluster.client.call(traffic.udp_flows, vip, 8080, flows)) == len(flows)
        annotated.cluster.client.call(traffic.tcp_flows, vip, 8080, flows[:20])
        annotated.cluster.client.call(
            packets.ask_udp_in_fragments, vip, 8080, source=flows[0][0], source_port=23000, size=4000
        )
        seen: Counter[str] = Counter()
        for node in nodes:
            lines = node.host.run(tool, *BEFORE_OURS, "-nvxL", "FORWARD").stdout.splitlines()[2:6]
            from_vip, from_vip_tracked, to_vip, to_vip_tracked = (int(line.split()[0]) for line in lines)
            assert from_vip_tracked == to_vip_tracked == 0, node.name
            seen.update(replies=from_vip, requests=to_vip)
        assert seen["requests"] >= len(flows) and seen["replies"] >= len(flows)
        # Neither the flows nor their tunnels, not even to a pod of its own; and the node may do other things.
        assert tracked_connections(ingress) - before < len(flows) // 10
        assert tracked_connections(ingress, "service-tunnel") == 0
        for pod in annotated.cluster.pods:
            assert tracked_connections(pod.place) == 0
    finally:
        annotated.cluster.announce(vip)
        for node in nodes:
            for rule in rules:
                node.host.run(tool, *BEFORE_OURS, "-D", *rule)


def tracked_connections(place: Place, netns: str = "") -> int:
    """Entries of the connection tracking table of a place, or of a named namespace there."""
    inside = ("ip", "netns", "exec", netns) if netns else ()
    return int(place.run(*inside, "sysctl", "-n", "net.netfilter.nf_conntrack_count").stdout)


def test_preflight_on_a_node_in_use_finds_all_good_and_changes_nothing(annotated: Scene, mode: str) -> None:
    node = annotated.cluster.nodes["ingress1"]
    before = picture(node)
    said = annotated.helper_command("ingress1", "preflight", "--mode", mode)
    assert "LACK" not in said and f"ok    mode {mode}: " in said
    assert picture(node) == before


def test_when_no_service_is_annotated_any_more_all_sysctls_are_as_they_were(scene: Scene, before: Pictures) -> None:
    """Also the host-wide number of labels, which is the one host-wide sysctl that mode mpls has to change."""
    scene.manifests.annotate("other", {"cmd.nu/tunnel": None})
    try:
        scene.settle()
        for name, node in scene.cluster.nodes.items():
            changed, come = changed_sysctls(before.nodes[name], node)
            assert changed == [], name
            assert footprint.not_listed(come, footprint.ADDED_SYSCTLS) == [], name
        for pod in scene.cluster.pods:
            assert picture_of_pod(scene, pod.name) == before.pods[pod.name]
    finally:
        scene.manifests.annotate("other", {"cmd.nu/tunnel": ",".join(OTHER.values())})
        scene.settle()
