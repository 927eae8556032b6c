"""Which endpoint owns which bucket of a Service, changed as little as possible when the endpoints change.

A flow's bucket is a hash, so a bucket that changes hands breaks (or must rescue) the flows in it. Maglev
and rendezvous hashing have no memory and move buckets of endpoints that did not change; a stored table
moves none of those and is balanced to one bucket. Its price is that it must be stored.

Two operations, both pure, so every node that sees the same gets the same:

- `rebalance` makes the next table to store. Only it gives buckets to newcomers.
- `effective` is what a node programs at once from the stored table and the endpoints that are usable now.
  Buckets of the others fall to usable ones by a fixed choice, and after a removal `rebalance` makes just
  that choice: storing the repaired table moves nothing a second time.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

MAX_SIZE = 4096
NOBODY = -1
"""Owner of a bucket that no endpoint has."""

FORMAT_VERSION = 1
_MAX_TEXT = 262144
"""Characters: what Kubernetes allows for all annotations of an object."""
_U32 = 0xFFFFFFFF


class BucketTableError(Exception):
    """A stored table that must not be used."""


class MalformedTable(BucketTableError):
    """The text is not what `encode` writes."""


class NewerTable(BucketTableError):
    """Written by a newer helper, in a format that this one does not know."""


class ForeignTable(BucketTableError):
    """Belongs to another Service, as in YAML that was copied."""


@dataclass(frozen=True, slots=True)
class BucketTable:
    """The owners of one Service's buckets."""

    uid: str
    """The Service's."""
    size: int
    """Number of buckets, a power of two from 1 to 4096."""
    endpoints: tuple[str, ...]
    """Addresses in canonical text form; all that the table knows, with buckets or (more endpoints than
    buckets) without."""
    owners: tuple[int, ...]
    """By bucket: index into `endpoints`, or `NOBODY`."""

    def owner(self, bucket: int) -> str | None:
        index = self.owners[bucket]
        return None if index == NOBODY else self.endpoints[index]


def fresh(uid: str, endpoints: Iterable[str], size: int) -> BucketTable:
    """The first table of a Service; depends on the set of endpoints only, not on their order."""
    return rebalance(None, uid, endpoints, size)


def rebalance(table: BucketTable | None, uid: str, endpoints: Iterable[str], size: int) -> BucketTable:
    """The table to store next: exactly these endpoints, loads that differ by at most one, the fewest moves.

    With more endpoints than buckets the excess gets none. Where the size changes, buckets are split or merged
    first, which moves no flow (HMARK scales by the hash's high bits) or, when merging, the fewest. A table of
    another uid is not continued. Raises ValueError for a size that is no power of two from 1 to 4096.
    """
    if not _valid_size(size):
        raise ValueError(f"{size} buckets: a power of two from 1 to {MAX_SIZE} is needed")
    names = tuple(sorted(set(endpoints)))
    if table is None or table.uid != uid:
        return BucketTable(uid, size, names, _completed(uid, names, [NOBODY] * size, balance=True))
    if table.size != size:
        table = _resized(table, size)
    owners = _completed(uid, names, _renamed(table, names), balance=True)
    return BucketTable(uid, size, names, owners)


def effective(table: BucketTable, usable: Collection[str]) -> tuple[str | None, ...]:
    """The endpoint to program for each bucket while just `usable` endpoints can take traffic.

    Usable owners keep every bucket of theirs; the other buckets fall to usable endpoints of the table, evenly.
    Endpoints that the table does not know get nothing, unless it knows no usable one: then all share.
    """
    known = set(usable).intersection(table.endpoints)
    if len(known) == len(table.endpoints) and NOBODY not in table.owners:
        return tuple(map(table.endpoints.__getitem__, table.owners))
    names = tuple(sorted(known or set(usable)))
    if not names:
        return (None,) * table.size
    owners = _completed(table.uid, names, _renamed(table, names), balance=False)
    return tuple(map(names.__getitem__, owners))


def _valid_size(size: int) -> bool:
    return 0 < size <= MAX_SIZE and size & (size - 1) == 0


def _resized(table: BucketTable, size: int) -> BucketTable:
    owners = tuple(table.owners[bucket * table.size // size] for bucket in range(size))
    return BucketTable(table.uid, size, table.endpoints, owners)


def _renamed(table: BucketTable, names: tuple[str, ...]) -> list[int]:
    """The table's owners as indices into `names`; NOBODY for endpoints that are not among them."""
    if names == table.endpoints:
        return list(table.owners)
    index = {name: position for position, name in enumerate(names)}
    known = [index.get(name, NOBODY) for name in table.endpoints]
    known.append(NOBODY)  # What owner -1 finds.
    return [known[owner] for owner in table.owners]


def _completed(uid: str, names: tuple[str, ...], owners: list[int], balance: bool) -> tuple[int, ...]:
    """Give each bucket without owner to an endpoint that has room; with `balance`, take surplus away first."""
    if not names:
        return (NOBODY,) * len(owners)
    hashes = [zlib.crc32(f"{uid} {name}".encode()) for name in names]
    loads = [0] * len(names)
    for owner in owners:
        if owner != NOBODY:
            loads[owner] += 1
    # Who has most keeps the one bucket more that some must have: that moves least. Equals are ordered by a
    # hash with the uid, so that not the same endpoint has more in every Service.
    order = sorted(range(len(names)), key=lambda index: (-loads[index], hashes[index], names[index]))
    share, larger = divmod(len(owners), len(names))
    room = [share] * len(names)
    for index in order[:larger]:
        room[index] += 1
    if not any(loads):
        return tuple(order[bucket % len(order)] for bucket in range(len(owners)))
    for index, load in enumerate(loads):
        room[index] -= load
    if balance:
        _take_surplus(owners, room)
    _fill(owners, room, hashes)
    return tuple(owners)


def _take_surplus(owners: list[int], room: list[int]) -> None:
    if min(room) >= 0:
        return
    for bucket in range(len(owners) - 1, -1, -1):
        owner = owners[bucket]
        if owner != NOBODY and room[owner] < 0:
            room[owner] += 1
            owners[bucket] = NOBODY


def _fill(owners: list[int], room: list[int], hashes: list[int]) -> None:
    """Rendezvous hashing among the endpoints that have room.

    A bucket prefers the same endpoint whoever else is usable, so a second removal before the first is stored
    disturbs few buckets of the first.
    """
    open_to = [index for index, places in enumerate(room) if places > 0]
    for bucket, owner in enumerate(owners):
        if owner != NOBODY:
            continue
        salt = bucket * 0x9E3779B1
        best, best_score = NOBODY, -1
        for index in open_to:
            # A small integer hash: this loop runs once per orphaned bucket and endpoint, a digest is too slow.
            score = (hashes[index] ^ salt) * 0x85EBCA6B & _U32
            score = (score ^ score >> 15) * 0xC2B2AE35 & _U32
            score ^= score >> 13
            if score > best_score:
                best, best_score = index, score
        owners[bucket] = best
        room[best] -= 1
        if room[best] == 0:
            open_to.remove(best)


def encode(table: BucketTable) -> str:
    """The table as compact JSON, below 2 KiB for 256 buckets and 50 endpoints.

    `endpoints` are separated by spaces and lack what `prefix` says they all begin with; `owners` is base64 of
    one byte per bucket (two, big-endian, from 256 endpoints on), all bits set where a bucket has no owner.
    """
    prefix = _common_prefix(table.endpoints)
    width = _width(len(table.endpoints))
    nobody = (1 << 8 * width) - 1
    owners = b"".join([(nobody if owner == NOBODY else owner).to_bytes(width, "big") for owner in table.owners])
    return json.dumps(
        {
            "v": FORMAT_VERSION,
            "uid": table.uid,
            "size": table.size,
            "prefix": prefix,
            "endpoints": " ".join([name[len(prefix) :] for name in table.endpoints]),
            "owners": base64.b64encode(owners).decode(),
        },
        separators=(",", ":"),
    )


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
    if not isinstance(size, int) or isinstance(size, bool) or not _valid_size(size):
        raise MalformedTable(f"the bucket table's size is {size!r}")
    endpoints = _endpoints(fields)
    return BucketTable(uid, size, endpoints, _owners(_text(fields, "owners"), size, len(endpoints)))


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


def _endpoints(fields: dict[str, object]) -> tuple[str, ...]:
    prefix, rests = _text(fields, "prefix"), _text(fields, "endpoints")
    names = tuple([prefix + rest for rest in rests.split(" ")]) if prefix or rests else ()
    if len(set(names)) != len(names):
        raise MalformedTable("the bucket table names an endpoint twice")
    for name in names:
        try:
            canonical = str(ip_address(name))
        except ValueError:
            canonical = ""
        if canonical != name:
            raise MalformedTable(f"the bucket table names {name!r}, which is no address in canonical form")
    return names


def _owners(text: str, size: int, endpoints: int) -> tuple[int, ...]:
    width = _width(endpoints)
    nobody = (1 << 8 * width) - 1
    try:
        packed = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedTable(f"the bucket table's owners are not base64: {error}") from None
    if len(packed) != size * width:
        raise MalformedTable(f"the bucket table has {len(packed) // width} owners for {size} buckets")
    owners: list[int] = []
    for start in range(0, len(packed), width):
        owner = int.from_bytes(packed[start : start + width], "big")
        if owner >= endpoints and owner != nobody:
            raise MalformedTable(f"bucket {start // width} is owned by endpoint {owner} of {endpoints}")
        owners.append(NOBODY if owner == nobody else owner)
    return tuple(owners)
