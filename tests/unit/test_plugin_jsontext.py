"""`jsontext` against the standard library's `json`: the same values, the same refusals, nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import jsontext

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@given(VALUES)
def test_what_json_writes_is_read_alike(value: Any) -> None:
    assert jsontext.loads(json.dumps(value)) == value
    assert jsontext.loads(json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")) == value


@given(VALUES)
def test_what_is_written_json_reads_alike(value: Any) -> None:
    assert json.loads(jsontext.dumps(value)) == value
    assert repr(json.loads(jsontext.dumps(value))) == repr(value)  # 1 is not 1.0, 0.0 is not -0.0


@given(VALUES)
def test_the_encoding_is_jsons_own_without_spaces(value: Any) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))


@given(st.text() | st.binary())
def test_rubbish_is_refused_exactly_where_json_refuses_it(text: str | bytes) -> None:
    try:
        expected = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_no_constant)
    except ValueError:
        with pytest.raises(jsontext.JsonError):
            jsontext.loads(text)
    else:
        assert jsontext.loads(text) == expected


def _no_constant(text: str) -> object:
    """NaN and the infinities, which the standard library takes by default, are no JSON (RFC 8259)."""
    raise ValueError(text)


@given(st.text(alphabet='[]{}",:0123456789.eE+-\\unltrefas \n'))
def test_nearly_json_is_refused_exactly_where_json_refuses_it(text: str) -> None:
    try:
        expected = json.loads(text)
        finite = "inf" not in repr(expected)
    except ValueError:
        finite, expected = False, None
    if finite:
        assert jsontext.loads(text) == expected
    else:
        with pytest.raises(jsontext.JsonError):
            jsontext.loads(text)


def test_big_integers_keep_every_digit() -> None:
    text = '{"id":123456789012345678901234567890}'
    assert jsontext.dumps(jsontext.loads(text)) == text


def test_the_order_of_keys_is_kept() -> None:
    text = '{"z":1,"a":2,"m":{"y":null,"b":[]}}'
    assert jsontext.dumps(jsontext.loads(text)) == text


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
def test_a_depth_bomb_is_an_error_and_no_crash(opening: str) -> None:
    with pytest.raises(jsontext.JsonError, match="deep"):
        jsontext.loads(opening * 200_000)


def test_a_list_within_itself_is_an_error_and_no_crash() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(jsontext.JsonError, match="deep"):
        jsontext.dumps(endless)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", "[-1e999]", "9" * 5000])
def test_numbers_without_a_json_form_are_refused(text: str) -> None:
    with pytest.raises(jsontext.JsonError):
        jsontext.loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {"a": b"bytes"}, {(1, 2): 3}, {1, 2}])
def test_values_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(jsontext.JsonError):
        jsontext.dumps(value)


@pytest.mark.parametrize(
    "text", [b"", b"   ", b"\xff\xfe", b'{"a": 1} {"b": 2}', b"\xef\xbb\xbf{}", b'{"a": 1,}', b"'a'"]
)
def test_what_is_no_single_document_is_refused(text: bytes) -> None:
    with pytest.raises(jsontext.JsonError):
        jsontext.loads(text)
