"""`wire` against the `msgpack` library, in both directions, and against rubbish."""

from __future__ import annotations

import io
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import wire

INTEGERS = st.integers(min_value=-(2**63), max_value=2**64 - 1)
SCALARS = (
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text() | st.binary() | st.just("x" * 70_000)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text() | INTEGERS | st.binary(), inner, max_size=20)
    ),
    max_leaves=40,
)


@given(VALUES)
def test_the_library_reads_what_is_packed(value: Any) -> None:
    assert msgpack.unpackb(wire.pack(value), strict_map_key=False) == value


@given(VALUES)
def test_what_the_library_packs_is_read(value: Any) -> None:
    assert wire.unpack(msgpack.packb(value)) == value


@given(VALUES)
def test_the_bytes_are_the_librarys_own(value: Any) -> None:
    assert wire.pack(value) == msgpack.packb(value)


@given(st.floats(width=32, allow_nan=False))
def test_single_precision_floats_are_read(value: float) -> None:
    assert wire.unpack(msgpack.packb(value, use_single_float=True)) == value


@pytest.mark.parametrize("length", [15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_lengths_at_the_edges_of_their_forms_survive(length: int) -> None:
    for value in ("a" * length, b"a" * length, [None] * length, dict.fromkeys(range(length))):
        assert wire.pack(value) == msgpack.packb(value)
        assert wire.unpack(wire.pack(value)) == value


@given(st.binary(max_size=200))
def test_rubbish_raises_nothing_but_wire_error(body: bytes) -> None:
    try:
        value = wire.unpack(body)
    except wire.WireError:
        return
    assert wire.unpack(wire.pack(value)) == value or value != value or "nan" in repr(value)


@given(VALUES, st.data())
def test_a_message_cut_off_anywhere_raises_wire_error(value: Any, data: st.DataObject) -> None:
    body = wire.pack(value)
    with pytest.raises(wire.WireError):
        wire.unpack(body[: data.draw(st.integers(0, len(body) - 1))])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x01\x02", id="two values"),
        pytest.param(b"\xc1", id="the code that is never used"),
        pytest.param(b"\xd4\x01\x00", id="an extension type"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of four billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of four billion"),
        pytest.param(b"\xdb\xff\xff\xff\xffab", id="a text of four gigabytes"),
        pytest.param(b"\x91" * 100_000 + b"\xc0", id="a depth bomb"),
        pytest.param(b"\x81\xc0\x01", id="a map with nil as key"),
        pytest.param(b"\x81\x90\x01", id="a map with an array as key"),
        pytest.param(b"\xa2\xff\xfe", id="a text that is not UTF-8"),
    ],
)
def test_malformed_bodies_raise_wire_error(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(body)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, object(), {None: 1}, {1.5: 1}, "\ud800", {1, 2}])
def test_values_without_a_form_raise_wire_error(value: object) -> None:
    with pytest.raises(wire.WireError):
        wire.pack(value)


def test_a_list_within_itself_raises_wire_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(wire.WireError):
        wire.pack(endless)


@given(st.lists(st.lists(st.text() | st.binary() | INTEGERS), max_size=3), st.integers(1, 7))
def test_framed_messages_arrive_whole_however_they_are_cut_up(messages: list[Any], piece: int) -> None:
    stream = io.BytesIO(b"".join(wire.frame(message) for message in messages))

    def read(size: int) -> bytes:
        return stream.read(min(size, piece) if size < 1000 else size)

    for message in messages:
        assert wire.receive(read) == message
    with pytest.raises(wire.WireError, match="ended"):
        wire.receive(read)


def test_a_message_over_the_limit_is_neither_sent_nor_awaited() -> None:
    with pytest.raises(wire.WireError, match="allowed"):
        wire.frame(b"a" * wire.MESSAGE_LIMIT)
    with pytest.raises(wire.WireError, match="limit"):
        wire.body_length((wire.MESSAGE_LIMIT + 1).to_bytes(4, "big"))


def test_a_text_protocol_on_the_socket_is_recognised_as_rubbish() -> None:
    with pytest.raises(wire.WireError):
        wire.receive(io.BytesIO(b"HTTP/1.1 400 Bad Request\r\n\r\n").read)
