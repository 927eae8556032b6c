"""One cluster for all tests of this folder, from before the project's installation to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.cluster.objects import one_per_node, server, service, workload
from conformance.cluster.stage import KINDS, NODES, Stage

LIMIT = 900
"""Seconds for one test; the first builds the cluster."""
EARLY_VIPS = ("198.51.100.5", "2001:db8::5")
WEB_VIPS = ("198.51.100.1", "2001:db8::1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A fresh installation first, the uninstallation last."""
    items.sort(key=lambda item: {"test_adoption.py": -1, "test_uninstall.py": 1}.get(item.path.name, 0))
    for item in items:
        if "stage" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(LIMIT))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `node` runs on each: they differ in runtime, network and kube-proxy."""
    if "node" in metafunc.fixturenames:
        names = [spec.name for spec in NODES]
        metafunc.parametrize("node", names, ids=[f"{name}: {KINDS[name].runtime.__name__}" for name in names])


@pytest.fixture(scope="session")
def bare(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A cluster in which nobody knows of the project; pods with an annotated Service run in it already."""
    if os.geteuid() != 0:
        pytest.fail("conformance/cluster needs root: it makes namespaces of all kinds. Run it as root.", pytrace=False)
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)

    with Stage(say) as stage:
        early = workload("Deployment", "early", one_per_node("early", server()), replicas=len(NODES))
        stage.control.apply(service("early", EARLY_VIPS), early)
        stage.rolled_out("deployment/early")
        stage.tell("pods run")
        yield stage


@pytest.fixture(scope="session")
def early(bare: Stage) -> dict[str, dict[str, Any]]:
    """The pods that were there before the installation, by node."""
    return {pod["spec"]["nodeName"]: pod for pod in bare.pods("app=early")}


@pytest.fixture(scope="session")
def stage(bare: Stage, early: dict[str, dict[str, Any]]) -> Stage:
    """The cluster with the project installed, and VIPs announced to the router."""
    bare.install()
    for vip in (*EARLY_VIPS, *WEB_VIPS):
        bare.machines.announce(vip)
    return bare


@pytest.fixture(scope="session")
def web(stage: Stage) -> Stage:
    """With a Deployment behind an annotated Service, a pod on each node."""
    spec = one_per_node("web", server(WEB_VIPS, grace=10))
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    stage.control.apply(
        service("web", WEB_VIPS), workload("Deployment", "web", spec, replicas=len(NODES), strategy=rolling)
    )
    stage.rolled_out("deployment/web")
    stage.tell("a Deployment runs")
    return stage
