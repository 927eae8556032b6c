"""A cluster with helpers on its nodes and a folder of manifests: the whole product on one machine.

What is not ours is real (kernel, reference plugins) or says what it stands for (`cni`, `manifests`); what is
ours is the built plugin and the helper as an operator starts it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cni_plugin import attachment
from node_helper.asks import question
from tests.testbed import traffic
from tests.testbed.cluster import DEFAULT_NODES, Cluster, NodeSpec
from tests.testbed.cni import Pod, ptp_chain
from tests.testbed.manifests import BOTH_8080, ClusterFolder, ClusterObjects, Object
from tests.testbed.namespaces import TestbedError, signals_held_back

SOCKET = "/run/service-tunnel/helper.sock"
PLUGIN = {"type": "service-tunnel", "log": {"level": "debug", "file": "/run/service-tunnel.log"}}
VIPS = {4: "198.51.100.1", 6: "2001:db8::1"}
MAPPED_VIPS = {4: "198.51.100.2", 6: "2001:db8::2"}
"""For a second Service in front of the same pods."""
PATIENCE = float(os.environ.get("TEST_PATIENCE", "100"))
"""Seconds until a condition counts as failed; emulated processors need more (tests/run_all.py)."""


class Helper:
    """A running `service-tunnel-helper run` on one node."""

    def __init__(
        self, scene: Scene, node: str, options: Sequence[str], name: str = "", socket_path: str = SOCKET
    ) -> None:
        """`name`: of its log, where a node has more than one; `socket_path`: where `options` say another."""
        self.node = node
        self.host = scene.cluster.nodes[node].host
        self._socket = socket_path
        self.log = scene.folder_of_logs / f"{name or node}.log"
        with self.log.open("a") as log:
            self.process: subprocess.Popen[str] = self.host.popen(
                sys.executable,
                *("-m", "node_helper.cli", "run", *scene.objects.options, "--node", node, *options),
                env={"PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return question(self.host.path(self._socket), op, **fields)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["status"]
        return found

    def trace(self, protocol: str, source: str, source_port: int, vip: str, port: int) -> dict[str, Any]:
        flow = {
            "protocol": protocol,
            "source": source,
            "source_port": source_port,
            "destination": vip,
            "destination_port": port,
        }
        found: dict[str, Any] = self.ask("trace", flow=flow)["trace"]
        return found

    def synced(self) -> bool:
        if self.process.poll() is not None:
            raise TestbedError(f"the helper on {self.node} ended:\n{self.log.read_text()[-4000:]}")
        try:
            return bool(self.status()["synced"])
        except ConnectionError:
            return False

    def stop(self) -> None:
        """SIGTERM, as an upgrade does."""
        self.process.terminate()
        self.process.wait(20)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Meanwhile it does nothing, so that what a test changes stays so."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(20)


class Scene:
    """Cluster, manifests, helpers; a context manager that takes all of it down."""

    def __init__(
        self,
        nodes: Sequence[NodeSpec] = DEFAULT_NODES,
        *,
        mode: str = "vxlan-gpe",
        buckets: int = 256,
        options: Sequence[str] = (),
        node_options: Mapping[str, Sequence[str]] | None = None,
        helpers: bool = True,
        plugin: Mapping[str, Any] | None = None,
        objects: Callable[[Cluster], ClusterObjects] | None = None,
        **cluster: Any,
    ) -> None:
        """`options` go to every helper, `node_options` to those of a node; `cluster` to `Cluster`.

        `plugin` goes into the chain entry.
        `objects` makes what the helpers read, a folder of manifests where it is not given.
        """
        self.mode = mode
        self.buckets = buckets
        self._options = [*options, "--mode", mode, "--buckets", str(buckets)]
        self._node_options = node_options or {}
        self.helpers: dict[str, Helper] = {}
        self.vips: set[str] = set()
        self._ours = [{**PLUGIN, **(plugin or {})}]
        with ExitStack() as undo:
            with signals_held_back():
                self._scratch = Path(tempfile.mkdtemp(prefix="svctun-scene-"))
                undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self.folder_of_logs = self._scratch / "logs"
            self.folder_of_logs.mkdir()
            self.cluster = Cluster(nodes, plugins=self._ours, **cluster)
            undo.pop_all()
        try:
            self.objects = objects(self.cluster) if objects else ClusterFolder(self._scratch / "manifests")
            for node in self.cluster.nodes.values():
                self.objects.apply_node(node)
            if helpers:
                self.start_helpers(self.cluster.nodes)
        except BaseException:
            self.close()
            raise

    @property
    def manifests(self) -> ClusterFolder:
        """The objects, where they are a folder of manifests."""
        assert isinstance(self.objects, ClusterFolder)
        return self.objects

    def change_plugin(self, **options: Any) -> None:
        """Other values in the chain entry, for pods that are made from now on."""
        for entry in self._ours:
            entry.update(options)

    # --- helpers ------------------------------------------------------------------------------------------

    def start_helpers(self, nodes: Iterable[str], options: Sequence[str] = ()) -> None:
        started = {name: helper for node in nodes for name, helper in self.start_on(node, options).items()}
        self.helpers |= started
        for name, helper in started.items():
            self.wait(helper.synced, f"the helper {name}")

    def start_on(self, node: str, options: Sequence[str]) -> dict[str, Helper]:
        """Starts what runs on a node: one helper that has both roles; by the name that tests have for it."""
        return {node: Helper(self, node, [*self._options, *self._node_options.get(node, ()), *options])}

    def helper_command(self, node: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Output of `service-tunnel-helper` with these arguments on a node; raises CommandFailed.

        `env`: variables that are to be others.
        """
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})}
        host = self.cluster.nodes[node].host
        return host.run(sys.executable, "-m", "node_helper.cli", *arguments, env=environment).stdout

    def running_helpers(self) -> list[Helper]:
        return [helper for helper in self.helpers.values() if helper.process.poll() is None]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Raises TestbedError with the helpers' logs when a condition does not come true in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TestbedError(f"{what}: not so after {seconds} s\n{self.logs()}")
            time.sleep(0.02)

    def logs(self, characters: int = 3000) -> str:
        return "\n".join(
            f"--- {file.stem}\n{file.read_text()[-characters:]}" for file in sorted(self.folder_of_logs.iterdir())
        )

    # --- pods and Services --------------------------------------------------------------------------------

    def add_pods(
        self,
        places: Sequence[tuple[str, str]],
        labels: Mapping[str, str],
        ports: Sequence[int] = (8080,),
        named_ports: Mapping[str, int] | None = None,
        mtu: int = 0,
    ) -> list[Pod]:
        """Pods with the testbed's server in them, known to the cluster before and after their ADD.

        `mtu`: bytes, of the pods' own links where these are to be other than the cluster's.
        """

        def scheduled(pod: Pod) -> None:
            pod.ports.update(named_ports or {})
            self.objects.apply_pod(pod)

        if mtu:
            chains = {
                node: ptp_chain(self.cluster.nodes[node].pod_cidrs, mtu=mtu, further=self._ours) for node, _ in places
            }
            pods = [
                self.cluster.add_pod(node, name, labels, chain=chains[node], scheduled=scheduled)
                for node, name in places
            ]
        else:
            pods = self.cluster.add_pods(places, labels, scheduled)
        for pod in pods:
            self.objects.apply_pod(pod)
            traffic.serve(pod, *ports)
        return pods

    def remove_pod(self, pod: Pod) -> None:
        """The pod ends; the cluster learns it first, as when it is deleted."""
        pod.ready, pod.terminating = False, True
        self.sync()
        self.cluster.delete_pod(pod)
        self.sync()

    def apply_service(
        self,
        name: str = "web",
        vips: str | None = None,
        ports: Sequence[Object] = BOTH_8080,
        annotations: Mapping[str, str] | None = None,
        selector: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        """A Service `name` that selects app=`name`, annotated with VIPs (one of each IP version by default)."""
        wanted = ",".join(VIPS.values()) if vips is None else vips
        tunnel = {"cmd.nu/tunnel": wanted} if wanted else {}
        self.objects.apply_service(name, {**tunnel, **(annotations or {})}, selector or {"app": name}, ports, **spec)
        self.sync()
        for vip in filter(None, wanted.split(",")):
            self.vips.add(vip)
            self.cluster.announce(vip)

    def remove_service(self, name: str) -> None:
        """Deletes a Service; the router's routes of its VIPs go with it."""
        annotations = self.objects.service(name)["metadata"]["annotations"]
        self.objects.remove("Service", name)
        for vip in filter(None, annotations.get("cmd.nu/tunnel", "").split(",")):
            self.vips.discard(vip)
            self.cluster.withdraw(vip)

    def resync(self) -> None:
        """Makes every helper compare everything with the kernel now, and waits until all is settled."""
        for helper in self.running_helpers():
            helper.process.send_signal(signal.SIGHUP)
        self.settle()

    def sync(self) -> None:
        self.objects.sync(self.cluster)

    def announced(self, vip: str) -> bool:
        """Every ingress node serves and announces this VIP."""
        statuses = [helper.status() for helper in self.running_helpers()]
        return all(
            any(vip in service["announced"] for service in status["services"])
            for status in statuses
            if status["ingress"]
        )

    def settle(self) -> None:
        """Waits until helpers and pods are as the manifests say: endpoints have their buckets, pods their VIPs."""
        self.wait(self.settled, "the cluster as its manifests say")

    def settled(self) -> bool:
        return all(self._settled_at(helper) for helper in self.running_helpers())

    def _settled_at(self, helper: Helper) -> bool:
        status = helper.status()
        shown = {service["name"]: service for service in status.get("services", ())}
        for kind, namespace, name in self.objects.all_keys():
            if kind != "Service":
                continue
            service = self.objects.service(name, namespace)
            if "cmd.nu/tunnel" not in service["metadata"]["annotations"]:
                if f"{namespace}/{name}" in shown:
                    return False
                continue
            selector = service["spec"]["selector"].items()
            pods = [pod for pod in self.cluster.pods if selector <= pod.labels.items() and pod.namespace == namespace]
            if not self._endpoints_settled(status, shown.get(f"{namespace}/{name}"), pods, helper.node):
                return False
        return self._records_settled(helper)

    def _endpoints_settled(
        self, status: Mapping[str, Any], service: Mapping[str, Any] | None, pods: Sequence[Pod], node: str
    ) -> bool:
        if service is None:
            return False
        if "ingress" not in status["roles"] and not service["endpoints"]:
            return True  # with an API server it watches none
        usable = {str(pod.ips[0]) for pod in pods if pod.ready and not pod.terminating}
        if {e["address"] for e in service["endpoints"] if e["usable"]} != usable:
            return False
        if not status["ingress"]:
            return True
        of_one_node = service["mode"] == "mpls" or service["local"]
        if of_one_node:
            usable = {str(pod.ips[0]) for pod in pods if str(pod.ips[0]) in usable and pod.node == node}
        buckets = {e["address"]: e["buckets"] for e in service["endpoints"]}
        least = self.buckets // len(usable) if usable else 0
        return all(buckets[address] >= (1 if of_one_node else least) for address in usable)

    def _records_settled(self, helper: Helper) -> bool:
        records, _ = attachment.read_all(str(helper.host.path("/run/service-tunnel")))
        for record in records:
            pod = self.cluster.nodes[helper.node].pods.get(record.name)
            if record.interface != "eth0":
                continue  # a further one, which bears no tunnels
            if pod is not None and set(self.wanted_vips(pod)) != {v for t in record.tunnels.tunnels for v in t.vips}:
                return False
        return True

    def wanted_vips(self, pod: Pod) -> list[str]:
        """The VIPs that a pod should have by the manifests."""
        found = []
        for kind, namespace, name in self.objects.all_keys():
            if kind == "Service" and namespace == pod.namespace:
                service = self.objects.service(name, namespace)
                if service["spec"]["selector"].items() <= pod.labels.items():
                    found += service["metadata"]["annotations"].get("cmd.nu/tunnel", "").split(",")
        return [vip for vip in found if vip]

    def close(self) -> None:
        self.cluster.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
