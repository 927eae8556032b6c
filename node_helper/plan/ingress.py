"""From Services and bucket tables to the router and the host that an ingress node is to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from cni_plugin.tunnel import MPLS, VXLAN_GPE, overhead
from node_helper.buckets import BucketTable, effective
from node_helper.chains import Chain, chain_id, chains
from node_helper.local_buckets import local_owners
from node_helper.model import IPAddress, ObjectKey, Problem
from node_helper.plan.state import (
    ANNOUNCED,
    FIRST_LABEL,
    FORWARDED,
    Hop,
    HostFacts,
    HostWanted,
    Path,
    RouterWanted,
    VipBuckets,
)
from node_helper.services import TunnelService, usable_addresses

IPV6_MINIMUM_MTU = 1280
MINIMUM_MTU = {4: 576, 6: IPV6_MINIMUM_MTU}
"""RFC 791 and RFC 8200: no path may be smaller, so a smaller route MTU would be refused or ignored."""


Way = tuple[str | None, Chain]
"""Who has a bucket on this node, and who had it before."""


def candidates(service: TunnelService, node: str) -> tuple[str, ...]:
    """Endpoints that this node may send a Service's packets to.

    All usable ones; only this node's own under traffic policy Local, and in mode mpls, where a label reaches
    a pod from its own node only.
    """
    if not node_local(service):
        return service.usable
    return usable_addresses(endpoint for endpoint in service.endpoints if endpoint.node == node)


def reachable(service: TunnelService, facts: HostFacts, node: str) -> tuple[str, ...]:
    """The candidates to which packets get from this node."""
    if service.mode == MPLS and not facts.mpls:
        return ()
    return tuple(endpoint for endpoint in candidates(service, node) if endpoint in facts.paths)


def of_version(service: TunnelService, addresses: tuple[str, ...], version: int) -> tuple[str, ...]:
    """Of these endpoints those that can answer clients of an IP version, because they have an address of it.

    Where no endpoint of the Service has one all are tried: either their way back is there for another reason, or
    nothing is lost.
    """
    others = _without(service, version)
    return tuple([address for address in addresses if address not in others]) if others else addresses


def _without(service: TunnelService, version: int) -> frozenset[str]:
    """Endpoints that have no address of an IP version, while others have."""
    found = frozenset(str(e.address) for e in service.endpoints if all(own.version != version for own in e.addresses))
    return found if len(found) < len(service.endpoints) else frozenset()


def node_local(service: TunnelService) -> bool:
    return service.local_policy or service.mode == MPLS


def local_endpoints(service: TunnelService, node: str) -> frozenset[str] | None:
    """Of a Service of which only one node's endpoints count: those, in any state; None where all count."""
    if not node_local(service):
        return None
    return frozenset(str(endpoint.address) for endpoint in service.endpoints if endpoint.node == node)


def plan_ingress(
    services: Iterable[TunnelService],
    tables: Mapping[ObjectKey, BucketTable],
    facts: HostFacts,
    node: str,
    buckets: int,
    seed: int,
    draining: bool = False,
) -> tuple[RouterWanted, HostWanted, list[Problem]]:
    """The wanted router and host, and what stands in the way of single Services or endpoints.

    A VIP is served while a usable endpoint of it can be reached from here; a Service that cannot be served
    takes nothing from the others.
    """
    return IngressPlanner(node, buckets, seed).plan(tuple(services), tables, facts, draining)


@dataclass(frozen=True, slots=True)
class _Ground:
    """All that one Service's part of the plan is made from; the same objects give the same part."""

    service: TunnelService
    table: BucketTable | None
    paths: tuple[Path | None, ...]
    """Of the candidates."""
    labels: tuple[int | None, ...]
    addresses: tuple[str, ...]
    mpls: bool

    def is_of(self, service: TunnelService, table: BucketTable | None) -> bool:
        return self.service is service and self.table is table

    def same(self, other: _Ground) -> bool:
        return (
            self.is_of(other.service, other.table)
            and self.paths == other.paths
            and self.labels == other.labels
            and self.addresses == other.addresses
            and self.mpls == other.mpls
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """What one Service adds to the plan."""

    vips: Mapping[str, VipBuckets]
    limits: Mapping[str, int]
    """VIP -> the largest packet, bytes."""
    all_vips: tuple[str, ...]
    sources: frozenset[str]
    tunnels: frozenset[tuple[str, int]]
    devices: frozenset[str]
    problems: tuple[Problem, ...]


class IngressPlanner:
    """`plan_ingress` for one state after the other: plans anew only the Services that a change concerns.

    The buckets of a VIP that did not change are the very same object as before, by which `router_changes` goes.
    """

    def __init__(self, node: str, buckets: int, seed: int) -> None:
        self._node = node
        self._buckets = buckets
        self._seed = seed
        self._candidates: dict[ObjectKey, tuple[TunnelService, tuple[str, ...]]] = {}
        self._parts: dict[ObjectKey, tuple[_Ground, _Part]] = {}
        self._seen = HostFacts(())
        """The facts of the last plan."""

    def endpoints(self, services: Iterable[TunnelService]) -> frozenset[str]:
        """Addresses whose paths `plan` needs to know."""
        return frozenset().union(*[self._candidates_of(service) for service in services])

    def plan(
        self,
        services: tuple[TunnelService, ...],
        tables: Mapping[ObjectKey, BucketTable],
        facts: HostFacts,
        draining: bool = False,
        silent: frozenset[str] = frozenset(),
    ) -> tuple[RouterWanted, HostWanted, list[Problem]]:
        """The same as `plan_ingress` gives; VIPs that are `silent` are not announced (`plan.probes`)."""
        labels = _labels(services, facts, self._node)
        same_ways = (facts.paths is self._seen.paths, facts.addresses, facts.mpls) == (
            True,
            self._seen.addresses,
            self._seen.mpls,
        )
        self._seen = facts
        parts = []
        for service in services:
            table = tables.get(service.key)
            known = self._parts.get(service.key)
            if same_ways and known is not None and known[0].is_of(service, table) and service.mode != MPLS:
                part = known[1]
            else:
                part = self._part(service, table, facts, labels)
            parts.append((service, part))
        if len(self._parts) > len(parts):
            keys = {service.key for service in services}
            for key in self._parts.keys() - keys:
                del self._parts[key], self._candidates[key]
        vips: dict[str, VipBuckets] = {}
        served: dict[str, tuple[int, int]] = {}
        problems: list[Problem] = []
        protocol = FORWARDED if draining else ANNOUNCED
        for service, part in parts:
            vips.update(part.vips)
            for vip, limit in part.limits.items():
                served[vip] = protocol, limit
                if vip in silent:
                    served[vip] = FORWARDED, limit
                    problems.append(_silent(service, vip, self._node))
            problems += part.problems
        sources = frozenset(facts.addresses).union(*[part.sources for _, part in parts])
        router = RouterWanted(
            self._buckets,
            self._seed,
            tuple(sorted(sources)),
            vips,
            frozenset([vip for service, part in parts if service.affinity for vip in part.vips]),
            tuple(v for v in (4, 6) if facts.address(v)),
            frozenset().union(*[part.tunnels for _, part in parts]),
        )
        host = HostWanted(
            served=served,
            vips=frozenset([vip for _, part in parts for vip in part.all_vips]),
            labels={label: endpoint for endpoint, label in labels.items()},
            loose=frozenset().union(*[part.devices for _, part in parts]),
            router=True,
        )
        return router, host, problems

    def _candidates_of(self, service: TunnelService) -> tuple[str, ...]:
        known = self._candidates.get(service.key)
        if known is None or known[0] is not service:
            known = self._candidates[service.key] = service, candidates(service, self._node)
        return known[1]

    def _part(
        self, service: TunnelService, table: BucketTable | None, facts: HostFacts, labels: Mapping[str, int]
    ) -> _Part:
        endpoints = self._candidates_of(service)
        ground = _Ground(
            service,
            table,
            tuple([facts.paths.get(endpoint) for endpoint in endpoints]),
            tuple([labels.get(endpoint) for endpoint in endpoints]) if service.mode == MPLS else (),
            facts.addresses,
            facts.mpls,
        )
        known = self._parts.get(service.key)
        if known is not None and known[0].same(ground):
            return known[1]
        part = _plan_service(service, table, endpoints, facts, self._node, labels)
        if known is not None:
            # What came out the same in spite of the change needs no second look either.
            kept = {vip: known[1].vips[vip] for vip, new in part.vips.items() if known[1].vips.get(vip) == new}
            part = replace(part, vips={**part.vips, **kept})
        self._parts[service.key] = ground, part
        return part


def _plan_service(
    service: TunnelService,
    table: BucketTable | None,
    endpoints: tuple[str, ...],
    facts: HostFacts,
    node: str,
    labels: Mapping[str, int],
) -> _Part:
    names = tuple(map(str, service.vips))
    devices = frozenset(facts.paths[endpoint].device for endpoint in endpoints if endpoint in facts.paths)
    if table is None:
        return _Part({}, {}, names, frozenset(), frozenset(), devices, ())
    usable = reachable(service, facts, node)
    problems = [_unreachable(service, e, facts) for e in endpoints if e not in usable]
    local = {str(e.address): e.node == node for e in service.endpoints}
    ways_of_all = bucket_ways(service, table, usable, facts, node)
    limit_of_all = _mtu(service, usable, {(owner, chain) for owner, chain in ways_of_all if owner is not None}, facts)
    vips: dict[str, VipBuckets] = {}
    limits: dict[str, int] = {}
    sources: set[str] = set()
    tunnels: set[tuple[str, int]] = set()
    for vip, name in zip(service.vips, names, strict=True):
        if not facts.address(vip.version):
            message = f"Service {service.key}: {node} has no IPv{vip.version} address, so {vip} is not served there"
            problems.append(Problem("Service", service.key, "NoNodeAddress", message))
            continue
        able = of_version(service, usable, vip.version)
        if not able:
            continue
        ways = ways_by(vip.version, service, table, able, ways_of_all)
        distinct = sorted({(owner, chain) for owner, chain in ways if owner is not None})
        hop_of: dict[tuple[str | None, Chain], Hop] = {
            (owner, chain): _hop(vip, service, owner, chain, local[owner], facts, labels) for owner, chain in distinct
        }
        limits[name] = limit = max(limit_of_all, MINIMUM_MTU[vip.version])
        # The kernel itself takes the labels that a route pushes from the route's MTU.
        pushed = overhead(MPLS, vip.version) if service.mode == MPLS else 0
        vips[name] = VipBuckets(tuple([hop_of.get(way) for way in ways]), limit + pushed)
        sources.update(hop.source for hop in hop_of.values() if hop.source)
        tunnels.update((hop.mode, 6 if ":" in hop.endpoint else 4) for hop in hop_of.values())
    return _Part(vips, limits, names, frozenset(sources), frozenset(tunnels), devices, tuple(problems))


def ways_by(
    version: int, service: TunnelService, table: BucketTable, able: tuple[str, ...], ways: list[Way]
) -> list[Way]:
    """Those of `bucket_ways` among the endpoints of one IP version: a bucket of another falls to one of these.

    To who had it before, if it still takes traffic: the slice of one version comes a moment after that of the other, so
    a newcomer begins without an address, and connections must not pass through third hands meanwhile.
    Pods know the ids of the chains of all endpoints, and of these without some members, but no others.
    """
    others = _without(service, version)
    if not others:
        return ways
    found: list[Way] = []
    for fallback, (owner, chain) in zip(_owners(service, table, able, version), ways, strict=True):
        line = tuple([name for name in chain if name not in others])
        heir = owner
        if owner in others:
            heir = line[0] if line and line[0] in able else fallback
        found.append((heir, tuple([name for name in line if name != heir])))
    return found


def all_vips(services: Iterable[TunnelService]) -> frozenset[str]:
    return frozenset(str(vip) for service in services for vip in service.vips)


def bucket_ways(
    service: TunnelService, table: BucketTable, usable: tuple[str, ...], facts: HostFacts, node: str
) -> list[Way]:
    """Of each bucket, with `usable` those that are reachable from here.

    Not who takes traffic and is only not reached from here: elsewhere it has its buckets, so pods know nothing of that.
    """
    missed = set(candidates(service, node)).difference(reachable(service, facts, node))
    alive = {str(endpoint.address) for endpoint in service.endpoints} - missed
    owners = _owners(service, table, usable)
    return list(zip(owners, chains(table, owners, alive, local_endpoints(service, node)), strict=True))


def _owners(
    service: TunnelService, table: BucketTable, able: tuple[str, ...], version: int | None = None
) -> tuple[str | None, ...]:
    """Who of these endpoints has each bucket; `version`: of IP, which all of them have."""
    if not node_local(service):
        return effective(table, able)
    everywhere = service.usable if version is None else of_version(service, service.usable, version)
    return local_owners(table, able, everywhere)


def _hop(
    vip: IPAddress,
    service: TunnelService,
    owner: str,
    chain: Chain,
    local: bool,
    facts: HostFacts,
    labels: Mapping[str, int],
) -> Hop:
    mode = _mode(service, chain)
    if mode == MPLS:
        return Hop(vip.version, MPLS, "", "", labels[owner])
    outer = 6 if ":" in owner else 4
    # To pods of this node the node's own address; to others what the host itself would use: on an overlay
    # that is another one, and the far node drops what comes with the wrong one.
    source = facts.address(outer) if local else facts.paths[owner].source
    return Hop(vip.version, mode, owner, source or facts.address(outer), tunnel_id=chain_id(chain))


def _mode(service: TunnelService, chain: Chain) -> str:
    """A label has no id, and pods could not hand packets on by labels: hosts take none from them."""
    return VXLAN_GPE if service.mode == MPLS and chain else service.mode


def _mtu(service: TunnelService, usable: Iterable[str], ways: Iterable[tuple[str, Chain]], facts: HostFacts) -> int:
    """Bytes: the least of the endpoints' paths, less what the encapsulation takes.

    All usable endpoints count, also those that have no bucket: one that gets some makes no packet too large.
    """

    def left(endpoint: str, chain: Chain) -> int:
        mode, outer = _mode(service, chain), 6 if ":" in endpoint else 4
        # What the kernel takes from all routes of a VIP in mode mpls it takes from those by other tunnels, too.
        pushed = overhead(MPLS, outer) if service.mode == MPLS != mode else 0
        return facts.paths[endpoint].mtu - overhead(mode, outer, chain_id(chain)) - pushed

    return min(
        (left(endpoint, chain) for endpoint, chain in (*((e, ()) for e in usable), *ways)), default=IPV6_MINIMUM_MTU
    )


def _labels(services: Iterable[TunnelService], facts: HostFacts, node: str) -> dict[str, int]:
    """A label for each local endpoint of mode mpls; one that has a label keeps it.

    A label that becomes free is not given away in the same step: packets that carry it may still be on their way.
    """
    if not facts.mpls:
        return {}
    wanted = sorted(
        {endpoint for service in services if service.mode == MPLS for endpoint in candidates(service, node)}
        & facts.paths.keys()
    )
    labels = {endpoint: facts.labels[endpoint] for endpoint in wanted if endpoint in facts.labels}
    taken = set(facts.labels.values())
    free = (label for label in count(FIRST_LABEL) if label not in taken)
    for endpoint in wanted:
        if endpoint not in labels:
            labels[endpoint] = next(free)
    return labels


def _silent(service: TunnelService, vip: str, node: str) -> Problem:
    message = (
        f"no endpoint of Service {service.key} answers at {vip} from {node} any more, so {node} does not announce it: "
        "look whether its pods' programs run, and whether a network policy keeps packets from nodes out"
    )
    return Problem("Service", service.key, "EndpointsSilent", message)


def _unreachable(service: TunnelService, endpoint: str, facts: HostFacts) -> Problem:
    if service.mode == MPLS and not facts.mpls:
        why = "this node's kernel has no MPLS routing (modprobe mpls_router mpls_iptunnel)"
        return Problem("Service", service.key, "NoMPLS", f"Service {service.key} is not served in mode mpls: {why}")
    message = f"endpoint {endpoint} of Service {service.key} gets no traffic: this node has no route to it"
    return Problem("Service", service.key, "UnreachableEndpoint", message)
