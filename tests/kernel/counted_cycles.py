"""Cycles of the helper on a real kernel, with every netlink message counted on its way out: a process of its own.

Run in a network and mount namespace of its own: `python -m tests.kernel.counted_cycles SERVICES`. Prints, for each
step, how many messages of each kind were sent in it. What counts is what the kernel is given: `Socket` is the one way.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from struct import unpack_from

import pytest

from cni_plugin.netlink import DUMP, Socket, rtnl
from node_helper.bucket_store import FolderBucketStore
from node_helper.metrics import Metrics
from node_helper.reconcile import Reconciler, Round
from node_helper.settings import INGRESS, Settings
from node_helper.sources.kubernetes import ObjectCopy
from node_helper.vips import VipRules, vip_range
from tests.bench.one_node import BUCKETS, ENDPOINTS, NODE, service_of, slice_of

NAMES = {
    rtnl.NEW_ROUTE: "new route",
    rtnl.DEL_ROUTE: "del route",
    rtnl.NEW_NEXTHOP: "new nexthop",
    rtnl.DEL_NEXTHOP: "del nexthop",
    rtnl.NEW_RULE: "new rule",
    rtnl.NEW_LINK: "new link",
    rtnl.NEW_ADDRESS: "new address",
    6 << 8 | 9: "add to set",
    6 << 8 | 10: "delete from set",
}
READS = {
    *(rtnl.GET_LINK, rtnl.GET_ADDRESS, rtnl.GET_ROUTE, rtnl.GET_RULE, rtnl.GET_NEXTHOP),
    6 << 8 | 7,  # ipset's
    *(10 << 8 | kind for kind in (1, 4, 7, 10, 13)),  # nf_tables'
}


def names_of(request: bytes) -> Counter[str]:
    found: Counter[str] = Counter()
    start = 0
    while start + 16 <= len(request):
        length, kind, flags = unpack_from("=IHH", request, start)
        if kind not in READS:
            found[NAMES.get(kind, f"kind {kind}")] += 1
        elif kind == rtnl.GET_ROUTE and flags & DUMP == DUMP:
            found["dump of routes"] += 1
        else:
            found["other read"] += 1
        start += (length + 3) & ~3
    return found


class World:
    """One node's helper without its daemon: cycles run when they are told to."""

    def __init__(self, folder: Path, services: int) -> None:
        settings = Settings(
            node=NODE,
            manifests=folder,
            roles=frozenset([INGRESS]),
            ingress_selector=(),
            run_dir=folder,
            state_dir=folder,
            buckets=BUCKETS,
            vip_rules=VipRules((vip_range("198.18.0.0/15"),)),
        )
        self.objects = ObjectCopy()
        self._reconciler = Reconciler(settings, FolderBucketStore(folder / "tables"), Metrics())
        for number in range(services):
            self.put(number, range(ENDPOINTS))

    def put(self, number: int, endpoints: range, affinity: str = "None") -> None:
        service = service_of(number)
        service["spec"]["sessionAffinity"] = affinity
        self.objects.put("Service", service)
        self.objects.put("EndpointSlice", slice_of(number, endpoints))

    def cycle(self, full: bool = False) -> Round:
        self._reconciler.news.drain()
        return self._reconciler.reconcile(self.objects.snapshot([]), full)


def main(services: int) -> dict[str, Counter[str]]:
    folder = Path("/run/counted")
    folder.mkdir()
    sent: Counter[str] = Counter()
    put: Callable[[Socket, bytes], None] = Socket._put

    def counted(socket: Socket, request: bytes) -> None:
        sent.update(names_of(request))
        put(socket, request)

    pytest.MonkeyPatch().setattr(Socket, "_put", counted)
    world = World(folder, services)
    steps: dict[str, Counter[str]] = {}

    def step(name: str, full: bool = False) -> None:
        sent.clear()
        world.cycle(full)
        steps[name] = Counter(sent)

    step("start", full=True)
    step("settling")
    step("nothing changed")
    step("nothing changed, all compared", full=True)
    world.put(0, range(1, ENDPOINTS))
    step("an endpoint went")
    world.put(0, range(ENDPOINTS))
    step("an endpoint came back")
    world.put(1, range(ENDPOINTS + 1))
    step("an endpoint came")
    while not steps["an endpoint came"]["new route"]:  # a table is written once a second
        step("an endpoint came")
    world.put(services, range(ENDPOINTS), "ClientIP")
    step("a Service with client affinity came")
    step("nothing changed again")
    return steps


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
