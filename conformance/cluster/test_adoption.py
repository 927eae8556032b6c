"""Pods that ran before the project was installed. The first module: the adoption is of a fresh installation."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.cluster.conftest import EARLY_VIPS
from conformance.cluster.objects import PORT
from conformance.cluster.stage import NAMESPACE, Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_pods_that_were_there_before_get_their_vips_without_a_restart(
    stage: Stage, early: dict[str, dict[str, Any]], node: str
) -> None:
    before = early[node]
    name = before["metadata"]["name"]
    said = adopt(stage, node)
    stage.wait(lambda: has(stage, name), f"{name} has its VIPs; adopt said:\n{said}")
    (after,) = (pod for pod in stage.pods("app=early") if pod["metadata"]["name"] == name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]


@pytest.mark.parametrize("node", ["node3"])
def test_where_the_runtime_does_not_note_namespaces_adopt_says_so_and_a_restart_helps(
    stage: Stage, early: dict[str, dict[str, Any]], node: str
) -> None:
    assert "this runtime's libcni does not note the network namespace: restart the pod" in adopt(stage, node)
    old = early[node]["metadata"]["name"]
    assert not has(stage, old)
    stage.kubectl("delete", "pod", old)
    stage.rolled_out("deployment/early")
    (new,) = (pod["metadata"]["name"] for pod in stage.pods("app=early") if pod["spec"]["nodeName"] == node)
    assert has(stage, new)


def adopt(stage: Stage, node: str) -> str:
    helper = stage.own_pods("node")[node]
    return stage.exec(helper, "service-tunnel-helper", "adopt", container="helper", namespace=NAMESPACE)


def has(stage: Stage, name: str) -> bool:
    shown = stage.exec(name, "ip", "addr", "show", "dev", "lo")
    return all(f" {vip}/" in shown for vip in EARLY_VIPS)


def test_each_of_them_answers_a_client_outside_and_sees_it(stage: Stage) -> None:
    names = {pod["metadata"]["name"] for pod in stage.pods("app=early")}
    for version, vip in zip((4, 6), EARLY_VIPS, strict=True):
        flows = stage.machines.client_flows(version, 90)
        assert set(stage.machines.client.call(traffic.tcp_flows, vip, PORT, flows).values()) == names
        assert stage.machines.client.call(traffic.ask_tcp, vip, PORT).client == CLIENT[version]
