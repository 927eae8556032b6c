"""Pods that ran before the project was installed. The first module: the adoption is of a fresh installation."""

from __future__ import annotations

from typing import Any

from conformance.cluster.conftest import EARLY_VIPS
from conformance.cluster.objects import PORT
from conformance.cluster.runtimes import containerd_1_6
from conformance.cluster.stage import KINDS, NAMESPACE, Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT


def test_pods_that_were_there_before_get_their_vips(stage: Stage, early: dict[str, dict[str, Any]], node: str) -> None:
    """Without a restart, but for a runtime whose libcni does not note the network namespace, which is said."""
    before = early[node]
    name = before["metadata"]["name"]
    said = adopt(stage, node)
    if KINDS[node].runtime is containerd_1_6:
        assert "this runtime's libcni does not note the network namespace: restart the pod" in said
        assert not has(stage, name)
        stage.kubectl("delete", "pod", name)
        stage.rolled_out("deployment/early")
        (new,) = (pod["metadata"]["name"] for pod in stage.pods("app=early") if pod["spec"]["nodeName"] == node)
        assert has(stage, new)
    else:
        stage.wait(lambda: has(stage, name), f"{name} has its VIPs; adopt said:\n{said}")
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
