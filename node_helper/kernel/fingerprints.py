"""Whether anything changed in what the kernel would list, found out without taking the lists apart.

A node with 1,000 VIPs has 256,000 routes: to list them takes the kernel a seventh of a second, and to take the list
apart takes Python a whole one. But a list of the same routes is the same bytes, if it is asked for with the same
sequence number; so a comparison that finds nothing, which is nearly every one, needs only their hash.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable
from struct import Struct

from cni_plugin.netlink import DUMP, REQUEST, NetlinkError, rtnl

_SOL_NETLINK, _STRICT = 270, 12
_SO_RCVTIMEO = 20
_PATIENCE = 10
"""Seconds to wait for an answer."""
_RECEIVE_BYTES = 1 << 16
_SEQUENCE = 1
"""Of every question, as it is in every answer."""
_ERROR, _DONE = 2, 3
_CLONED = 0x200
"""RTM_F_CLONED."""
_header = Struct("=IHHII")
_timeval = Struct("@ll")

Question = tuple[int, bytes]
"""Type and body of a request to list."""


def routes(family: int, protocol: int = 0) -> Question:
    """The routes of an address family, of all tables; with `protocol` only those."""
    return rtnl.GET_ROUTE, bytes([family, 0, 0, 0, 0, protocol]) + bytes(6)


def exceptions(family: int) -> Question:
    """What was learned about paths; it has its age in it, so where there is any no two lists are the same."""
    return rtnl.GET_ROUTE, bytes([family]) + bytes(7) + _CLONED.to_bytes(4, "little")


def nexthops() -> Question:
    return rtnl.GET_NEXTHOP, bytes(8)


def rules(family: int) -> Question:
    return rtnl.GET_RULE, bytes([family]) + bytes(11)


class Fingerprints:
    """Of lists of the namespace in which the thread was when it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            # Strict: fields of the question are filters, and what was learned about a path, with its changing age, is
            # not listed among the routes.
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVTIMEO, _timeval.pack(_PATIENCE, 0))
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def take(self, questions: Iterable[Question]) -> bytes:
        """The same bytes as long as the kernel would list the same in the same order. Raises NetlinkError, OSError."""
        hashed = hashlib.blake2b(digest_size=16)
        for kind, body in questions:
            self._socket.send(_header.pack(16 + len(body), kind, REQUEST | DUMP, _SEQUENCE, 0) + body)
            last = False
            while not last:
                answer = self._socket.recv(_RECEIVE_BYTES)
                hashed.update(answer)
                last = _is_last(answer, kind)
        return hashed.digest()


def _is_last(answer: bytes, kind: int) -> bool:
    """Whether the list ends with these messages. Its end is a message of its own length, the last of its answer."""
    _, first, _, _, _ = _header.unpack_from(answer)
    if first == _ERROR:
        raise NetlinkError(-int.from_bytes(answer[16:20], "little", signed=True), f"listing (request {kind})")
    length, kind_of_last, _, sequence, _ = _header.unpack_from(answer, len(answer) - 20)
    if (length, kind_of_last, sequence) != (20, _DONE, _SEQUENCE):
        return False
    code = int.from_bytes(answer[-4:], "little", signed=True)
    if code < 0:
        raise NetlinkError(-code, f"listing (request {kind})")
    return True
