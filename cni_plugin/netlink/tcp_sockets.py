"""The TCP connections of a network namespace: sock_diag(7), `inet_diag.h` of the kernel's uapi headers."""

from __future__ import annotations

from _struct import pack, unpack_from

from cni_plugin.netlink import Socket
from cni_plugin.netlink.address import FAMILY, unpack
from cni_plugin.record import Record

NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_TCP = 6
_CLOSED, _LISTENING = 7, 10
_CONNECTIONS = 0x1FFE & ~(1 << _CLOSED | 1 << _LISTENING)
"""All other states, also half-open and TIME_WAIT."""
_IPV4_IN_IPV6 = bytes(10) + b"\xff\xff"


class Connection(Record):
    local: str
    local_port: int
    remote: str
    remote_port: int


def open_socket() -> Socket:
    return Socket(NETLINK_SOCK_DIAG)


def connections(socket: Socket) -> list[Connection]:
    """All of both IP versions; raises NetlinkError, ENOENT where the kernel cannot tell."""
    found = []
    for family in FAMILY.values():
        request = pack("=BBBBI", family, _TCP, 0, 0, _CONNECTIONS) + bytes(48)
        for answer in socket.dump(_BY_FAMILY, request, "listing TCP connections"):
            local_port, remote_port = unpack_from(">HH", answer, 4)
            size = 4 if answer[0] == FAMILY[4] else 16
            local, remote = answer[8 : 8 + size], answer[24 : 24 + size]
            if local.startswith(_IPV4_IN_IPV6):  # of a listener on `::` that takes IPv4, too
                local, remote = local[12:], remote[12:]
            found.append(Connection(unpack(local), local_port, unpack(remote), remote_port))
    return found
