"""Bucket tables: balance, fewest moves, the same result on every node, and who had a bucket before."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_helper import buckets
from node_helper.buckets import NOBODY, PREVIOUS_OWNERS, BucketTable, effective, fresh, in_use, rebalance, resized
from tests.unit.bucket_histories import SETS, SIZES, UID, foreign_made, histories, owners_of


def loads(table: BucketTable) -> list[int]:
    counts = Counter(table.owners)
    return [counts[index] for index in range(len(table.endpoints))]


def moved(before: BucketTable, after: BucketTable) -> int:
    return sum(old != new for old, new in zip(owners_of(before), owners_of(after), strict=True))


def fewest_moves(table: BucketTable, names: set[str]) -> int:
    """By arithmetic alone: buckets that cannot stay where they are when every load must be even."""
    if not names:
        return sum(owner is not None for owner in owners_of(table))
    held = Counter(owner for owner in owners_of(table) if owner in names)
    share, larger = divmod(table.size, len(names))
    ordered = sorted((held[name] for name in names), reverse=True)
    return table.size - sum(min(load, share + (rank < larger)) for rank, load in enumerate(ordered))


@given(histories(), SETS)
def test_loads_differ_by_at_most_one_bucket(table: BucketTable, names: set[str]) -> None:
    after = rebalance(table, UID, names, table.size)
    assert set(after.endpoints) == names
    if names:
        assert NOBODY not in after.owners
        assert max(loads(after)) - min(loads(after)) <= 1


@given(histories() | foreign_made(), SETS)
def test_no_bucket_moves_that_need_not(table: BucketTable, names: set[str]) -> None:
    after = rebalance(table, UID, names, table.size)
    assert moved(table, after) == fewest_moves(table, names)


@given(histories(), SETS, st.randoms(use_true_random=False))
def test_the_order_of_endpoints_does_not_matter(table: BucketTable, names: set[str], chance: random.Random) -> None:
    shuffled = list(names)
    chance.shuffle(shuffled)
    assert rebalance(table, UID, shuffled, table.size) == rebalance(table, UID, sorted(names), table.size)
    assert fresh(UID, shuffled, table.size) == fresh(UID, sorted(names), table.size)


@given(histories())
def test_an_unchanged_set_changes_nothing(table: BucketTable) -> None:
    usable = set(table.endpoints) - set(table.away)
    assert rebalance(table, UID, table.endpoints, table.size, usable, table.former) == table


@given(histories(), SIZES)
def test_more_buckets_split_and_move_only_for_balance(table: BucketTable, size: int) -> None:
    after = rebalance(table, UID, table.endpoints, size)
    assert after.size == size
    if table.endpoints:
        assert max(loads(after)) - min(loads(after)) <= 1
    if size >= table.size and table.endpoints:
        split = BucketTable(
            UID, size, table.endpoints, tuple(o for o in table.owners for _ in range(size // table.size))
        )
        assert moved(split, after) == fewest_moves(split, set(table.endpoints))


def test_a_table_of_another_service_is_not_continued() -> None:
    other = rebalance(fresh("other", ["10.0.0.1", "10.0.0.9"], 64), "other", ["10.0.0.1", "10.0.0.2"], 64)
    assert rebalance(other, UID, ["10.0.0.1", "10.0.0.2"], 64) == fresh(UID, ["10.0.0.1", "10.0.0.2"], 64)


def test_the_excess_of_endpoints_over_buckets_gets_none() -> None:
    names = [f"10.0.0.{number}" for number in range(1, 7)]
    table = fresh(UID, names, 4)
    assert sorted(loads(table)) == [0, 0, 1, 1, 1, 1]
    lost = table.owner(2)
    after = rebalance(table, UID, set(names) - {lost}, 4)
    assert moved(table, after) == 1
    assert after.owner(2) not in owners_of(table)


@pytest.mark.parametrize("size", [0, -2, 3, 100, 8192])
def test_a_size_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        fresh(UID, ["10.0.0.1"], size)


@given(histories() | foreign_made())
def test_with_all_endpoints_usable_the_stored_owners_count(table: BucketTable) -> None:
    programmed = effective(table, table.endpoints)
    for stored, now in zip(owners_of(table), programmed, strict=True):
        assert now == stored or stored is None


@given(histories() | foreign_made(), SETS, st.randoms(use_true_random=False))
def test_usable_owners_keep_their_buckets_and_others_fall_to_them(
    table: BucketTable, newcomers: set[str], chance: random.Random
) -> None:
    left = {name for name in table.endpoints if chance.random() < 0.6}
    programmed = effective(table, left | (newcomers - set(table.endpoints)))
    for stored, now in zip(owners_of(table), programmed, strict=True):
        if left:
            assert now in left
        if stored in left:
            assert now == stored


@given(histories(), st.randoms(use_true_random=False))
def test_storing_the_table_after_a_removal_moves_nothing_more(table: BucketTable, chance: random.Random) -> None:
    left = {name for name in table.endpoints if chance.random() < 0.6}
    programmed = effective(table, left)
    assert list(programmed) == owners_of(rebalance(table, UID, left, table.size))
    if left:
        counts = Counter(programmed)
        assert max(counts.values()) - min(counts[name] for name in left) <= 1


@given(histories(), SETS)
def test_newcomers_get_buckets_only_where_nobody_known_is_left(table: BucketTable, newcomers: set[str]) -> None:
    newcomers -= set(table.endpoints)
    programmed = effective(table, newcomers)
    if newcomers:
        counts = Counter(programmed)
        assert set(counts) <= newcomers
        assert max(counts.values()) - min(counts[name] for name in newcomers) <= 1
    else:
        assert set(programmed) == {None}


def test_a_second_removal_disturbs_few_buckets_of_the_first() -> None:
    names = [f"10.244.{node}.{number}" for node in range(4) for number in range(5)]
    table = fresh(UID, names, 1024)
    first = effective(table, set(names[1:]))
    second = effective(table, set(names[2:]))
    disturbed = sum(a != b for a, b in zip(first, second, strict=True) if a != names[1])
    assert disturbed <= 12


def test_different_services_do_not_favour_the_same_endpoint() -> None:
    names = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    favoured: Counter[str] = Counter()
    for number in range(300):
        table = fresh(f"uid-{number}", names, 256)
        favoured[table.endpoints[loads(table).index(86)]] += 1
    assert min(favoured[name] for name in names) > 60


def test_a_buckets_owner_has_a_name() -> None:
    table = BucketTable(UID, 2, ("10.0.0.1",), (0, buckets.NOBODY))
    assert (table.owner(0), table.owner(1)) == ("10.0.0.1", None)


# --- who had a bucket before ----------------------------------------------------------------------------

A, B, C, D = (f"10.244.0.{number}" for number in range(1, 5))


def stack_of(table: BucketTable, owner: str, before: tuple[str, ...]) -> bool:
    """Whether all buckets that are `owner`'s now and were another's have just this past."""
    now = in_use(table)
    return {table.stack(b) for b in range(table.size) if now[b] == owner and table.stack(b)} == {before}


@settings(deadline=None)
@given(histories(), SETS, st.data())
def test_previous_owners_are_alive_and_few_and_not_the_owner_itself(
    table: BucketTable, names: set[str], data: st.DataObject
) -> None:
    alive = data.draw(st.sets(st.sampled_from(table.endpoints))) if table.endpoints else set()
    usable = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    after = rebalance(table, UID, names, table.size, usable, alive)
    had, between, has = in_use(table), effective(table, usable), in_use(after)
    for bucket in range(after.size):
        stack = after.stack(bucket)
        assert len(set(stack)) == len(stack) <= PREVIOUS_OWNERS
        assert has[bucket] not in stack
        assert set(stack) <= names | alive
        if had[bucket] != has[bucket] and had[bucket] in names | alive:
            assert had[bucket] in stack[:2]
        if between[bucket] not in (has[bucket], None):
            assert stack[0] == between[bucket], "nodes gave it flows before this table was there"
    assert not set(after.former) & names
    assert set(after.away) == names - usable


@settings(deadline=None)
@given(histories(), SETS, st.data())
def test_who_is_usable_decides_nothing_about_who_owns(table: BucketTable, names: set[str], data: st.DataObject) -> None:
    usable = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    after = rebalance(table, UID, names, table.size, usable, table.endpoints)
    assert owners_of(after) == owners_of(rebalance(table, UID, names, table.size))


def test_a_newcomers_buckets_remember_who_had_them() -> None:
    table = rebalance(fresh(UID, [A], 8), UID, [A, B], 8)
    assert stack_of(table, B, (A,)) and not any(table.stack(b) for b in range(8) if table.owner(b) == A)


def test_a_leavers_buckets_remember_it_as_long_as_it_exists() -> None:
    table = rebalance(fresh(UID, [A, B], 8), UID, [B], 8, alive=[A])
    assert stack_of(table, B, (A,)) and table.former == (A,)
    after = rebalance(table, UID, [B], 8)
    assert after.previous == () and after.former == ()


def test_a_bucket_that_moves_on_remembers_all_who_had_it_the_latest_first() -> None:
    table = fresh(UID, [A], 8)
    for now, alive in (([B], [A]), ([C], [A, B]), ([D], [A, B, C])):
        table = rebalance(table, UID, now, 8, alive=alive)
    assert stack_of(table, D, (C, B, A))
    assert stack_of(rebalance(table, UID, [D], 8, alive=[A, C]), D, (C, A)), "B is gone"
    assert stack_of(rebalance(table, UID, ["10.244.0.9"], 8, alive=[A, B, C, D]), "10.244.0.9", (D, C, B))


def test_who_had_a_leavers_bucket_until_a_newcomer_got_it_is_remembered() -> None:
    """Removal is at once, addition is stored first, and not at once after the table before: flows begin in between."""
    table = fresh(UID, [A, B, C], 8)
    between = effective(table, [B, C])
    after = rebalance(table, UID, [B, C, D], 8, alive=[A])
    moved_on = [bucket for bucket in range(8) if table.owner(bucket) == A and after.owner(bucket) == D]
    assert moved_on and {after.stack(bucket) for bucket in moved_on} == {(between[b], A) for b in moved_on}


def test_a_bucket_that_comes_back_remembers_who_had_it_meanwhile() -> None:
    table = rebalance(rebalance(fresh(UID, [A], 8), UID, [B], 8, alive=[A]), UID, [A], 8, alive=[B])
    assert stack_of(table, A, (B,))


def test_a_flap_of_readiness_moves_buckets_there_and_back_and_owners_stay() -> None:
    table = fresh(UID, [A, B], 8)
    lent = rebalance(table, UID, [A, B], 8, usable=[B])
    assert (lent.owners, lent.away) == (table.owners, (A,))
    assert set(in_use(lent)) == {B} and stack_of(lent, B, (A,))
    back = rebalance(lent, UID, [A, B], 8, usable=[A, B])
    assert (back.owners, back.away) == (table.owners, ())
    assert stack_of(back, A, (B,)) and not any(back.stack(b) for b in range(8) if back.owner(b) == B)
    again = rebalance(back, UID, [A, B], 8, usable=[B])
    assert stack_of(again, B, (A,))


def test_buckets_that_are_split_keep_their_past_and_merged_ones_remember_each_other() -> None:
    table = rebalance(fresh(UID, [A], 4), UID, [A, B], 4)
    split = rebalance(table, UID, [A, B], 8)
    assert split.stacks() == [table.stack(bucket // 2) for bucket in range(8)]
    merged = rebalance(fresh(UID, [A, B], 4), UID, [A, B], 1)
    assert merged.stack(0) == tuple({A, B} - {merged.owner(0)})


def test_a_node_with_another_number_of_buckets_knows_the_past_too() -> None:
    table = rebalance(rebalance(fresh(UID, [A], 4), UID, [A, B], 4), UID, [A, B], 4, usable=[B])
    split = resized(table, 8)
    assert split.away == (A,) and split.stacks() == [table.stack(bucket // 2) for bucket in range(8)]
    assert in_use(split) == tuple(in_use(table)[bucket // 2] for bucket in range(8))
    merged = resized(fresh(UID, [A, B], 4), 2)
    assert merged.stacks() == [tuple({A, B} - {merged.owner(bucket)}) for bucket in range(2)]
