"""What an installation looks like from within the cluster, and what a user is told."""

from __future__ import annotations

import json
import re

from conformance.cluster.conftest import WEB_VIPS
from conformance.cluster.node import BIN, CONF
from conformance.cluster.objects import PORT, service
from conformance.cluster.stage import KINDS, NAMESPACE, Stage
from tests.testbed import traffic

ASK = "import socket; s = socket.create_connection(({!r}, {}), 5); s.sendall(b'x\\n'); print(s.recv(100).decode())"


def test_all_pods_of_the_project_run_and_none_has_restarted(web: Stage) -> None:
    assert set(web.own_pods("node")) == set(web.services)
    assert set(web.own_pods("ingress")) == {node.name for node in web.machines.ingress_nodes}
    for pod in web.pods("app.kubernetes.io/name=service-tunnel", NAMESPACE):
        statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
        assert [(one["name"], one["ready"], one["restartCount"]) for one in statuses if not one["ready"]] == []
        assert all(one["restartCount"] == 0 for one in statuses)


def test_helpers_have_no_problems(web: Stage) -> None:
    for component in ("node", "ingress"):
        for name in web.own_pods(component).values():
            command = ("service-tunnel-helper", "status", "--json")
            status = json.loads(web.exec(name, *command, container="helper", namespace=NAMESPACE))
            assert status["last_failure"] is None
            assert [one for one in status["problems"] if "web" in json.dumps(one)] == []


def test_plugin_and_entry_are_on_each_node(web: Stage, node: str) -> None:
    machine = web.services[node].machine
    chain = json.loads(machine.path(f"{CONF}/10-cluster.conflist").read_text())
    assert chain["plugins"][-1]["type"] == "service-tunnel"
    assert machine.run(f"{BIN}/service-tunnel", "--version").stdout.strip()


def test_kube_proxy_s_rules_and_ours_are_side_by_side(web: Stage, node: str) -> None:
    machine = web.services[node].machine
    if KINDS[node].proxy == "iptables":
        assert "KUBE-SERVICES" in machine.run("iptables-save").stdout
    else:
        assert "service" in machine.run("nft", "list", "table", "ip", "kube-proxy").stdout
    assert "SERVICE-TUNNEL" in machine.run("iptables-save", "-t", "raw").stdout


def test_pods_reach_the_services_own_address_and_its_vip(web: Stage, node: str) -> None:
    own: list[str] = web.control.get("service", "web")["spec"]["clusterIPs"]
    (pod,) = (one for one in web.pods("app=web") if one["spec"]["nodeName"] == node)
    machine = web.services[node].machine
    names = {one["metadata"]["name"] for one in web.pods("app=web")}
    for address in own:
        assert web.exec(pod["metadata"]["name"], "python3", "-c", ASK.format(address, PORT)).split()[0] in names
    for address in (*own, *WEB_VIPS):
        assert machine.call(traffic.ask_tcp, address, PORT).name in names


def test_events_tell_what_is_wrong_with_an_annotation(web: Stage) -> None:
    web.control.apply(service("wrong", ["192.0.2.300"]), service("outside", ["203.0.113.9"]))
    for name, told in (("wrong", r"192\.0\.2\.300"), ("outside", r"203\.0\.113\.9")):
        web.wait(lambda name=name: bool(web.control.events(name)), f"an Event about {name}")  # type: ignore[misc]
        shown = web.kubectl("get", "events", f"--field-selector=involvedObject.name={name}")
        assert "Warning" in shown and re.search(told, shown), shown
    web.kubectl("delete", "service", "wrong", "outside")
