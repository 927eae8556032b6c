"""How others would do it, in the same scene: to be compared with, fault by fault.

The pods, their decapsulation and all that surrounds them stay as they are: only how an ingress node chooses an endpoint
is another's. What runs here is the other's way, not its program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cni_plugin.tunnel import TUNNEL_ID
from node_helper.kernel.router import device_of
from tests.faults.faults import FAULTS
from tests.faults.stage import INGRESS, Stage
from tests.testbed.cluster import Node
from tests.testbed.cni import Pod
from tests.testbed.namespaces import Place
from tests.testbed.scene import VIPS

ROUTER = ("ip", "netns", "exec", "service-tunnel")
GROUP = 60_000
"""Number of the first nexthop object of ours; one group for each IP version, then the endpoints."""
PLAIN, RESILIENT = "", "type resilient buckets 256"


class Multipath(Stage):
    """The kernel's own multipath: one route, by a group of nexthops, one for each endpoint.

    Nothing is stored, and nothing handed on. Nodes hash with the same secret here, since all of them are one kernel;
    on machines of their own they do so only where `fib_multipath_hash_seed` (Linux 6.11) is set.
    """

    def __init__(self, mode: str, *, minute: float, kind: str) -> None:
        """`kind`: of the group, in iproute2's words."""
        self._kind = kind
        self._numbers_of: dict[str, int] = {}
        self._taken_over = False
        super().__init__(mode, minute=minute)
        try:
            for name in INGRESS:
                self._take_over(self.scene.cluster.nodes[name])
            self._taken_over = True
            self._choose()
        except BaseException:
            self.close()
            raise

    def _take_over(self, node: Node) -> None:
        """The router stays, with what encapsulates; who changed it ends, and goes on for the node's own pods only."""
        self.scene.helpers[node.name].stop()
        self.scene.start_helpers([node.name], ["--roles", "node"])
        for version in ("-4", "-6"):
            rules = node.host.run(*ROUTER, "ip", version, "rule", "show").stdout.splitlines()
            # One by one: `flush` lists and deletes at once, and loses its place among so many.
            _batch(
                node.host,
                [f"rule delete pref {line.partition(':')[0]}" for line in rules if "proto 116" in line],
                version,
            )
        node.host.run(*ROUTER, "sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")
        node.host.run(*ROUTER, "sysctl", "-qw", "net.ipv6.fib_multipath_hash_policy=1")

    def _told(self) -> None:
        super()._told()
        if self._taken_over:
            self._choose()

    def _choose(self) -> None:
        """The group has who is ready now."""
        ready = [pod for pod in self.endpoints if pod.ready and not pod.terminating]
        for name in INGRESS:
            host = self.scene.cluster.nodes[name].host
            for version, vip in VIPS.items():
                members = [self._nexthop(self.scene.cluster.nodes[name], pod, version) for pod in ready]
                _batch(host, members, f"-{version}")
                numbers = "/".join(str(self._number(pod, version)) for pod in ready)
                group = f"nexthop replace id {GROUP + version} group {numbers} {self._kind}"
                _batch(host, [group, f"route replace {vip} nhid {GROUP + version} mtu 1400"])

    def _number(self, pod: Pod, version: int) -> int:
        return GROUP + 10 * self._numbers_of.setdefault(pod.name, 1 + len(self._numbers_of)) + version

    def _nexthop(self, node: Node, pod: Pod, version: int) -> str:
        device = device_of(self.mode, 4)
        way = f"encap ip id {TUNNEL_ID} dst {pod.address(4)} src {node.addresses[4]} ttl 64 dev {device}"
        return f"nexthop replace id {self._number(pod, version)} {way}"


def _batch(host: Place, lines: Sequence[str], *options: str) -> None:
    """A group has no IP version, and iproute2 takes one for a whole batch only."""
    host.run(*ROUTER, "ip", *options, "-batch", "-", input="\n".join(lines) + "\n")


def _original(mode: str, minute: float) -> Stage:
    """As the program of which this one takes its idea: a random seed on each node (here: another one), and nothing is
    handed on (here: for a second, the least that can be set).
    """
    names = (*INGRESS, "worker1", "worker2")
    return Stage(
        mode,
        minute=minute,
        node_options={name: ("--seed", str(100 + n), "--drain-time", "1") for n, name in enumerate(names)},
    )


_ALL = tuple(FAULTS)
_WITHOUT_OUR_INGRESS = (
    *("nothing", "endpoint-added", "endpoint-terminating", "endpoint-killed", "rolling-update", "ingress-cut-off"),
    *("ecmp-reshuffled", "ingress-dies-endpoint-drains"),
)
"""Faults in which no ingress node of this program does anything."""


def _multipath(kind: str) -> Callable[[str, float], Stage]:
    return lambda mode, minute: Multipath(mode, minute=minute, kind=kind)


@dataclass(frozen=True)
class Peer:
    what: str
    stage: Callable[[str, float], Stage]
    """Of a mode, and of the seconds for which the API server is away."""
    faults: Sequence[str] = _ALL
    """Those that it can be put to."""


PEERS: Mapping[str, Peer] = {
    "original": Peer("another seed on each node, and nothing handed on", _original),
    "ecmp": Peer("the kernel's multipath, a plain group", _multipath(PLAIN), _WITHOUT_OUR_INGRESS),
    "ecmp-resilient": Peer("the kernel's multipath, a resilient group", _multipath(RESILIENT), _WITHOUT_OUR_INGRESS),
}
