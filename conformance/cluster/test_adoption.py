"""Pods that ran before the project was installed. The first module: the adoption is of a fresh installation."""

from __future__ import annotations

from typing import Any

from conformance.cluster.conftest import EARLY_VIPS
from conformance.cluster.objects import PORT
from conformance.cluster.stage import NAMESPACE, Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT


def test_pods_that_were_there_before_get_their_vips_without_a_restart(
    stage: Stage, early: dict[str, dict[str, Any]], node: str
) -> None:
    before = early[node]
    name = before["metadata"]["name"]
    helper = stage.own_pods("node")[node]
    said = stage.exec(helper, "service-tunnel-helper", "adopt", container="helper", namespace=NAMESPACE)
    stage.wait(lambda: has(stage, name), f"{name} has its VIPs; adopt said:\n{said}")
    (after,) = (pod for pod in stage.pods("app=early") if pod["metadata"]["name"] == name)
    for found in (before, after):
        assert [one["restartCount"] for one in found["status"]["containerStatuses"]] == [0]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    for version, vip in zip((4, 6), EARLY_VIPS, strict=True):
        # The other pods may not have been taken on yet: flows are tried until this one answers.
        stage.wait(lambda version=version, vip=vip: answers(stage, version, vip, name), f"{name} answers {vip}")  # type: ignore[misc]


def has(stage: Stage, name: str) -> bool:
    shown = stage.exec(name, "ip", "addr", "show", "dev", "lo")
    return all(f" {vip}/" in shown for vip in EARLY_VIPS)


def answers(stage: Stage, version: int, vip: str, name: str) -> bool:
    for source in stage.machines.client_addresses(version, 30):
        try:
            if stage.machines.client.call(traffic.ask_tcp, vip, PORT, source=source, timeout=0.3).name == name:
                return True
        except (traffic.NoAnswer, ConnectionError):
            continue
    return False


def test_each_of_them_sees_the_client_itself(stage: Stage, early: dict[str, dict[str, Any]]) -> None:
    names = {pod["metadata"]["name"] for pod in early.values()}
    for version, vip in zip((4, 6), EARLY_VIPS, strict=True):
        flows = stage.machines.client_flows(version, 90)
        assert set(stage.machines.client.call(traffic.tcp_flows, vip, PORT, flows).values()) == names
        assert stage.machines.client.call(traffic.ask_tcp, vip, PORT).client == CLIENT[version]
