"""The objects of a cluster, as users and Kubernetes' own parts would write them: into a folder of YAML, or elsewhere.

Plays the parts of kubectl (Services), of the kubelet (Pods, Nodes) and of the endpoint slice controller
(EndpointSlices).
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from tests.testbed.cluster import Cluster, Node
from tests.testbed.cni import Pod

Object = dict[str, Any]

NAMESPACED = ("Service", "EndpointSlice", "Pod")
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def service_port(port: int, target: int | str | None = None, protocol: str = "TCP", name: str = "") -> Object:
    """An entry of `spec.ports`; without a target it is the same port."""
    named = name or f"{protocol.lower()}-{port}"
    return {"name": named, "protocol": protocol, "port": port, "targetPort": port if target is None else target}


BOTH_8080 = (service_port(8080), service_port(8080, protocol="UDP"))
"""The ports of the testbed's server, TCP and UDP."""


Key = tuple[str, str, str]
"""Kind, namespace, name."""


class ClusterObjects(ABC):
    """The objects as last applied, and where helpers find them."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._clock = datetime(2030, 1, 1, tzinfo=UTC)

    @property
    @abstractmethod
    def options(self) -> Sequence[str]:
        """Flags of `service-tunnel-helper run` that name this source."""

    @abstractmethod
    def _publish(self, key: Key, thing: Object) -> None:
        """Has helpers see an object that is new or another."""

    @abstractmethod
    def _retract(self, key: Key) -> None:
        """Has helpers see an object no more."""

    def apply(self, thing: Object) -> None:
        """Write any object; what it replaces hands down uid and creationTimestamp, as the API server does."""
        metadata = thing["metadata"]
        if thing["kind"] in NAMESPACED:
            metadata.setdefault("namespace", "default")
        key = (thing["kind"], metadata.get("namespace", ""), metadata["name"])
        before = self._objects.get(key, {"metadata": {}})["metadata"]
        if not before:
            self._clock += timedelta(seconds=1)
        metadata.setdefault("uid", before.get("uid", str(uuid.uuid4())))
        metadata.setdefault("creationTimestamp", before.get("creationTimestamp", f"{self._clock:%Y-%m-%dT%H:%M:%SZ}"))
        if self._objects.get(key) != thing:
            self._objects[key] = thing
            self._publish(key, thing)

    def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object and, with a Service, its EndpointSlices."""
        key = (kind, namespace if kind in NAMESPACED else "", name)
        del self._objects[key]
        self._retract(key)
        if kind == "Service":
            for suffix in ("ipv4", "ipv6"):
                if ("EndpointSlice", namespace, f"{name}-{suffix}") in self._objects:
                    self.remove("EndpointSlice", f"{name}-{suffix}", namespace)

    def all_keys(self) -> list[Key]:
        """(kind, namespace, name) of every object."""
        return list(self._objects)

    def service(self, name: str, namespace: str = "default") -> Object:
        """The Service as last applied."""
        return self._objects["Service", namespace, name]

    def apply_service(
        self,
        name: str,
        annotations: Mapping[str, str] | None = None,
        selector: Mapping[str, str] | None = None,
        ports: Sequence[Object] = BOTH_8080,
        *,
        namespace: str = "default",
        **spec: Any,
    ) -> None:
        """Create or replace a Service; `spec` has what else is to be in its spec (sessionAffinity, …)."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations or {})},
                "spec": {"selector": dict(selector or {"app": name}), "ports": [dict(port) for port in ports], **spec},
            }
        )

    def annotate(self, name: str, annotations: Mapping[str, str | None], namespace: str = "default") -> None:
        """Change annotations of a Service, as `kubectl annotate --overwrite`; None removes one."""
        before = self.service(name, namespace)
        wanted = {**before["metadata"]["annotations"], **annotations}
        kept = {key: value for key, value in wanted.items() if value is not None}
        self.apply({**before, "metadata": {**before["metadata"], "annotations": kept}})

    def apply_node(self, node: Node, **spec: Any) -> None:
        """`spec`: further fields of the Node's spec, as `unschedulable`."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name, "labels": dict(node.labels)},
                "spec": {
                    "podCIDR": str(node.pod_cidrs[0]),
                    "podCIDRs": [str(cidr) for cidr in node.pod_cidrs],
                    **spec,
                },
                "status": {
                    "addresses": [{"type": "InternalIP", "address": address} for address in node.addresses.values()]
                    + [{"type": "Hostname", "address": node.name}],
                },
            }
        )

    def apply_pod(self, pod: Pod) -> None:
        ports = [{"name": name, "containerPort": number} for name, number in pod.ports.items()]
        metadata: Object = {
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "labels": dict(pod.labels),
            "annotations": dict(pod.annotations),
        }
        if pod.terminating:
            metadata["deletionTimestamp"] = "2030-01-02T00:00:00Z"
        addresses = [str(address) for address in pod.ips]
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": {"nodeName": pod.node, "containers": [{"name": "server", "ports": ports}]},
                "status": {
                    "phase": "Running" if addresses else "Pending",
                    "podIPs": [{"ip": address} for address in addresses],
                },
            }
        )

    def sync(self, cluster: Cluster) -> None:
        """Write all Nodes and Pods of the testbed, remove Pods that are gone, and bring all endpoints up to date."""
        for node in cluster.nodes.values():
            self.apply_node(node)
        for pod in cluster.pods:
            self.apply_pod(pod)
        living = {(pod.namespace, pod.name) for pod in cluster.pods}
        for kind, namespace, name in list(self._objects):
            if kind == "Pod" and (namespace, name) not in living:
                self.remove("Pod", name, namespace)
        for kind, namespace, name in list(self._objects):
            if kind == "Service":
                self.sync_endpoints(name, cluster.pods, namespace)

    def sync_endpoints(self, service: str, pods: Iterable[Pod], namespace: str = "default") -> None:
        """The Service's EndpointSlices, one for each IP version, from those of the pods that it selects."""
        owner = self.service(service, namespace)
        selector = owner["spec"]["selector"].items()
        chosen = [pod for pod in pods if pod.namespace == namespace and selector <= pod.labels.items()]
        for version in (4, 6):
            self.apply(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{service}-ipv{version}",
                        "namespace": namespace,
                        "labels": {"kubernetes.io/service-name": service},
                    },
                    "addressType": f"IPv{version}",
                    "ports": [_slice_port(port, chosen) for port in owner["spec"]["ports"]],
                    "endpoints": [_endpoint(pod, version, owner) for pod in chosen if _has(pod, version)],
                }
            )


class ClusterFolder(ClusterObjects):
    """The folder that helpers read with `run --manifests`: each object a file, so a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def options(self) -> Sequence[str]:
        return ("--manifests", str(self.folder))

    def write(self, name: str, text: str) -> None:
        """Write any text, also such as no object is made of."""
        temporary = self.folder / f".{name}.new"
        temporary.write_text(text)
        os.replace(temporary, self.folder / name)

    def _publish(self, key: Key, thing: Object) -> None:
        self.write(_file(key), yaml.dump(thing, Dumper=_Dumper, sort_keys=False))

    def _retract(self, key: Key) -> None:
        (self.folder / _file(key)).unlink()


def _file(key: Key) -> str:
    return "-".join(part for part in key if part).lower() + ".yaml"


def _has(pod: Pod, version: int) -> bool:
    return any(address.version == version for address in pod.ips)


def _slice_port(port: Mapping[str, Any], pods: Sequence[Pod]) -> Object:
    target = port["targetPort"]
    # The controller makes a slice for each number that a name stands for; here all pods agree on it.
    numbers = {pod.ports[target] for pod in pods} if isinstance(target, str) else {target}
    number = numbers.pop() if numbers else None
    return {"name": port["name"], "protocol": port["protocol"], "port": number}


def _endpoint(pod: Pod, version: int, service: Object) -> Object:
    ready = pod.ready and not pod.terminating
    return {
        "addresses": [pod.address(version)],
        "conditions": {
            "ready": ready or bool(service["spec"].get("publishNotReadyAddresses")),
            "serving": pod.ready,
            "terminating": pod.terminating,
        },
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
    }
