"""Endpoints that were away for a moment rest until tables have told of it."""

from __future__ import annotations

from node_helper.buckets import BucketTable, rebalance
from node_helper.lapses import LIMIT, Lapses

ALL = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
BACK = ALL[0]
REST = ALL[1:]


def table(*away: str) -> BucketTable:
    return rebalance(None, "uid", ALL, 8, [name for name in ALL if name not in away])


def test_who_was_never_away_never_rests() -> None:
    lapses = Lapses()
    lapses.follow(table(), ALL)
    assert lapses.resting(table(), ALL, 0.0) == lapses.untold == frozenset()


def test_who_is_back_before_a_table_told_rests_until_one_has_and_another_says_that_it_is_back() -> None:
    lapses = Lapses()
    lapses.follow(table(), ALL)
    lapses.follow(table(), REST)
    assert lapses.resting(table(), REST, 0.0) == frozenset(), "who is away does not rest"
    lapses.follow(table(), ALL)
    assert lapses.resting(table(), ALL, 0.5) == lapses.untold == {BACK}
    lapses.follow(table(BACK), ALL)
    assert lapses.untold == frozenset(), "the next table may say that it is back"
    assert lapses.resting(table(BACK), ALL, 1.0) == {BACK}
    lapses.follow(table(), ALL)
    assert lapses.resting(table(), ALL, 2.0) == frozenset()


def test_nobody_rests_for_long_whatever_becomes_of_the_table() -> None:
    lapses = Lapses()
    lapses.follow(table(), ALL)
    lapses.follow(table(), REST)
    lapses.follow(table(), ALL)
    assert lapses.resting(table(), ALL, 10.0) == {BACK}
    assert lapses.left(10.0) == LIMIT
    assert lapses.resting(table(), ALL, 10.0 + LIMIT) == lapses.untold == frozenset()


def test_who_this_node_never_saw_usable_had_no_bucket_here() -> None:
    """Others may see more, and store tables of it, while this node's view is old."""
    lapses = Lapses()
    lapses.follow(table(), REST)
    lapses.follow(table(), ALL)
    assert lapses.untold == lapses.resting(table(), ALL, 0.0) == frozenset()


def test_some_endpoint_always_takes_traffic() -> None:
    lapses = Lapses()
    lapses.follow(table(), ALL)
    lapses.follow(table(), ())
    lapses.follow(table(), (BACK,))
    assert lapses.resting(table(), (BACK,), 0.0) == frozenset()


def test_who_left_the_table_is_forgotten() -> None:
    lapses = Lapses()
    lapses.follow(table(), ALL)
    lapses.follow(table(), REST)
    lapses.follow(rebalance(None, "uid", REST, 8), REST)
    assert lapses.untold == frozenset()
