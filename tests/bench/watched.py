"""What a helper takes from the API server, in bytes on the wire: a sample, and what a large cluster makes of it.

A real API server stands at the testbed's router, and holds nodes, Services, EndpointSlices and Pods as they are in
clusters, with all that servers add to them. Helpers follow it with the accounts and roles of an installation, and the
counters of their nodes' uplinks say what came: TLS and TCP included. Nothing else passes there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from conformance.api.cluster_api import ClusterApi, control_at_router
from tests.bench.figures import Figure, alone
from tests.bench.progress import Tell
from tests.testbed.cluster import Cluster, NodeSpec
from tests.testbed.host import Host
from tests.testbed.scene import Helper, Scene

NODES, SERVICES, ENDPOINTS = 500, 2000, 5
"""The cluster for which is estimated; a tenth of the Services is annotated."""
SHARE = 20
"""The sample is one of so many parts of it."""
FIGURES: Mapping[str, str] = {
    "watched-ingress": f"what an ingress helper reads at its start with {NODES} nodes, {SERVICES:,} Services",
    "watched-node": "the same of a node helper",
    "watched-ingress-change": "what an ingress helper hears when an endpoint is no longer ready, or again",
    "watched-node-change": "the same of a node helper",
    "watched-ingress-quiet": "what an ingress helper hears while nothing changes",
    "watched-node-quiet": "the same of a node helper",
}
ROLES = {"ingress": "ingress1", "node": "worker1"}


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """Two rounds, each from a start of both helpers; few runs make a small sample."""
    services, quiet = (SERVICES // SHARE, 60.0) if runs >= 50 else (4, 0.2)
    samples: dict[str, list[float]] = {name: [] for name in FIGURES}
    with ExitStack() as stack:

        def api(cluster: Cluster) -> ClusterApi:
            control = control_at_router(cluster, stack)
            tell(f"a cluster with {services} Services in a real API server")
            for part in _parts(services):
                control.apply(*part)
            weights = [_node(number, status=True) for number in range(_nodes(services))]
            control.kubectl("apply", "--server-side", "--subresource=status", "-f", "-", objects=weights)
            return ClusterApi(control)

        nodes = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
        scene = stack.enter_context(Scene(nodes, helpers=False, objects=api))
        assert isinstance(scene.objects, ClusterApi)
        for _ in range(2):
            for role, node in ROLES.items():
                tell(f"a helper with role {role}")
                host = scene.cluster.nodes[node].host
                before = _received(host)
                options = [*scene.objects.options, *scene.objects.account(role), f"--roles={role}"]
                helper = Helper(scene, node, options, name=f"{node}-{role}")
                scene.wait(helper.synced, f"the helper with role {role}")
                _rest(host)
                read = (_received(host) - before) / 2**20
                samples[f"watched-{role}"].append(read * SERVICES / services)
                before = _received(host)
                scene.objects.control.apply(*[_slice(number, away=1) for number in range(services)])
                _rest(host)
                samples[f"watched-{role}-change"].append((_received(host) - before) / services)
                before, began = _received(host), time.monotonic()
                time.sleep(quiet)
                samples[f"watched-{role}-quiet"].append((_received(host) - before) / (time.monotonic() - began))
                scene.objects.control.apply(*[_slice(number, away=-1) for number in range(services)])
                helper.stop()
    for name in wanted:
        unit = "B" if name.endswith("change") else "B/s" if name.endswith("quiet") else "MiB"
        yield alone(name, unit, samples[name])


def _received(host: Host) -> int:
    return int(host.run("cat", "/sys/class/net/eth0/statistics/rx_bytes").stdout)


def _rest(host: Host, seconds: float = 3.0) -> None:
    """Until hardly anything has come for some time."""
    before = _received(host)
    while True:
        time.sleep(seconds)
        now = _received(host)
        if now - before < 10_000:
            return
        before = now


def _parts(services: int) -> Iterator[list[dict[str, Any]]]:
    """All objects, some hundred at a time."""
    things = [thing for number in range(services) for thing in _of_service(number)]
    things += [_node(number) for number in range(_nodes(services))]
    for begin in range(0, len(things), 200):
        yield things[begin : begin + 200]


def _nodes(services: int) -> int:
    return max(1, services * NODES // SERVICES)


def _of_service(number: int) -> Iterator[dict[str, Any]]:
    annotations = {"meta.helm.sh/release-name": f"shop-{number}", "meta.helm.sh/release-namespace": "default"}
    if number % 10 == 0:
        annotations["cmd.nu/tunnel"] = f"198.51.100.{number // 10 + 1},2001:db8::{number // 10 + 1:x}"
    labels = {"app.kubernetes.io/name": f"shop-{number}", "app.kubernetes.io/managed-by": "Helm"}
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "metrics", "port": 9090, "targetPort": 9090}]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": f"shop-{number}",
            "namespace": "default",
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {"selector": labels, "ports": ports},
    }
    yield _slice(number, away=-1)


def _slice(number: int, away: int) -> dict[str, Any]:
    """The endpoints of a Service, of which one may be not ready."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"shop-{number}-x7k2p",
            "namespace": "default",
            "labels": {
                "kubernetes.io/service-name": f"shop-{number}",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "app.kubernetes.io/name": f"shop-{number}",
            },
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "metrics", "port": 9090, "protocol": "TCP"},
        ],
        "endpoints": [
            {
                "addresses": [f"10.{100 + number // 250}.{number % 250}.{endpoint + 1}"],
                "conditions": {"ready": endpoint != away, "serving": endpoint != away, "terminating": False},
                "nodeName": f"node-{number % 25}",
                "zone": "zone-a",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "default",
                    "name": f"shop-{number}-5d4f8c7b9-x{endpoint}k2p",
                    "uid": f"0b7f3c52-8a64-4c1e-9d0b-{number:06d}{endpoint:06d}",
                },
            }
            for endpoint in range(ENDPOINTS)
        ],
    }


def _node(number: int, status: bool = False) -> dict[str, Any]:
    """With labels as nodes have them; most of a Node's weight is its status, which is applied by itself."""
    name = f"node-{number}"
    labels = {f"topology.kubernetes.io/{what}": "zone-a" for what in ("zone", "region")}
    labels |= {f"kubernetes.io/{what}": name for what in ("hostname", "os", "arch")}
    labels |= {f"feature.node.kubernetes.io/cpu-cpuid.{feature}": "true" for feature in range(20)}
    node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    if not status:
        cidr = f"10.{number // 250}.{number % 250}.0/24"
        return {**node, "metadata": {"name": name, "labels": labels}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}
    images = [{"names": [f"example.com/shop/image-{n}:1.{n}.0"], "sizeBytes": 12_345_678 + n} for n in range(50)]
    return {**node, "status": {"images": images, "addresses": [{"type": "Hostname", "address": name}]}}
