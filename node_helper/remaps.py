"""Service ports whose `targetPort` differs: which are rewritten inside the pod, and which cannot be.

The rewriting has no memory of connections: on the way back the pod's port alone says which port the client
used. So only one Service port of a protocol may lead to a pod's port.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni_plugin.tunnel import Remap
from node_helper.model import ServicePort


@dataclass(frozen=True, slots=True)
class Remaps:
    remaps: tuple[Remap, ...]
    """Sorted by protocol and port; a port that equals its target needs none."""
    clashes: tuple[str, ...]
    """One clause for each group of ports that is ambiguous and so left as it is."""


def remaps_of(ports: Iterable[ServicePort], port_names: Mapping[str, int]) -> Remaps:
    """The remaps of a Service's ports in a pod whose containers name their ports so.

    A target that the pod does not name gives nothing: for Kubernetes the pod is no endpoint of that port.
    """
    by_target: dict[tuple[str, int], set[int]] = {}
    by_port: dict[tuple[str, int], set[int]] = {}
    for port in ports:
        target = port_names.get(port.target_port) if isinstance(port.target_port, str) else port.target_port
        if target is not None:
            by_target.setdefault((port.protocol, target), set()).add(port.port)
            by_port.setdefault((port.protocol, port.port), set()).add(target)
    remaps, clashes = [], []
    for (protocol, target), sources in sorted(by_target.items()):
        if len(sources) > 1:
            numbers = ", ".join(map(str, sorted(sources)))
            clashes.append(f"{protocol} ports {numbers} all lead to {target} and replies could not tell them apart")
    for (protocol, source), targets in sorted(by_port.items()):
        if len(targets) > 1:
            numbers = ", ".join(map(str, sorted(targets)))
            clashes.append(f"{protocol} port {source} leads to {numbers} at once")
            continue
        (target,) = targets
        if target != source and len(by_target[protocol, target]) == 1:
            remaps.append(Remap(protocol, source, target))
    return Remaps(tuple(remaps), tuple(clashes))
