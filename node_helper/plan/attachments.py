"""Which tunnels a pod is to have, for the plugin's asks and for pods that already run."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cni_plugin.tunnel import FIRST_INTERFACE, PodTunnels, Tunnel
from node_helper.model import Node, ObjectKey, Pod, Snapshot
from node_helper.plan.handovers import Handovers
from node_helper.service_index import ServiceIndex, tunnels_for_pod
from node_helper.services import TunnelService


def pod_tunnels(
    services: Iterable[TunnelService] | ServiceIndex, snapshot: Snapshot, pod: Pod, handovers: Handovers | None = None
) -> PodTunnels:
    """All tunnels of a pod and the outer addresses from which it accepts encapsulated packets."""
    tunnels: tuple[Tunnel, ...] = tunnels_for_pod(services, pod, handovers)
    if not tunnels:
        return PodTunnels()
    return PodTunnels(tunnels, tunnel_sources(snapshot.nodes.values()))


def tunnel_sources(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Outer source addresses of ingress nodes: any node may become one.

    Besides the nodes' own addresses those that overlays put on a node: the first two of its pod range
    (flannel's device has the network's own address, bridges the next), which no pod ever has. Empty, and
    with it no filter, where no Nodes are known.
    """
    addresses = set()
    for node in nodes:
        addresses |= {str(address) for address in node.addresses}
        for cidr in node.pod_cidrs:
            addresses |= {str(cidr[offset]) for offset in range(min(2, cidr.num_addresses))}
    return tuple(sorted(addresses))


def bears_tunnels(container: str, interface: str, attached: Collection[tuple[str, str]]) -> bool:
    """Whether a pod's tunnels go with this attachment; `attached`: (container, interface) of all of the node.

    Tunnels are the pod's, not an interface's, and packets come to the pod's own address, which is that of the
    interface that every Kubernetes runtime names eth0. A further one (by multus, say) brings no tunnels and,
    above all, takes none along when it goes.
    """
    return interface == FIRST_INTERFACE or (container, FIRST_INTERFACE) not in attached


def find_pod(snapshot: Snapshot, namespace: str, name: str) -> Pod | None:
    """The pod of an attachment or an ask.

    A static pod's UID at the runtime is not its UID at the API server, and a StatefulSet's pod may be asked
    for before its predecessor has left the source, so namespace and name decide; the UID is not compared.
    """
    return snapshot.pods.get(ObjectKey(namespace, name))
