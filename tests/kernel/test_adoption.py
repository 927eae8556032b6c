"""Pods that are older than the installation get their tunnels: at once where that is safe, and else it is said why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import attachment, netns
from node_helper.adopt import adopt
from node_helper.pod_addresses import Place, PodAddresses
from tests.kernel.private_netns import batch, private_netns
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.cni import Pod
from tests.testbed.host import Host
from tests.testbed.scene import VIPS, Scene

both_versions = pytest.mark.parametrize("version", [4, 6])
IPS = ("10.9.0.2", "fd09::2")


class Node:
    """A folder of namespaces, and libcni's cache, of which pods are adopted."""

    def __init__(self, folder: Path) -> None:
        self.netns, self.results, self.run_dir = (folder / name for name in ("netns", "results", "run"))
        for made in (self.netns, self.results):
            made.mkdir()

    def pod(self, path: str, name: str, *addresses: str, interface: str = "eth0") -> None:
        """A namespace at a name of the folder, with these addresses."""
        (self.netns / name).symlink_to(path)
        lines = [f"addr add {address} dev {interface}{' nodad' * (':' in address)}" for address in addresses]
        batch(path, f"link add {interface} type veth peer name outside", f"link set {interface} up", *lines)

    def entry(self, name: str, *addresses: str, interface: str = "eth0", **more: object) -> None:
        """What containerd 1.6's libcni keeps of a pod: everything but where it is."""
        whole = {
            "kind": "cniCacheV1", "containerId": name, "networkName": "pods", "ifName": interface,
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
            "result": {"ips": [{"address": f"{address}/24"} for address in addresses], **more},
        }  # fmt: skip
        (self.results / f"pods-{name}-{interface}").write_text(json.dumps(whole))

    def adopt(self) -> dict[str, str]:
        """What became of each pod."""
        return {one.name: one.text for one in adopt(self.results, self.run_dir, folders=[str(self.netns)])}

    def records(self) -> dict[str, attachment.Attachment]:
        return {record.name: record for record in attachment.read_all(str(self.run_dir))[0]}

    def sandboxed(self, name: str) -> dict[str, Any]:
        """The part of a result that says where an interface is."""
        outside = {"name": "veth0", "mac": "02:00:00:00:00:01"}
        return {"interfaces": [outside, {"name": "eth0", "sandbox": str(self.netns / name)}]}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def path() -> Iterator[str]:
    with private_netns() as path:
        yield path


@pytest.fixture
def other() -> Iterator[str]:
    with private_netns() as path:
        yield path


def inode(path: str) -> int:
    found = netns.identity(path)
    assert found is not None
    return found[1]


def test_a_pod_of_a_libcni_that_notes_no_namespace_is_found_by_its_addresses(node: Node, path: str, other: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.pod(other, "cni-2", "10.9.0.3", "fd09::3")
    node.entry("web-1", *IPS)
    node.entry("web-2", "10.9.0.3")
    assert node.adopt() == {"shop/web-1": "adopted", "shop/web-2": "adopted"}
    found = {name: (record.netns, record.inode, record.ips) for name, record in node.records().items()}
    assert found == {
        "web-1": (str(node.netns / "cni-1"), inode(path), IPS),
        "web-2": (str(node.netns / "cni-2"), inode(other), ("10.9.0.3",)),
    }
    assert node.adopt() == {"shop/web-1": "has a record already", "shop/web-2": "has a record already"}


@pytest.mark.parametrize("wanted", [("10.9.0.4",), (IPS[0], "fd09::4"), ()])
def test_a_pod_whose_addresses_nobody_has_is_not_adopted(node: Node, path: str, wanted: tuple[str, ...]) -> None:
    node.pod(path, "cni-1", *IPS)
    node.entry("web-1", *wanted)
    assert "restarted" in node.adopt()["shop/web-1"]
    assert node.records() == {}


def test_an_address_on_another_interface_is_another_pods(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS, interface="net1")
    node.entry("web-1", *IPS)
    assert "none that is here has 10.9.0.2 and fd09::2 on eth0" in node.adopt()["shop/web-1"]
    node.entry("web-1", *IPS, interface="net1")
    (text,) = {one.text for one in adopt(node.results, node.run_dir, folders=[str(node.netns)]) if one.record}
    assert text == "adopted"


def test_of_two_namespaces_with_the_address_neither_is_taken(node: Node, path: str, other: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.pod(other, "cni-2", *IPS)
    node.entry("web-1", *IPS)
    said = node.adopt()["shop/web-1"]
    assert f"({node.netns}/cni-1, {node.netns}/cni-2): restart the pod" in said
    node.entry("web-1", *IPS, **node.sandboxed("cni-2"))
    assert node.adopt() == {"shop/web-1": "adopted"}, "the result says where it is"
    assert node.records()["web-1"].inode == inode(other)


def test_two_paths_of_one_namespace_are_no_doubt(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS)
    (node.netns / "again").symlink_to(path)
    node.entry("web-1", *IPS)
    assert node.adopt() == {"shop/web-1": "adopted"}


def test_where_a_pod_that_ended_left_an_entry_with_the_address_neither_is_taken(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.entry("old-1", *IPS)
    node.entry("web-1", *IPS)
    assert all("another entry of the cache" in said for said in node.adopt().values())
    assert node.records() == {}


def before(node: Node, name: str) -> None:
    """The entry is older than all namespaces, as of a pod that ran before the node's last boot."""
    os.utime(node.results / f"pods-{name}-eth0", (1_000_000_000, 1_000_000_000))


def test_an_entry_that_is_older_than_the_namespace_is_another_pods(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.entry("old-1", *IPS)
    before(node, "old-1")
    assert "older than the network namespace with 10.9.0.2 and fd09::2 on eth0" in node.adopt()["shop/old-1"]
    node.entry("web-1", *IPS)
    assert node.adopt()["shop/web-1"] == "adopted", "so the other leaves no doubt"
    assert set(node.records()) == {"web-1"}


def test_a_namespace_that_has_a_record_is_not_given_to_another_pod(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.entry("web-1", *IPS)
    node.adopt()
    (node.results / "pods-web-1-eth0").unlink()
    node.entry("old-1", *IPS)
    assert "is that of shop/web-1, by its record" in node.adopt()["shop/old-1"]


def test_a_pod_whose_result_leads_nowhere_is_not_sought_elsewhere(node: Node, path: str) -> None:
    node.pod(path, "cni-1", *IPS)
    node.entry("web-1", *IPS, **node.sandboxed("cni-0"))
    assert "cni-0' is not there" in node.adopt()["shop/web-1"]


def test_what_lies_beside_namespaces_or_vanishes_meanwhile_is_passed_over(
    node: Node, path: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node.netns / "leftover").write_text("")
    (node.netns / "loop").symlink_to("loop")
    (node.netns / "host").symlink_to("/proc/self/ns/net")
    node.pod(path, "cni-1", *IPS)
    node.pod(other, "cni-0", "10.9.0.9")
    entered: Callable[[str, int], netns.entered] = netns.entered

    def late(path: str, inode: int) -> netns.entered:
        if path.endswith("cni-0"):
            Path(path).unlink()
        return entered(path, inode)

    monkeypatch.setattr(netns, "entered", late)
    found = PodAddresses([str(node.netns), "/never/was"])
    assert found.having("eth0", IPS) == {Place(str(node.netns / "cni-1"), inode(path))}
    assert found.having("eth0", ["10.9.0.9"]) == frozenset()
    assert found.having("lo", ["127.0.0.1"]) == found.having("eth0", IPS), "the host's own is never among them"


# --- the helper does it by itself ----------------------------------------------------------------------------------


def without_ours(scene: Scene) -> dict[str, Any]:
    chain = dict(scene.cluster.chain("worker1"))
    chain["plugins"] = [plugin for plugin in chain["plugins"] if plugin["type"] != "service-tunnel"]
    return chain


def as_containerd_1_6(host: Host, pod: Pod) -> None:
    """The cache as its libcni writes it."""
    file = host.path(f"/var/lib/cni/results/testbed-{pod.attachment.container}-eth0")
    entry = json.loads(file.read_text())
    del entry["netns"]
    file.write_text(json.dumps(entry))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Three pods that are older than the helper on their node, behind a Service, and one behind none."""
    nodes = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
    with Scene(nodes, helpers=False, options=["--resync", "1"]) as scene:
        scene.start_helpers(["ingress1"])
        host = scene.cluster.nodes["worker1"].host
        for name, label in (("noted", "web"), ("sought", "web"), ("twin", "web"), ("stranger", "none")):
            pod = scene.cluster.add_pod("worker1", name, {"app": label}, chain=without_ours(scene))
            traffic.serve(pod)
            scene.objects.apply_pod(pod)
            if name != "noted":
                as_containerd_1_6(host, pod)
            if name == "twin":
                host.run("ip", "netns", "add", "other")
                host.run("ip", "-n", "other", "link", "add", "eth0", "type", "veth", "peer", "name", "outside")
                host.run("ip", "-n", "other", "addr", "add", f"{pod.ipv4}/24", "dev", "eth0")
                host.run("ip", "-n", "other", "addr", "add", f"{pod.ipv6}/64", "dev", "eth0", "nodad")
                file = host.path(f"/var/lib/cni/results/testbed-{pod.attachment.container}-eth0")
                entry = json.loads(file.read_text())
                entry["result"].pop("interfaces")  # as of plugins that do not say where they put it
                file.write_text(json.dumps(entry))
        scene.apply_service()
        scene.start_helpers(["worker1"])
        yield scene


def on_lo(pod: Pod) -> bool:
    shown = pod.place.run("ip", "addr", "show", "dev", "lo").stdout
    return all(f" {vip}/" in shown for vip in VIPS.values())


def refusals(scene: Scene) -> dict[str, str]:
    told = scene.helpers["worker1"].status()["problems"]
    return {one["object"]: one["message"] for one in told if one["reason"] == "NoAttachment"}


def test_older_pods_have_their_vips_when_the_helper_has_started(scene: Scene) -> None:
    pods = scene.cluster.nodes["worker1"].pods
    assert {name for name, pod in pods.items() if on_lo(pod)} == {"noted", "sought"}
    assert scene.helpers["worker1"].status()["attachments"] == 2


def test_of_the_one_that_is_not_found_it_is_said_why(scene: Scene) -> None:
    assert set(refusals(scene)) == {"default/twin"}
    said = refusals(scene)["default/twin"]
    assert "more than one has" in said and "restart the pod" in said


def test_once_nothing_is_in_doubt_it_is_adopted_too(scene: Scene) -> None:
    scene.cluster.nodes["worker1"].host.run("ip", "netns", "del", "other")
    scene.wait(lambda: on_lo(scene.cluster.nodes["worker1"].pods["twin"]), "the pod whose twin went")
    scene.wait(lambda: refusals(scene) == {}, "nothing to tell")


@both_versions
def test_each_of_them_answers_and_sees_the_client(scene: Scene, version: int) -> None:
    flows = scene.cluster.client_flows(version, 60)
    answers = scene.cluster.client.call(traffic.tcp_flows, VIPS[version], 8080, flows)
    assert set(answers.values()) == {"noted", "sought", "twin"}
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080).client == CLIENT[version]


def test_a_service_that_is_annotated_later_finds_its_older_pods(scene: Scene) -> None:
    stranger = scene.cluster.nodes["worker1"].pods["stranger"]
    scene.apply_service("none", "198.51.100.9")
    scene.wait(lambda: "198.51.100.9" in stranger.place.run("ip", "addr", "show", "dev", "lo").stdout, "its VIP")
    assert scene.cluster.client.call(traffic.ask_tcp, "198.51.100.9", 8080).name == "stranger"
