"""How many packets a second one processor of an ingress node carries, against plain forwarding of the same machine.

Two worlds of a client, a node and a pod stand side by side: one node just forwards, on the other the helper has built
its router. Packets are counted where the node sends them towards the pod, which drops them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.blaster import blast
from tests.bench.figures import Figure, paired
from tests.bench.progress import Tell
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

FIGURES: Mapping[str, str] = {
    "forwarding": "packets of 64 bytes to a VIP, 20,480 flows, one processor, through router and encapsulation",
    "forwarding-others": "packets that are not ours, on the same node",
}
PEER = "plain forwarding"
VIP, POD = "198.51.100.7", "10.244.0.11"
LIMIT = 60.0
"""Seconds to wait for the helper."""
_SYSCTLS = {"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.default.rp_filter": 0}
_OBJECTS: tuple[dict[str, Any], ...] = (
    {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": "web", "namespace": "default", "uid": "web-1", "annotations": {"cmd.nu/tunnel": VIP}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 3000, "protocol": "UDP"}]},
    },
    {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [POD], "conditions": {"ready": True}, "nodeName": "node"}],
    },
    {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": "node"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    },
)


class World:
    """A client, a node that forwards, and a pod that drops."""

    def __init__(self, stack: ExitStack, router: bool) -> None:
        self.client, self.node, self.pod = (
            stack.enter_context(Host(name, sysctls=_SYSCTLS)) for name in ("client", "node", "pod")
        )
        _veth(self.client, "c0", self.node, "up0")
        _veth(self.node, "v1", self.pod, "eth0")
        self.client.run("sh", "-ec", "ip addr add 10.0.0.2/16 dev c0; ip link set c0 up")
        self.node.run(
            "sh", "-ec",
            f"ip link set lo up; ip addr add 10.0.0.1/16 dev up0; ip link set up0 up; ip link set v1 up; "
            f"ip addr add 169.254.1.1/32 dev v1; ip route add {POD}/32 dev v1; ip route add default via 10.0.0.2",
        )  # fmt: skip
        self.pod.run(
            "sh", "-ec",
            f"ip addr add {POD}/32 dev eth0; ip link set eth0 up; ip route add 169.254.1.1 dev eth0; "
            "ip route add default via 169.254.1.1; iptables -t raw -A PREROUTING -p udp -j DROP",
        )  # fmt: skip
        # Nobody may have to ask for a neighbour while packets are counted.
        self.node.run("ip", "neigh", "replace", POD, "lladdr", _mac(self.pod, "eth0"), "dev", "v1", "nud", "permanent")
        self.gateway = _mac(self.node, "up0")
        if router:
            self._start_helper(stack)

    def _start_helper(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="svctun-bench-")))
        for one in _OBJECTS:
            (folder / f"{one['kind']}.json").write_text(json.dumps(one))
        log = stack.enter_context((folder / "helper.log").open("w"))
        options = ("--manifests", str(folder), "--roles", "ingress", "--ingress-selector", "", "--node", "node")
        command = (sys.executable, "-m", "node_helper.cli", "run", *options)
        helper = self.node.popen(*command, env={"PYTHONPATH": str(REPOSITORY)}, stdout=log, stderr=log)
        # It writes tables into the folder: its end comes before the folder's.
        stack.callback(helper.wait)
        stack.callback(helper.terminate)
        deadline = time.monotonic() + LIMIT
        while VIP not in self.node.run("ip", "route", "show", "proto", "116").stdout:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the helper does not serve {VIP}: {(folder / 'helper.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def rate(self, destination: str, seconds: float, processor: int) -> float:
        """Thousands of packets a second that arrive at the pod's link."""
        before = self._sent()
        taken: float = self.client.call(blast, "c0", self.gateway, destination, seconds, processor)
        return (self._sent() - before) / taken / 1000

    def _sent(self) -> int:
        shown = json.loads(self.node.run("ip", "-s", "-j", "link", "show", "v1").stdout)
        return int(shown[0]["stats64"]["tx"]["packets"])


def _veth(one: Host, name: str, other: Host, peer: str) -> None:
    link = ("ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", str(other.pid))
    one.run(*link)


def _mac(host: Host, device: str) -> str:
    return str(json.loads(host.run("ip", "-j", "link", "show", device).stdout)[0]["address"])


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """A tenth of the pairs, a second each; few runs make short ones."""
    rounds, seconds = (max(2, runs // 10), 1.0) if runs >= 50 else (2, 0.1)
    processor = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        plain, ours = World(stack, router=False), World(stack, router=True)
        places = {"plain": (plain, POD), "forwarding": (ours, VIP), "forwarding-others": (ours, POD)}
        rates: dict[str, list[float]] = {name: [] for name in places}
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            # Each comes right beside the plain one, before it or after.
            for name in list(places) if number % 2 else list(reversed(places)):
                world, destination = places[name]
                rates[name].append(world.rate(destination, seconds, processor))
    for name in wanted:
        yield paired(name, "kpps", rates[name], PEER, rates["plain"])
