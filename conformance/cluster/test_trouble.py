"""What is killed, and what is restarted: containers, sandboxes, kubelet, the runtime, a whole node."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.cluster.conftest import WEB_VIPS
from conformance.cluster.objects import on_node, pod, proof, waiting
from conformance.cluster.stage import NAMESPACE, Stage
from conformance.cluster.test_deployment import answering, names
from tests.testbed import traffic


def of_node(stage: Stage, node: str) -> dict[str, Any]:
    (found,) = (one for one in stage.pods("app=web") if one["spec"]["nodeName"] == node)
    return found


def restarts(one: dict[str, Any]) -> int:
    count: int = one["status"]["containerStatuses"][0]["restartCount"]
    return count


def all_answer(stage: Stage) -> None:
    stage.wait(lambda: len(stage.ready_pods("app=web")) == 3, "all pods are ready")
    for version in (4, 6):
        stage.wait(lambda version=version: answering_quietly(stage, version), "all answer")  # type: ignore[misc]


def answering_quietly(stage: Stage, version: int) -> bool:
    try:
        return answering(stage, version) == names(stage)
    except (traffic.NoAnswer, OSError):
        return False


def test_a_container_that_was_killed_is_back_in_the_same_namespace_and_answers(web: Stage, node: str) -> None:
    before = of_node(web, node)
    machine = web.services[node].machine
    (process,) = machine.run("pgrep", "-f", f"^python3 .*--name={before['metadata']['name']}").stdout.split()
    machine.run("kill", "-KILL", process)
    web.wait(lambda: restarts(of_node(web, node)) == restarts(before) + 1, "kubelet starts it again")
    assert of_node(web, node)["status"]["podIP"] == before["status"]["podIP"]
    all_answer(web)


def test_a_sandbox_that_was_killed_is_made_anew_with_its_vips(web: Stage, node: str) -> None:
    before = of_node(web, node)
    web.services[node].kill_sandbox(before["metadata"]["name"])
    web.wait(
        lambda: of_node(web, node)["status"].get("podIP") not in (None, before["status"]["podIP"]), "a new address"
    )
    after = of_node(web, node)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    all_answer(web)


@pytest.mark.parametrize("program", ["kubelet", "containerd", "kube-proxy"])
def test_pods_outlive_a_restart_and_others_can_be_made(web: Stage, node: str, program: str) -> None:
    before = of_node(web, node)
    web.services[node].restart(program)
    assert answering(web, 4) == names(web)  # meanwhile
    one_more = on_node(node, waiting(f"{proof(WEB_VIPS)} && sleep 3600"))
    web.control.apply(pod("more", "web", {**one_more, "restartPolicy": "Never"}))
    try:
        web.wait(lambda: phase(web, "more") == "Running", "another pod runs")
        after = next(one for one in web.pods("app=web") if one["metadata"]["name"] == before["metadata"]["name"])
        assert restarts(after) == restarts(before) and after["status"]["podIP"] == before["status"]["podIP"]
    finally:
        web.kubectl("delete", "pod", "more")
    all_answer(web)


def phase(stage: Stage, name: str) -> str:
    found: str = stage.control.get("pod", name)["status"]["phase"]
    assert found != "Failed"
    return found


def test_a_node_that_is_rebooted_has_everything_again(web: Stage, node: str) -> None:
    before, pod = web.boot(node), of_node(web, node)
    web.machines.reboot(node)
    web.services[node].start_everything()
    web.wait(lambda: web.boot(node) != before, "kubelet tells of another boot")
    web.wait(lambda: of_node(web, node)["status"].get("podIP") not in (None, pod["status"]["podIP"]), "a new sandbox")
    for vip in WEB_VIPS:  # routes over the link went with it
        web.machines.announce(vip)
    all_answer(web)
    assert of_node(web, node)["metadata"]["uid"] == pod["metadata"]["uid"]
    web.rolled_out("daemonset/node", NAMESPACE)
    web.rolled_out("daemonset/ingress", NAMESPACE)
