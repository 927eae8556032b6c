"""Small damage to bytes, of the kinds that parsers get wrong: lengths, ends, repetitions, parts of two inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

_TELLING = b'"\\[]{},./:\0\x01\x1f\x7f' + bytes.fromhex("8090a0c0c1c4c7cacbcfd3d4d9dbdcdddfe0ff")
"""Bytes that mean something in JSON, msgpack or names."""
_SIZES = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff", b"\x00\x10\x00\x00", b"\xff\xff")
_LONGEST = 4096


def _flip(body: bytearray, random: Random, _: bytes) -> None:
    body[random.randrange(len(body))] ^= 1 << random.randrange(8)


def _replace(body: bytearray, random: Random, _: bytes) -> None:
    body[random.randrange(len(body))] = random.choice(_TELLING)


def _insert(body: bytearray, random: Random, _: bytes) -> None:
    body.insert(random.randrange(len(body) + 1), random.choice(_TELLING))


def _delete(body: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(body))
    del body[at : at + random.randint(1, 8)]


def _cut(body: bytearray, random: Random, _: bytes) -> None:
    del body[random.randrange(len(body)) :]


def _repeat(body: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(body))
    part = body[at : at + random.randint(1, 16)]
    body[at:at] = part * random.choice((1, 2, 3, 70, 300))


def _size(body: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(body))
    size = random.choice(_SIZES)
    body[at : at + len(size)] = size


def _splice(body: bytearray, random: Random, other: bytes) -> None:
    start, end = sorted(random.randrange(len(other) + 1) for _ in range(2))
    at = random.randrange(len(body))
    body[at : at + random.choice((0, end - start))] = other[start:end]


_KINDS: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
    _flip, _replace, _insert, _delete, _cut, _repeat, _size, _splice,
)  # fmt: skip


def mutated(body: bytes, random: Random, corpus: Sequence[bytes]) -> bytes:
    """`body` after one to four mutations; `corpus` lends parts of other inputs."""
    changed = bytearray(body)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        if not changed:
            changed.append(random.choice(_TELLING))
        random.choice(_KINDS)(changed, random, random.choice(corpus))
    return bytes(changed[:_LONGEST])
