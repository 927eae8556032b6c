"""Kubernetes objects of the tests: an annotated Service and the workloads behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conformance.cluster.images import SERVER, SMALL

Object = dict[str, Any]
PORT, TARGET_PORT = 80, 8080
"""Different, so that ports are rewritten in pods."""
AWAY = "/away"
"""A pod with this file says that it is not ready."""
HOSTNAME = "kubernetes.io/hostname"


def service(app: str, vips: Sequence[str], annotations: Mapping[str, str] | None = None, **spec: Any) -> Object:
    """A Service with VIPs; TCP and UDP."""
    ports = [
        {"name": name.lower(), "protocol": name, "port": PORT, "targetPort": TARGET_PORT} for name in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app, "annotations": {"cmd.nu/tunnel": ",".join(vips), **(annotations or {})}},
        "spec": {"selector": {"app": app}, "ports": ports, "ipFamilyPolicy": "RequireDualStack", **spec},
    }


def proof(vips: Sequence[str]) -> str:
    """A shell's command that fails where the pod has not all of that, now: VIPs on lo, and the decapsulation."""
    return " && ".join([*(f"ip addr show dev lo | grep -q ' {vip}/'" for vip in vips), "ip link show dev svctun-gpe"])


def server(vips: Sequence[str] = (), *, grace: int = 4) -> Object:
    """The spec of a pod with the testbed's server; with `vips` its first program is one that fails without them.

    `grace`: seconds between its removal from the endpoints and its end; a pod with 1 may lose requests meanwhile.
    """
    container: Object = {
        "name": "server",
        "image": SERVER,
        "command": ["python3", "-ISE", "/server.py", "--name=$(POD)", f"--port={TARGET_PORT}"],
        "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "startupProbe": {"tcpSocket": {"port": TARGET_PORT}, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"exec": {"command": ["test", "!", "-e", AWAY]}, "periodSeconds": 1, "timeoutSeconds": 10},
        "livenessProbe": {"tcpSocket": {"port": TARGET_PORT}, "periodSeconds": 2, "timeoutSeconds": 10},
    }
    if grace > 1:  # as everybody does who wants no request lost
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": grace - 1}}}
    first = {"name": "first", "image": SMALL, "command": ["sh", "-c", proof(vips)]}
    return {
        "terminationGracePeriodSeconds": grace,
        "initContainers": [first] if vips else [],
        "containers": [container],
    }


def waiting(command: str = "", **container: Any) -> Object:
    """The spec of a pod that waits, or runs a shell's command and ends."""
    chosen = {"command": ["sh", "-c", command]} if command else {}
    return {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "small", "image": SMALL, **chosen, **container}],
    }


def template(app: str, spec: Object) -> Object:
    return {"metadata": {"labels": {"app": app}}, "spec": spec}


def one_per_node(app: str, spec: Object) -> Object:
    """No two of its pods on one node."""
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": app}}}
    return {**spec, "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def on_node(node: str, spec: Object) -> Object:
    return {**spec, "nodeSelector": {HOSTNAME: node}}


def workload(kind: str, app: str, spec: Object, **fields: Any) -> Object:
    """A Deployment or a StatefulSet."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": app},
        "spec": {"selector": {"matchLabels": {"app": app}}, "template": template(app, spec), **fields},
    }


def job(app: str, spec: Object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": app},
        "spec": {"backoffLimit": 0, "template": template(app, {**spec, "restartPolicy": "Never"})},
    }


def pod(name: str, app: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}}, "spec": spec}
