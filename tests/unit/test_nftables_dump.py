"""Reading a set while the kernel makes its hash table larger: the order changes between two answers of one dump."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from cni_plugin.netlink import NetlinkError, Socket, attribute, nested, nftables

A, B, C, D = ((bytes([10, 0, 0, n]), b"") for n in range(1, 5))


class Dumps:
    """Plays a socket whose dumps are these, one after the other; the last one again and again."""

    def __init__(self, *dumps: Sequence[tuple[bytes, bytes]]) -> None:
        self._dumps = list(dumps)
        self.read = 0

    def dump(self, _kind: int, _body: bytes, _what: str) -> list[bytes]:
        self.read += 1
        elements = self._dumps.pop(0) if len(self._dumps) > 1 else self._dumps[0]
        answers = [elements[:2], elements[2:]]
        return [bytes(4) + nested(3, *(nested(1, nested(1, attribute(1, key))) for key, _ in part)) for part in answers]


def read(dumps: Dumps) -> list[tuple[bytes, bytes]]:
    return nftables.dump_elements(cast(Socket, dumps), "table", "set")


def test_an_element_told_twice_means_that_another_is_missing_and_all_are_read_again() -> None:
    dumps = Dumps([A, B, A, D], [D, C, B, B], [C, A, D, B])
    assert read(dumps) == [C, A, D, B]
    assert dumps.read == 3


def test_a_set_that_is_told_whole_is_read_once() -> None:
    dumps = Dumps([A, B, C])
    assert read(dumps) == [A, B, C]
    assert dumps.read == 1


def test_a_set_without_elements_is_read_once() -> None:
    dumps = Dumps([])
    assert read(dumps) == []
    assert dumps.read == 1


def test_a_set_that_never_keeps_still_is_an_error_and_not_half_a_set() -> None:
    with pytest.raises(NetlinkError, match=r"^EINTR reading nf_tables set set: its order changed at every one of 16"):
        read(Dumps([A, B, A, D]))
