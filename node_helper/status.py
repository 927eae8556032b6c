"""What `status` says: the helper's view of its node, as plain data for the socket and for `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from cni_plugin import __version__
from node_helper.model import Node
from node_helper.plan.ingress import bucket_ways, reachable
from node_helper.plan.state import ANNOUNCED, FORWARDED
from node_helper.problem_history import Occurrence, ProblemTimes
from node_helper.reconcile import Round
from node_helper.services import TunnelService
from node_helper.settings import Settings, has_labels


def status(
    settings: Settings,
    result: Round | None,
    uptime: float,
    times: ProblemTimes,
    failure: tuple[str, float] | None = None,
    patterns: Sequence[str] = (),
) -> dict[str, Any]:
    """Plain data; of the Services only those that a pattern fits, where there are patterns.

    A pattern is a shell's, and fits `namespace/name`, the name alone, a VIP, or an endpoint's address, pod or node.
    `failure`: the last cycle that failed, and its time. Times are UTC.
    """
    head: dict[str, Any] = {
        "node": settings.node,
        "version": __version__,
        "roles": sorted(settings.roles),
        "uptime_seconds": round(uptime, 1),
        "buckets": settings.buckets,
        "synced": result is not None,
        "last_failure": None if failure is None else {"message": failure[0], "at": _time(failure[1])},
    }
    if result is None:
        return head
    chosen = [service for service in result.services if not patterns or _fits(service, patterns)]
    shown = {str(service.key) for service in chosen}
    shown.update(str(endpoint.pod) for service in chosen for endpoint in service.endpoints)
    problems = [_problem(one) for one in times.standing]
    passed = [_problem(one) for one in times.passed]
    if patterns:
        problems, passed = ([p for p in some if p["object"] in shown] for some in (problems, passed))
    return head | {
        "ingress": result.ingress,
        "draining": bool(result.draining),
        "draining_why": result.draining,
        "addresses": list(result.facts.addresses),
        "attachments": result.attachments,
        "nodes": [_node(node, settings) for _, node in sorted(result.snapshot.nodes.items())],
        "totals": _totals(result),
        "services": [_service(service, result, settings) for service in chosen],
        "problems": problems,
        "passed_problems": passed,
    }


def _fits(service: TunnelService, patterns: Iterable[str]) -> bool:
    names = {str(service.key), service.key.name, *map(str, service.vips)}
    for endpoint in service.endpoints:
        names.update((*map(str, endpoint.addresses), endpoint.node))
        if endpoint.pod is not None:
            names.update((str(endpoint.pod), endpoint.pod.name))
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _node(node: Node, settings: Settings) -> dict[str, Any]:
    return {
        "name": node.name,
        "addresses": [str(address) for address in node.addresses],
        "ingress": has_labels(node.labels, settings.ingress_selector),
    }


def _totals(result: Round) -> dict[str, int]:
    """Of all Services, also of those that are not shown."""
    protocols = Counter(protocol for protocol, _ in result.host.served.values())
    return {
        "services": len(result.services),
        "endpoints": sum(len(service.endpoints) for service in result.services),
        "usable_endpoints": sum(len(service.usable) for service in result.services),
        "vips": sum(len(service.vips) for service in result.services),
        "announced_vips": protocols[ANNOUNCED],
        "only_forwarded_vips": protocols[FORWARDED],
    }


def _service(service: TunnelService, result: Round, settings: Settings) -> dict[str, Any]:
    owners: Counter[str] = Counter()
    moves: Counter[tuple[str, str]] = Counter()
    table = result.tables.get(service.key)
    if table is not None and result.ingress:
        usable = reachable(service, result.facts, settings.node)
        ways = bucket_ways(service, table, usable, result.facts, settings.node)
        owners.update(owner for owner, _ in ways if owner is not None)
        moves.update((chain[0], owner) for owner, chain in ways if owner and chain)
    vips, served = [str(vip) for vip in service.vips], result.host.served
    return {
        "name": str(service.key),
        "vips": vips,
        "mode": service.mode,
        "announced": [vip for vip in vips if served.get(vip, (0, 0))[0] == ANNOUNCED],
        "forwarded": [vip for vip in vips if vip in served],
        "affinity": service.affinity,
        "local": service.local_policy,
        "endpoints": [
            {
                "address": str(endpoint.address),
                "pod": str(endpoint.pod or ""),
                "node": endpoint.node,
                "usable": str(endpoint.address) in service.usable,
                "buckets": owners.get(str(endpoint.address), 0),
            }
            for endpoint in service.endpoints
        ],
        "moves": [[before, now, number] for (before, now), number in sorted(moves.items())],
    }


def _problem(one: Occurrence) -> dict[str, Any]:
    problem = one.problem
    return {
        "kind": problem.kind,
        "object": str(problem.key),
        "reason": problem.reason,
        "message": problem.message,
        "since": _time(one.since),
        "passed": None if one.passed is None else _time(one.passed),
        "times": one.times,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
