"""Buckets of a Service of which only one node's endpoints count: traffic policy Local, and mode mpls.

The table is the whole cluster's, so most buckets are other nodes'. They fall to this node's endpoints by each bucket's
own order of preference (rendezvous hashing): to whom depends on who is preferred most, and not on how many buckets
others have. So whoever came and went, those who had a bucket before stand in that order, too, and nothing has to be
remembered: they are who would have it without those that came, and with those that went.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from node_helper.buckets import BucketTable, effective, in_use, preference

MOST = 5
"""A bucket has no more previous owners: pods have to know them in every combination."""


def local_owners(table: BucketTable, able: Collection[str], everywhere: Collection[str]) -> tuple[str | None, ...]:
    """The endpoint to program for each bucket: one of `able`, those of this node that can take traffic.

    `everywhere`: all that can, of any node. Who has a bucket in the whole cluster (`buckets.effective`), lent or not,
    has it here, too, if he is of this node.
    """
    known = set(able).intersection(table.endpoints) or set(able)
    if not known:
        return (None,) * table.size
    orders = preference(table.uid, table.size, known)
    owners = effective(table, everywhere)
    return tuple([name if name in known else order[0] for name, order in zip(owners, orders, strict=True)])


def local_lines(table: BucketTable, owners: Sequence[str | None], local: Collection[str]) -> list[tuple[str, ...]]:
    """Of each bucket, given who has it now, who may have had it before, the latest first as far as that is known.

    First those of whom the table says so, then the bucket's order down to the first who has been there all the time:
    nobody behind him can have had it.
    """
    names = set(local).intersection(table.endpoints + table.former)
    stacks, latest = table.stacks(), in_use(table)
    lasting = {name for name, stack in zip(latest, stacks, strict=True) if not stack}
    if not table.previous:
        lasting.update(set(table.endpoints).difference(table.away))
    orders = preference(table.uid, table.size, names)
    lines = []
    for owner, last, stack, order in zip(owners, latest, stacks, orders, strict=True):
        line = [name for name in (last, *stack) if name in names]
        if stack or last not in names or last != owner:
            behind = next((place for place, name in enumerate(order) if name in lasting), len(order))
            line += order[: behind + 1]
        lines.append(tuple(dict.fromkeys([name for name in line if name != owner]))[:MOST])
    return lines
