"""Our plugin behind flannel's, on an overlay that real flannel daemons make: vxlan devices, addresses of both versions.

flanneld has its leases from the API server's Nodes, as `kube-flannel.yml` has it. The router between the nodes knows no
pods here: what reaches one on another node has gone through flannel's device.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance import peers
from conformance.api.cluster_api import ClusterApi, control_at_router
from conformance.api.control_plane import ControlPlane
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Cluster, Node, NodeSpec
from tests.testbed.cni import Conflist, Pod, plugin_binary
from tests.testbed.namespaces import TestbedError
from tests.testbed.scene import VIPS, Scene

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
PLACES = [("ingress1", "pod1"), ("worker1", "pod2"), ("worker1", "pod3")]
NAMES = {name for _, name in PLACES}
NETWORK = {
    "Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48", "Backend": {"Type": "vxlan"},
}  # fmt: skip
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
DEVICE_MTU = 1500 - 50
"""Of flannel's own device, and of pods."""
GPE = 36
"""Bytes that our encapsulation takes of each packet besides; it goes to pods' IPv4 addresses."""
MEGABYTE = 1_000_000
both_versions = pytest.mark.parametrize("version", [4, 6])


def chain(pod_cidrs: object, *, further: list[Mapping[str, Any]], mtu: int) -> Conflist:
    """As in `kube-flannel.yml` of the time of that plugin, and ours; flannel's asks `bridge` and `host-local`."""
    delegate = {"hairpinMode": True, "isDefaultGateway": True}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [{"type": "flannel", "delegate": delegate}, portmap, *further]
    return {"name": "testbed", "cniVersion": "0.3.1", "plugins": plugins}


class Flannel:
    """The daemon on one node."""

    def __init__(self, scene: Scene, control: ControlPlane, node: Node) -> None:
        self.node = node
        self._scene = scene
        self._log = Path(control.folder) / f"flanneld-{node.name}.log"
        config = Path(control.folder) / "net-conf.json"
        config.write_text(json.dumps(NETWORK))
        self._command = (
            str(peers.ensure(peers.FLANNELD) / "flannel"), "--kube-subnet-mgr", "--ip-masq", "--iface=eth0",
            f"--kubeconfig-file={control.kubeconfig()}", f"--net-config-path={config}",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            name = {"NODE_NAME": self.node.name}
            self._process = self.node.host.popen(*self._command, env=name, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Until it has its lease, and a way to the pods of all other nodes."""
        self._scene.wait(self._knows_the_others, f"flanneld on {self.node.name}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)

    def _knows_the_others(self) -> bool:
        if self._process.poll() is not None:
            raise TestbedError(f"flanneld ended:\n{self._log.read_text()[-3000:]}")
        others = [other for other in self._scene.cluster.nodes.values() if other is not self.node]
        ways = {
            version: self.node.host.run("ip", f"-{version}", "route", "show", "dev", device, check=False).stdout
            for version, device in DEVICES.items()
        }
        here = self.node.host.path("/run/flannel/subnet.env").exists()
        return here and all(str(cidr) in ways[cidr.version] for other in others for cidr in other.pod_cidrs)


class Overlay:
    def __init__(self, scene: Scene, daemons: list[Flannel]) -> None:
        self.scene = scene
        self.client = scene.cluster.client
        self.daemons = daemons

    def add_pod(self, node: str, name: str) -> Pod:
        (pod,) = self.scene.add_pods([(node, name)], {"app": "web"})
        return pod


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """A pod on the ingress node and two on the other."""
    with ExitStack() as stack:
        control: list[ControlPlane] = []

        def api(cluster: Cluster) -> ClusterApi:
            control.append(control_at_router(cluster, stack))
            return ClusterApi(control[0])

        scene = stack.enter_context(Scene(NODES, objects=api, chain=chain))
        nodes = list(scene.cluster.nodes.values())
        for node in nodes:
            node.runtime.folders = [
                *(str(peers.ensure(group)) for group in (peers.FLANNEL, peers.CNI)), str(plugin_binary().parent)
            ]  # fmt: skip
            # As kubelet does: flanneld counts on a Node to have an annotation.
            annotation = "volumes.kubernetes.io/controller-managed-attach-detach=true"
            control[0].kubectl("annotate", "node", node.name, annotation)
            for cidr in node.pod_cidrs:
                scene.cluster.router.run("ip", "route", "del", str(cidr))
        daemons = []
        for node in nodes:
            daemons.append(Flannel(scene, control[0], node))
            stack.callback(daemons[-1].kill)
        for daemon in daemons:
            daemon.wait()
        scene.apply_service(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv4", "IPv6"])
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        yield Overlay(scene, daemons)


@both_versions
def test_every_pod_answers_and_sees_the_client(overlay: Overlay, version: int) -> None:
    flows = overlay.scene.cluster.client_flows(version, 90)
    for ask in (traffic.tcp_flows, traffic.udp_flows):
        found = overlay.client.call(ask, VIPS[version], 8080, flows)
        assert len(found) == len(flows) and set(found.values()) == NAMES
    for ask_one in (traffic.ask_tcp, traffic.ask_udp):
        assert overlay.client.call(ask_one, VIPS[version], 8080).client == CLIENT[version]


@both_versions
def test_packets_for_the_other_node_go_through_flannels_device(overlay: Overlay, version: int) -> None:
    """And come from the address that flannel gave it, which its rules leave as it is."""
    ingress, worker = overlay.scene.cluster.nodes.values()
    with packets.Capture(worker.host, DEVICES[4]) as seen:
        flows = overlay.scene.cluster.client_flows(version, 30)
        overlay.client.call(traffic.tcp_flows, VIPS[version], 8080, flows)
        outer = seen.wait_for(lambda packet: packet.destination_port == 4790)
    assert outer.source == str(ingress.pod_cidrs[0].network_address)


@both_versions
def test_a_megabyte_each_way_fits_both_encapsulations(overlay: Overlay, version: int) -> None:
    """To whichever pod: the sources' flows spread."""
    for source in overlay.scene.cluster.client_addresses(version, 6):
        overlay.client.call(traffic.upload, VIPS[version], 8080, MEGABYTE, source=source)
        overlay.client.call(traffic.download, VIPS[version], 8080, MEGABYTE, source=source)
    ingress = overlay.scene.cluster.nodes["ingress1"].host
    assert f" mtu {DEVICE_MTU - GPE} " in ingress.run("ip", f"-{version}", "route", "show", VIPS[version]).stdout + " "


def test_pods_have_what_flannel_and_ours_say(overlay: Overlay) -> None:
    for pod in overlay.scene.cluster.pods:
        assert f" mtu {DEVICE_MTU} " in pod.place.run("ip", "link", "show", "dev", "eth0").stdout
        on_lo = pod.place.run("ip", "addr", "show", "dev", "lo").stdout
        assert all(f" {vip}/" in on_lo for vip in VIPS.values())
        assert not any(vip in json.dumps(pod.result) for vip in VIPS.values()), "it is no address of the pod's own"


def test_while_flanneld_is_away_and_after_it_came_back_all_answer(overlay: Overlay) -> None:
    def answered() -> set[str]:
        flows = overlay.scene.cluster.client_flows(4, 60)
        return set(overlay.client.call(traffic.tcp_flows, VIPS[4], 8080, flows).values())

    for daemon in overlay.daemons:
        daemon.kill()
    assert answered() == NAMES
    for daemon in overlay.daemons:
        daemon.start()
    for daemon in overlay.daemons:
        daemon.wait()
    assert answered() == NAMES


def test_del_leaves_nothing_of_a_pod(overlay: Overlay) -> None:
    node = overlay.scene.cluster.nodes["worker1"]

    def left() -> set[str]:
        folders = "/var/lib/cni/flannel", "/var/lib/cni/networks/testbed", "/run/service-tunnel/attachments"
        files = {str(file) for folder in folders for file in node.host.path(folder).iterdir()}
        veths = node.host.run("ip", "-brief", "link", "show", "type", "veth").stdout
        # host-local keeps which address it gave last.
        return {file for file in files if "last_reserved_ip" not in file} | {
            line.split()[0] for line in veths.splitlines()
        }

    before = left()
    pod = overlay.add_pod("worker1", "pod4")
    overlay.scene.sync()
    assert len(left() - before) == 5, "a veth, three files of addresses and of flannel's, our record"
    overlay.scene.remove_pod(pod)
    assert left() == before
    flows = overlay.scene.cluster.client_flows(4, 60)
    assert set(overlay.client.call(traffic.tcp_flows, VIPS[4], 8080, flows).values()) == NAMES


def test_the_programs_are_the_pinned_ones() -> None:
    daemon = subprocess.run([peers.ensure(peers.FLANNELD) / "flannel", "--version"], capture_output=True, text=True)
    (pinned,) = re.findall(r"^\tgithub.com/flannel-io/flannel (v\S+)", peers.pins(peers.FLANNELD), re.MULTILINE)
    assert pinned in daemon.stdout + daemon.stderr
    plugin = subprocess.run([peers.ensure(peers.FLANNEL) / "flannel"], env={}, capture_output=True, text=True)
    assert "CNI flannel plugin v0.9.1" in plugin.stdout + plugin.stderr
    for group in (peers.FLANNEL, peers.FLANNELD):
        assert b"/ld-linux" not in (peers.ensure(group) / "flannel").read_bytes(), "static"
