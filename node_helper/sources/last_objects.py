"""The last known objects in the state folder: what a helper begins with where neither API server nor kernel has any.

The file is an ordinary List of Kubernetes objects, with the fields that count, and is read as a folder's manifests are:
nothing in it is trusted to be whole, or of this version.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from node_helper.model import Endpoint, Node, ObjectKey, Pod, Service, ServicePort, Snapshot
from node_helper.sources.kubernetes_objects import SERVICE_NAME, ObjectError, flatten, read_object, snapshot_of

SAVE_AFTER = 5.0
"""Seconds from a change until it is in the file, at most; what changes in between is written together."""
LONGEST_AGE = 86400.0
"""Seconds after which what the file says is too old to send anybody anywhere by it."""
REFRESH = 3600.0
"""Seconds after which the same objects are written again: they are known to be so still."""
_PLACE = Path(".service-tunnel") / "objects.json"
_LONGEST = 1 << 28
"""Bytes."""


class LastObjects:
    """One such file, kept up in threads of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / _PLACE
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._offered: Snapshot | None = None
        self._saved: Snapshot | None = None
        self._saved_at = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def offer(self, snapshot: Snapshot) -> None:
        """Has a snapshot saved, soon, if it is another than the last, or that is long ago.

        Not while the server is away: then it is older than it looks.
        """
        if any(problem.reason == "ApiUnreachable" for problem in snapshot.problems):
            return
        with self._lock:
            self._offered = snapshot
            if time.monotonic() - self._saved_at > REFRESH:
                self._saved = None
            if snapshot is not self._saved:
                self._save_soon()

    def _save_soon(self) -> None:
        """With the lock held."""
        if self._timer is None and not self._closed:
            self._timer = threading.Timer(SAVE_AFTER, self._save)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Saves what is not saved yet."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        self._save()

    def load(self) -> tuple[Snapshot, float] | None:
        """What was saved last, and its age in seconds; None where there is nothing that could be used."""
        try:
            age = time.time() - self.path.stat().st_mtime
            with self.path.open("rb") as file:
                text = file.read(_LONGEST)
            if age > LONGEST_AGE:
                return None
            found = [read_object(thing) for _, thing in flatten(json.loads(text))]
        except (OSError, ValueError, RecursionError, ObjectError):
            return None  # As good as none: the API server has all of it.
        return snapshot_of(thing for thing in found if thing is not None), max(age, 0.0)

    def _save(self) -> None:
        with self._saving:
            with self._lock:
                self._timer = None
                snapshot = self._offered
            if snapshot is None or snapshot is self._saved:
                return
            fresh = self.path.with_name(f".{self.path.name}.new")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": list(objects(snapshot))}))
                os.replace(fresh, self.path)
            except OSError:
                # Nobody is told: the file serves a start without the API server only.
                with self._lock:
                    self._save_soon()
                return
            with self._lock:
                self._saved, self._saved_at = snapshot, time.monotonic()


def objects(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The snapshot's objects as Kubernetes writes them; `read_object` gives the same again."""
    for node in snapshot.nodes.values():
        yield _node(node)
    for service in snapshot.services.values():
        yield _service(service)
    for key, endpoints in snapshot.endpoints.items():
        for version in (4, 6):
            yield _endpoint_slice(key, endpoints, version)
    for pod in snapshot.pods.values():
        yield _pod(pod)


def _metadata(key: ObjectKey, uid: str = "", **more: object) -> dict[str, object]:
    named = {"name": key.name, **({"namespace": key.namespace} if key.namespace else {}), "uid": uid}
    return {**named, **{name: value for name, value in more.items() if value}}


def _node(node: Node) -> dict[str, Any]:
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": _metadata(ObjectKey("", node.name), labels=dict(node.labels)),
        "spec": {"podCIDRs": list(map(str, node.pod_cidrs))},
        "status": {"addresses": [{"type": "InternalIP", "address": str(address)} for address in node.addresses]},
    }


def _service(service: Service) -> dict[str, Any]:
    annotations, created = dict(service.annotations), service.created
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": _metadata(service.key, service.uid, annotations=annotations, creationTimestamp=created),
        "spec": {
            "selector": dict(service.selector),
            "ports": list(map(_port, service.ports)),
            "sessionAffinity": "ClientIP" if service.client_ip_affinity else "None",
            "externalTrafficPolicy": "Local" if service.local_traffic_policy else "Cluster",
            "clusterIPs": list(map(str, service.cluster_ips)),
        },
    }


def _port(port: ServicePort) -> dict[str, object]:
    return {"name": port.name, "protocol": port.protocol.upper(), "port": port.port, "targetPort": port.target_port}


def _endpoint_slice(key: ObjectKey, endpoints: tuple[Endpoint, ...], version: int) -> dict[str, Any]:
    """One for each IP version; an endpoint of both is put together again by its pod."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": _metadata(ObjectKey(key.namespace, f"{key.name}-{version}"), labels={SERVICE_NAME: key.name}),
        "addressType": f"IPv{version}",
        "endpoints": [
            {
                "addresses": [str(address)],
                "nodeName": endpoint.node,
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                },
                **({"targetRef": _reference(endpoint.pod)} if endpoint.pod is not None else {}),
            }
            for endpoint in endpoints
            for address in endpoint.addresses
            if address.version == version
        ],
    }


def _reference(pod: ObjectKey) -> Mapping[str, str]:
    return {"kind": "Pod", "namespace": pod.namespace, "name": pod.name}


def _pod(pod: Pod) -> dict[str, Any]:
    named, annotations = dict(pod.labels), dict(pod.annotations)
    ending = "1970-01-01T00:00:00Z" if pod.terminating else ""
    ports = [{"name": name, "containerPort": port} for name, port in pod.ports.items()]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": _metadata(pod.key, pod.uid, labels=named, annotations=annotations, deletionTimestamp=ending),
        "spec": {"nodeName": pod.node, "hostNetwork": pod.host_network, "containers": [{"ports": ports}]},
        "status": {
            "podIPs": [{"ip": str(ip)} for ip in pod.ips],
            "phase": "Succeeded" if pod.finished else "Running",
        },
    }
