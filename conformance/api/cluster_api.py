"""The testbed's objects in a real API server, for helpers that follow it.

Nothing runs here but the API server: the testbed plays kubelet and endpoint slice controller as with a folder, so
pods have no containers that anyone would start, and their UIDs are the API server's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml

from conformance import peers
from conformance.api.control_plane import ControlPlane
from tests.testbed.cluster import Cluster
from tests.testbed.manifests import ClusterObjects, Key, Object

PROJECT = Path(__file__).resolve().parents[2]
_OF_THE_SERVER = ("uid", "creationTimestamp", "deletionTimestamp")
"""Metadata that a folder says itself."""


BOTH_ROLES = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "both-roles"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "service-tunnel-node"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "service-tunnel:nodes"}],
}


def install(control: ControlPlane) -> None:
    """Exactly the rights that an installation has; and an account with those of both roles, for `run` by hand."""
    control.apply(BOTH_ROLES)
    for name in ("rbac", "admission"):
        control.apply(*yaml.safe_load_all((PROJECT / "install" / "kubernetes" / "base" / f"{name}.yaml").read_text()))


def control_at_router(cluster: Cluster, stack: ExitStack) -> ControlPlane:
    """A control plane that every node of a testbed reaches, with the rights of an installation."""
    cluster.router.run("ip", "link", "set", "lo", "up")
    address = cluster.nodes["ingress1"].gateways[4]
    programs = peers.ensure(peers.ETCD), peers.ensure(peers.KUBERNETES)
    control = stack.enter_context(ControlPlane(*programs, cluster.router, address))
    install(control)
    return control


class ClusterApi(ClusterObjects):
    """Objects that are applied as kubectl does it, on the server's side."""

    def __init__(self, control: ControlPlane) -> None:
        super().__init__()
        self.control = control

    def stop_server(self) -> None:
        """As a crash does."""
        self.control.stop("kube-apiserver", kill=True)

    def start_server(self) -> None:
        self.control.start_api()

    @property
    def options(self) -> Sequence[str]:
        ranges = ("198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
        return (*self.account("both"), *(f"--vip-range={cidr}" for cidr in ranges))

    def account(self, name: str) -> Sequence[str]:
        """Makes a helper one of `control_plane.ACCOUNTS`."""
        return ("--kubeconfig", str(self.control.kubeconfig(name)))

    def _publish(self, key: Key, thing: Object) -> None:
        wanted = copy.deepcopy(thing)
        for name in _OF_THE_SERVER:
            wanted["metadata"].pop(name, None)
        for endpoint in wanted.get("endpoints", ()):
            endpoint["targetRef"].pop("uid", None)
        if wanted["kind"] == "Pod":
            wanted["spec"]["containers"] = [{**c, "image": "none"} for c in wanted["spec"]["containers"]]
        status = wanted.pop("status", None)
        if wanted["kind"] == "Node":
            wanted["spec"].pop("podCIDR")  # one of the list, which the server wants to be the first itself
        self.control.apply(wanted)
        if status is not None:
            # No server-side apply: a Node with two addresses of a type, as dual stack has, is too much for that.
            patch = ("--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}")
            self.control.kubectl("patch", *patch, *_named(key))

    def _retract(self, key: Key) -> None:
        self.control.kubectl("delete", *_named(key), "--force", "--grace-period=0")


def _named(key: Key) -> tuple[str, ...]:
    kind, namespace, name = key
    return (kind, name, *((f"--namespace={namespace}",) if namespace else ()))
