"""Buckets of which one node's endpoints alone count: who has them, and who may have had them before."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_helper.buckets import BucketTable, effective, fresh, rebalance
from node_helper.chains import chains
from node_helper.local_buckets import local_owners
from tests.unit.bucket_histories import UID, histories

HERE, ELSEWHERE = ([f"10.244.{node}.{number}" for number in range(2, 12)] for node in (1, 2))
COMES, TERMINATES, IS_AWAY, IS_BACK = "comes", "terminates", "is not ready", "is back"


class Life:
    """A Service's endpoints on two nodes, and who has had its buckets on the first."""

    def __init__(self, here: int, elsewhere: int) -> None:
        self.usable = [*HERE[:here], *ELSEWHERE[:elsewhere]]
        self.away: list[str] = []
        self.alive = list(self.usable)
        self.left = [*HERE[here:], *ELSEWHERE[elsewhere:]]
        self.table = fresh(UID, self.usable, 64)
        self.had: list[list[str | None]] = [[] for _ in range(64)]
        self.note()

    def change(self, what: str, name: str) -> None:
        if what in (COMES, IS_BACK):
            (self.left if what == COMES else self.away).remove(name)
            self.usable.append(name)
        else:
            self.usable.remove(name)
            if what == IS_AWAY:
                self.away.append(name)
        if what == COMES:
            self.alive.append(name)
        self.note()
        self.table = rebalance(self.table, UID, [*self.usable, *self.away], 64, self.usable, self.alive)
        self.note()

    def note(self) -> None:
        """As the node's ingress helper has it now: nobody who had a bucket may be missing from its chain."""
        local = set(self.alive).intersection(HERE)
        owners = local_owners(self.table, local.intersection(self.usable), self.usable)
        for had, owner, chain in zip(self.had, owners, chains(self.table, owners, self.alive, local), strict=True):
            assert set(had) - {owner} <= set(chain)
            had.append(owner)


@st.composite
def lives(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, str]]]:
    """How many endpoints there are here and elsewhere, and what becomes of which."""
    here, elsewhere = draw(st.integers(2, 4)), draw(st.integers(0, 5))
    usable, away = [*HERE[:here], *ELSEWHERE[:elsewhere]], list[str]()
    left, changes = [*HERE[here:], *ELSEWHERE[elsewhere:]], []
    for _ in range(draw(st.integers(1, 2))):
        choices = [(COMES, left), (TERMINATES, usable), (IS_AWAY, usable), (IS_BACK, away)]
        what, source = draw(st.sampled_from([one for one in choices if one[1]]))
        name = draw(st.sampled_from(source))
        if source is usable and len(set(usable) & set(HERE)) == 1 and name in HERE:
            continue  # nobody would be left to hand anything on
        source.remove(name)
        {COMES: usable, TERMINATES: [], IS_AWAY: away, IS_BACK: usable}[what].append(name)
        changes.append((what, name))
    return here, elsewhere, changes


@settings(deadline=None)
@given(lives())
def test_everybody_who_had_a_bucket_is_in_its_chain(life: tuple[int, int, list[tuple[str, str]]]) -> None:
    here, elsewhere, changes = life
    lived = Life(here, elsewhere)
    for what, name in changes:
        lived.change(what, name)


@pytest.mark.parametrize("elsewhere", [0, 1, 6])
def test_nobody_is_missing_when_a_node_is_rolled_out(elsewhere: int) -> None:
    """One after the other, those before still serving what they have."""
    lived = Life(2, elsewhere)
    for old, new in zip(HERE[:2], HERE[2:4], strict=True):
        lived.change(TERMINATES, old)
        lived.change(COMES, new)


@settings(deadline=None)
@given(histories(), st.data())
def test_who_of_this_node_has_a_bucket_in_the_cluster_has_it_here(table: BucketTable, data: st.DataObject) -> None:
    names = [*table.endpoints, *table.former]
    usable = data.draw(st.sets(st.sampled_from(names)) if names else st.just(set[str]()))
    able = data.draw(st.sets(st.sampled_from(sorted(usable))) if usable else st.just(set[str]()))
    everywhere = effective(table, usable)
    for owner, has in zip(everywhere, local_owners(table, able, usable), strict=True):
        assert has in able if able else has is None
        if owner in able and set(able) & set(table.endpoints):
            assert has == owner


def test_buckets_of_other_nodes_are_spread_over_this_ones() -> None:
    table = fresh(UID, [*HERE[:4], *ELSEWHERE], 256)
    counts = Counter(local_owners(table, HERE[:4], table.endpoints))
    assert set(counts) == set(HERE[:4]) and min(counts.values()) > 40


def test_at_rest_nobody_is_named() -> None:
    for size in (4, 64):
        table = fresh(UID, [*HERE[:4], *ELSEWHERE], size)
        owners = local_owners(table, HERE[:4], table.endpoints)
        assert chains(table, owners, table.endpoints, HERE[:4]) == ((),) * size
