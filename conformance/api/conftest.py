"""One control plane for all tests of this folder, without what a test before left in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance import peers
from conformance.api.cluster_api import install
from conformance.api.control_plane import ControlPlane

LEFT_BEHIND = ("services", "endpointslices", "pods", "nodes", "events")


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
