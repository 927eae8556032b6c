"""The last module: the project is taken away from a cluster in which pods run. What is told in docs/install.md."""

from __future__ import annotations

import pytest

from conformance.cluster.conftest import WEB_VIPS
from conformance.cluster.node import CONF
from conformance.cluster.objects import on_node, pod, waiting
from conformance.cluster.stage import Stage


@pytest.fixture(scope="module")
def uninstalled(web: Stage) -> Stage:
    web.uninstall()
    return web


def test_nothing_is_left_in_the_nodes(uninstalled: Stage, node: str) -> None:
    machine = uninstalled.services[node].machine
    assert "service-tunnel" not in machine.path(f"{CONF}/10-cluster.conflist").read_text()
    for command in (
        ("iptables-save",),
        ("ip6tables-save",),
        ("ip", "link"),
        ("ip", "netns"),
        ("nft", "list", "ruleset"),
    ):
        shown = machine.run(*command).stdout
        assert "svctun" not in shown and "SERVICE-TUNNEL" not in shown and "service-tunnel" not in shown
    for family in ("-4", "-6"):
        for protocol in ("116", "117"):
            assert machine.run("ip", family, "route", "show", "table", "all", "proto", protocol).stdout == ""


def test_running_pods_have_no_vip_any_more_and_go_on(uninstalled: Stage, node: str) -> None:
    (one,) = (found for found in uninstalled.pods("app=web") if found["spec"]["nodeName"] == node)
    shown = uninstalled.exec(one["metadata"]["name"], "ip", "addr")
    assert all(vip not in shown for vip in WEB_VIPS) and "svctun" not in shown
    assert one["metadata"]["name"] in uninstalled.ready_pods("app=web")


def test_pods_can_still_be_made_and_deleted(uninstalled: Stage, node: str) -> None:
    (old,) = (found for found in uninstalled.pods("app=web") if found["spec"]["nodeName"] == node)
    uninstalled.kubectl("delete", "pod", old["metadata"]["name"], "--timeout=60s")
    uninstalled.control.apply(pod("after", "after", on_node(node, waiting())))
    uninstalled.wait(lambda: uninstalled.ready_pods("app=after") == ["after"], "it runs")
    shown = uninstalled.exec("after", "ip", "addr")
    assert all(vip not in shown for vip in WEB_VIPS)
    uninstalled.kubectl("delete", "pod", "after", "--timeout=60s")


def test_nothing_is_left_in_the_api(uninstalled: Stage) -> None:
    text = uninstalled.kubectl("get", "services", "-A", "-o", "yaml")
    assert "tunnel-buckets" not in text
    for kind in ("namespaces", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies"):
        assert "service-tunnel" not in uninstalled.kubectl("get", kind, "-o", "name")
