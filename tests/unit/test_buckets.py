"""Bucket tables: balance, fewest moves, the same result on every node, and their stored text."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_helper import buckets
from node_helper.buckets import (
    NOBODY,
    BucketTable,
    BucketTableError,
    ForeignTable,
    MalformedTable,
    NewerTable,
    decode,
    effective,
    encode,
    fresh,
    rebalance,
)

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
        table = rebalance(table, UID, names, size)
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
    assert rebalance(table, UID, table.endpoints, table.size) == table


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


@settings(max_examples=200)
@given(histories() | foreign_made())
def test_a_table_survives_its_text(table: BucketTable) -> None:
    assert decode(encode(table), UID) == table


@pytest.mark.parametrize("endpoints", [0, 1, 254, 255, 256, 257, 1000])
def test_any_number_of_endpoints_survives_the_text(endpoints: int) -> None:
    table = fresh(UID, [f"10.0.{number // 256}.{number % 256}" for number in range(endpoints)], 4096)
    assert decode(encode(table), UID) == table


@pytest.mark.parametrize("first", ["2001:db8:10:244:aaaa:bbbb:cccc:1000", "10.244.100.100", "fd00:10:244:1::100"])
def test_fifty_endpoints_fit_into_two_kibibytes(first: str) -> None:
    if ":" in first:
        names = [str(IPv6Address(int(IPv6Address(first)) + number * 0x1_0001_0001_0001_0001)) for number in range(50)]
    else:
        names = [f"10.{100 + number}.{250 - number}.{100 + number}" for number in range(50)]
    assert len(encode(fresh(UID, names, 256))) < 2048


def changed(**changes: object) -> str:
    fields = json.loads(encode(fresh(UID, ["10.0.0.1", "10.0.0.2"], 4)))
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", MalformedTable),
        ("[]", MalformedTable),
        ("[" * 100000, MalformedTable),
        ("x" * 300000, MalformedTable),
        (changed(v=None), MalformedTable),
        (changed(v=True), MalformedTable),
        (changed(v="1"), MalformedTable),
        (changed(v=2, owners=7), NewerTable),
        (changed(uid="another"), ForeignTable),
        (changed(uid=None), ForeignTable),
        (changed(size=3), MalformedTable),
        (changed(size=8192), MalformedTable),
        (changed(size=8), MalformedTable),
        (changed(endpoints=["10.0.0.1"]), MalformedTable),
        (changed(endpoints="1 1"), MalformedTable),
        (changed(endpoints="1 x"), MalformedTable),
        (changed(endpoints="1  2"), MalformedTable),
        (changed(endpoints="1 2 ::"), MalformedTable),
        (changed(prefix="", endpoints="10.0.0.1 2001:DB8::1"), MalformedTable),
        (changed(owners=None), MalformedTable),
        (changed(owners="!!"), MalformedTable),
        (changed(owners="é"), MalformedTable),
        (changed(owners=base64.b64encode(bytes([0, 1, 0, 2])).decode()), MalformedTable),
    ],
)
def test_rubbish_is_refused_by_its_kind(text: str, error: type[BucketTableError]) -> None:
    with pytest.raises(error):
        decode(text, UID)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(BucketTableError):
        decode(text, UID)


def test_hints_of_later_versions_are_passed_over() -> None:
    table = fresh(UID, ["10.0.0.1", "10.0.0.2"], 4)
    assert decode(changed(previous={"0": "10.0.0.3"}), UID) == table


def test_a_buckets_owner_has_a_name() -> None:
    table = BucketTable(UID, 2, ("10.0.0.1",), (0, buckets.NOBODY))
    assert (table.owner(0), table.owner(1)) == ("10.0.0.1", None)
