"""The same behaviour whatever the source: what is said of helpers here holds with a folder and with an API server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

import pytest

from conformance.api.cluster_api import ClusterApi, control_at_router
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT, Cluster
from tests.testbed.cni import PluginFailed, Pod
from tests.testbed.manifests import service_port
from tests.testbed.scene import VIPS, Helper, Scene

PLACES = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"))
MOVED = "198.51.100.9"
RUN_DIR, STATE_DIR = "/run/service-tunnel", "/var/lib/service-tunnel"


class ByRoles(Scene):
    """Each role is a program and an account of its own, with just the rights that the installation gives it."""

    def start_on(self, node: str, options: Sequence[str]) -> dict[str, Helper]:
        assert isinstance(self.objects, ClusterApi)
        run_dir = f"{RUN_DIR}-ingress"
        own = (f"--run-dir={run_dir}", f"--state-dir={STATE_DIR}-ingress", f"--socket={run_dir}/helper.sock")
        node_role = [*options, "--roles=node", *self.objects.account("node")]
        if not node.startswith("ingress"):
            return super().start_on(node, node_role)
        name = f"{node} node role"
        ingress_role = [*self._options, *options, "--roles=ingress", *self.objects.account("ingress"), *own]
        found = {node: Helper(self, node, ingress_role, socket_path=f"{run_dir}/helper.sock")}
        if (running := self.helpers.get(name)) is None or running.process.poll() is not None:
            found[name] = Helper(self, node, [*self._options, *node_role], name)
        return found


@pytest.fixture(scope="module", params=["folder", "API server", "API server, roles apart"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:

        def api(cluster: Cluster) -> ClusterApi:
            return ClusterApi(control_at_router(cluster, stack))

        kind = ByRoles if request.param.endswith("apart") else Scene
        made = stack.enter_context(kind(objects=None if request.param == "folder" else api))
        made.apply_service()
        made.add_pods(PLACES, {"app": "web"})
        made.sync()
        made.settle()
        yield made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ask", [traffic.ask_tcp, traffic.ask_udp])
def test_a_client_is_answered_and_seen(scene: Scene, version: int, ask: object) -> None:
    assert callable(ask)
    answer = scene.cluster.client.call(ask, VIPS[version], 8080)
    assert answer.client == CLIENT[version]


def test_ingress_nodes_choose_alike(scene: Scene) -> None:
    flows = [(source, 20000) for source in scene.cluster.client_addresses(4, 40)]
    seen = []
    for ingress in ("ingress1", "ingress2"):
        scene.cluster.announce(VIPS[4], [ingress])
        seen.append(scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows))
    scene.cluster.announce(VIPS[4], None)
    assert seen[0] == seen[1]
    assert set(seen[0].values()) == {name for _, name in PLACES}


def test_flows_stay_where_they_are_when_a_pod_comes_and_goes(scene: Scene) -> None:
    flows = [(source, 20000) for source in scene.cluster.client_addresses(4, 60)]
    before = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    (pod,) = scene.add_pods([("worker2", "pod4")], {"app": "web"})
    scene.sync()
    scene.settle()
    more = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    moved = {flow for flow in before if more[flow] != before[flow]}
    assert {more[flow] for flow in moved} == {"pod4"}
    scene.remove_pod(pod)
    scene.settle()
    after = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    assert {flow for flow in before if after[flow] != before[flow]} <= moved


def test_a_port_leads_to_the_programs_port(scene: Scene) -> None:
    scene.apply_service("mapped", "198.51.100.3", (service_port(80, 8080),), selector={"app": "web"})
    try:
        scene.settle()
        assert scene.cluster.client.call(traffic.ask_tcp, "198.51.100.3", 80).client == CLIENT[4]
    finally:
        scene.remove_service("mapped")
        scene.settle()


def test_a_vip_that_two_services_claim_goes_over_when_the_older_lets_go(scene: Scene) -> None:
    scene.apply_service("older", MOVED, selector={"app": "web"})
    scene.settle()
    scene.objects.apply_service("younger", {"cmd.nu/tunnel": MOVED}, {"app": "web"})
    scene.sync()
    scene.wait(lambda: "VIPTaken" in reasons(scene), "the problem")
    scene.objects.annotate("older", {"cmd.nu/tunnel": None})
    scene.wait(lambda: "VIPTaken" not in reasons(scene), "no problem")
    scene.settle()
    assert scene.cluster.client.call(traffic.ask_udp, MOVED, 8080).name
    scene.remove_service("younger")
    scene.objects.remove("Service", "older")
    scene.settle()


def test_a_wrong_annotation_is_told_and_harms_nobody(scene: Scene) -> None:
    scene.objects.apply_service("wrong", {"cmd.nu/tunnel": "not-an-address"})
    try:
        scene.wait(lambda: "InvalidVIP" in reasons(scene), "the problem")
        assert scene.cluster.client.call(traffic.ask_tcp, VIPS[4], 8080).client == CLIENT[4]
    finally:
        scene.objects.remove("Service", "wrong")
    scene.wait(lambda: "InvalidVIP" not in reasons(scene), "no problem")


def test_a_helper_that_starts_anew_changes_nothing(scene: Scene) -> None:
    flows = [(source, 20000) for source in scene.cluster.client_addresses(4, 40)]
    before = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    scene.helpers["ingress1"].kill()
    assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == before
    scene.start_helpers(["ingress1"])
    scene.settle()
    assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == before


@pytest.mark.parametrize("scene", ["API server"], indirect=True)
def test_a_fresh_node_serves_from_its_state_folder_while_the_api_server_is_away(scene: Scene) -> None:
    """As after a reboot: nothing of ours in the kernel, and nobody to ask; the table is the one that was stored."""
    assert isinstance(scene.objects, ClusterApi)
    flows = [(source, 20000) for source in scene.cluster.client_addresses(4, 40)]
    scene.cluster.announce(VIPS[4], ["ingress1"])
    before = scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows)
    scene.objects.stop_server()
    try:
        scene.helpers["ingress1"].stop()
        host = scene.cluster.nodes["ingress1"].host
        host.run("ip", "netns", "del", "service-tunnel")
        # The kernel takes a namespace down behind everybody's back, and later while it does so with others.
        scene.wait(
            lambda: not any(scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows[:2]).values()),
            "nobody forwards",
        )
        scene.start_helpers(["ingress1"])
        assert "ApiUnreachable" in {problem["reason"] for problem in scene.helpers["ingress1"].status()["problems"]}
        assert scene.cluster.client.call(traffic.udp_flows, VIPS[4], 8080, flows) == before
    finally:
        scene.objects.start_server()
        scene.cluster.announce(VIPS[4], None)
    scene.wait(lambda: "ApiUnreachable" not in reasons(scene), "the API server")
    pods: list[Pod] = []

    def added() -> bool:
        """As a runtime tries again: other nodes may find the server later, up to half a minute."""
        with suppress(PluginFailed):
            pods.extend(scene.add_pods([("worker1", "pod9")], {"app": "web"}))
        return bool(pods)

    scene.wait(added, "a new pod")
    scene.sync()
    scene.settle()
    scene.remove_pod(pods[0])
    scene.settle()


def reasons(scene: Scene) -> set[str]:
    """Of the problems that ingress nodes see."""
    problems = scene.helpers["ingress2"].status()["problems"]
    return {problem["reason"] for problem in problems}
