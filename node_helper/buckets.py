"""Which endpoint owns which bucket of a Service, changed as little as possible when the endpoints change.

A flow's bucket is a hash, so a bucket that changes hands breaks (or must rescue) the flows in it. Maglev
and rendezvous hashing have no memory and move buckets of endpoints that did not change; a stored table
moves none of those and is balanced to one bucket. Its price is that it must be stored.

Two operations, both pure, so every node that sees the same gets the same:

- `rebalance` makes the next table to store. Only it gives buckets to newcomers. It also notes of each bucket
  who had it before and still exists: connections that began there can be handed on (`chains`).
- `effective` is what a node programs at once from the stored table and the endpoints that are usable now.
  Buckets of the others fall to usable ones by a fixed choice, and after a removal `rebalance` makes just
  that choice: storing the repaired table moves nothing a second time.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

MAX_SIZE = 4096
NOBODY = -1
"""Owner of a bucket that no endpoint has."""

PREVIOUS_OWNERS = 3
"""As many previous owners of a bucket are kept: connections that are older than three moves are given up."""
_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class BucketTable:
    """The owners of one Service's buckets."""

    uid: str
    """The Service's."""
    size: int
    """Number of buckets, a power of two from 1 to 4096."""
    endpoints: tuple[str, ...]
    """Addresses in canonical text form; all that the table knows, with buckets or (more endpoints than
    buckets) without."""
    owners: tuple[int, ...]
    """By bucket: index into `endpoints`, or `NOBODY`."""
    previous: tuple[tuple[int, ...], ...] = ()
    """Who had the buckets before, the latest first: at most `PREVIOUS_OWNERS` layers, each like `owners`, with
    indices into `endpoints` and `former` in one row."""
    former: tuple[str, ...] = ()
    """Those of `previous` that are endpoints of the table no more, but still exist (they terminate, say)."""
    away: tuple[str, ...] = ()
    """Endpoints of the table that were not usable when it was written: their buckets are lent to others."""

    def owner(self, bucket: int) -> str | None:
        index = self.owners[bucket]
        return None if index == NOBODY else self.endpoints[index]

    def stack(self, bucket: int) -> tuple[str, ...]:
        """The bucket's previous owners, the latest first."""
        names = self.endpoints + self.former
        return tuple([names[layer[bucket]] for layer in self.previous if layer[bucket] != NOBODY])

    def stacks(self) -> list[tuple[str, ...]]:
        """`stack` of all buckets."""
        if not self.previous:
            return [()] * self.size
        names = self.endpoints + self.former
        return [
            tuple([names[index] for index in indices if index != NOBODY])
            for indices in zip(*self.previous, strict=True)
        ]


def fresh(uid: str, endpoints: Iterable[str], size: int) -> BucketTable:
    """The first table of a Service; depends on the set of endpoints only, not on their order."""
    return rebalance(None, uid, endpoints, size)


def rebalance(
    table: BucketTable | None,
    uid: str,
    endpoints: Iterable[str],
    size: int,
    usable: Collection[str] | None = None,
    alive: Collection[str] = (),
) -> BucketTable:
    """The table to store next: exactly these endpoints, loads that differ by at most one, the fewest moves.

    With more endpoints than buckets the excess gets none. Where the size changes, buckets are split or merged
    first, which moves no flow (HMARK scales by the hash's high bits) or, when merging, the fewest. A table of
    another uid is not continued. Raises ValueError for a size that is no power of two from 1 to 4096.

    `usable`: those of the endpoints that take traffic now; None: all. `alive`: what exists besides the endpoints:
    who is neither is nobody's previous owner any more.
    """
    if not valid_size(size):
        raise ValueError(f"{size} buckets: a power of two from 1 to {MAX_SIZE} is needed")
    names = tuple(sorted(set(endpoints)))
    away = () if usable is None else tuple([name for name in names if name not in usable])
    if table is None or table.uid != uid:
        owners = _completed(uid, names, [NOBODY] * size, balance=True)
        return BucketTable(uid, size, names, owners, away=away)
    owners = _completed(uid, names, _renamed(resized(table, size), names), balance=True)
    after = BucketTable(uid, size, names, owners, away=away)
    had, stacks = _history(table, size)
    # What nodes make of the old table until the next is there: a bucket whose owner went is lent at once, and if a
    # newcomer gets it by the next table, connections have begun with him who had it in between.
    between = effective(resized(table, size), names if usable is None else usable)
    has = in_use(after)
    if not any(stacks) and had == between == has:
        return after
    there = {*names, *alive}
    for bucket, (before, lent, now) in enumerate(zip(had, between, has, strict=True)):
        stack = stacks[bucket]
        if before != now or lent != now:
            stack = (*[name for name in (lent, before) if name is not None], *stack)
        if stack:
            left = dict.fromkeys([name for name in stack if name != now and name in there])
            stacks[bucket] = tuple(left)[:PREVIOUS_OWNERS]
    return with_stacks(after, stacks)


def in_use(table: BucketTable) -> tuple[str | None, ...]:
    """Who has each bucket by the table alone: its owner, or to whom it is lent while the owner is away."""
    return effective(table, frozenset(table.endpoints).difference(table.away))


def with_stacks(table: BucketTable, stacks: Sequence[tuple[str, ...]]) -> BucketTable:
    """The table with these previous owners, the latest first, by bucket, in the place of its own."""
    former = tuple(sorted({name for stack in stacks for name in stack}.difference(table.endpoints)))
    index = {name: position for position, name in enumerate(table.endpoints + former)}
    depth = max(map(len, stacks), default=0)
    layers = [
        tuple([index[stack[level]] if len(stack) > level else NOBODY for stack in stacks]) for level in range(depth)
    ]
    return replace(table, previous=tuple(layers), former=former)


def effective(table: BucketTable, usable: Collection[str]) -> tuple[str | None, ...]:
    """The endpoint to program for each bucket while just `usable` endpoints can take traffic.

    Usable owners keep every bucket of theirs; the other buckets fall to usable endpoints of the table, evenly.
    Endpoints that the table does not know get nothing, unless it knows no usable one: then all share.
    """
    known = set(usable).intersection(table.endpoints)
    if len(known) == len(table.endpoints) and NOBODY not in table.owners:
        return tuple(map(table.endpoints.__getitem__, table.owners))
    names = tuple(sorted(known or set(usable)))
    if not names:
        return (None,) * table.size
    owners = _completed(table.uid, names, _renamed(table, names), balance=False)
    return tuple(map(names.__getitem__, owners))


def valid_size(size: int) -> bool:
    return 0 < size <= MAX_SIZE and size & (size - 1) == 0


def resized(table: BucketTable, size: int) -> BucketTable:
    """The same owners, and those before them, in more or fewer buckets.

    With more, which split the old ones, every flow keeps its endpoint: HMARK scales by the hash's high bits. With
    fewer each gets the owner of the first that it takes in; the others' owners are previous ones then.
    """
    if table.size == size:
        return table
    owners = tuple([table.owners[bucket * table.size // size] for bucket in range(size)])
    has, stacks = _history(table, size)
    for bucket, stack in enumerate(stacks):
        stacks[bucket] = tuple(dict.fromkeys([name for name in stack if name != has[bucket]]))[:PREVIOUS_OWNERS]
    return with_stacks(BucketTable(table.uid, size, table.endpoints, owners, away=table.away), stacks)


def _history(table: BucketTable, size: int) -> tuple[tuple[str | None, ...], list[tuple[str, ...]]]:
    """Who has each of `size` buckets by the table alone, and who had it before.

    Of buckets that are merged the first one's owner has all; the others' owners have lost theirs.
    """
    owners, stacks = in_use(table), table.stacks()
    if table.size == size:
        return owners, stacks
    begins = [bucket * table.size // size for bucket in range(size)]
    merged = []
    for begin, end in zip(begins, [*begins[1:], table.size], strict=True):
        lost = [owner for owner in owners[begin + 1 : end] if owner is not None]
        merged.append((*dict.fromkeys(lost), *stacks[begin]))
    return tuple([owners[begin] for begin in begins]), merged


def _renamed(table: BucketTable, names: tuple[str, ...]) -> list[int]:
    """The table's owners as indices into `names`; NOBODY for endpoints that are not among them."""
    if names == table.endpoints:
        return list(table.owners)
    index = {name: position for position, name in enumerate(names)}
    known = [index.get(name, NOBODY) for name in table.endpoints]
    known.append(NOBODY)  # What owner -1 finds.
    return [known[owner] for owner in table.owners]


def _completed(uid: str, names: tuple[str, ...], owners: list[int], balance: bool) -> tuple[int, ...]:
    """Give each bucket without owner to an endpoint that has room; with `balance`, take surplus away first."""
    if not names:
        return (NOBODY,) * len(owners)
    hashes = [zlib.crc32(f"{uid} {name}".encode()) for name in names]
    loads = [0] * len(names)
    for owner in owners:
        if owner != NOBODY:
            loads[owner] += 1
    # Who has most keeps the one bucket more that some must have: that moves least. Equals are ordered by a
    # hash with the uid, so that not the same endpoint has more in every Service.
    order = sorted(range(len(names)), key=lambda index: (-loads[index], hashes[index], names[index]))
    share, larger = divmod(len(owners), len(names))
    room = [share] * len(names)
    for index in order[:larger]:
        room[index] += 1
    if not any(loads):
        return tuple(order[bucket % len(order)] for bucket in range(len(owners)))
    for index, load in enumerate(loads):
        room[index] -= load
    if balance:
        _take_surplus(owners, room)
    _fill(owners, room, hashes)
    return tuple(owners)


def _take_surplus(owners: list[int], room: list[int]) -> None:
    if min(room) >= 0:
        return
    for bucket in range(len(owners) - 1, -1, -1):
        owner = owners[bucket]
        if owner != NOBODY and room[owner] < 0:
            room[owner] += 1
            owners[bucket] = NOBODY


def _fill(owners: list[int], room: list[int], hashes: list[int]) -> None:
    """Rendezvous hashing among the endpoints that have room.

    A bucket prefers the same endpoint whoever else is usable, so a second removal before the first is stored
    disturbs few buckets of the first.
    """
    open_to = [index for index, places in enumerate(room) if places > 0]
    for bucket, owner in enumerate(owners):
        if owner != NOBODY:
            continue
        salt = bucket * 0x9E3779B1
        best, best_score = NOBODY, -1
        for index in open_to:
            # This loop runs once per orphaned bucket and endpoint: a call is too slow (as in `_score`).
            score = (hashes[index] ^ salt) * 0x85EBCA6B & _U32
            score = (score ^ score >> 15) * 0xC2B2AE35 & _U32
            score ^= score >> 13
            if score > best_score:
                best, best_score = index, score
        owners[bucket] = best
        room[best] -= 1
        if room[best] == 0:
            open_to.remove(best)


def preference(uid: str, size: int, names: Collection[str]) -> list[tuple[str, ...]]:
    """Each bucket's order of these endpoints, by rendezvous hashing, the one that it prefers first."""
    hashes = [(zlib.crc32(f"{uid} {name}".encode()), name) for name in sorted(names)]
    orders = []
    for bucket in range(size):
        salt = bucket * 0x9E3779B1
        scored = sorted([(-_score(number ^ salt), name) for number, name in hashes])
        orders.append(tuple([name for _, name in scored]))
    return orders


def _score(number: int) -> int:
    """A small integer hash: a digest is too slow."""
    score = number * 0x85EBCA6B & _U32
    score = (score ^ score >> 15) * 0xC2B2AE35 & _U32
    return score ^ score >> 13
