"""Pods that ran before the project was installed. The first module: the adoption is of a fresh installation."""

from __future__ import annotations

from typing import Any

from conformance.cluster.conftest import EARLY_VIPS
from conformance.cluster.objects import PORT
from conformance.cluster.stage import NAMESPACE, Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT


def test_pods_that_were_there_before_get_their_vips(stage: Stage, early: dict[str, dict[str, Any]], node: str) -> None:
    """By themselves and without a restart, whatever the node's libcni notes of them."""
    before = early[node]
    name = before["metadata"]["name"]
    stage.wait(lambda: has(stage, name), f"{name} has its VIPs")
    said = adopt(stage, node)
    assert f"default/{name}: has a record already" in said and "0 adopted" in said
    assert stage.own_pods("node")[node] not in said, "it is on the node's network"
    (after,) = (pod for pod in stage.pods("app=early") if pod["metadata"]["name"] == name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]


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
