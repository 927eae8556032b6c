"""The whole scene: a client, the data centre's router, and nodes with pods, each a host of the testbed.

                       ┌─ node (ingress) ── pods
    client ── router ──┼─ node (ingress) ── pods
                       └─ node (worker) ─── pods

Every line is a point-to-point veth, so when a node dies its link is gone and the router's next hop with
it, at once: what BGP with BFD does in a data centre is here done by the kernel, and `announce` puts in the
routes that the router would learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from tests.testbed.cni import CniRuntime, Conflist, Pod, ptp_chain
from tests.testbed.host import Host, new_prefix

Network = IPv4Network | IPv6Network

CLIENT = {4: "10.99.0.2", 6: "fd99::2"}
"""The client's own addresses, by IP version."""
CLIENT_GATEWAY = {4: "10.99.0.1", 6: "fd99::1"}
FURTHER_CLIENTS: dict[int, Network] = {4: ip_network("10.99.128.0/17"), 6: ip_network("fd99:0:0:1::/64")}
"""Networks of which every address is the client's too: sources for as many flows as one likes."""
FORWARDING: dict[str, str | int] = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}
NO_DAD: dict[str, str | int] = {"net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 0}
"""Without duplicate address detection, which takes a second or two for each address."""


@dataclass(frozen=True)
class NodeSpec:
    name: str
    ingress: bool = False


DEFAULT_NODES = (
    NodeSpec("ingress1", ingress=True),
    NodeSpec("ingress2", ingress=True),
    NodeSpec("worker1"),
    NodeSpec("worker2"),
)


class Node:
    """A node of the cluster: its host, its addresses, its pods."""

    def __init__(self, spec: NodeSpec, index: int, host: Host, pod_versions: Sequence[int] = (4, 6)) -> None:
        self.name = spec.name
        self.spec = spec
        self.index = index
        self.host = host
        self.addresses = {4: f"10.1.{index}.2", 6: f"fd01:0:0:{index}::2"}
        self.gateways = {4: f"10.1.{index}.1", 6: f"fd01:0:0:{index}::1"}
        cidrs = {4: ip_network(f"10.244.{index}.0/24"), 6: ip_network(f"fd00:10:244:{index}::/64")}
        self.pod_cidrs: tuple[Network, ...] = tuple(cidrs[version] for version in pod_versions)
        self.labels = {"kubernetes.io/hostname": spec.name, **({"node": "tunnel"} if spec.ingress else {})}
        self.runtime = CniRuntime(host)
        self.pods: dict[str, Pod] = {}
        self.alive = True

    @property
    def device(self) -> str:
        """Name of the router's end of the node's link."""
        return f"to-{self.name}"[:15]


class Cluster:
    """Builds the scene when constructed, takes it down with `close` or at the end of `with`."""

    def __init__(
        self,
        nodes: Sequence[NodeSpec] = DEFAULT_NODES,
        *,
        rp_filter: int = 0,
        pod_rp_filter: int | None = None,
        underlay_mtu: int = 1500,
        plugins: Sequence[Mapping[str, Any]] = (),
        chain: Callable[..., Conflist] = ptp_chain,
        pod_mtu: int = 0,
        pod_versions: Sequence[int] = (4, 6),
        detect_duplicates: bool = False,
        visible: bool | str = False,
    ) -> None:
        """`rp_filter` is set on the nodes and, unless `pod_rp_filter` says otherwise, inherited by pods.

        `underlay_mtu`: bytes, of the links between router and nodes. `plugins`: entries that follow the
        reference plugins in the chain of every node. `chain`: makes the configuration list, `ptp_chain` or
        `bridge_chain`. `pod_mtu`: bytes, of the pods' links, 0 for what the reference plugin chooses.
        `pod_versions`: IP versions of the pods' addresses.
        `detect_duplicates`: IPv6 duplicate address detection in pods, as on real nodes. `visible`: make
        `ip netns exec` find the hosts from outside; a text is the prefix of their names there.
        """
        self.prefix = visible if isinstance(visible, str) else new_prefix()
        self._visible = bool(visible)
        self._rp_filter: dict[str, str | int] = {
            f"net.ipv4.conf.{which}.rp_filter": rp_filter for which in ("all", "default")
        }
        inherited = rp_filter if pod_rp_filter is None else pod_rp_filter
        self.pod_sysctls: dict[str, str | int] = dict.fromkeys(self._rp_filter, inherited)
        if not detect_duplicates:
            self.pod_sysctls |= NO_DAD
        self.underlay_mtu = underlay_mtu
        self._make_chain = chain
        self._pod_versions = pod_versions
        self._chain_options = {"further": plugins, "mtu": pod_mtu}
        self._announced: dict[str, tuple[str, ...]] = {}
        multipath: dict[str, str | int] = {f"net.ipv{v}.fib_multipath_hash_policy": 1 for v in (4, 6)}
        no_filter: dict[str, str | int] = dict.fromkeys(self._rp_filter, 0)
        hosts: list[Host] = []
        try:
            self.client = self._host("client", {**no_filter, **NO_DAD, "net.ipv6.ip_nonlocal_bind": 1})
            hosts.append(self.client)
            self.router = self._host("router", {**no_filter, **NO_DAD, **FORWARDING, **multipath})
            hosts.append(self.router)
            self.nodes: dict[str, Node] = {}
            for index, spec in enumerate(nodes, 1):
                self.nodes[spec.name] = self._node(spec, index)
                hosts.append(self.nodes[spec.name].host)
            for host in hosts:
                host.wait_ready()
            self._connect_client()
            self._connect(self.nodes.values())
        except BaseException:
            for host in hosts:
                host.close()
            raise

    def _host(self, name: str, sysctls: Mapping[str, str | int]) -> Host:
        return Host(name, sysctls=sysctls, visible_as=self.prefix + name if self._visible else "")

    def _node(self, spec: NodeSpec, index: int) -> Node:
        host = self._host(spec.name, {**self._rp_filter, **NO_DAD, **FORWARDING})
        return Node(spec, index, host, self._pod_versions)

    def _connect_client(self) -> None:
        v4, v6 = FURTHER_CLIENTS[4], FURTHER_CLIENTS[6]
        self.router.batch(
            [
                f"link add client type veth peer name eth0 netns {self.client.pid}",
                f"addr add {CLIENT_GATEWAY[4]}/30 dev client",
                f"addr add {CLIENT_GATEWAY[6]}/64 dev client nodad",
                "link set client up",
                f"route add {v4} via {CLIENT[4]}",
                f"route add {v6} via {CLIENT[6]} dev client",
            ]
        )
        self.client.batch(
            [
                f"addr add {CLIENT[4]}/30 dev eth0",
                f"addr add {CLIENT[6]}/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {CLIENT_GATEWAY[4]}",
                f"route add ::/0 via {CLIENT_GATEWAY[6]} dev eth0",
                f"route add local {v4} dev lo",
                f"route add local {v6} dev lo",
            ]
        )

    def _connect(self, nodes: Iterable[Node]) -> None:
        """Link the nodes to the router; their pods' networks are routed to them."""
        at_router = []
        for node in nodes:
            at_router += [
                f"link add {node.device} mtu {self.underlay_mtu} type veth"
                f" peer name eth0 mtu {self.underlay_mtu} netns {node.host.pid}",
                f"addr add {node.gateways[4]}/30 dev {node.device}",
                f"addr add {node.gateways[6]}/64 dev {node.device} nodad",
                f"link set {node.device} up",
            ]
            at_router += [
                f"route add {cidr} via {node.addresses[cidr.version]} dev {node.device}" for cidr in node.pod_cidrs
            ]
        self.router.batch(at_router)
        for node in nodes:
            node.host.batch(
                [
                    f"addr add {node.addresses[4]}/30 dev eth0",
                    f"addr add {node.addresses[6]}/64 dev eth0 nodad",
                    "link set eth0 up",
                    f"route add default via {node.gateways[4]}",
                    f"route add ::/0 via {node.gateways[6]} dev eth0",
                ]
            )

    @property
    def ingress_nodes(self) -> list[Node]:
        """The living nodes with the label node=tunnel."""
        return [node for node in self.nodes.values() if node.alive and node.labels.get("node") == "tunnel"]

    @property
    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes.values() for pod in node.pods.values()]

    def client_addresses(self, version: int, count: int) -> list[str]:
        """Different source addresses that the client may use, `count` of them (at most some 32,000)."""
        first = int(FURTHER_CLIENTS[version].network_address) + 1
        make = IPv4Address if version == 4 else IPv6Address
        return [str(make(first + offset)) for offset in range(count)]

    def client_flows(self, version: int, count: int) -> list[tuple[str, int]]:
        """Different (source address, source port) of the client, `count` of them, for `traffic.udp_flows`."""
        sources = self.client_addresses(version, (count + 49) // 50)
        return [(sources[index // 50], 20000 + index * 7 % 50) for index in range(count)]

    def announce(self, vip: str, nodes: Iterable[str] | None = None) -> None:
        """Route a VIP to these nodes by equal-cost multipath (default: all living ingress nodes).

        Stands in for BGP between the nodes and the router.
        """
        names = tuple(node.name for node in self.ingress_nodes) if nodes is None else tuple(nodes)
        if not names:
            return self.withdraw(vip)
        version = ip_address(vip).version
        hops = [self.nodes[name] for name in names]
        paths = " ".join(f"nexthop via {node.addresses[version]} dev {node.device}" for node in hops)
        self.router.batch([f"route replace {vip} {paths}"])
        self._announced[vip] = names
        return None

    def withdraw(self, vip: str, node: str | None = None) -> None:
        """Take a VIP's route away, or only the path by way of one node."""
        left = tuple(name for name in self._announced.pop(vip, ()) if node is not None and name != node)
        if left:
            self.announce(vip, left)
        else:
            self.router.run("ip", "route", "del", vip)

    def narrow_client_path(self, mtu: int) -> None:
        """Let packets towards the client fit into `mtu` bytes only: the router answers larger ones by
        frag-needed or packet-too-big, while the client, who does not know, offers its full segment size.
        """
        self.router.batch(
            [
                f"route replace {CLIENT[4]}/32 dev client mtu lock {mtu}",
                f"route replace {CLIENT[6]}/128 dev client mtu {mtu}",
            ]
        )

    def add_pod(
        self,
        node: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        namespace: str = "default",
        annotations: Mapping[str, str] | None = None,
        chain: Conflist | None = None,
        scheduled: Callable[[Pod], None] = lambda _: None,
    ) -> Pod:
        """A running pod, made by the node's chain or the one given. Raises PluginFailed.

        `scheduled` is called before the chain runs: the pod is known to the cluster before it has an address.
        """
        at = self.nodes[node]
        pod = Pod(name, namespace, labels or {}, annotations or {}, node)
        scheduled(pod)
        pod.start(at.host, at.runtime, chain or self.chain(node), self.pod_sysctls)
        at.pods[name] = pod
        return pod

    def add_pods(
        self,
        places: Sequence[tuple[str, str]],
        labels: Mapping[str, str] | None = None,
        scheduled: Callable[[Pod], None] = lambda _: None,
    ) -> list[Pod]:
        """Several pods at once: (node, name) of each."""
        with ThreadPoolExecutor(4) as threads:
            return list(
                threads.map(lambda place: self.add_pod(place[0], place[1], labels, scheduled=scheduled), places)
            )

    def chain(self, node: str) -> Conflist:
        """The configuration list of a node."""
        return self._make_chain(self.nodes[node].pod_cidrs, **self._chain_options)

    def delete_pod(self, pod: Pod) -> None:
        """End the pod as a container runtime does: processes first, then the chain's DEL."""
        pod.stop()
        del self.nodes[pod.node].pods[pod.name]

    def kill_node(self, name: str) -> None:
        """The node loses its power: link, processes, pods, all gone at once."""
        node = self.nodes[name]
        # Link down first: it takes the next hop out of multipath routes. When the device goes, as it does
        # with the node's namespace, the kernel drops IPv4 multipath routes over it as a whole.
        self.router.batch([f"link set {node.device} down"])
        node.alive = False
        for vip, hops in list(self._announced.items()):
            left = tuple(hop for hop in hops if hop != name)
            if not left:
                del self._announced[vip]  # the route went with the link
            elif left != hops:
                self.announce(vip, left)
        for pod in node.pods.values():
            pod.ready = False
        node.host.crash()
        for pod in node.pods.values():
            pod.place.stop_processes()

    def revive_node(self, name: str) -> Node:
        """A fresh node, without pods, in the place of a killed one; what it was announced for is not."""
        old = self.nodes[name]
        node = self._node(old.spec, old.index)
        self.nodes[name] = node
        node.host.wait_ready()
        # The kernel takes a dead namespace's devices down by and by, and this end of the link with them.
        self.router.run("ip", "link", "del", node.device, check=False)
        self._connect([node])
        return node

    def close(self) -> None:
        """Take everything down; idempotent."""
        for pod in self.pods:
            pod.place.stop_processes()
        for node in self.nodes.values():
            node.host.close()
        self.router.close()
        self.client.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
