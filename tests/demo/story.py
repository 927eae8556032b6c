"""The demo's acts, in order: what is done to the cluster, what is expected of it, what was seen.

What is expected is what the product promises: no event costs a connection, other than the end of the pod that has
it. An act leaves the cluster as the next one wants it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cni_plugin.tunnel import GRE, MPLS
from tests.demo.flows import (
    PORT,
    Connections,
    Fates,
    Flow,
    Moves,
    bars,
    compare,
    shares,
    tcp_owners,
    traced,
    udp_owners,
)
from tests.demo.looking import ROUTER, announced_routes, ours_in, vips_of
from tests.demo.picture import picture
from tests.demo.telling import Teller, listed
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.cni import Pod
from tests.testbed.scene import VIPS, Scene
from tests.testbed.watching import Watch

SERVICE = "web"
LABELS = {"app": SERVICE}
BOTH = ",".join(VIPS.values())
FURTHER_VIPS = {
    GRE: {4: "198.51.100.2", 6: "2001:db8::2"},
    MPLS: {4: "198.51.100.3", 6: "2001:db8::3"},
}
"""The tunnel modes that not every kernel has, each with VIPs of its own."""
FURTHER_PLACES = {GRE: ("worker1", "worker2"), MPLS: ("ingress1", "ingress2")}
"""Nodes of their pods: a label leads to pods of the ingress node itself."""


@dataclass(frozen=True)
class Size:
    """How much of everything; an emulated machine gets less, and more time for it."""

    flows: int = 2000
    """UDP flows per IP version."""
    connections: int = 200
    """TCP connections held per IP version."""
    single: int = 100
    """TCP connections and traces one after the other, per IP version."""
    interval: float = 0.1
    """Seconds between two questions over a held connection."""
    patience: float = 5.0
    """Seconds after which a held connection that is silent counts as lost."""
    timeout: float = 2.0
    """Seconds to wait for a single answer."""


_TOLERANCE = 0.05
"""How far the share of flows that move may be from that of the buckets: flows fall into buckets by chance."""


class Story:
    """Runs the acts on a scene and tells of them."""

    def __init__(self, scene: Scene, teller: Teller, size: Size, lacking: tuple[str, ...]) -> None:
        """`lacking`: tunnel modes that this kernel has not."""
        self._scene = scene
        self._teller = teller
        self._size = size
        self._modes = [mode for mode in FURTHER_VIPS if mode not in lacking]
        self._lacking = [mode for mode in FURTHER_VIPS if mode in lacking]
        self._owners: dict[Flow, str] = {}
        """The pod of each UDP flow at the last look."""

    def acts(self, *, brief: bool, keep: bool) -> Mapping[str, Callable[[], None]]:
        """Title to act, in order: with `brief` the first only, with `keep` those after which the Service is served."""
        acts = {
            "1  A Service is annotated": self.annotate,
            "2  The client reaches the pods by the VIP": self.reach,
            "3  The Service is scaled up and down": self.scale,
            "4  The helper of an ingress node is killed": self.kill_helper,
            "5  A whole ingress node is lost": self.lose_node,
            "6  Other tunnel modes": self.other_modes,
        }
        if brief:
            return dict(list(acts.items())[:1])
        return acts if keep else acts | {"7  The annotation is removed": self.remove_annotation}

    # --- 1 ------------------------------------------------------------------------------------------------

    def annotate(self) -> None:
        scene, tell = self._scene, self._teller
        tell.step(f"Service {SERVICE}, not annotated; 3 pods by the CNI chain {', '.join(self._chain())}")
        scene.apply_service(SERVICE, vips="")
        pods = scene.add_pods([("worker1", "web-1"), ("worker1", "web-2"), ("worker2", "web-3")], LABELS)
        scene.sync()
        scene.settle()
        having = [pod.name for pod in pods if vips_of(pod)]
        tell.finding(
            "VIPs in pods, not yet annotated", "none", f"in {listed(having)}" if having else "none", not having
        )

        tell.step(f"kubectl annotate service {SERVICE} cmd.nu/tunnel={BOTH}")
        began = time.monotonic()
        scene.apply_service(SERVICE, vips=BOTH)
        scene.wait(lambda: all(vips_of(pod) == set(VIPS.values()) for pod in pods), "VIPs in the running pods")
        tell.finding("VIPs in the running pods", "2 in each", f"2 in each, in {time.monotonic() - began:.2f} s", True)

        tell.step("one more pod, web-4")
        began = time.monotonic()
        pod = scene.cluster.add_pod("worker2", "web-4", LABELS, scheduled=scene.manifests.apply_pod)
        seconds = time.monotonic() - began
        found = vips_of(pod)
        traffic.serve(pod, PORT)
        seen = f"{len(found)} (CNI ADD took {seconds:.2f} s)"
        tell.finding("VIPs in a new pod before it runs", "2", seen, found == set(VIPS.values()))
        scene.sync()
        scene.settle()
        announced = [announced_routes(node.host) for node in scene.cluster.ingress_nodes]
        seen = " and ".join(map(str, announced))
        tell.finding("VIP routes to announce, protocol 116", "2 on each ingress node", seen, announced == [2, 2])
        tell.plain("\n" + picture(scene.cluster, VIPS) + "\n")
        tell.note("The router's two paths stand in for what it would learn by BGP, with BFD.")

    def _chain(self) -> list[str]:
        plugins = self._scene.cluster.chain("worker1")["plugins"]
        return [str(plugin["type"]) for plugin in plugins]

    # --- 2 ------------------------------------------------------------------------------------------------

    def reach(self) -> None:
        scene, tell, size = self._scene, self._teller, self._size
        client = scene.cluster.client
        tell.step("TCP, UDP and ping to the VIPs from the client's own address")
        for version, vip in VIPS.items():
            clients = set()
            for name, ask in (("TCP", traffic.ask_tcp), ("UDP", traffic.ask_udp)):
                answer = client.call(ask, vip, PORT, timeout=size.timeout)
                clients.add(answer.client)
                tell.note(f"{vip} by {name}: {answer.name} answers, and sees {answer.client} port {answer.client_port}")
            client.call(traffic.ping, vip, timeout=size.timeout)
            address = CLIENT[version]
            what = f"IPv{version}: TCP, UDP, ping answered"
            tell.finding(what, f"pods see {address}", f"they see {listed(sorted(clients))}", clients == {address})

        tell.step(f"{2 * size.flows} UDP flows and {2 * size.single} TCP connections, IPv4 and IPv6")
        self._owners = self._look()
        by_tcp = tcp_owners(scene, size.single, timeout=size.timeout)
        self._answered("flows answered, client's source seen", len(self._owners) + len(by_tcp),
                       2 * size.flows + 2 * size.single)  # fmt: skip
        names = sorted(pod.name for pod in scene.cluster.pods)
        tell.note(bars(self._owners, names))
        parts = shares(self._owners)
        good = sorted(parts) == names and all(0.2 <= part <= 0.3 for part in parts.values())
        seen = f"{len(parts)} pods, {100 * min(parts.values()):.0f} % to {100 * max(parts.values()):.0f} %"
        tell.finding("spread over the pods", "4 pods, 20 % to 30 % each", seen, good)

        tell.step("the same flows by way of each ingress node alone")
        self._lead_to("ingress1")
        first = self._look()
        self._lead_to("ingress2")
        second = self._look()
        self._lead_to("ingress1", "ingress2")
        other = len(compare(self._owners, first).moved) + len(compare(first, second).moved)
        silent = 2 * len(self._owners) - len(first) - len(second)
        total = 2 * len(self._owners)
        seen = f"{other} of {total} differ" + (f", {silent} silent" if silent else "")
        tell.finding("same flows, each ingress node alone", "the same pods", seen, not other and not silent)
        self._same("TCP and UDP of the same ports", "the same pods", by_tcp, self._owners)
        told = traced(scene.helpers["ingress1"], by_tcp)
        self._same(f"what `trace` says of {len(told)} flows", "where they went", told, by_tcp)

    def _same(self, what: str, expected: str, one: Mapping[Flow, str], other: Mapping[Flow, str]) -> None:
        moves = compare(one, other)
        differing = len(moves.moved) + moves.silent
        self._teller.finding(what, expected, f"{differing} of {moves.total} differ", not differing)

    def _lead_to(self, *nodes: str) -> None:
        """Only these ingress nodes get traffic from the router."""
        for vip in VIPS.values():
            self._scene.cluster.announce(vip, nodes)

    def _look(self) -> dict[Flow, str]:
        return udp_owners(self._scene, self._size.flows, timeout=self._size.timeout)

    def _answered(self, what: str, answered: int, asked: int) -> None:
        self._teller.finding(what, f"{asked} of {asked}", f"{answered} of {asked}", answered == asked)

    # --- 3 ------------------------------------------------------------------------------------------------

    def scale(self) -> None:
        scene, tell = self._scene, self._teller
        with self._connections("before scaling up") as held:
            before = held.owners()
            tell.step("scaling up: 4 -> 5 pods")
            scene.add_pods([("worker1", "web-5")], LABELS)
            scene.sync()
            scene.settle()
            moves = self._moved()
            share = self._buckets_of("web-5") / scene.buckets
            self._tell_moves("4 -> 5", "to web-5", share, moves, moves.beyond(to="web-5"))
            self._tell_fates("4 -> 5", before, held)

        leaving = self._pod("web-2")
        with self._connections("before scaling down") as held:
            before = held.owners()
            tell.step("scaling down: 5 -> 4 pods, web-2 terminates, and serves what it has")
            share = self._buckets_of(leaving.name) / scene.buckets
            leaving.ready, leaving.terminating = False, True
            scene.sync()
            scene.settle()
            moves = self._moved()
            self._tell_moves("5 -> 4", "web-2's", share, moves, moves.beyond(away_from=leaving.name))
            self._tell_fates("5 -> 4", before, held)
        tell.note("web-2's clients are done now, so its program may end.")
        with self._connections("before web-2 ends") as held:
            before = held.owners()
            tell.step("web-2 ends")
            scene.remove_pod(leaving)
            scene.settle()
            self._unmoved("web-2 gone: flows that move", self._moved())
            self._all_kept("web-2 gone: connections kept", held.fates(before, self._size.patience))
        tell.note("A pod's connections end with it. How to let them end first: docs/draining.md")

    def _connections(self, when: str) -> Connections:
        count = self._size.connections
        self._teller.step(f"holding {2 * count} TCP connections, half of them IPv6, each asking every "
                          f"{self._size.interval:g} s")  # fmt: skip
        held = Connections(self._scene, count, self._size.interval)
        opened = len(held.owners())
        if opened != 2 * count:
            self._answered(f"connections opened {when}", opened, 2 * count)
        return held

    def _moved(self) -> Moves:
        """Looks at all flows anew."""
        now = self._look()
        moves = compare(self._owners, now)
        self._owners = now
        return moves

    def _tell_moves(self, event: str, which: str, share: float, moves: Moves, beyond: int) -> None:
        """`which` moves, and what `share` of all flows, the event makes necessary; `beyond`: all others."""
        seen = f"{len(moves.moved)} of {moves.total}, " + (f"{beyond} others" if beyond else f"all {which}")
        seen += f", {moves.silent} silent" if moves.silent else ""
        fair = abs(len(moves.moved) / moves.total - share) < _TOLERANCE
        expected = f"only {which}, some {100 * share:.0f} %"
        self._teller.finding(f"{event}: flows that move", expected, seen, fair and not beyond and not moves.silent)

    def _tell_fates(self, event: str, before: Mapping[Flow, str], held: Connections) -> None:
        """None may be lost, and by what `trace` says some have to be handed on, or nothing was shown."""
        handed_on = compare(before, traced(self._scene.helpers["ingress1"], before)).moved.keys()
        fates = held.fates(before, self._size.patience)
        tell = self._teller
        tell.finding(f"{event}: connections lost", f"0 of {fates.total}",
                     f"{len(fates.lost)} of {fates.total}", not fates.lost)  # fmt: skip
        tell.finding(f"{event}: connections handed on", "those whose bucket moved",
                     f"{len(handed_on & fates.kept)} of {len(handed_on)}", bool(handed_on))  # fmt: skip

    def _buckets_of(self, name: str) -> int:
        """Buckets of a pod, as an ingress node's status has them."""
        services = {service["name"]: service for service in self._scene.helpers["ingress1"].status()["services"]}
        endpoints = services[f"default/{SERVICE}"]["endpoints"]
        pod = self._pod(name)
        return sum(int(each["buckets"]) for each in endpoints if each["address"] == pod.ipv4)

    def _pod(self, name: str) -> Pod:
        return next(pod for pod in self._scene.cluster.pods if pod.name == name)

    # --- 4 ------------------------------------------------------------------------------------------------

    def kill_helper(self) -> None:
        scene, tell, size = self._scene, self._teller, self._size
        with self._connections("before the helper is killed") as held:
            before = held.owners()
            tell.step("all traffic by way of ingress1, whose service-tunnel-helper gets kill -9")
            self._lead_to("ingress1")
            scene.helpers["ingress1"].kill()
            answered = tcp_owners(scene, size.single, timeout=size.timeout)
            self._answered("helper gone: new connections", len(answered), 2 * size.single)
            self._unmoved("helper gone: flows that move", self._moved())
            self._all_kept("helper gone: connections kept", held.fates(before, size.patience))
            tell.step("starting it again, with `ip monitor` and `nft monitor` looking on")
            host = scene.cluster.nodes["ingress1"].host
            with Watch([host, host.place(ROUTER, f"/run/netns/{ROUTER}")]) as watch:
                scene.start_helpers(["ingress1"])
                scene.settle()
            tell.finding("restart: changes in the kernel", "0", f"{len(watch.changes)}", not watch.changes)
            if watch.changes:
                tell.note("\n".join(watch.changes[:5]))
            self._unmoved("restart: flows that move", self._moved())
            self._all_kept("restart: connections kept", held.fates(before, size.patience))
            self._lead_to("ingress1", "ingress2")

    def _unmoved(self, what: str, moves: Moves) -> None:
        seen = f"{len(moves.moved)} of {moves.total}" + (f", {moves.silent} silent" if moves.silent else "")
        self._teller.finding(what, f"0 of {moves.total}", seen, not moves.moved and not moves.silent)

    def _all_kept(self, what: str, fates: Fates, *, wait: bool = False) -> None:
        seen = f"{len(fates.kept)} of {fates.total}"
        if wait:
            seen += f", wait {fates.longest_wait:.2f} s"
        self._teller.finding(what, f"{fates.total} of {fates.total}", seen, not fates.lost)

    # --- 5 ------------------------------------------------------------------------------------------------

    def lose_node(self) -> None:
        scene, tell, size = self._scene, self._teller, self._size
        with self._connections("before the node is lost") as held:
            before = held.owners()
            tell.step("ingress1 loses its power, and its link goes down; with it goes the router's path")
            scene.cluster.kill_node("ingress1")
            self._all_kept("node lost: connections kept", held.fates(before, size.patience), wait=True)
            self._unmoved("node lost: flows that move", self._moved())
            tell.step("ingress1 comes back as a fresh machine, and takes the stored bucket table")
            scene.manifests.apply_node(scene.cluster.revive_node("ingress1"))
            scene.start_helpers(["ingress1"])
            scene.settle()
            self._lead_to("ingress1", "ingress2")
            self._unmoved("node back: flows that move", self._moved())
            self._all_kept("node back: connections kept", held.fates(before, size.patience))

    # --- 6 ------------------------------------------------------------------------------------------------

    def other_modes(self) -> None:
        for mode in self._modes:
            self._show_mode(mode)
        if self._lacking:
            self._teller.step(f"{listed(self._lacking)}: not in this kernel; `make demo ARGS=--vm` shows them")

    def _show_mode(self, mode: str) -> None:
        scene, tell, size = self._scene, self._teller, self._size
        vips = FURTHER_VIPS[mode]
        name = f"{SERVICE}-{mode}"
        places = [(node, f"{mode}-{number}") for number, node in enumerate(FURTHER_PLACES[mode], 1)]
        tell.step(f"Service {name} with cmd.nu/tunnel-mode: {mode}, pods on {listed([node for node, _ in places])}")
        scene.apply_service(name, vips=",".join(vips.values()), annotations={"cmd.nu/tunnel-mode": mode})
        pods = scene.add_pods(places, {"app": name})
        scene.sync()
        scene.settle()
        answered = 0
        for version, vip in vips.items():
            flows = scene.cluster.client_flows(version, size.single)
            for ask in (traffic.udp_flows, traffic.tcp_flows):
                answered += len(scene.cluster.client.call(ask, vip, PORT, flows, timeout=size.timeout, limit=120.0))
        self._answered(f"{mode}: TCP and UDP, IPv4 and IPv6", answered, 4 * size.single)
        for pod in pods:
            scene.remove_pod(pod)
        scene.manifests.remove("Service", name)
        for vip in vips.values():
            scene.cluster.withdraw(vip)
        scene.settle()

    # --- 7 ------------------------------------------------------------------------------------------------

    def remove_annotation(self) -> None:
        scene, tell = self._scene, self._teller
        tell.step("removing the annotation")
        scene.apply_service(SERVICE, vips="")
        for vip in VIPS.values():
            scene.cluster.withdraw(vip)
        scene.settle()
        left = [f"{pod.name}: {what}" for pod in scene.cluster.pods for what in ours_in(pod.place)]
        left += [f"{pod.name}: {vip}" for pod in scene.cluster.pods for vip in sorted(vips_of(pod))]
        self._nothing("left in pods", left)
        counts = {node.name: announced_routes(node.host) for node in scene.cluster.nodes.values()}
        routes = [f"{count} on {name}" for name, count in counts.items() if count]
        self._nothing("left on nodes: VIP routes", routes)

        tell.step("stopping the helpers, and `service-tunnel-helper cleanup` on all nodes")
        with ThreadPoolExecutor(4) as threads:
            left = [line for lines in threads.map(self._clean, scene.cluster.nodes) for line in lines]
        self._nothing("left on nodes after cleanup", left)

    def _clean(self, node: str) -> list[str]:
        """Removes all of ours from a node; returns what is left, in words."""
        host = self._scene.cluster.nodes[node].host
        self._scene.helpers[node].stop()
        host.run(sys.executable, "-m", "node_helper.cli", "cleanup", timeout=300.0)
        return [f"{node}: {what}" for what in ours_in(host)]

    def _nothing(self, what: str, left: list[str]) -> None:
        self._teller.finding(what, "nothing", "; ".join(left) or "nothing", not left)
