"""Where the plugin is measured: a node with the real helper, and pods whose network other plugins have made.

The pods are known to the cluster, have interfaces and addresses from a real chain, and wait for our plugin: ADD has
to do what it does on a node, and nothing that is someone else's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from cni_plugin import attachment
from cni_plugin.helper_client import NONE, TUNNELS
from tests.bench.programs import Program
from tests.bench.spawning import Call, run, undo
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import Pod, ptp_chain
from tests.testbed.host import Host
from tests.testbed.namespaces import TestbedError
from tests.testbed.scene import VIPS, Scene

NODE = "worker1"
VERSION = "1.0.0"
OURS: dict[str, Any] = {"type": "service-tunnel"}
TUNING: dict[str, Any] = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
"""The reference plugin with the least to do that is of use: it enters the pod's namespace and sets one sysctl."""


class Node:
    """One node; a context manager that takes all of it down."""

    def __init__(self, pods: int) -> None:
        """So many pods, all behind one Service that has no VIPs yet."""
        self._scene = Scene((NodeSpec(NODE),), mode="vxlan-gpe", helpers=False)
        try:
            self._scene.manifests.apply_service("web")
            self._node = self._scene.cluster.nodes[NODE]
            chain = ptp_chain(self._node.pod_cidrs, version=VERSION)
            self._chain = {**chain, "plugins": chain["plugins"][:1]}
            self.pods = [self._pod(f"web{number}") for number in range(pods)]
            self._scene.sync()
            self._scene.start_helpers([NODE])
        except BaseException:
            self._scene.close()
            raise

    def _pod(self, name: str) -> Pod:
        scheduled = self._scene.manifests.apply_pod
        return self._scene.cluster.add_pod(NODE, name, {"app": "web"}, chain=self._chain, scheduled=scheduled)

    def annotate(self, tunnels: bool) -> None:
        """Gives the Service an IPv4 and an IPv6 VIP in mode vxlan-gpe, or none; waits until the helper knows."""
        vips = ",".join(VIPS.values()) if tunnels else None
        self._scene.manifests.annotate("web", {"cmd.nu/tunnel": vips})
        wanted = TUNNELS if tunnels else NONE
        self._scene.wait(lambda: self._answer() == wanted, f"the helper's answer {wanted!r}")

    def _answer(self) -> object:
        pod = self.pods[-1]
        return self._scene.helpers[NODE].ask("tunnels", namespace=pod.namespace, name=pod.name)["answer"]

    @property
    def host(self) -> Host:
        return self._node.host

    def add(self, program: Program, entry: Mapping[str, Any], pod: Pod) -> Call:
        """ADD of one chained plugin for one pod as libcni makes it; undone by DEL."""
        return self._call("ADD", program, entry, pod, self._call("DEL", program, entry, pod))

    @staticmethod
    def _call(verb: str, program: Program, entry: Mapping[str, Any], pod: Pod, undo: Call | None = None) -> Call:
        config = {"cniVersion": VERSION, "name": "testbed", **entry, "prevResult": pod.result}
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.attachment.container,
            "CNI_NETNS": pod.attachment.netns,
            "CNI_IFNAME": pod.attachment.interface,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.attachment.arguments.items()),
            "CNI_PATH": str(program.path.parent),
        }
        return Call((str(program.path),), environment, json.dumps(config).encode(), program.files, undo)

    def check_tunnels(self, adds: Sequence[Call]) -> None:
        """Raises TestbedError unless each of these ADDs gives its pod tunnels; all are undone.

        A benchmark of an ADD with tunnels that got none would look splendid.
        """
        self.host.call(run, adds, mounts=True)
        records, troubles = attachment.read_all(str(self.host.path("/run/service-tunnel")))
        found = sum(bool(record.tunnels.tunnels) for record in records)
        self.host.call(undo, adds, mounts=True)
        if found != len(adds) or troubles:
            raise TestbedError(f"{found} of {len(adds)} pods have tunnels {troubles}\n{self._scene.logs()}")

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scene.close()
