"""What pods have to know to hand packets on, for each Service of which buckets have moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from node_helper.buckets import BucketTable
from node_helper.chains import Handover, handovers, lines
from node_helper.model import ObjectKey, Pod
from node_helper.plan.ingress import candidates, node_local
from node_helper.service_index import ServiceIndex, table_name
from node_helper.services import TunnelService

Handovers = Mapping[ObjectKey, Mapping[str, Handover]]
"""By Service and endpoint; Services and endpoints that have nothing to know are missing."""
Local = Mapping[ObjectKey, frozenset[str]]
"""By Service, the names in bucket tables of this node's endpoints; Services without any are missing."""


class HandoverPlanner:
    """Goes by what ingress nodes send, which they make from the same table and endpoints.

    Only the Services that a change concerns are worked out anew. Under traffic policy Local and in mode mpls only
    this node's endpoints count, as on the only ingress node that sends to them.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._local: tuple[ServiceIndex, Mapping[ObjectKey, Pod], Local] | None = None
        self._known: dict[ObjectKey, tuple[TunnelService, BucketTable, frozenset[str], Mapping[str, Handover]]] = {}

    def local(self, services: Iterable[TunnelService], index: ServiceIndex, pods: Mapping[ObjectKey, Pod]) -> Local:
        """Which Services have endpoints here; `index` is of these Services.

        With the Kubernetes API a helper of role node sees no endpoints, only the pods of its own node.
        """
        known = self._local
        if known is not None and known[0] is index and known[1] is pods:
            return known[2]
        found: dict[ObjectKey, set[str]] = {}
        for service in services:
            for endpoint in service.endpoints:
                if endpoint.node == self._node:
                    found.setdefault(service.key, set()).add(str(endpoint.address))
        for pod in pods.values():
            name = table_name(pod)
            if pod.node == self._node and name is not None:
                for service in index.in_front_of(pod):
                    if not service.endpoints:
                        found.setdefault(service.key, set()).add(name)
        local = {key: frozenset(names) for key, names in found.items()}
        self._local = index, pods, local
        return local

    def plan(
        self, services: Iterable[TunnelService], tables: Mapping[ObjectKey, BucketTable], local: Local
    ) -> Handovers:
        """Of the Services that have endpoints here; `tables` may lack some, and have more."""
        before, self._known = self._known, {}
        for service in services:
            table, here = tables.get(service.key), local.get(service.key)
            if table is None or here is None:
                continue
            known = before.get(service.key)
            if known is None or not (known[0] is service and known[1] is table and known[2] == here):
                known = service, table, here, self._handovers(service, table, here)
            self._known[service.key] = known
        return {key: found for key, (_, _, _, found) in self._known.items() if found}

    def _handovers(self, service: TunnelService, table: BucketTable, here: frozenset[str]) -> Mapping[str, Handover]:
        # Without endpoints to see, the table alone says who is usable.
        seen = candidates(service, self._node) if service.endpoints else ()
        return handovers(lines(table, seen, here if node_local(service) else None, service.usable))
