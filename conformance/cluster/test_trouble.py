"""Containers and sandboxes that are killed."""

from __future__ import annotations

from typing import Any

from conformance.cluster.stage import Stage
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
    web.services[node].kill_sandbox(f"^python3 .*--name={before['metadata']['name']}")
    web.wait(
        lambda: of_node(web, node)["status"].get("podIP") not in (None, before["status"]["podIP"]), "a new address"
    )
    after = of_node(web, node)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    all_answer(web)
