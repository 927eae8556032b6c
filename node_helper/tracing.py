"""Where a flow goes and why: the answer of `trace`, computed as the kernel computes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from node_helper.buckets import BucketTable
from node_helper.chains import chain_id
from node_helper.hmark import Flow, bucket
from node_helper.model import ObjectKey
from node_helper.plan.ingress import bucket_ways, of_version, reachable, ways_by
from node_helper.plan.state import FIRST_TABLE, HostFacts
from node_helper.services import TunnelService


def trace(
    flow: Flow,
    services: Iterable[TunnelService],
    tables: Mapping[ObjectKey, BucketTable],
    facts: HostFacts,
    node: str,
    buckets: int,
    seed: int,
) -> dict[str, Any]:
    """The flow's way from this ingress node; raises LookupError when it does not come this way."""
    destination = str(flow.destination)
    service = next((s for s in services if destination in map(str, s.vips)), None)
    if service is None:
        raise LookupError(f"{destination} is no VIP that is served: see `service-tunnel-helper status`")
    if not facts.address(flow.destination.version):
        raise LookupError(f"{node} has no IPv{flow.destination.version} address, so {destination} is not served there")
    table = tables.get(service.key)
    version, usable = flow.destination.version, reachable(service, facts, node)
    able = of_version(service, usable, version)
    if table is None or not able:
        raise LookupError(f"Service {service.key} has no usable endpoint that {node} can reach")
    number = bucket(flow, buckets, seed, addresses_only=service.affinity)
    endpoint, previous = ways_by(version, service, table, able, bucket_ways(service, table, usable, facts, node))[
        number
    ]
    stored = table.owner(number)
    pods = {str(e.address): str(e.pod or "") for e in service.endpoints}
    path = facts.paths.get(endpoint or "")
    return {
        "service": str(service.key),
        "vip": destination,
        "mode": service.mode,
        "bucket": number,
        "table": FIRST_TABLE + number,
        "endpoint": endpoint,
        "pod": pods.get(endpoint or "", ""),
        "stored_owner": stored,
        "previous_owners": list(previous),
        "tunnel_id": chain_id(previous),
        "route": None if path is None else {"device": path.device, "mtu": path.mtu, "gateway": path.gateway},
    }
