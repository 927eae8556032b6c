"""Bucket tables with a past, for tests: endpoints that came, went, and were not ready for a while."""

from __future__ import annotations

from hypothesis import strategies as st

from node_helper.buckets import NOBODY, BucketTable, fresh, rebalance

UID = "3f1c6b0e-1f6e-4a53-9d6d-0d2b8a2b9c11"
SIZES = st.integers(0, 9).map(lambda power: 1 << power)
NAMES = st.integers(1, 300).map(lambda number: f"10.244.{number // 200}.{number % 200}") | st.ip_addresses(v=6).map(str)
SETS = st.sets(NAMES, max_size=40)


@st.composite
def histories(draw: st.DrawFn) -> BucketTable:
    """A table that has seen several changes."""
    size = draw(SIZES)
    table = fresh(UID, draw(SETS), size)
    for names in draw(st.lists(SETS, max_size=3)):
        alive = draw(st.sets(st.sampled_from(table.endpoints))) if table.endpoints else set()
        usable = draw(st.none() | st.sets(st.sampled_from(sorted(names)), min_size=1)) if names else None
        table = rebalance(table, UID, names, size, usable, alive)
    return table


@st.composite
def foreign_made(draw: st.DrawFn) -> BucketTable:
    """Any valid table, balanced or not."""
    size = draw(SIZES)
    names = tuple(draw(SETS))
    owners = draw(st.lists(st.integers(NOBODY, len(names) - 1), min_size=size, max_size=size))
    return BucketTable(UID, size, names, tuple(owners))


def owners_of(table: BucketTable) -> list[str | None]:
    return [table.owner(bucket) for bucket in range(table.size)]
