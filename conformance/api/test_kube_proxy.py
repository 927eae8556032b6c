"""Tunnels beside the real rules of kube-proxy, which drop what connection tracking calls INVALID: one-sided flows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conformance import peers
from conformance.api.cluster_api import ClusterApi, control_at_router
from conformance.api.control_plane import ControlPlane
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Cluster, Node, NodeSpec
from tests.testbed.namespaces import TestbedError
from tests.testbed.scene import VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
NAMES = {"pod1", "pod2"}
TOOL = {4: "iptables", 6: "ip6tables"}
both_versions = pytest.mark.parametrize("version", [4, 6])


class Beside:
    """A cluster on whose nodes kube-proxy runs in one mode."""

    def __init__(self, scene: Scene, control: ControlPlane, mode: str) -> None:
        self.scene = scene
        self.control = control
        self.mode = mode
        self.logs = Path(control.folder)

    def start(self, node: Node, stack: ExitStack) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self.mode,
            "clientConnection": {"kubeconfig": str(self.control.kubeconfig())},
            "clusterCIDR": "10.244.0.0/16,fd00:10:244::/48",
            "hostnameOverride": node.name,
            # nf_conntrack_max is the first namespace's, and a process of a container cannot protect itself so.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
        }
        file = self.logs / f"kube-proxy-{node.name}.json"
        file.write_text(json.dumps(config))
        log = stack.enter_context((self.logs / f"kube-proxy-{node.name}.log").open("w"))
        program = str(peers.ensure(peers.KUBERNETES) / "kube-proxy")
        process = node.host.popen(program, f"--config={file}", stdout=log, stderr=subprocess.STDOUT)
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        self.scene.wait(lambda: self._written(node, process), f"kube-proxy's rules on {node.name}")

    def _written(self, node: Node, process: subprocess.Popen[str]) -> bool:
        if process.poll() is not None:
            raise TestbedError(f"kube-proxy ended:\n{(self.logs / f'kube-proxy-{node.name}.log').read_text()[-3000:]}")
        return all(self.leads_to_pods(node, version) for version in (4, 6))

    def rules(self, node: Node, version: int) -> str:
        if self.mode == "nftables":
            family = "ip" if version == 4 else "ip6"
            return node.host.run("nft", "list", "table", family, "kube-proxy", check=False).stdout
        return node.host.run(f"{TOOL[version]}-save").stdout

    def leads_to_pods(self, node: Node, version: int) -> bool:
        """There are rules for the Service's own address."""
        addresses: list[str] = self.control.get("service", "web")["spec"]["clusterIPs"]
        own = next(address for address in addresses if (":" in address) == (version == 6))
        text = self.rules(node, version)
        return own in text and all(pod.address(version) in text for pod in self.scene.cluster.pods)

    def count_of_drops(self, version: int) -> int:
        """Packets that the rules of mode iptables have dropped as INVALID, on all nodes."""
        lines = [
            line
            for node in self.scene.cluster.nodes.values()
            for line in node.host.run(TOOL[version], "-nvxL", "KUBE-FORWARD").stdout.splitlines()
            if "INVALID" in line and "DROP" in line
        ]
        assert len(lines) == len(NODES)
        return sum(int(line.split()[0]) for line in lines)


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Scene, ControlPlane]]:
    """A pod on the ingress node and one on the worker."""
    with ExitStack() as stack:
        control: list[ControlPlane] = []

        def api(cluster: Cluster) -> ClusterApi:
            control.append(control_at_router(cluster, stack))
            return ClusterApi(control[0])

        scene = stack.enter_context(Scene(NODES, objects=api))
        scene.apply_service(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv4", "IPv6"])
        scene.add_pods([("ingress1", "pod1"), ("worker1", "pod2")], {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene, control[0]


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def beside(request: pytest.FixtureRequest, cluster: tuple[Scene, ControlPlane]) -> Iterator[Beside]:
    found = Beside(*cluster, request.param)
    nodes = found.scene.cluster.nodes.values()
    with ExitStack() as stack:
        for node in nodes:
            found.start(node, stack)
        yield found
    for node in nodes:
        node.host.run(str(peers.ensure(peers.KUBERNETES) / "kube-proxy"), "--cleanup", check=False)


@contextmanager
def unprotected(scene: Scene, node: Node, version: int) -> Iterator[None]:
    """Our chains on that node do nothing: connections are tracked, and others' rules decide what is forwarded."""
    chains = {"raw": "SERVICE-TUNNEL", "filter": "SERVICE-TUNNEL-FORWARD"}
    with scene.helpers[node.name].halted():  # it would put them right
        for table, chain in chains.items():
            node.host.run(TOOL[version], "-t", table, "-I", chain, "-j", "RETURN")
        try:
            yield
        finally:
            for table, chain in chains.items():
                node.host.run(TOOL[version], "-t", table, "-D", chain, "-j", "RETURN")


@both_versions
def test_flows_and_large_transfers_pass(beside: Beside, version: int) -> None:
    before = beside.count_of_drops(version) if beside.mode == "iptables" else 0
    client, vip = beside.scene.cluster.client, VIPS[version]
    flows = beside.scene.cluster.client_flows(version, 60)
    for ask in (traffic.udp_flows, traffic.tcp_flows):
        found = client.call(ask, vip, 8080, flows)
        assert len(found) == len(flows) and set(found.values()) == NAMES
    for source in beside.scene.cluster.client_addresses(version, 6):
        client.call(traffic.upload, vip, 8080, 300_000, source=source)
        client.call(traffic.download, vip, 8080, 300_000, source=source)
    assert client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]
    assert client.call(traffic.ping, vip)
    assert beside.mode == "nftables" or beside.count_of_drops(version) == before


@both_versions
def test_fragments_pass(beside: Beside, version: int) -> None:
    client, vip = beside.scene.cluster.client, VIPS[version]
    reached = set()
    for source in beside.scene.cluster.client_addresses(version, 12):
        answer = client.call(packets.ask_udp_in_fragments, vip, 8080, source=source, source_port=23000, size=4000)
        assert answer.size == 4000
        reached.add(answer.name)
    assert reached == NAMES


@both_versions
def test_the_nodes_and_their_pods_reach_vip_and_cluster_ip(beside: Beside, version: int) -> None:
    """What kube-proxy is for goes on, and what it does to packets does not reach ours."""
    addresses: list[str] = beside.control.get("service", "web")["spec"]["clusterIPs"]
    own = next(address for address in addresses if (":" in address) == (version == 6))
    for node in beside.scene.cluster.nodes.values():
        for target in (VIPS[version], own):
            assert {node.host.call(traffic.ask_tcp, target, 8080).name for _ in range(8)} <= NAMES
    for pod in beside.scene.cluster.pods:
        assert pod.place.call(traffic.ask_tcp, own, 8080).name in NAMES


@both_versions
@pytest.mark.parametrize("node", ["ingress1", "worker1"])
@pytest.mark.parametrize("beside", ["iptables"], indirect=True)
def test_without_our_chains_these_rules_drop_flows(beside: Beside, node: str, version: int) -> None:
    """So that the tests above show something: a one-sided flow ends at either node. (Mode nftables drops none.)"""
    cluster, vip = beside.scene.cluster, VIPS[version]
    owners = cluster.client.call(traffic.udp_flows, vip, 8080, cluster.client_flows(version, 60))
    source, port = next(flow for flow, name in owners.items() if name == "pod2")  # TCP has the same way
    before = beside.count_of_drops(version)
    with unprotected(beside.scene, cluster.nodes[node], version), pytest.raises(traffic.NoAnswer):
        cluster.client.call(traffic.ask_tcp, vip, 8080, source=source, source_port=port, timeout=1.0)
    assert beside.count_of_drops(version) > before
