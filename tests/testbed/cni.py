"""Pods made by a real chain of CNI plugins.

A stand-in for libcni and the container runtime above it: it finds the plugins' binaries, runs them in
order with the environment and standard input that libcni gives them, hands each the result of the one
before, and keeps the last result in libcni's own cache format for CHECK and DEL. The plugins are real.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import Any

from tests.testbed import holder
from tests.testbed.host import Host
from tests.testbed.namespaces import (
    CLONE_NEWNET,
    REPOSITORY,
    TestbedError,
    bind_mount,
    unmount,
    unshare,
    write_sysctls,
)

REFERENCE_PLUGINS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins puts its binaries."""
RESULTS = "/var/lib/cni/results"
"""libcni's cache of results."""

Conflist = Mapping[str, Any]
"""A network configuration list, as in /etc/cni/net.d/*.conflist."""


class PluginFailed(TestbedError):
    """A plugin reported an error; `code` is the CNI error code, 0 if it wrote none."""

    def __init__(self, plugin: str, verb: str, code: int, message: str) -> None:
        self.plugin = plugin
        self.verb = verb
        self.code = code
        super().__init__(f"{verb} of {plugin} failed with code {code}: {message}")


def plugin_binary() -> Path:
    """The plugin under test: SERVICE_TUNNEL_BINARY, else what `make plugin` builds."""
    return Path(os.environ.get("SERVICE_TUNNEL_BINARY", REPOSITORY / "dist/service-tunnel/service-tunnel"))


def ptp_chain(
    pod_cidrs: Sequence[object], *, mtu: int = 0, further: Sequence[Mapping[str, Any]] = (), version: str = "1.0.0"
) -> Conflist:
    """Each pod by a veth of its own, routed by the node. `further` plugins come after the reference ones."""
    main: dict[str, Any] = {"type": "ptp", "ipam": _host_local(pod_cidrs)}
    return _chain({**main, "mtu": mtu} if mtu else main, further, version)


def bridge_chain(
    pod_cidrs: Sequence[object], *, mtu: int = 0, further: Sequence[Mapping[str, Any]] = (), version: str = "1.0.0"
) -> Conflist:
    """The pods of a node on one bridge, cni0."""
    main: dict[str, Any] = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": _host_local(pod_cidrs)}
    return _chain({**main, "mtu": mtu} if mtu else main, further, version)


def _host_local(pod_cidrs: Sequence[object]) -> dict[str, Any]:
    return {
        "type": "host-local",
        "ranges": [[{"subnet": str(cidr)}] for cidr in pod_cidrs],
        "routes": [{"dst": "::/0" if ":" in str(cidr) else "0.0.0.0/0"} for cidr in pod_cidrs],
    }


def _chain(main: Mapping[str, Any], further: Sequence[Mapping[str, Any]], version: str) -> Conflist:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [main, {"type": "tuning"}, portmap, *further]
    return {"cniVersion": version, "name": "testbed", "plugins": plugins}


@dataclass(frozen=True)
class Attachment:
    """What libcni calls RuntimeConf: one interface of one container."""

    container: str
    netns: str
    """Path on the node."""
    interface: str = "eth0"
    arguments: Mapping[str, str] = field(default_factory=dict)
    """CNI_ARGS."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Values by capability, given as runtimeConfig to the plugins that declare the capability."""


class CniRuntime:
    """Runs chains on one host, as libcni's AddNetworkList, CheckNetworkList and DelNetworkList do."""

    def __init__(self, host: Host, folders: Sequence[str] | None = None) -> None:
        self._host = host
        self.folders = list(folders or [REFERENCE_PLUGINS, str(plugin_binary().parent)])
        """Where binaries are looked for, in this order."""

    def add(self, chain: Conflist, attachment: Attachment) -> dict[str, Any]:
        """ADD of all plugins; returns the last one's result.

        At the first failure it runs DEL of the whole chain, as container runtimes do, and raises PluginFailed.
        """
        result: dict[str, Any] | None = None
        try:
            for plugin in chain["plugins"]:
                result = self.run("ADD", chain, plugin, attachment, result)
        except PluginFailed:
            self.delete(chain, attachment)
            raise
        assert result is not None
        self._remember(chain, attachment, result)
        return result

    def check(self, chain: Conflist, attachment: Attachment) -> None:
        """CHECK of all plugins against the result of ADD; raises PluginFailed."""
        result = self._remembered(chain, attachment)
        for plugin in chain["plugins"]:
            self.run("CHECK", chain, plugin, attachment, result)

    def delete(self, chain: Conflist, attachment: Attachment) -> None:
        """DEL of all plugins in reverse order; an error ends it, as in libcni, and raises PluginFailed."""
        result = self._remembered(chain, attachment)
        for plugin in reversed(chain["plugins"]):
            self.run("DEL", chain, plugin, attachment, result)
        self._cache(chain, attachment).unlink(missing_ok=True)

    def run(
        self,
        verb: str,
        chain: Conflist,
        plugin: Mapping[str, Any],
        attachment: Attachment,
        result: Mapping[str, Any] | None,
    ) -> dict[str, Any] | None:
        """One verb of one plugin; returns what it printed. Raises PluginFailed."""
        config = {**plugin, "cniVersion": chain["cniVersion"], "name": chain["name"]}
        if result is not None:
            config["prevResult"] = result
        declared = plugin.get("capabilities", {})
        offered = {key: value for key, value in attachment.capabilities.items() if declared.get(key)}
        if offered:
            config["runtimeConfig"] = offered
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.netns,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.arguments.items()),
            "CNI_IFNAME": attachment.interface,
            "CNI_PATH": os.pathsep.join(self.folders),
        }
        name = plugin["type"]
        done = self._host.run(self._binary(name), input=json.dumps(config), env=environment, check=False)
        if done.returncode:
            code, message = _error(done.stdout)
            raise PluginFailed(name, verb, code, (message or done.stdout) + done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _binary(self, name: str) -> str:
        for folder in self.folders:
            if os.access(Path(folder, name), os.X_OK):
                return str(Path(folder, name).resolve())
        raise TestbedError(
            f"no CNI plugin {name} in {' or '.join(self.folders)}: `make plugin` builds service-tunnel, the "
            "others are in Debian's package containernetworking-plugins"
        )

    def _cache(self, chain: Conflist, attachment: Attachment) -> Path:
        name = f"{chain['name']}-{attachment.container}-{attachment.interface}"
        return self._host.path(f"{RESULTS}/{name}")

    def _remember(self, chain: Conflist, attachment: Attachment, result: Mapping[str, Any]) -> None:
        cache = self._cache(chain, attachment)
        cache.parent.mkdir(parents=True, exist_ok=True)
        entry = {
            "kind": "cniCacheV1",
            "containerId": attachment.container,
            "config": base64.b64encode(json.dumps(chain).encode()).decode(),
            "ifName": attachment.interface,
            "networkName": chain["name"],
            "netns": attachment.netns,
            "cniArgs": [list(item) for item in attachment.arguments.items()],
            "capabilityArgs": dict(attachment.capabilities),
            "result": result,
        }
        cache.write_text(json.dumps(entry))

    def _remembered(self, chain: Conflist, attachment: Attachment) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] = json.loads(self._cache(chain, attachment).read_text())["result"]
        except FileNotFoundError:
            return None
        return result


def _error(stdout: str) -> tuple[int, str]:
    """CNI error code and text from what a failed plugin printed."""
    try:
        told = json.loads(stdout)
        return int(told["code"]), f"{told.get('msg', '')} {told.get('details', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return 0, ""


class Pod:
    """A pod: its network namespace, its addresses, and what Kubernetes would say of it."""

    def __init__(
        self, name: str, namespace: str, labels: Mapping[str, str], annotations: Mapping[str, str], node: str
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.labels = dict(labels)
        self.annotations = dict(annotations)
        self.node = node
        self.uid = str(uuid.uuid4())
        self.ports: dict[str, int] = {}
        """containerPort by name."""
        self.ready = True
        self.terminating = False
        self.attachment = Attachment(
            container=uuid.uuid4().hex,
            netns=f"/run/netns/{name}",
            arguments={
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": namespace,
                "K8S_POD_NAME": name,
                "K8S_POD_UID": self.uid,
            },
            capabilities={"io.kubernetes.cri.pod-annotations": self.annotations},
        )
        arguments = {**self.attachment.arguments, "K8S_POD_INFRA_CONTAINER_ID": self.attachment.container}
        self.attachment = replace(self.attachment, arguments=arguments)
        self.result: dict[str, Any] = {}
        """What the chain's ADD returned."""

    def start(self, host: Host, runtime: CniRuntime, chain: Conflist, sysctls: Mapping[str, str | int]) -> None:
        """Make the network namespace and run the chain's ADD; raises PluginFailed, and leaves nothing then."""
        self._host, self._runtime, self.chain = host, runtime, chain
        self.place = host.place(self.name, self.attachment.netns)
        host.call(_make_namespace, self.attachment.netns, sysctls, mounts=True)
        try:
            self.result = runtime.add(chain, self.attachment)
        except BaseException:
            host.call(_remove_namespace, self.attachment.netns, mounts=True)
            raise

    def check(self) -> None:
        """The chain's CHECK; raises PluginFailed."""
        self._runtime.check(self.chain, self.attachment)

    def stop(self) -> None:
        """End the pod's processes, run the chain's DEL and remove the network namespace."""
        self.place.stop_processes()
        self._runtime.delete(self.chain, self.attachment)
        self._host.call(_remove_namespace, self.attachment.netns, mounts=True)

    @property
    def ips(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The addresses that the chain gave, IPv4 first; none before its ADD."""
        found = [ip_interface(entry["address"]).ip for entry in self.result.get("ips", ())]
        return tuple(sorted(found, key=lambda address: address.version))

    @property
    def ipv4(self) -> str:
        return next(str(address) for address in self.ips if address.version == 4)

    @property
    def ipv6(self) -> str:
        return next(str(address) for address in self.ips if address.version == 6)

    def address(self, version: int) -> str:
        return self.ipv6 if version == 6 else self.ipv4

    @property
    def host_device(self) -> str:
        """Name of the pod's veth on the node."""
        names: list[str] = [entry["name"] for entry in self.result["interfaces"] if not entry.get("sandbox")]
        return next(name for name in names if name.startswith("veth"))


def _make_namespace(path: str, sysctls: Mapping[str, str | int]) -> None:
    """As container runtimes do: a fresh network namespace, kept by a bind mount."""
    unshare(CLONE_NEWNET)
    holder.loopback_up()
    write_sysctls(sysctls)
    Path(path).touch()
    bind_mount("/proc/self/ns/net", path)


def _remove_namespace(path: str) -> None:
    unmount(path)
    Path(path).unlink()
