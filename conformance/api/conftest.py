"""One control plane for all tests of this folder, without what a test before left in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conformance import peers
from conformance.api.control_plane import ControlPlane

PROJECT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = ("services", "endpointslices", "pods", "nodes", "events")


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


@pytest.fixture(scope="session")
def running() -> Iterator[ControlPlane]:
    with ControlPlane(peers.ensure(peers.ETCD), peers.ensure(peers.KUBERNETES)) as control:
        install(control)
        yield control


@pytest.fixture
def control(running: ControlPlane) -> ControlPlane:
    for kind in LEFT_BEHIND:
        everything = ("delete", kind, "--all", "--force", "--grace-period=0", "--ignore-not-found")
        running.kubectl(*everything, "--namespace=default")
    return running
