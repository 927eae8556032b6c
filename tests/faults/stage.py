"""The scene in which faults happen, what can be done to it, and how it is made whole again.

Each act of a stage ends when helpers and pods have taken it in, and notes what it excuses, so that faults are made of
a few of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from types import TracebackType

from cni_plugin.tunnel import MPLS
from tests.faults.cells import LATE, STALL, Excuse
from tests.faults.loads import Running
from tests.testbed.announced import wait_for_paths
from tests.testbed.bird import Routing
from tests.testbed.cluster import CLIENT, FURTHER_CLIENTS
from tests.testbed.cni import Pod
from tests.testbed.scene import VIPS, Scene

REMOTE = ("worker1", "worker2", "worker1", "ingress2")
"""Nodes of the endpoints. Two of them are on one that reboots, one on the ingress node that stays."""
LOCAL = ("ingress1",) * 4
"""In mode mpls a label reaches endpoints of the ingress node only."""
INGRESS = ("ingress1", "ingress2")
JOINS = "worker2"
"""The node that becomes an ingress node."""
OWN = "connections of an endpoint end with it"
UNNOTICED = "nobody knows yet that the endpoint is gone: who asks then is sent to it"


class Stage:
    """A cluster with an annotated Service and four endpoints, in one mode."""

    def __init__(
        self, mode: str, *, minute: float = 60.0, node_options: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`minute`: seconds for which the API server is away. `node_options`: of the helpers of single nodes."""
        self.mode = mode
        self.minute = minute
        self.excuses: list[Excuse] = []
        self.loads: list[Running] = []
        """What runs just now."""
        self.nodes = LOCAL if mode == MPLS else REMOTE
        self._numbers = count(1)
        self.scene = Scene(mode=mode, rp_filter=1, node_options=node_options)
        try:
            self.scene.apply_service()
            self.endpoints = self._made(self.nodes)
            self._told()
            self.announce()
        except BaseException:
            self.close()
            raise

    # --- endpoints ----------------------------------------------------------------------------------------

    def add(self, node: str) -> Pod:
        """One endpoint more."""
        pod = self._made([node])[0]
        self.endpoints.append(pod)
        self._told()
        return pod

    def _made(self, nodes: Sequence[str]) -> list[Pod]:
        return self.scene.add_pods([(node, f"pod{next(self._numbers)}") for node in nodes], {"app": "web"})

    def terminate(self, pod: Pod) -> None:
        """The endpoint gets no new connections and goes on with those that it has."""
        pod.terminating = True
        self._told()

    def delete(self, pod: Pod) -> None:
        """The end of an endpoint whose grace is over; until then each connection has been answered."""
        self.check()
        self.excuses.append(Excuse(OWN, time.monotonic(), pods=frozenset((pod.name,)), unanswered=False))
        self._remove(pod)

    def kill(self, pod: Pod, before_noticed: Callable[[], None] = lambda: None) -> None:
        """Its program is killed; the cluster notices a second later, and takes it away."""
        self._died([pod.name])
        pod.place.stop_processes()
        before_noticed()
        self.go_on(1.0)
        pod.ready = False
        self._told()
        self._noticed([pod.name])
        self._remove(pod)

    def _remove(self, pod: Pod) -> None:
        self.endpoints.remove(pod)
        self.scene.cluster.delete_pod(pod)
        self._told()

    def _died(self, names: Iterable[str]) -> None:
        self._death = time.monotonic()
        self.excuses.append(Excuse(OWN, self._death, pods=frozenset(names), unanswered=False))

    def _noticed(self, names: Iterable[str]) -> None:
        self.excuses.append(Excuse(UNNOTICED, self._death, time.monotonic(), pods=frozenset(names)))
        # A SYN to a dead node is not answered at all; the next goes to another endpoint a second later.
        self.excuses.append(Excuse(UNNOTICED, self._death, time.monotonic(), kinds=frozenset((STALL,))))

    # --- nodes --------------------------------------------------------------------------------------------

    def announce(self, nodes: Sequence[str] | None = None) -> None:
        """The router sends the VIPs' packets to these, by default to all that would announce them."""
        usual = INGRESS[:1] if self.mode == MPLS else INGRESS
        for vip in VIPS.values():
            self.scene.cluster.announce(vip, nodes or usual)

    def join(self) -> None:
        """A further node becomes an ingress node, and is announced when it serves."""
        node = self.scene.cluster.nodes[JOINS]
        node.labels["node"] = "tunnel"
        self.scene.sync()
        self.scene.wait(
            lambda: self.scene.helpers[JOINS].status()["ingress"] and all(map(self.scene.announced, VIPS.values())),
            f"{JOINS} as an ingress node",
        )
        self.announce([*INGRESS, JOINS])

    def cut_off(self, routing: Routing, since: float) -> None:
        """Wait until BFD has found out; what was sent to the dead node from then on until now is lost."""
        wait_for_paths(self.scene, routing, INGRESS[1:])
        self.late("what is under way to a dead ingress node is lost until BFD finds out", since)

    def late(self, why: str, since: float) -> None:
        """Excuse packets lost since then until now."""
        self.excuses.append(Excuse(why, since, time.monotonic(), kinds=LATE))

    def reboot(self, name: str) -> None:
        """A node loses its power with all that is on it, and comes back; it is noticed after a second."""
        cluster = self.scene.cluster
        lost = [pod for pod in self.endpoints if pod.node == name]
        self._died(pod.name for pod in lost)
        cluster.kill_node(name)
        self.go_on(1.0)
        self.scene.sync()
        self.scene.settle()
        self._noticed(pod.name for pod in lost)
        self.endpoints = [pod for pod in self.endpoints if pod.node != name]
        self.scene.objects.apply_node(cluster.revive_node(name))
        self.scene.start_helpers([name])
        self.endpoints += self._made([name] * len(lost))
        self._told()

    def narrow(self, mtu: int) -> None:
        """Packets towards the client must fit into `mtu` bytes: the router says so to who sends larger ones."""
        v4, v6 = FURTHER_CLIENTS[4], FURTHER_CLIENTS[6]
        self.scene.cluster.narrow_client_path(mtu)
        self.scene.cluster.router.batch(
            [
                f"route replace {v4} via {CLIENT[4]} mtu lock {mtu}",
                f"route replace {v6} via {CLIENT[6]} dev client mtu {mtu}",
            ]
        )

    # --- the whole ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Has connections that are idle ask once, and waits for their answers."""
        for load in self.loads:
            load.begin_check()
        for load in self.loads:
            load.wait_checked()

    def go_on(self, seconds: float) -> None:
        """Lets the loads run."""
        time.sleep(seconds)

    def _told(self) -> None:
        self.scene.sync()
        self.scene.settle()

    def make_whole(self) -> None:
        """All helpers, the four endpoints and no others, the usual announcements."""
        self.excuses.clear()
        ended = [name for name, helper in self.scene.helpers.items() if helper.process.poll() is not None]
        self.scene.start_helpers(ended)
        for pod in [pod for pod in self.endpoints if pod.terminating]:
            self._remove(pod)
        missing = list(self.nodes)
        for pod in list(self.endpoints):
            if pod.node in missing:
                missing.remove(pod.node)
            else:
                pod.terminating = True
                self._told()
                self._remove(pod)
        self.endpoints += self._made(missing)
        self._told()
        self.announce()

    def close(self) -> None:
        self.scene.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
