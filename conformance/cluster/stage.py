"""The whole cluster, the project in it, and what tests do to it and ask of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from conformance import peers
from conformance.cluster import images, keeper
from conformance.cluster.control import WholeControlPlane
from conformance.cluster.machine import Machine
from conformance.cluster.node import Kind, Services
from conformance.cluster.runtimes import containerd_1_6, containerd_2, crio, crio_found
from tests.testbed.cluster import FORWARDING, Cluster, Node, NodeSpec
from tests.testbed.cni import bridge_chain, ptp_chain
from tests.testbed.namespaces import CommandFailed, TestbedError

PROJECT = Path(__file__).resolve().parents[2]
MANIFESTS = PROJECT / "install" / "kubernetes"
LOGS = PROJECT / "build" / "cluster"
WORK = "work"
"""Of a run's folder of logs, the part that goes when the run ends."""
KEPT_FOR = 2 * 86400.0
"""Seconds."""
CONTROL_ADDRESS = "10.97.0.1"
VIP_RANGES = "198.51.100.0/24 2001:db8::/64"
PATIENCE = float(os.environ.get("TEST_PATIENCE", "180"))
"""Seconds until a condition counts as failed."""
NODES = (NodeSpec("node1", ingress=True), NodeSpec("node2", ingress=True), NodeSpec("node3"))
EDGE = NodeSpec("edge")
"""A machine that is no node of Kubernetes."""
KINDS = {
    "node1": Kind(containerd_2, "iptables"),
    "node2": Kind(containerd_2, "nftables"),
    "node3": Kind(crio if crio_found() else containerd_1_6, "iptables"),
}
CHAINS = {"node1": ptp_chain, "node2": bridge_chain, "node3": ptp_chain}
NAMESPACE = "service-tunnel"

Object = Mapping[str, Any]


class Machines(Cluster):
    """The testbed's client, router and links, with machines for nodes."""

    def _node(self, spec: NodeSpec, index: int) -> Node:
        return Node(spec, index, Machine(spec.name, FORWARDING, {}), self._pod_versions)

    def reboot(self, name: str) -> None:
        """The node starts anew, with its /etc and /var; nothing runs there yet."""
        node = self.nodes[name]
        assert isinstance(node.host, Machine)
        self.router.batch([f"link set {node.device} down"])
        node.host.reboot()
        self.router.run("ip", "link", "del", node.device, check=False)
        self._connect([node])


class Stage:
    """A context manager: three nodes that are Ready; the project is installed by `install`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = time.monotonic()
        _sweep()
        self.logs = LOGS / f"{os.getpid()}"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.services: dict[str, Services] = {}
        with ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def tell(self, text: str) -> None:
        self._say(f"cluster: {time.monotonic() - self._began:4.0f} s  {text}")

    def _build(self, stack: ExitStack) -> None:
        made = self.logs / WORK
        made.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, made)
        with ThreadPoolExecutor(1) as aside:
            making = aside.submit(images.make, made)
            programs = peers.ensure(peers.ETCD), peers.ensure(peers.KUBERNETES)
            self.machines = Machines((*NODES, EDGE))
            stack.callback(self.machines.close)
            router = self.machines.router
            router.batch(["link set lo up", f"addr add {CONTROL_ADDRESS}/32 dev lo"])
            names = [spec.name for spec in NODES]
            folder = made / "control"
            folder.mkdir()
            self.control = WholeControlPlane(programs, router, CONTROL_ADDRESS, folder, names)
            stack.callback(self.control.close)
            self.tell("control plane is ready")
            for name in names:
                node = self.machines.nodes[name]
                self.control.apply(_node_object(node))
                self.services[name] = Services(node, KINDS[name], self.control, self.logs, self.wait)
                self.services[name].configure(CHAINS[name](node.pod_cidrs))
                self.services[name].start_runtime()
            archive, self.root = making.result()
        self.tell("images are made")
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda one: one.import_images(archive), self.services.values()))
        self.tell("runtimes have them")
        for one in self.services.values():
            one.start("kubelet")
            one.start("kube-proxy")
        self.wait(lambda: all(self.ready(name) for name in names), "all nodes are Ready")
        self.tell("nodes are Ready: " + ", ".join(f"{n} with {s.runtime.name}" for n, s in self.services.items()))

    def boot(self, node: str) -> str:
        """Which boot of the node its kubelet tells of."""
        found: str = self.control.get("node", node)["status"]["nodeInfo"]["bootID"]
        return found

    def ready(self, node: str) -> bool:
        return _is_ready(self.control.get("node", node))

    def wait(self, condition: Callable[[], bool], awaited: str, seconds: float = PATIENCE) -> None:
        """Until the condition holds; what kubectl refuses meanwhile does not matter. Raises TestbedError."""
        deadline = time.monotonic() + seconds
        refused = ""
        while True:
            for one in self.services.values():
                one.check()
            try:
                if condition():
                    return
            except CommandFailed as error:
                refused = f"\n{error}"
            if time.monotonic() > deadline:
                raise TestbedError(f"not in {seconds:.0f} s: {awaited}{refused}\n{self.picture()}")
            time.sleep(0.2)

    def picture(self) -> str:
        """What there is in the cluster, for who has to find out what went wrong."""
        shown = ("get", "pods", "-A", "-o", "wide"), ("get", "events", "-A", "--sort-by=.lastTimestamp")
        return "\n".join(self.control.kubectl(*arguments)[-6000:] for arguments in shown)

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.control.kubectl(*arguments, **options)

    def pods(self, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Those that are not being deleted."""
        text = self.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
        return [pod for pod in json.loads(text)["items"] if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self, selector: str) -> list[str]:
        """The names of those that kubelet calls ready."""
        return [pod["metadata"]["name"] for pod in self.pods(selector) if _is_ready(pod)]

    def exec(self, pod: str, *command: str, container: str = "", namespace: str = "default") -> str:
        chosen = ("-c", container) if container else ()
        return self.kubectl("exec", pod, "-n", namespace, *chosen, "--", *command)

    def install(self) -> None:
        """As docs/install.md says."""
        manifests = [one for one in yaml.safe_load_all((MANIFESTS / "service-tunnel.yaml").read_text()) if one]
        for one in manifests:
            if one["kind"] == "ConfigMap":
                one["data"]["SVC_TUNNEL_VIP_RANGE"] = VIP_RANGES
        self.kubectl("create", "-f", "-", objects=manifests)
        for node in self.machines.ingress_nodes:
            self.kubectl("label", "node", node.name, "node=tunnel", "--overwrite")
        self.rolled_out("daemonset/node", NAMESPACE)
        self.rolled_out("daemonset/ingress", NAMESPACE)
        self.tell("the project is installed")

    def uninstall(self) -> None:
        """As docs/install.md says."""
        whole = str(MANIFESTS / "service-tunnel.yaml")
        self.kubectl("delete", "daemonset", "node", "ingress", "-n", NAMESPACE, "--wait=false")
        self.wait(lambda: not self.own_pods("node") and not self.own_pods("ingress"), "the helpers are gone")
        self.kubectl("create", "-f", str(MANIFESTS / "uninstall.yaml"))
        self.rolled_out("daemonset/uninstall", NAMESPACE)
        self.kubectl("delete", "-f", str(MANIFESTS / "uninstall.yaml"), "--wait=false")
        self.kubectl("delete", "-f", whole, "--ignore-not-found", "--wait=false")
        self.wait(lambda: NAMESPACE not in self.kubectl("get", "namespaces", "-o", "name"), "the namespace is gone")
        self.kubectl("annotate", "services", "--all", "--all-namespaces", "cmd.nu/tunnel-buckets-")
        self.tell("the project is taken away")

    def rolled_out(self, what: str, namespace: str = "default", seconds: float = PATIENCE) -> None:
        command = self.control.kubectl_command("rollout", "status", what, "-n", namespace, f"--timeout={seconds:.0f}s")
        try:
            self.control.host.run(*command, timeout=seconds + 30)
        except CommandFailed as error:
            raise TestbedError(f"{error}\n{self.picture()}") from None

    def own_pods(self, component: str) -> dict[str, str]:
        """The names of the project's pods by node."""
        found = self.pods(f"app.kubernetes.io/component={component}", NAMESPACE)
        return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in found}


def _is_ready(thing: Object) -> bool:
    """Of a Node or a Pod."""
    conditions = thing.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _sweep() -> None:
    """What runs that were killed could not take along: files, and cgroups; and logs of long ago."""
    keeper.sweep()
    for folder in LOGS.glob("*"):
        if folder.name.isdigit() and not Path("/proc", folder.name).exists():
            shutil.rmtree(folder / WORK, ignore_errors=True)
            if time.time() - folder.stat().st_mtime > KEPT_FOR:
                shutil.rmtree(folder)


def _node_object(node: Node) -> dict[str, Any]:
    ranges = [str(cidr) for cidr in node.pod_cidrs]
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
    }  # fmt: skip
