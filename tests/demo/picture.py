"""The demo's topology as text, with the names and addresses that are really there."""

from __future__ import annotations

from collections.abc import Mapping

from tests.testbed.cluster import CLIENT, Cluster


def picture(cluster: Cluster, vips: Mapping[int, str]) -> str:
    """A tree of what is linked to what, and the two ways that packets take."""
    lines = [
        f"client    {CLIENT[4]}, {CLIENT[6]}, and further addresses for many flows",
        "  |",
        f"router    routes {vips[4]} and {vips[6]} to the ingress nodes, by equal-cost paths",
        "  |",
    ]
    nodes = list(cluster.nodes.values())
    for node in nodes:
        pods = sorted(node.pods.values(), key=lambda pod: pod.name)
        beam = "|" if node is not nodes[-1] else " "
        where = f"{node.name:<10}{node.addresses[4]:<13}{node.addresses[6]:<20}"
        lines.append(f"  +-- {where}{'<== VIPs' if node.labels.get('node') == 'tunnel' else ''}".rstrip())
        lines += [f"  {beam}     +-- {pod.name:<6}{pod.ipv4:<13}{pod.ipv6}" for pod in pods]
    lines += [
        "",
        "request   client --> router --> either ingress node ==encapsulated==> pod, which has the VIP on lo",
        "reply     pod --> router --> client: sent by the VIP itself, past the ingress nodes",
    ]
    return "\n".join(lines)
