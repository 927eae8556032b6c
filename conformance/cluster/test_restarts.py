"""What a node's owner restarts: kubelet, runtime, kube-proxy, and the node as a whole."""

from __future__ import annotations

import pytest

from conformance.cluster.conftest import EARLY_VIPS, WEB_VIPS
from conformance.cluster.objects import on_node, pod, server
from conformance.cluster.stage import NAMESPACE, Stage
from conformance.cluster.test_deployment import answering, names
from conformance.cluster.test_trouble import all_answer, of_node, restarts
from conformance.cluster.test_workloads import VIPS, annotated, answers


@pytest.mark.parametrize("program", ["kubelet", "runtime", "kube-proxy"])
def test_pods_outlive_a_restart_and_others_can_be_made(web: Stage, node: str, program: str) -> None:
    before = of_node(web, node)
    services = web.services[node]
    services.restart(services.runtime.program if program == "runtime" else program)
    assert answering(web, 4, 60) == names(web)  # meanwhile
    with annotated(web, "more"):
        web.control.apply(pod("more", "more", on_node(node, server(VIPS, grace=1))))
        web.wait(lambda: answers(web, "more"), "a new pod answers")
        (first,) = web.control.get("pod", "more")["status"]["initContainerStatuses"]
        assert first["restartCount"] == 0
        web.kubectl("delete", "pod", "more")
    after = of_node(web, node)
    assert restarts(after) == restarts(before) and after["status"]["podIP"] == before["status"]["podIP"]
    all_answer(web)


def test_a_node_that_is_rebooted_has_everything_again(web: Stage, node: str) -> None:
    before, pod_before = web.boot(node), of_node(web, node)
    web.machines.reboot(node)
    web.services[node].start_everything()
    web.wait(lambda: web.boot(node) != before, "kubelet tells of another boot")
    address = pod_before["status"]["podIP"]
    web.wait(lambda: of_node(web, node)["status"].get("podIP") not in (None, address), "a new sandbox")
    for vip in (*EARLY_VIPS, *WEB_VIPS):  # routes over the link went with it
        web.machines.announce(vip)
    all_answer(web)
    assert of_node(web, node)["metadata"]["uid"] == pod_before["metadata"]["uid"]
    web.rolled_out("daemonset/node", NAMESPACE)
    web.rolled_out("daemonset/ingress", NAMESPACE)
