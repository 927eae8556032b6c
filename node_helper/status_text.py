"""What `status` shows to people: all of a small node, a line per Service of a large one, and what is wrong last.

The end of the output is what a terminal shows, so what needs a hand stands there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

DETAILED = 12
"""Services that are shown with each endpoint; of more only a line each, unless they were asked for."""
LISTED = 20
"""Problems that are shown, likewise; nodes too."""


def as_text(shown: Mapping[str, Any], now: datetime | None = None, all_of_it: bool = False) -> str:
    """Lines for a terminal; `all_of_it`: nothing is shortened."""
    return "\n".join(_lines(shown, now or datetime.now(UTC), all_of_it))


def _lines(shown: Mapping[str, Any], now: datetime, all_of_it: bool) -> Iterator[str]:
    yield f"node {shown['node']}, roles {' and '.join(shown['roles'])}, up {_span(shown['uptime_seconds'])}"
    if not shown["synced"]:
        yield "not yet synced: Services and pods are still being read"
        yield from _failure(shown, now)
        return
    is_ingress = "ingress" in shown["roles"]
    if is_ingress:
        yield f"  ingress    {_ingress(shown)}"
    yield f"  addresses  {', '.join(shown['addresses']) or 'none'}"
    yield f"  pods       {shown['attachments']} attachment records"
    totals = shown["totals"]
    yield (
        f"  Services   {totals['services']}, with {totals['endpoints']} endpoints, "
        f"{totals['usable_endpoints']} of them usable"
    )
    if shown["ingress"]:
        yield (
            f"  VIPs       {totals['vips']}: {totals['announced_vips']} announced, "
            f"{totals['only_forwarded_vips']} only forwarded"
        )
    if is_ingress and shown["nodes"]:
        yield f"  nodes      {_nodes(shown['nodes'], all_of_it)}"
    yield from _services(shown, all_of_it)
    yield from _problems("problems", shown["problems"], now, all_of_it)
    yield from _problems("problems that have passed", shown["passed_problems"], now, all_of_it)
    yield from _failure(shown, now)


def _failure(shown: Mapping[str, Any], now: datetime) -> Iterator[str]:
    if failure := shown["last_failure"]:
        yield ""
        yield f"last failure, {_ago(failure['at'], now)}: {failure['message']}"


def _ingress(shown: Mapping[str, Any]) -> str:
    if not shown["ingress"]:
        return "no (the Node lacks the ingress label)"
    return f"draining: forwards, is not announced: {shown['draining_why']}" if shown["draining"] else "serving"


def _nodes(nodes: Sequence[Mapping[str, Any]], all_of_it: bool) -> str:
    ingress = [f"{node['name']} ({', '.join(node['addresses'])})" for node in nodes if node["ingress"]]
    shown = ingress if all_of_it else ingress[:LISTED]
    more = f" and {len(ingress) - len(shown)} more" if len(shown) < len(ingress) else ""
    return f"{len(nodes)}, ingress: {', '.join(shown) or 'none'}{more}"


def _services(shown: Mapping[str, Any], all_of_it: bool) -> Iterator[str]:
    services = shown["services"]
    if not services:
        yield ""
        yield "no Service of that kind" if shown["totals"]["services"] else "no Service has a tunnel"
    elif all_of_it or len(services) <= DETAILED:
        for service in services:
            yield from _service(service, shown)
    else:
        yield ""
        head = ("SERVICE", "VIPS", "MODE", "USABLE", "HERE" if shown["ingress"] else "")
        yield from _table([head, *(_row(service, shown) for service in services)])
        yield "(their endpoints: `status NAMESPACE/NAME`, or a VIP, pod, node, or pattern; `--all`)"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(service: Mapping[str, Any], shown: Mapping[str, Any]) -> tuple[str, ...]:
    usable = sum(endpoint["usable"] for endpoint in service["endpoints"])
    return (
        service["name"],
        ",".join(service["vips"]),
        service["mode"],
        f"{usable} of {len(service['endpoints'])}",
        _here(service) if shown["ingress"] else "",
    )


def _here(service: Mapping[str, Any]) -> str:
    """What this ingress node does for the VIPs: of all of them in a word, or of each."""
    states = {vip: _vip_state(service, vip) for vip in service["vips"]}
    if len(set(states.values())) == 1:
        return next(iter(states.values()))
    return ", ".join(f"{vip} {state}" for vip, state in states.items())


def _vip_state(service: Mapping[str, Any], vip: str) -> str:
    if vip in service["announced"]:
        return "announced"
    return "only forwarded" if vip in service["forwarded"] else "not served"


def _service(service: Mapping[str, Any], shown: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    ways = "".join(f", {word}" for key, word in (("affinity", "by client"), ("local", "local")) if service.get(key))
    yield f"Service {service['name']}  VIP {', '.join(service['vips'])}  mode {service['mode']}{ways}"
    if shown["ingress"]:
        yield f"  {_here(service)}"
    if not service["endpoints"]:
        yield "  no endpoints"
        return
    rows = []
    for endpoint in service["endpoints"]:
        share = f"{endpoint['buckets']:>4} of {shown['buckets']} buckets" if shown["ingress"] else ""
        state = "usable" if endpoint["usable"] else "not usable"
        place = " on ".join(filter(None, (endpoint["pod"], endpoint["node"])))
        rows.append(("", *filter(None, (endpoint["address"], share, state)), place))
    yield from _table(rows)
    for before, now, number in service.get("moves", ()):
        yield f"  {number} {'bucket' if number == 1 else 'buckets'} moved lately from {before} to {now}"


def _problems(title: str, problems: Sequence[Mapping[str, Any]], now: datetime, all_of_it: bool) -> Iterator[str]:
    if not problems:
        return
    yield ""
    yield f"{title}:"
    listed = problems if all_of_it else problems[:LISTED]
    for problem in listed:
        when = f"for {_ago(problem['since'], now, '')}"
        if problem["passed"]:
            when = f"until {_ago(problem['passed'], now)}"
        if problem["times"] > 1:
            when += f", {problem['times']} times"
        yield f"  {problem['reason']} ({problem['kind']} {problem['object']}, {when}): {problem['message']}"
    if len(listed) < len(problems):
        by_reason = Counter(problem["reason"] for problem in problems[LISTED:])
        kinds = ", ".join(f"{number} {reason}" for reason, number in by_reason.most_common())
        yield f"  and {len(problems) - len(listed)} more, with `--all`: {kinds}"


def _ago(time: str, now: datetime, word: str = " ago") -> str:
    return _span((now - datetime.fromisoformat(time)).total_seconds()) + word


def _span(seconds: float) -> str:
    """A length of time in its two largest units at most: `3 d 4 h`, `41 s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number or parts or unit == "s":
            parts.append(f"{number} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ") or len(parts) == 1)
