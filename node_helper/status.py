"""What `status` shows: the helper's view of its node, as data and as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from node_helper.buckets import effective
from node_helper.plan.ingress import reachable
from node_helper.plan.state import ANNOUNCED
from node_helper.reconcile import Round
from node_helper.settings import Settings


def status(settings: Settings, result: Round | None, uptime: float) -> dict[str, Any]:
    """Plain data: what goes over the socket and what `status --json` prints."""
    head: dict[str, Any] = {
        "node": settings.node,
        "roles": sorted(settings.roles),
        "uptime_seconds": round(uptime, 1),
        "buckets": settings.buckets,
        "synced": result is not None,
    }
    if result is None:
        return head
    services = []
    for service in result.services:
        table = result.tables.get(service.key)
        usable = reachable(service, result.facts, settings.node)
        owners = (
            Counter(o for o in effective(table, usable) if o is not None) if table and result.ingress else Counter()
        )
        services.append(
            {
                "name": str(service.key),
                "vips": [str(vip) for vip in service.vips],
                "mode": service.mode,
                "announced": [
                    vip for vip in map(str, service.vips) if result.host.served.get(vip, (0, 0))[0] == ANNOUNCED
                ],
                "forwarded": [vip for vip in map(str, service.vips) if vip in result.host.served],
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
            }
        )
    return head | {
        "ingress": result.ingress,
        "draining": result.draining,
        "addresses": list(result.facts.addresses),
        "attachments": result.attachments,
        "services": services,
        "problems": [
            {"kind": p.kind, "object": str(p.key), "reason": p.reason, "message": p.message} for p in result.problems
        ],
    }


def as_text(data: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"node {data['node']}, roles {' and '.join(data['roles'])}, up {data['uptime_seconds']:.0f} s"]
    if not data["synced"]:
        return "\n".join([*lines, "not yet synced: Services and pods are still being read"])
    if "ingress" in data["roles"]:
        state = "draining: forwards, is not announced" if data["draining"] else "serving"
        lines.append(f"ingress: {state if data['ingress'] else 'no (the Node lacks the ingress label)'}")
    lines.append(f"node addresses {', '.join(data['addresses'])}; {data['attachments']} attachment records")
    for service in data["services"]:
        lines.append("")
        lines.append(f"Service {service['name']}  VIP {', '.join(service['vips'])}  mode {service['mode']}")
        if data["ingress"]:
            announced = ", ".join(service["announced"]) or "nothing"
            only = [vip for vip in service["forwarded"] if vip not in service["announced"]]
            lines.append(f"  announced: {announced}" + (f"; only forwarded: {', '.join(only)}" if only else ""))
        for endpoint in service["endpoints"]:
            state = "usable" if endpoint["usable"] else "not usable"
            buckets = f"{endpoint['buckets']:4d} of {data['buckets']} buckets  " if data["ingress"] else ""
            lines.append(f"  {endpoint['address']:<24} {buckets}{state:<11} {endpoint['pod']} on {endpoint['node']}")
    if data["problems"]:
        lines += ["", "problems:"]
        lines += [f"  {p['reason']} ({p['kind']} {p['object']}): {p['message']}" for p in data["problems"]]
    return "\n".join(lines)
