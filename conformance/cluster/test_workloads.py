"""Pods of other kinds than a Deployment's, on each node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from conformance.cluster.node import STATIC_PODS
from conformance.cluster.objects import PORT, job, on_node, pod, proof, server, service, waiting, workload
from conformance.cluster.stage import Stage
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT

VIPS = ("198.51.100.20", "2001:db8::20")


@contextmanager
def annotated(stage: Stage, app: str, vips: tuple[str, ...] = VIPS) -> Iterator[None]:
    """A Service with VIPs that lead to the ingress nodes, as long as it lasts."""
    stage.control.apply(service(app, vips))
    for vip in vips:
        stage.machines.announce(vip)
    try:
        yield
    finally:
        for vip in vips:
            stage.machines.withdraw(vip)
        stage.kubectl("delete", "service", app)


def answers(stage: Stage, name: str, vips: tuple[str, ...] = VIPS) -> bool:
    """Whether the pod, which is the Service's only one, answers by all VIPs, and sees the client itself."""
    try:
        found = [stage.machines.client.call(traffic.ask_tcp, vip, PORT, timeout=1.0) for vip in vips]
    except (traffic.NoAnswer, OSError):
        return False
    return [(one.name, one.client) for one in found] == [(name, CLIENT[4]), (name, CLIENT[6])]


def test_a_job_s_pod_has_its_vips_when_it_begins(web: Stage, node: str) -> None:
    with annotated(web, "work"):
        web.control.apply(job("work", on_node(node, waiting(proof(VIPS)))))
        web.wait(lambda: web.control.get("job", "work")["status"].get("succeeded") == 1, "the job's only try succeeds")
        web.kubectl("delete", "job", "work")


def test_a_pod_of_a_stateful_set_comes_back_by_its_name_and_answers(web: Stage, node: str) -> None:
    with annotated(web, "state"):
        spec = on_node(node, server(VIPS, grace=1))
        web.control.apply(workload("StatefulSet", "state", spec, serviceName="state", replicas=1))
        web.rolled_out("statefulset/state")
        web.wait(lambda: answers(web, "state-0"), "it answers")
        (before,) = web.pods("app=state")
        web.kubectl("delete", "pod", "state-0")
        web.wait(lambda: web.ready_pods("app=state") == ["state-0"], "the other of this name is ready")
        web.wait(lambda: answers(web, "state-0"), "it answers, too")
        (after,) = web.pods("app=state")
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["status"]["initContainerStatuses"][0]["restartCount"] == 0
        web.kubectl("delete", "statefulset", "state")


def test_a_static_pod_answers(web: Stage, node: str) -> None:
    """Kubelet starts it from a file, and tells the API server afterwards."""
    machine = web.services[node].machine
    file = machine.path(f"{STATIC_PODS}/static.yaml")
    with annotated(web, "static"):
        file.write_text(json.dumps(pod("static", "static", server(grace=1))))
        try:
            web.wait(lambda: web.ready_pods("app=static") == [f"static-{node}"], "kubelet tells of it")
            web.wait(lambda: answers(web, f"static-{node}"), "it answers")
        finally:
            file.unlink()
        web.wait(lambda: not web.pods("app=static"), "it is gone")


def test_a_pod_on_the_node_s_own_network_runs_without_a_tunnel_and_an_event_says_so(web: Stage, node: str) -> None:
    with annotated(web, "plain"):
        spec = {**waiting(), "hostNetwork": True}
        web.control.apply(pod("plain", "plain", on_node(node, spec)))
        web.wait(lambda: web.ready_pods("app=plain") == ["plain"], "it is ready")
        web.wait(lambda: any("hostNetwork" in one["message"] for one in web.control.events("plain")), "an Event")
        assert VIPS[0] not in web.services[node].machine.run("ip", "addr").stdout
        web.kubectl("delete", "pod", "plain")
