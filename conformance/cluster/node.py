"""What runs on a node: a container runtime, kubelet and kube-proxy, much as kubeadm configures them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance import peers
from conformance.cluster.control import CLIENT_CERTIFICATE, POD_RANGES, WholeControlPlane
from conformance.cluster.machine import PROGRAM_PATH, Machine
from conformance.cluster.runtimes import Runtime
from tests.testbed.cluster import Node
from tests.testbed.host import Host
from tests.testbed.namespaces import TestbedError

BIN, CONF = "/opt/cni/bin", "/etc/cni/net.d"
STATIC_PODS = "/etc/kubernetes/manifests"
_KUBELET_CONFIG, _PROXY_CONFIG = "/var/lib/kubelet/config.yaml", "/var/lib/kube-proxy/config.yaml"

Wait = Callable[[Callable[[], bool], str], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """What one node has that another has not."""

    runtime: Callable[[], Runtime]
    proxy: str
    """kube-proxy's mode."""


class Services:
    """The programs of one node; a program is named as it is: `containerd`, `kubelet`, `kube-proxy`."""

    def __init__(self, node: Node, kind: Kind, control: WholeControlPlane, logs: Path, wait: Wait) -> None:
        assert isinstance(node.host, Machine)
        self.node = node
        self.machine: Machine = node.host
        self.runtime = kind.runtime()
        self._proxy = kind.proxy
        self._control = control
        self._logs = logs
        self._wait = wait
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._commands = {
            self.runtime.program: self.runtime.command,
            "kubelet": (
                str(peers.ensure(peers.KUBERNETES) / "kubelet"), f"--config={_KUBELET_CONFIG}",
                "--kubeconfig=/etc/kubernetes/kubelet.conf", f"--hostname-override={node.name}",
                f"--node-ip={node.addresses[4]},{node.addresses[6]}",
            ),
            "kube-proxy": (str(peers.ensure(peers.KUBERNETES) / "kube-proxy"), f"--config={_PROXY_CONFIG}"),
        }  # fmt: skip

    def configure(self, network: Mapping[str, Any]) -> None:
        """Writes every file that the programs read; `network`: what is in the folder of networks."""
        for name in (STATIC_PODS, "/var/lib/kubelet", "/var/lib/kube-proxy"):
            self.machine.path(name).mkdir(parents=True, exist_ok=True)
        put_network(self.machine, network)
        for path, text in self.runtime.files.items():
            self.machine.path(path).parent.mkdir(parents=True, exist_ok=True)
            self._write(path, text)
        self._write("/etc/kubernetes/apiserver.crt", self._control.trust.read_text())
        self._write("/etc/kubernetes/client.crt", (self._control.folder / CLIENT_CERTIFICATE).read_text())
        for account, path in ((f"kubelet-{self.node.name}", "kubelet"), ("kube-proxy", "kube-proxy")):
            text = self._control.kubeconfig(account).read_text()
            inside = text.replace(str(self._control.trust), "/etc/kubernetes/apiserver.crt")
            self._write(f"/etc/kubernetes/{path}.conf", inside)
        self._write(_KUBELET_CONFIG, json.dumps(self._kubelet()))
        self._write(_PROXY_CONFIG, json.dumps(self._kube_proxy()))

    def _write(self, path: str, text: str) -> None:
        self.machine.path(path).write_text(text)
        if text.startswith("#!"):
            self.machine.path(path).chmod(0o755)

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": "/etc/kubernetes/client.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self.runtime.socket}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,  # less would need CAP_SYS_RESOURCE
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            "resolvConf": "/etc/resolv.conf",
            "staticPodPath": STATIC_PODS,
            "fileCheckFrequency": "2s",
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "4s",
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,  # what is not here cannot be had again
        }

    def _kube_proxy(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self._proxy,
            "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
            "clusterCIDR": POD_RANGES,
            "hostnameOverride": self.node.name,
            # nf_conntrack_max is the first namespace's, and a process of a container cannot protect itself so.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
        }

    def start(self, program: str) -> None:
        folder = f"{self.runtime.folder}:" if self.runtime.folder else ""
        self._running[program] = self.machine.start(
            self.log(program), *self._commands[program], PATH=f"{folder}{PROGRAM_PATH}"
        )

    def start_runtime(self) -> None:
        self.start(self.runtime.program)
        self._wait(self._runtime_listens, f"{self.runtime.name} of {self.node.name}")

    def _runtime_listens(self) -> bool:
        self.check()
        return self.machine.call(_listens, self.runtime.socket, mounts=True)

    def import_images(self, archive: Path) -> None:
        for command in self.runtime.imports:
            filled = (word.replace("{}", str(archive)) for word in command)
            self.machine.run("env", f"PATH={PROGRAM_PATH}", *filled, timeout=300)

    def stop(self, program: str) -> None:
        """Ends it as a restart does; what it started goes on."""
        process = self._running.pop(program)
        inside = self.machine.run("pgrep", "-o", "-x", program).stdout.split()
        self.machine.run("kill", *inside)
        process.wait(60)

    def restart(self, program: str) -> None:
        self.stop(program)
        self.start(program)

    def start_everything(self) -> None:
        """As at a boot."""
        self._running.clear()
        self.start_runtime()
        self.start("kubelet")
        self.start("kube-proxy")

    def kill_sandbox(self, program: str) -> None:
        """Kills the process that holds a pod's namespaces together, as the kernel does when memory is short.

        It is the other one in the network namespace of a program, named by a part of its command line.
        """
        script = (
            'inside=$(pgrep -f "$0"); net=$(readlink /proc/$inside/ns/net); for one in /proc/[0-9]*; do '
            '[ "$(readlink $one/ns/net)" = "$net" ] && [ "$one" != /proc/$inside ] && echo "${one#/proc/}"; done; true'
        )
        first = self.machine.run("sh", "-c", script, program).stdout.split()
        self.machine.run("kill", "-KILL", *first)

    def log(self, program: str) -> Path:
        return self._logs / f"{self.node.name}-{program}.log"

    def check(self) -> None:
        """Raises TestbedError when a program has ended by itself."""
        for program, process in self._running.items():
            if process.poll() is not None:
                raise TestbedError(f"{program} of {self.node.name} ended:\n{self.log(program).read_text()[-3000:]}")


def put_network(machine: Host, network: Mapping[str, Any]) -> None:
    """The reference plugins, and a network that runtimes find."""
    for name in (BIN, CONF):
        machine.path(name).mkdir(parents=True, exist_ok=True)
    for program in peers.programs():
        if program not in ("cnitool", "sequence"):
            shutil.copy(peers.ensure() / program, machine.path(f"{BIN}/{program}"))
    machine.path(f"{CONF}/10-cluster.conflist").write_text(json.dumps(network, indent=2))


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0
