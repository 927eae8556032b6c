"""A Deployment behind an annotated Service: before its first instruction, from outside, scaled, rolled out."""

from __future__ import annotations

from itertools import cycle

import pytest

from conformance.cluster.conftest import WEB_VIPS
from conformance.cluster.objects import AWAY, PORT, proof
from conformance.cluster.stage import Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT

both_versions = pytest.mark.parametrize("version", [4, 6])
VIPS = dict(zip((4, 6), WEB_VIPS, strict=True))


def test_a_pod_has_vip_and_decapsulation_before_its_first_instruction(web: Stage, node: str) -> None:
    (pod,) = (pod for pod in web.pods("app=web") if pod["spec"]["nodeName"] == node)
    (first,) = pod["status"]["initContainerStatuses"]
    assert proof(WEB_VIPS) in pod["spec"]["initContainers"][0]["command"]
    assert first["restartCount"] == 0 and first["state"]["terminated"]["exitCode"] == 0


@both_versions
def test_a_client_outside_is_answered_by_every_pod_and_seen_as_itself(web: Stage, version: int) -> None:
    web.wait(lambda: answering(web, version) == names(web), "all answer")
    flows = web.machines.client_flows(version, 120)
    assert set(web.machines.client.call(traffic.udp_flows, VIPS[version], PORT, flows).values()) == names(web)
    assert web.machines.client.call(traffic.ask_tcp, VIPS[version], PORT).client == CLIENT[version]


def names(stage: Stage, app: str = "web") -> set[str]:
    return {pod["metadata"]["name"] for pod in stage.pods(f"app={app}")}


def answering(stage: Stage, version: int, count: int = 120) -> set[str]:
    """Which pods answer so many flows; none may stay without an answer."""
    flows = stage.machines.client_flows(version, count)
    return set(stage.machines.client.call(traffic.tcp_flows, VIPS[version], PORT, flows).values())


def test_kubelets_probes_reach_pods_that_have_tunnels(web: Stage) -> None:
    for pod in web.pods("app=web"):
        (server,) = pod["status"]["containerStatuses"]
        assert server["ready"] and server["restartCount"] == 0


def test_scaled_up_and_down_exactly_the_pods_that_are_there_answer(web: Stage) -> None:
    web.kubectl("scale", "deployment/web", "--replicas=2")
    web.wait(lambda: len(names(web)) == 2, "two pods are left")
    web.wait(lambda: answering(web, 4) == names(web), "they answer, and nobody else")
    assert answering(web, 6) == names(web)
    web.kubectl("scale", "deployment/web", "--replicas=3")
    web.rolled_out("deployment/web")
    web.wait(lambda: answering(web, 4) == names(web), "the new one answers, too")
    assert len(names(web)) == 3 and answering(web, 6) == names(web)


def test_no_request_is_lost_in_a_rollout(web: Stage) -> None:
    """Ports are used again, but some seconds later: until then the client's own system may refuse that."""
    before = names(web)
    flows = web.machines.client_flows(4, 300)
    turns = cycle(flows[begin : begin + 30] for begin in range(0, len(flows), 30))
    web.kubectl("rollout", "restart", "deployment/web")

    def under_way() -> bool:
        """Asks all the time: each flow that is not answered raises."""
        web.machines.client.call(traffic.tcp_flows, VIPS[4], PORT, next(turns))
        return not (names(web) & before) and len(web.ready_pods("app=web")) == 3

    web.wait(under_way, "all pods are others, and ready")
    assert answering(web, 4) == answering(web, 6) == names(web)


def test_a_pod_that_is_not_ready_gets_no_new_flows(web: Stage) -> None:
    """It goes on running and listening: only kubelet's probe fails."""
    name = web.ready_pods("app=web")[0]
    web.exec(name, "touch", AWAY)
    web.wait(lambda: name not in web.ready_pods("app=web"), "kubelet sees it")
    web.wait(lambda: answering(web, 4) == names(web) - {name}, "the others answer")
    assert answering(web, 6) == names(web) - {name}
    web.exec(name, "rm", AWAY)
    web.wait(lambda: answering(web, 4) == names(web), "all answer")
