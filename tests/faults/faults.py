"""The faults: what happens while the loads run.

Each is a generator on a stage with two pauses: what comes before the first one prepares, and is not measured; between
the two it happens; what follows puts back what `Stage.make_whole` does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from cni_plugin.tunnel import GRE, MODES, VXLAN_GPE
from tests.faults.stage import INGRESS, Stage
from tests.testbed.announced import wait_for_paths
from tests.testbed.bird import Routing, dead
from tests.testbed.scene import VIPS

Steps = Generator[None, None, None]
ACROSS_NODES = (VXLAN_GPE, GRE)
"""In mode mpls a VIP is served where its endpoints are: there is no second ingress node for the same connections."""
NARROW = 1300
"""Bytes."""
TABLE = "default.web"


@dataclass(frozen=True)
class Fault:
    what: str
    act: Callable[[Stage], Steps]
    modes: tuple[str, ...] = MODES
    leaves_traces: bool = False
    """The next cell needs a scene of its own."""


def nothing(_: Stage) -> Steps:
    yield
    yield


def endpoint_added(stage: Stage) -> Steps:
    yield
    stage.add(stage.nodes[0])
    yield


def endpoint_terminating(stage: Stage) -> Steps:
    pod = stage.endpoints[0]
    yield
    stage.terminate(pod)
    stage.go_on(2.0)
    stage.delete(pod)
    yield


def endpoint_killed(stage: Stage) -> Steps:
    yield
    stage.kill(stage.endpoints[0])
    yield


def rolling_update(stage: Stage) -> Steps:
    old = list(stage.endpoints)
    yield
    for pod in old:
        stage.add(pod.node)
        stage.terminate(pod)
    stage.go_on(2.0)
    for pod in old:
        stage.delete(pod)
    yield


def ingress_added(stage: Stage) -> Steps:
    yield
    stage.join()
    yield


def _routed(stage: Stage, during: Callable[[], None] = lambda: None) -> Steps:
    """The first ingress node is suddenly dead, and BIRD with BFD finds out; `during`: what happens at the same time."""
    cluster = stage.scene.cluster
    for vip in VIPS.values():
        cluster.withdraw(vip)
    with Routing(cluster) as routing:
        wait_for_paths(stage.scene, routing, INGRESS)
        yield
        since = time.monotonic()
        with dead(cluster.nodes[INGRESS[0]].host):
            stage.cut_off(routing, since)
            during()
            yield
    for version in ("-4", "-6"):
        cluster.router.run("ip", version, "route", "flush", "proto", "bird")


def ingress_cut_off(stage: Stage) -> Steps:
    return _routed(stage)


def ingress_drained(stage: Stage) -> Steps:
    yield
    stage.scene.helper_command(INGRESS[0], "drain")
    stage.announce(INGRESS[1:])
    yield
    stage.scene.helper_command(INGRESS[0], "undrain")


def helpers_killed(stage: Stage) -> Steps:
    yield
    for helper in stage.scene.running_helpers():
        helper.kill()
    stage.go_on(1.0)
    stage.scene.start_helpers(stage.scene.cluster.nodes)
    yield


def api_away(stage: Stage) -> Steps:
    """The folder of manifests, with the stored tables in it, stands for the API server: it cannot be read.

    A link to itself is what root cannot read either. (A folder that is missing is an empty one, by design.)
    """
    folder = stage.scene.manifests.folder
    away = folder.with_name("away")
    yield
    folder.rename(away)
    folder.symlink_to(folder)
    stage.go_on(stage.minute)
    folder.unlink()
    away.rename(folder)
    stage.scene.settle()
    yield


def helpers_upgraded(stage: Stage) -> Steps:
    """One node after the other, as a DaemonSet is."""
    yield
    for name, helper in list(stage.scene.helpers.items()):
        helper.stop()
        stage.scene.start_helpers([name])
    yield


def table_deleted(stage: Stage) -> Steps:
    """What `kubectl replace` does, too: the stored bucket table is gone, and comes back."""
    table = stage.scene.manifests.folder / ".service-tunnel" / "buckets" / TABLE
    yield
    before = table.read_text()
    table.unlink()
    stage.scene.wait(table.exists, "the table back in its place")
    table.write_text("rubbish")
    stage.scene.wait(lambda: table.read_text() == before, "the table in the place of rubbish")
    yield


def node_rebooted(stage: Stage) -> Steps:
    yield
    stage.reboot("worker1")
    yield


def mtu_lowered(stage: Stage) -> Steps:
    yield
    since = time.monotonic()
    stage.narrow(NARROW)
    stage.go_on(2.0)
    stage.late("the packet that first meets the smaller MTU is lost, and its sender told", since)
    yield
    stage.narrow(1500)
    for pod in stage.endpoints:
        for version in ("-4", "-6"):
            pod.place.run("ip", version, "route", "flush", "cache")


def ecmp_reshuffled(stage: Stage) -> Steps:
    """All flows come by way of another ingress node, then by one, then by either again."""
    yield
    for nodes in (INGRESS[::-1], INGRESS[:1], INGRESS[1:], INGRESS):
        stage.announce(nodes)
        stage.go_on(0.5)
    yield


def ingress_dies_while_endpoint_drains(stage: Stage) -> Steps:
    pod = stage.endpoints[0]

    def drains() -> None:
        stage.go_on(1.0)
        stage.delete(pod)

    steps = _routed(stage, drains)
    next(steps)
    yield
    stage.terminate(pod)
    yield from steps


def endpoint_dies_while_ingress_joins(stage: Stage) -> Steps:
    yield
    stage.kill(stage.endpoints[0], before_noticed=stage.join)
    yield


FAULTS: Mapping[str, Fault] = {
    "nothing": Fault("nothing happens: what the machine itself costs", nothing),
    "endpoint-added": Fault("an endpoint more", endpoint_added),
    "endpoint-terminating": Fault("an endpoint terminates, and is deleted two seconds later", endpoint_terminating),
    "endpoint-killed": Fault("an endpoint's program is killed, which is noticed a second later", endpoint_killed),
    "rolling-update": Fault(
        "for each endpoint a new one comes and the old one terminates; then all old ones are deleted", rolling_update
    ),
    "ingress-added": Fault("a third node becomes an ingress node", ingress_added, ACROSS_NODES, leaves_traces=True),
    "ingress-cut-off": Fault(
        "an ingress node is suddenly dead, BIRD with BFD finds out", ingress_cut_off, ACROSS_NODES
    ),
    "ingress-drained": Fault("`drain` on an ingress node, and its announcement gone", ingress_drained, ACROSS_NODES),
    "helpers-killed": Fault("kill -9 of every helper; they start again a second later", helpers_killed),
    "api-away": Fault("the source of all objects, and of stored tables, is gone for a minute", api_away),
    "helpers-upgraded": Fault("every helper is stopped and started, one after the other", helpers_upgraded),
    "table-deleted": Fault("the stored bucket table is deleted, then overwritten with rubbish", table_deleted),
    "node-rebooted": Fault(
        "the node of two endpoints loses its power, and comes back", node_rebooted, ACROSS_NODES, True
    ),
    "mtu-lowered": Fault(f"the path to the client takes {NARROW} bytes from now on", mtu_lowered),
    "ecmp-reshuffled": Fault("the router sends all flows to other ingress nodes", ecmp_reshuffled, ACROSS_NODES),
    "ingress-dies-endpoint-drains": Fault(
        "an ingress node dies while an endpoint terminates", ingress_dies_while_endpoint_drains, ACROSS_NODES
    ),
    "endpoint-dies-ingress-joins": Fault(
        "an endpoint is killed, and a node becomes an ingress node before that is noticed",
        endpoint_dies_while_ingress_joins,
        ACROSS_NODES,
        leaves_traces=True,
    ),
}
