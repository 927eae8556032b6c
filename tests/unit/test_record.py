"""Records behave as frozen dataclasses do, which they replace where importing those costs too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin.record import Record


class Point(Record):
    x: int
    y: int = 7


class Named(Point):
    name: str = ""


class Other(Record):
    x: int
    y: int = 7


def test_fields_are_given_by_position_or_by_name() -> None:
    assert Point(1, 2) == Point(x=1, y=2) == Point(1, y=2)


def test_a_field_that_is_not_given_has_its_default() -> None:
    assert Point(1).y == 7


def test_fields_of_the_base_come_first() -> None:
    assert Named(1, 2, "a") == Named(x=1, y=2, name="a")


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "x is missing"),
        ((1, 2, 3), {}, "takes 2 values, not 3"),
        ((1,), {"x": 1}, "x is given twice or is no field"),
        ((1,), {"z": 1}, "z is given twice or is no field"),
    ],
)
def test_a_wrong_call_names_the_record_and_the_field(args: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(TypeError, match=f"Point.*{says}"):
        Point(*args, **kwargs)


def test_a_record_cannot_be_changed() -> None:
    point = Point(1, 2)
    with pytest.raises(AttributeError, match="Point is immutable: x"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        del point.x
    assert point == Point(1, 2)


def test_replace_gives_a_changed_copy_and_leaves_the_original() -> None:
    point = Point(1, 2)
    assert point.replace(y=3) == Point(1, 3)
    assert point == Point(1, 2)
    with pytest.raises(TypeError, match="z"):
        point.replace(z=1)


def test_records_of_different_classes_are_never_equal() -> None:
    one: object = Point(1, 2)
    assert one != Other(1, 2)
    assert one != Named(1, 2)
    assert one != (1, 2)


def test_the_text_form_shows_every_field() -> None:
    assert repr(Named(1, 2, "a")) == "Named(x=1, y=2, name='a')"


@given(st.tuples(st.integers(), st.integers()), st.tuples(st.integers(), st.integers()))
def test_equality_and_hash_are_those_of_the_values(one: tuple[int, int], two: tuple[int, int]) -> None:
    assert (Point(*one) == Point(*two)) == (one == two)
    if one == two:
        assert hash(Point(*one)) == hash(Point(*two))
    assert len({Point(*one), Point(*one), Point(*two)}) == len({one, two})
