"""What has to be sent to the kernel to bring the router's tables from present to wanted.

The order keeps every packet on a valid way: new nexthops, then routes, then the removal of routes and of
nexthops that nothing uses any more. The number of messages is in proportion to what changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from node_helper.plan.state import Hop, RouterPresent, RouterWanted, VipBuckets


@dataclass(slots=True)
class RouterChanges:
    """Changes of the router's tables, in the order in which they are to be made."""

    add_hops: dict[int, Hop] = field(default_factory=dict)
    put_routes: dict[str, tuple[list[tuple[int, int]], int]] = field(default_factory=dict)
    """VIP -> ([(bucket, nexthop id)], mtu)."""
    delete_routes: dict[str, list[int]] = field(default_factory=dict)
    """VIP -> buckets."""
    delete_hops: list[int] = field(default_factory=list)
    made_from: dict[str, VipBuckets] = field(default_factory=dict)
    """VIP -> what its routes are made from after the changes; no message comes of it."""
    users: dict[int, int] = field(default_factory=dict)
    """Nexthop id -> how many VIPs more, or fewer, use it."""
    moves: int = 0
    """Buckets that go from one endpoint to another, counted for each VIP."""

    def __bool__(self) -> bool:
        return bool(self.add_hops or self.put_routes or self.delete_routes or self.delete_hops)

    def count(self, buckets: VipBuckets, ids: Mapping[Hop, int], number: int) -> None:
        for hop in _distinct(buckets):
            self.users[ids[hop]] = self.users.get(ids[hop], 0) + number

    def route_count(self) -> int:
        return sum(len(routes) for routes, _ in self.put_routes.values()) + sum(map(len, self.delete_routes.values()))


def router_changes(wanted: RouterWanted, present: RouterPresent) -> RouterChanges:
    """Looks only at VIPs whose wanted buckets are another object than the one their routes were made from."""
    changes = RouterChanges()
    news = {vip: buckets for vip, buckets in wanted.vips.items() if present.made_from.get(vip) is not buckets}
    gone = [vip for vip in present.vips if vip not in wanted.vips]
    for vip in (*news, *gone):
        buckets = present.made_from.get(vip)
        if buckets is not None:
            changes.count(buckets, present.ids, -1)
    ids = dict(present.ids) or _first_ids(present)
    free = _free_ids(present)
    new_hops = {hop for buckets in news.values() for hop in _distinct(buckets)}
    for hop in sorted(new_hops - ids.keys()):
        ids[hop] = next(free)
        changes.add_hops[ids[hop]] = hop
    for vip, buckets in news.items():
        changes.count(buckets, ids, +1)
        changes.made_from[vip] = buckets
        have, mtu = present.vips.get(vip, ({}, buckets.mtu))
        # The few hops of a VIP are each one object, so the many buckets need not compare them.
        known = {id(hop): None if hop is None else ids[hop] for hop in buckets.hops}
        ours = [known[id(hop)] for hop in buckets.hops]
        put = [
            (bucket, identifier)
            for bucket, identifier in enumerate(ours)
            if identifier is not None and (mtu != buckets.mtu or have.get(bucket) != identifier)
        ]
        if put:
            changes.put_routes[vip] = (put, buckets.mtu)
            changes.moves += sum(
                _moves(present.hops.get(have.get(bucket, 0)), buckets.hops[bucket]) for bucket, _ in put
            )
        dropped = [bucket for bucket in have if bucket >= len(ours) or ours[bucket] is None]
        if dropped:
            changes.delete_routes[vip] = dropped
    for vip in gone:
        changes.delete_routes[vip] = list(present.vips[vip][0])
    users, more = present.users, changes.users
    changes.delete_hops = [i for i in present.hops if users.get(i, 0) + more.get(i, 0) == 0]
    return changes


def after(changes: RouterChanges, present: RouterPresent) -> RouterPresent:
    """What the kernel holds once all changes are made."""
    gone = frozenset(changes.delete_hops)
    hops = {**present.hops, **changes.add_hops}
    ids = dict(present.ids) or _first_ids(present)
    users = dict(present.users)
    for identifier, hop in changes.add_hops.items():
        ids[hop] = identifier
    for identifier, number in changes.users.items():
        users[identifier] = users.get(identifier, 0) + number
    for identifier in gone:
        users.pop(identifier, None)
        hop = hops.pop(identifier)
        if ids.get(hop) == identifier:
            del ids[hop]
    vips = dict(present.vips)
    made_from = {**present.made_from, **changes.made_from}
    for vip in changes.put_routes.keys() | changes.delete_routes.keys():
        routes, mtu = changes.put_routes.get(vip, ([], None))
        have, old_mtu = vips.get(vip, ({}, 0))
        dropped = frozenset(changes.delete_routes.get(vip, ()))
        left = {b: i for b, i in have.items() if b not in dropped} | dict(routes)
        if left:
            vips[vip] = (left, old_mtu if mtu is None else mtu)
        else:
            vips.pop(vip, None)
            made_from.pop(vip, None)
    return RouterPresent(hops, vips, made_from, ids, users)


def _moves(before: Hop | None, hop: Hop | None) -> bool:
    """Whether these lead to two endpoints; another source address or mode is no move."""
    if before is None or hop is None or before is hop:
        return False
    return (before.endpoint, before.label) != (hop.endpoint, hop.label)


def _distinct(buckets: VipBuckets) -> set[Hop]:
    return {hop for hop in {id(hop): hop for hop in buckets.hops}.values() if hop is not None}


def _first_ids(present: RouterPresent) -> dict[Hop, int]:
    """Of several nexthop objects that are the same the first is used; the others go."""
    ids: dict[Hop, int] = {}
    for identifier, hop in present.hops.items():
        ids.setdefault(hop, identifier)
    return ids


def _free_ids(present: RouterPresent) -> Iterator[int]:
    identifier = 0
    while True:
        identifier += 1
        if identifier not in present.hops:
            yield identifier
