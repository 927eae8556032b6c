"""Firewalls of other tools on our nodes, in the shape in which these tools leave them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from cni_plugin.tunnel import OUTER_PORTS
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Node, NodeSpec
from tests.testbed.scene import VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
TOOL = {4: "iptables", 6: "ip6tables"}
both_versions = pytest.mark.parametrize("version", [4, 6])

DOCKER_NETWORK = {4: "172.17.0.0/16", 6: "fd00:d0c:17::/64"}
DOCKER = """\
*raw
-I PREROUTING -d {container} ! -i docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-I OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-I POSTROUTING -s {network} ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 18080 -j DNAT --to-destination {target}
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A DOCKER -d {container} ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-I FORWARD -j DOCKER-FORWARD
-I FORWARD -j DOCKER-USER
-A FORWARD -s {pods} -j ACCEPT
-A FORWARD -d {pods} -j ACCEPT
COMMIT
"""
"""What dockerd writes, before our calls as after its restart; and last what pod networks add to live with it."""
DOCKER_WORDS = {
    4: {"container": "172.17.0.2", "target": "172.17.0.2:80", "loopback": "127.0.0.0/8", "pods": "10.244.0.0/16"},
    6: {
        "container": "fd00:d0c:17::2",
        "target": "[fd00:d0c:17::2]:80",
        "loopback": "::1/128",
        "pods": "fd00:10:244::/48",
    },
}

ZONES = """\
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip daddr 10.244.0.0/16 accept
        ip saddr 10.244.0.0/16 accept
        ip6 daddr fd00:10:244::/48 accept
        ip6 saddr fd00:10:244::/48 accept
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES {
    }
}
"""
OWN = """\
table inet mine {
    chain forwarded {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ip daddr 10.244.0.0/16 accept
        ip saddr 10.244.0.0/16 accept
        ip6 daddr fd00:10:244::/48 accept
        ip6 saddr fd00:10:244::/48 accept
    }
}
"""
"""Of an administrator, as /etc/nftables.conf often is. Both know pods, or pods would have no network."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(NODES) as scene:
        scene.apply_service()
        scene.add_pods([("ingress1", "pod1"), ("worker1", "pod2")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def all_pass(scene: Scene, version: int) -> None:
    client, vip = scene.cluster.client, VIPS[version]
    flows = scene.cluster.client_flows(version, 40)
    found = client.call(traffic.udp_flows, vip, 8080, flows)
    assert len(found) == len(flows) and set(found.values()) == {"pod1", "pod2"}
    for source in scene.cluster.client_addresses(version, 6):
        client.call(traffic.upload, vip, 8080, 300_000, source=source)
        client.call(packets.ask_udp_in_fragments, vip, 8080, source=source, source_port=23000, size=4000)
    assert client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]


@contextmanager
def docker(nodes: Sequence[Node], version: int) -> Iterator[None]:
    tool, text = TOOL[version], DOCKER.format(network=DOCKER_NETWORK[version], **DOCKER_WORDS[version])
    saved = {node.name: node.host.run(f"{tool}-save").stdout for node in nodes}
    for node in nodes:
        node.host.run("ip", "link", "add", "docker0", "type", "bridge")
        node.host.run(f"{tool}-restore", "--noflush", input=text)
    try:
        yield
    finally:
        for node in nodes:
            node.host.run("ip", "link", "del", "docker0")
            emptied = ("*raw\nCOMMIT\n", "*nat\n:PREROUTING ACCEPT\nCOMMIT\n", "*filter\n:FORWARD ACCEPT\nCOMMIT\n")
            node.host.run(f"{tool}-restore", input="".join(emptied))
            node.host.run(f"{tool}-restore", input=saved[node.name])


@both_versions
def test_dockers_rules_are_passed_also_when_they_come_first(scene: Scene, version: int) -> None:
    nodes = list(scene.cluster.nodes.values())
    with docker(nodes, version):
        for node in nodes:
            rules = node.host.run(TOOL[version], "-S", "FORWARD").stdout.splitlines()
            assert rules[0] == "-P FORWARD DROP" and "-A FORWARD -j DOCKER-FORWARD" in rules
        all_pass(scene, version)
    scene.resync()
    all_pass(scene, version)


@both_versions
@pytest.mark.parametrize("node", ["ingress1", "worker1"])
def test_without_our_chain_dockers_policy_drops(scene: Scene, node: str, version: int) -> None:
    """So that the test above shows something. The helper is halted, or it would put its chain right."""
    at = scene.cluster.nodes[node]
    owners = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, scene.cluster.client_flows(version, 40))
    source, port = next(flow for flow, name in owners.items() if name == "pod2")
    with docker([at], version), scene.helpers[node].halted():
        at.host.run(TOOL[version], "-I", "SERVICE-TUNNEL-FORWARD", "-j", "RETURN")
        try:
            with pytest.raises(traffic.NoAnswer):
                scene.cluster.client.call(
                    traffic.ask_tcp, VIPS[version], 8080, source=source, source_port=port, timeout=1.0
                )
        finally:
            at.host.run(TOOL[version], "-D", "SERVICE-TUNNEL-FORWARD", "-j", "RETURN")


def firewall_findings(scene: Scene, node: str) -> tuple[str, list[str]]:
    """State, and what is said."""
    said: list[dict[str, Any]] = json.loads(scene.helper_command(node, "preflight", "--json"))["findings"]
    (found,) = (finding for finding in said if finding["name"] == "firewalls")
    return found["state"], found["mend"]


@pytest.mark.parametrize(
    ("rules", "path", "way_out"),
    [
        (ZONES, "inet firewalld filter_FORWARD", "--policy=to-tunnels --add-egress-zone=trusted"),
        (OWN, "inet mine forwarded", 'nft insert rule inet mine forwarded iifname "svctun" accept'),
    ],
    ids=["firewalld", "own"],
)
def test_a_firewall_that_an_accept_does_not_overrule_is_named_and_passed_by_the_way_out(
    scene: Scene, rules: str, path: str, way_out: str
) -> None:
    """Another base chain of the same hook has its own say: an ACCEPT ends only the chain that it is in."""
    ingress = scene.cluster.nodes["ingress1"].host
    client, family = scene.cluster.client, path.split()[1]
    assert firewall_findings(scene, "ingress1") == ("ok", [])
    ingress.run("nft", "-f", "-", input=rules)
    try:
        for version in (4, 6):
            with pytest.raises((traffic.NoAnswer, OSError)):
                client.call(traffic.ask_tcp, VIPS[version], 8080, timeout=1.0)
        state, said = firewall_findings(scene, "ingress1")
        assert (state, len(said)) == ("note", 1)
        assert f"the chain {path} of nf_tables drops" in said[0] and way_out in said[0]
        # The rules that firewall-cmd makes of the zone and the policy, in its own chain; and those that are said.
        into = "filter_FORWARD_POLICIES" if family == "firewalld" else "forwarded"
        vips = "ip saddr 198.51.100.0/24", "ip6 saddr 2001:db8::/32"
        for match in ('iifname "svctun"', 'oifname "svctun"', *vips):
            ingress.run("nft", f"insert rule inet {family} {into} {match} accept")
        for version in (4, 6):
            all_pass(scene, version)
    finally:
        ingress.run("nft", "delete", "table", "inet", family)
    for version in (4, 6):
        all_pass(scene, version)


@both_versions
def test_however_many_flows_there_are_a_node_tracks_few_tunnels(scene: Scene, version: int) -> None:
    """Each outer source port that the tunnels of one ingress node to one pod have is a connection to the pod's node."""
    worker = scene.cluster.nodes["worker1"].host
    tracking = (TOOL[4], "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT")
    worker.run(*tracking)
    try:
        before = int(worker.sysctl("net.netfilter.nf_conntrack_count"))
        flows = scene.cluster.client_flows(version, 3000)
        found = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
        assert list(found.values()).count("pod2") > 5 * OUTER_PORTS
        # The node has other connections, too, but few.
        assert int(worker.sysctl("net.netfilter.nf_conntrack_count")) - before <= OUTER_PORTS + 20
    finally:
        worker.run(*("-D" if word == "-A" else word for word in tracking))
