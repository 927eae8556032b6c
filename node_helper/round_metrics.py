"""Gauges that are read off the last cycle's result when somebody asks for them: a cycle pays nothing for them."""

from __future__ import annotations

from collections.abc import Callable

from node_helper.metrics import Metrics
from node_helper.plan.state import ANNOUNCED, FORWARDED
from node_helper.reconcile import Round


def follow(metrics: Metrics, last: Callable[[], Round | None]) -> None:
    """From now on these gauges say what `last` gives; 0 before there is anything."""
    table = {
        metrics.objects.labels("Service"): lambda r: len(r.snapshot.services),
        metrics.objects.labels("Endpoint"): lambda r: sum(map(len, r.snapshot.endpoints.values())),
        metrics.objects.labels("Pod"): lambda r: len(r.snapshot.pods),
        metrics.objects.labels("Node"): lambda r: len(r.snapshot.nodes),
        metrics.services: lambda r: len(r.services),
        metrics.endpoints.labels("usable"): _usable,
        metrics.endpoints.labels("unusable"): lambda r: sum(len(s.endpoints) for s in r.services) - _usable(r),
        metrics.vips.labels("announced"): lambda r: _served(r, ANNOUNCED),
        metrics.vips.labels("forwarded"): lambda r: _served(r, FORWARDED),
        metrics.routes: lambda r: r.routes,
        metrics.attachments: lambda r: r.attachments,
        metrics.draining: lambda r: int(bool(r.draining)),
    }
    for gauge, read in table.items():
        gauge.set_function(_of(last, read))


def _of(last: Callable[[], Round | None], read: Callable[[Round], int]) -> Callable[[], float]:
    def value() -> float:
        result = last()
        return 0 if result is None else read(result)

    return value


def _usable(result: Round) -> int:
    return sum(len(service.usable) for service in result.services)


def _served(result: Round, protocol: int) -> int:
    return sum(found == protocol for found, _ in result.host.served.values())
