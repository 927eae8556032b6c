"""The stored text of bucket tables: short, complete, and read with distrust."""

from __future__ import annotations

import base64
import json
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_helper.bucket_text import BucketTableError, ForeignTable, MalformedTable, NewerTable, decode, encode
from node_helper.buckets import BucketTable, fresh, rebalance
from tests.unit.bucket_histories import UID, foreign_made, histories


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


def ipv4(count: int) -> list[str]:
    return [f"10.{100 + number % 50}.{250 - number % 200}.{100 + number // 50}" for number in range(count)]


def ipv6(count: int) -> list[str]:
    first = int(IPv6Address("fd00:10:244:1::100"))
    return [str(IPv6Address(first + number * 0x1_0000_0000_0000_0000)) for number in range(count)]


@pytest.mark.parametrize("names", [ipv4(50), ipv6(50)])
def test_fifty_endpoints_fit_into_two_kibibytes_also_while_buckets_have_moved(names: list[str]) -> None:
    """Twice as many pods as before, then three that terminate, and two that are not ready."""
    table = rebalance(fresh(UID, names[:23], 256), UID, names[:47], 256)
    table = rebalance(table, UID, names[3:], 256, usable=names[5:], alive=names)
    assert table.former == tuple(sorted(names[:3])) and table.away == tuple(sorted(names[3:5]))
    assert sum(map(bool, table.stacks())) > 120
    assert len(encode(table)) < 2048
    assert decode(encode(table), UID) == table


def test_the_largest_table_with_the_longest_past_fits_well_into_an_annotation() -> None:
    """Kubernetes allows 256 KiB for all annotations of an object."""
    names = ipv6(1000)
    table = fresh(UID, names[:250], 4096)
    for begin, end in ((250, 500), (500, 750), (750, 1000)):
        table = rebalance(table, UID, names[begin:end], 4096, alive=names)
    assert len(table.previous) == 3
    assert len(encode(table)) < 100_000
    assert decode(encode(table), UID) == table


def test_without_moves_the_text_is_that_of_the_time_before_they_were_noted() -> None:
    text = encode(fresh(UID, ["10.244.1.2", "10.244.3.2"], 8))
    assert list(json.loads(text)) == ["v", "uid", "size", "prefix", "endpoints", "owners"]


def test_a_reader_of_the_time_before_moves_were_noted_finds_the_same_owners() -> None:
    table = rebalance(fresh(UID, ["10.244.1.2", "10.244.3.2"], 8), UID, ["10.244.3.2"], 8, alive=["10.244.1.2"])
    fields = json.loads(encode(table))
    old = {name: fields[name] for name in ("v", "uid", "size", "prefix", "endpoints", "owners")}
    assert decode(json.dumps(old), UID) == BucketTable(UID, 8, table.endpoints, table.owners)


def changed(**changes: object) -> str:
    fields = json.loads(encode(fresh(UID, ["10.0.0.1", "10.0.0.2"], 4)))
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def layer(moved: int, *indices: int) -> str:
    return base64.b64encode(bytes([moved, *indices])).decode()


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
        (changed(former=["10.0.0.3"]), MalformedTable),
        (changed(former="2"), MalformedTable),
        (changed(former="x"), MalformedTable),
        (changed(previous={"0": "10.0.0.3"}), MalformedTable),
        (changed(previous=[0]), MalformedTable),
        (changed(previous=["!!"]), MalformedTable),
        (changed(previous=[""]), MalformedTable),
        (changed(previous=[layer(0b1)]), MalformedTable),
        (changed(previous=[layer(0b1, 0, 0)]), MalformedTable),
        (changed(previous=[layer(0b10000, 0)]), MalformedTable),
        (changed(previous=[layer(0b1, 2)]), MalformedTable),
        (changed(previous=[layer(0b1, 0)] * 4), MalformedTable),
        (changed(away="0"), MalformedTable),
        (changed(away=[2]), MalformedTable),
        (changed(away=[-1]), MalformedTable),
        (changed(away=[True]), MalformedTable),
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
    assert decode(changed(weights={"0": "10.0.0.3"}), UID) == table
