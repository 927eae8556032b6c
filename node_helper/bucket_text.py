"""The text in which a bucket table is stored: compact JSON, read with distrust."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from ipaddress import ip_address

from node_helper.buckets import NOBODY, PREVIOUS_OWNERS, BucketTable, valid_size

FORMAT_VERSION = 1
_MAX_TEXT = 262144
"""Characters: what Kubernetes allows for all annotations of an object."""


class BucketTableError(Exception):
    """A stored table that must not be used."""


class MalformedTable(BucketTableError):
    """The text is not what `encode` writes."""


class NewerTable(BucketTableError):
    """Written by a newer helper, in a format that this one does not know."""


class ForeignTable(BucketTableError):
    """Belongs to another Service, as in YAML that was copied."""


def encode(table: BucketTable) -> str:
    """The table as compact JSON, below 2 KiB for 256 buckets and 50 endpoints.

    `endpoints` are separated by spaces and lack what `prefix` says they all begin with; `owners` is base64 of
    one byte per bucket (two, big-endian, from 256 endpoints on), all bits set where a bucket has no owner.

    Only while buckets have moved lately: `former`, written like `endpoints`; and `previous`, for each layer base64
    of one bit per bucket (of the first bucket the lowest of the first byte), set where there is a previous owner, and
    then the previous owners, in as many bytes as `endpoints` and `former` together need. Only while some are away:
    `away`, as indices into `endpoints`. Readers of the time before these fields pass over them.
    """
    names = table.endpoints + table.former
    # Without endpoints an empty text must be none, which it is after an empty prefix only.
    prefix = _common_prefix(names) if table.endpoints else ""
    fields: dict[str, object] = {
        "v": FORMAT_VERSION,
        "uid": table.uid,
        "size": table.size,
        "prefix": prefix,
        "endpoints": _shortened(table.endpoints, prefix),
        "owners": _packed(table.owners, len(table.endpoints)),
    }
    if table.former:
        fields["former"] = _shortened(table.former, prefix)
    if table.previous:
        fields["previous"] = [_packed_layer(layer, len(names)) for layer in table.previous]
    if table.away:
        away = frozenset(table.away)
        fields["away"] = [index for index, name in enumerate(table.endpoints) if name in away]
    return json.dumps(fields, separators=(",", ":"))


def decode(text: str, uid: str) -> BucketTable:
    """Inverse of `encode`, for the Service with this uid; raises a `BucketTableError` for all else.

    Fields that this version does not know are passed over: they are hints that a later one may add.
    """
    fields = _fields(text)
    version = fields.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise MalformedTable(f"the bucket table's format version is {version!r}")
    if version > FORMAT_VERSION:
        raise NewerTable(f"the bucket table has format {version}, this helper knows {FORMAT_VERSION}: upgrade it")
    owner_uid = fields.get("uid")
    if owner_uid != uid:
        raise ForeignTable(f"the bucket table belongs to the Service with uid {owner_uid!r}, not {uid!r}")
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not valid_size(size):
        raise MalformedTable(f"the bucket table's size is {size!r}")
    prefix = _text(fields, "prefix")
    endpoints = _names(prefix, _text(fields, "endpoints"), bool(prefix))
    former = _names(prefix, _text(fields, "former"), True) if "former" in fields else ()
    _check(endpoints + former)
    owners = _owners(_bytes("owners", fields.get("owners")), size, len(endpoints))
    previous = _list(fields, "previous")
    if len(previous) > PREVIOUS_OWNERS:
        raise MalformedTable(f"the bucket table has {len(previous)} layers of previous owners")
    layers = [_layer(_bytes("previous owners", text), size, len(endpoints) + len(former)) for text in previous]
    return BucketTable(uid, size, endpoints, owners, tuple(layers), former, _away(_list(fields, "away"), endpoints))


def _common_prefix(names: tuple[str, ...]) -> str:
    """What all names begin with, character by character: what the first and the last in order share."""
    if not names:
        return ""
    first, last = min(names), max(names)
    for position, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:position]
    return first


def _width(endpoints: int) -> int:
    return 1 if endpoints < 256 else 2


def _fields(text: str) -> dict[str, object]:
    if len(text) > _MAX_TEXT:
        raise MalformedTable(f"the bucket table is {len(text)} characters long")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedTable(f"the bucket table is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MalformedTable("the bucket table is not a JSON object")
    return fields


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise MalformedTable(f"the bucket table's {name} is {value!r}, not text")
    return value


def _list(fields: dict[str, object], name: str) -> list[object]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise MalformedTable(f"the bucket table's {name} is {value!r}, not a list")
    return value


def _shortened(names: tuple[str, ...], prefix: str) -> str:
    return " ".join([name[len(prefix) :] for name in names])


def _names(prefix: str, rests: str, one: bool) -> tuple[str, ...]:
    """`one`: an empty text is one name, the prefix itself, and not none."""
    return tuple([prefix + rest for rest in rests.split(" ")]) if one or rests else ()


def _check(names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise MalformedTable("the bucket table names an endpoint twice")
    for name in names:
        try:
            canonical = str(ip_address(name))
        except ValueError:
            canonical = ""
        if canonical != name:
            raise MalformedTable(f"the bucket table names {name!r}, which is no address in canonical form")


def _packed(indices: Sequence[int], names: int) -> str:
    width = _width(names)
    nobody = (1 << 8 * width) - 1
    packed = b"".join([(nobody if index == NOBODY else index).to_bytes(width, "big") for index in indices])
    return base64.b64encode(packed).decode()


def _packed_layer(layer: tuple[int, ...], names: int) -> str:
    width = _width(names)
    moved = sum([1 << bucket for bucket, index in enumerate(layer) if index != NOBODY])
    packed = b"".join([index.to_bytes(width, "big") for index in layer if index != NOBODY])
    return base64.b64encode(moved.to_bytes(_octets(len(layer)), "little") + packed).decode()


def _octets(bits: int) -> int:
    return (bits + 7) // 8


def _bytes(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise MalformedTable(f"the bucket table's {name} are {text!r}, not text")
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedTable(f"the bucket table's {name} are not base64: {error}") from None


def _owners(packed: bytes, size: int, endpoints: int) -> tuple[int, ...]:
    width = _width(endpoints)
    nobody = (1 << 8 * width) - 1
    if len(packed) != size * width:
        raise MalformedTable(f"the bucket table has {len(packed) // width} owners for {size} buckets")
    owners: list[int] = []
    for start in range(0, len(packed), width):
        owner = int.from_bytes(packed[start : start + width], "big")
        if owner >= endpoints and owner != nobody:
            raise MalformedTable(f"bucket {start // width} is owned by endpoint {owner} of {endpoints}")
        owners.append(NOBODY if owner == nobody else owner)
    return tuple(owners)


def _layer(packed: bytes, size: int, names: int) -> tuple[int, ...]:
    width, octets = _width(names), _octets(size)
    moved = int.from_bytes(packed[:octets], "little")
    rest = packed[octets:]
    if len(packed) < octets or moved >> size or len(rest) != moved.bit_count() * width:
        raise MalformedTable("the bucket table has not as many previous owners as it says")
    indices = iter([int.from_bytes(rest[start : start + width], "big") for start in range(0, len(rest), width)])
    layer = tuple([next(indices) if moved >> bucket & 1 else NOBODY for bucket in range(size)])
    if max(layer) >= names:
        raise MalformedTable(f"the bucket table names previous owner {max(layer)} of {names}")
    return layer


def _away(indices: list[object], endpoints: tuple[str, ...]) -> tuple[str, ...]:
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(endpoints):
            raise MalformedTable(f"the bucket table says that endpoint {index!r} of {len(endpoints)} is away")
    return tuple([endpoints[index] for index in indices if isinstance(index, int)])
