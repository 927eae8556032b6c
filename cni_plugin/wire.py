"""The format between plugin and helper, and of attachment records: msgpack, one length in front per message.

The helper's side may use the `msgpack` library; the plugin cannot afford its import, so this is the part of
the format that both need, as bytes any msgpack reader understands: nil, booleans, integers of 64 bits,
floats, text, binary, arrays, maps. Extension types are refused. Whatever else arrives, the only error is
`WireError`.
"""

from __future__ import annotations

from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MESSAGE_LIMIT = 1 << 20
"""Bytes of a message without its length; a pod with a thousand VIPs needs a tenth of it."""
DEPTH_LIMIT = 64
"""Arrays and maps within each other."""
LENGTH_BYTES = 4
"""Bytes of the big-endian length in front of each message."""


class WireError(ValueError):
    """Bytes that are no message, or a value that no message can hold."""


_FLOAT64 = Struct(">d")
_FLOAT32 = Struct(">f")


def pack(value: object) -> bytes:
    """A value as msgpack; tuples become arrays. Raises WireError for types and sizes that have no form."""
    parts: list[bytes] = []
    _pack(value, parts, 0)
    return b"".join(parts)


def _pack(value: object, parts: list[bytes], depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise WireError(f"more than {DEPTH_LIMIT} levels of lists and maps")
    if value is None:
        parts.append(b"\xc0")
    elif isinstance(value, bool):
        parts.append(b"\xc3" if value else b"\xc2")
    elif isinstance(value, int):
        parts.append(_integer(value))
    elif isinstance(value, str):
        try:
            text = value.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"text that is not Unicode: {error}") from None
        parts.append(_length(len(text), 0xA0, 32, (0xD9, 0xDA, 0xDB)))
        parts.append(text)
    elif isinstance(value, bytes):
        parts.append(_length(len(value), 0, 0, (0xC4, 0xC5, 0xC6)))
        parts.append(value)
    elif isinstance(value, float):
        parts.append(b"\xcb" + _FLOAT64.pack(value))
    elif isinstance(value, (list, tuple)):
        parts.append(_length(len(value), 0x90, 16, (None, 0xDC, 0xDD)))
        for item in value:
            _pack(item, parts, depth + 1)
    elif isinstance(value, dict):
        parts.append(_length(len(value), 0x80, 16, (None, 0xDE, 0xDF)))
        for key, item in value.items():
            if not isinstance(key, (str, int, bytes)):
                raise WireError(f"a map's key is text, bytes or an integer, not {type(key).__name__}")
            _pack(key, parts, depth + 1)
            _pack(item, parts, depth + 1)
    else:
        raise WireError(f"{type(value).__name__} has no form on the wire")


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return (value & 0xFF).to_bytes(1, "big")
    code, signed = (0xCC, False) if value >= 0 else (0xD0, True)
    for size in (1, 2, 4, 8):
        try:
            return bytes((code,)) + value.to_bytes(size, "big", signed=signed)
        except OverflowError:
            code += 1
    raise WireError(f"integer of more than 64 bits: {value.bit_length()} bits")


def _length(length: int, fixed: int, fixed_below: int, codes: tuple[int | None, int, int]) -> bytes:
    """The head of a sized value: in one byte, or a code with a length of 1, 2 or 4 bytes (None: no such)."""
    if length < fixed_below:
        return bytes((fixed | length,))
    for code, size in zip(codes, (1, 2, 4)):
        if code is not None and length < 1 << (8 * size):
            return bytes((code,)) + length.to_bytes(size, "big")
    raise WireError(f"{length} elements or bytes are too many")


def unpack(body: bytes) -> Any:
    """The one value that `body` holds; raises WireError if it holds less, more, or something else."""
    value, end = _unpack(body, 0, 0)
    if end != len(body):
        raise WireError(f"{len(body) - end} bytes follow the value")
    return value


# Code of the head: bytes that follow it. What follows is the value itself (numbers) or its length.
_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_SIGNED = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FLOATS = {0xCA: _FLOAT32, 0xCB: _FLOAT64}
_BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def _unpack(body: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > DEPTH_LIMIT:
        raise WireError(f"more than {DEPTH_LIMIT} levels of arrays and maps")
    code = _take(body, at, 1)[0]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 0x100, at
    if code < 0x90:
        return _unpack_map(body, at, code & 0x0F, depth)
    if code < 0xA0:
        return _unpack_array(body, at, code & 0x0F, depth)
    if code < 0xC0:
        return _unpack_text(body, at, code & 0x1F)
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if code in _TEXT:
        return _unpack_text(body, at + _TEXT[code], _number(body, at, _TEXT[code]))
    if code in _UNSIGNED:
        return _number(body, at, _UNSIGNED[code]), at + _UNSIGNED[code]
    if code in _SIGNED:
        size = _SIGNED[code]
        return int.from_bytes(_take(body, at, size), "big", signed=True), at + size
    if code in _ARRAY:
        return _unpack_array(body, at + _ARRAY[code], _number(body, at, _ARRAY[code]), depth)
    if code in _MAP:
        return _unpack_map(body, at + _MAP[code], _number(body, at, _MAP[code]), depth)
    if code in _BINARY:
        length = _number(body, at, _BINARY[code])
        at += _BINARY[code]
        return _take(body, at, length), at + length
    if code in _FLOATS:
        form = _FLOATS[code]
        return form.unpack(_take(body, at, form.size))[0], at + form.size
    raise WireError(f"byte 0x{code:02x} at {at - 1} begins nothing that is known")


def _take(body: bytes, at: int, size: int) -> bytes:
    taken = body[at : at + size]
    if len(taken) != size:
        raise WireError(f"cut off: {size} bytes wanted at {at}, {len(taken)} there")
    return taken


def _number(body: bytes, at: int, size: int) -> int:
    return int.from_bytes(_take(body, at, size), "big")


def _unpack_text(body: bytes, at: int, length: int) -> tuple[str, int]:
    try:
        return _take(body, at, length).decode(), at + length
    except UnicodeDecodeError as error:
        raise WireError(f"text at {at} is not UTF-8: {error.reason}") from None


def _unpack_array(body: bytes, at: int, length: int, depth: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(length):
        value, at = _unpack(body, at, depth + 1)
        values.append(value)
    return values, at


def _unpack_map(body: bytes, at: int, length: int, depth: int) -> tuple[dict[Any, Any], int]:
    values = {}
    for _ in range(length):
        key, at = _unpack(body, at, depth + 1)
        if not isinstance(key, (str, int, bytes)):
            raise WireError(f"a map's key is text, bytes or an integer, not {type(key).__name__}")
        values[key], at = _unpack(body, at, depth + 1)
    return values, at


def frame(message: object, limit: int = MESSAGE_LIMIT) -> bytes:
    """A message as it goes over the socket: length, then msgpack. Raises WireError for more bytes than `limit`."""
    body = pack(message)
    if len(body) > limit:
        raise WireError(f"message of {len(body)} bytes, {limit} are allowed")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def body_length(head: bytes, limit: int = MESSAGE_LIMIT) -> int:
    """Bytes that follow the `LENGTH_BYTES` of `head`; raises WireError when they are more than `limit`."""
    length = int.from_bytes(head, "big")
    if len(head) != LENGTH_BYTES or length > limit:
        raise WireError(f"{head.hex(' ')} is no length of a message (limit {limit} bytes)")
    return length


def receive(read: Callable[[int], bytes], limit: int = MESSAGE_LIMIT) -> Any:
    """The next message from `read`, which like `socket.recv` returns at most that many bytes, b"" at the end.

    Raises WireError for rubbish, for more bytes than `limit`, and when the other side ends before the message does;
    what `read` raises passes.
    """
    return unpack(_read_all(read, body_length(_read_all(read, LENGTH_BYTES), limit)))


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    parts = []
    while size:
        part = read(size)
        if not part:
            raise WireError(f"the other side ended with {size} bytes of its message missing")
        size -= len(part)
        parts.append(part)
    return b"".join(parts)
