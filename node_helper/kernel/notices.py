"""What the kernel tells of changes that others made: to routes, links and addresses that this node's state rests on.

Without it a change would wait for the next full comparison, and every cycle would have to ask the kernel for
everything again. Our own requests are told too, to everybody; the kernel drops those for us by a socket filter, as
FRR does it, since in bulk they would overrun any buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from threading import Lock

from inotify_simple import INotify, flags

from cni_plugin.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Socket, attributes, number, rtnl, string
from node_helper.kernel import own_table, quotes, senders
from node_helper.kernel.xtables import HOST_CHAINS
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE, FORWARDED

# RTNLGRP_… of linux/rtnetlink.h
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE = 1, 5, 7, 8
_IPV6_ADDRESS, _IPV6_ROUTE, _MPLS_ROUTE, _IPV6_RULE, _IPV4_NETCONF, _NEXTHOP = 9, 11, 27, 19, 24, 32
_BOTH_GROUPS = (_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE, _IPV6_ADDRESS, _IPV6_ROUTE, _IPV6_RULE)
_HOST_GROUPS = (*_BOTH_GROUPS, _MPLS_ROUTE, _IPV4_NETCONF)
_ROUTER_GROUPS = (*_BOTH_GROUPS, _NEXTHOP)
_NEW_NETCONF = 80
"""RTM_NEWNETCONF: somebody wrote a sysctl of a device, like `rp_filter`; be it ourselves, the sender is the kernel."""
_LINKS = (rtnl.NEW_LINK, rtnl.DEL_LINK)
_ADDRESSES = (rtnl.NEW_ADDRESS, rtnl.DEL_ADDRESS)
_ROUTES = (rtnl.NEW_ROUTE, rtnl.DEL_ROUTE)
_RULES = (rtnl.NEW_RULE, rtnl.DEL_RULE)
_NEXTHOPS = (rtnl.NEW_NEXTHOP, rtnl.DEL_NEXTHOP)
_OURS = (ANNOUNCED, FORWARDED)
_LAST_TABLE = FIRST_TABLE + 8192
_MANY = 10_000
"""Notices that nobody asked for yet; with more, everything is looked at anew."""

_NFTABLES = 7
"""NFNLGRP_NFTABLES"""
_PART_NAMES = {10 << 8 | kind: name for kind, name in ((2, 0), (3, 3), (5, 3), (6, 2), (8, 2), (12, 2), (14, 2))}
"""Of nf_tables' messages (a table goes; a chain, a rule, a set's elements come or go) the attribute that names the
chain or the set."""
_PARTS = frozenset(
    [("mangle", ""), ("mangle", "PREROUTING")]
    + [(own_table.TABLE, part) for part in ("", *quotes.PARTS, *senders.PARTS)]
    + [(table, chain) for (table, ours), builtin in HOST_CHAINS.items() for chain in ("", ours, builtin)]
)
"""Table, and chain or set, of what is ours or calls ours, in router and host; "" for the table."""

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_ROOM = 1 << 20
"""Bytes. Where more comes at once, everything is looked at anew."""
_RECEIVE_BYTES = 1 << 16
_header = struct.Struct("=IHHII")

Notice = tuple[int, bytes]
"""Type of the message, and its body."""


class Notices:
    """A socket on which the kernel tells of changes in the namespace of the thread that makes it."""

    def __init__(self, groups: Iterable[int], own_port: int = 0, protocol: int = NETLINK_ROUTE) -> None:
        """`own_port`: of the socket whose own changes are left out."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        except OSError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)  # without CAP_NET_ADMIN
        if own_port:
            self._drop_from(own_port)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def _drop_from(self, port: int) -> None:
        """A classic BPF program: nothing of messages whose nlmsg_pid is this port, all of the others."""
        (big_endian,) = struct.unpack(">I", struct.pack("=I", port))
        program = b"".join(
            struct.pack("=HBBI", *instruction)
            for instruction in ((0x20, 0, 0, 12), (0x15, 0, 1, big_endian), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
        )
        buffer = ctypes.create_string_buffer(program)
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> Iterator[Notice]:
        """All that waits. Raises OSError (ENOBUFS) where some was lost."""
        while True:
            try:
                answer = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            start = 0
            while start + 16 <= len(answer):
                length, kind, *_ = _header.unpack_from(answer, start)
                yield kind, answer[start + 16 : start + length]
                start += (length + 3) & ~3


class News:
    """What was told since it was last asked: gathered by the event loop, taken by the thread that does the cycle."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._poll = select.epoll()
        self._host: Notices | None = None
        self._router: Notices | None = None
        self._host_chains: Notices | None = None
        self._router_chains: Notices | None = None
        self.host_link = 0
        """Index of the host's end of the link to the router; 0: there is none."""
        self._folder: INotify | None = None
        self._up: set[int] = set()
        self._doubts: list[Notice] | None = []
        self._router_doubted = True

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._poll.fileno()

    def close(self) -> None:
        with self._lock:
            chains = self._host_chains, self._router_chains
            for source in (self._host, self._router, *chains, self._folder, self._poll):
                if source is not None:
                    source.close()

    def follow_host(self, route: Socket) -> None:
        """From now on, changes in the host; the thread is in its namespace, `route` is what we change it by."""
        with self._lock:
            self._host = Notices(_HOST_GROUPS, route.port)
            self._poll.register(self._host.fileno(), select.EPOLLIN)
            self._host_chains = self._follow_chains()

    def follow_router(self, route: Socket, folder: str, links: Iterable[int]) -> None:
        """From now on, changes in the router, which the thread has entered, and of the folder that names it."""
        with self._lock:
            for old in (self._router, self._router_chains):
                if old is not None:
                    self._poll.unregister(old.fileno())
                    old.close()
            self._up = set(links)
            self._router = Notices(_ROUTER_GROUPS, route.port)
            self._poll.register(self._router.fileno(), select.EPOLLIN)
            self._router_chains = self._follow_chains()
            if self._folder is None:
                self._folder = INotify(nonblocking=True)
                self._folder.add_watch(folder, flags.DELETE)
                self._poll.register(self._folder.fileno(), select.EPOLLIN)

    def _follow_chains(self) -> Notices | None:
        """What is done to chains by iptables on nf_tables, or by nft; the older kind tells nobody."""
        try:
            chains = Notices((_NFTABLES,), protocol=NETLINK_NETFILTER)
        except OSError:  # a kernel without nf_tables
            return None
        self._poll.register(chains.fileno(), select.EPOLLIN)
        return chains

    def pass_over_chains(self) -> None:
        """Forgets what waits about chains: our own changes come from programs, so they cannot be told from others'."""
        with self._lock:
            for chains in (self._host_chains, self._router_chains):
                if chains is not None:
                    _about_our_chains(chains)

    def drain(self) -> tuple[bool, bool]:
        """Takes what waits: whether a cycle has something to look at, and whether it is to compare everything."""
        told = tampered = False
        with self._lock:
            if self._host is not None:
                try:
                    for notice in self._host.read():
                        told = True
                        if notice[0] == _NEW_NETCONF:
                            continue  # each cycle looks at the sysctls that count
                        tampered = tampered or _is_ours(notice) or self._is_about_our_link(notice)
                        if self._doubts is not None:
                            self._doubts.append(notice)
                            if len(self._doubts) > _MANY:
                                self._doubts = None
                except OSError:  # ENOBUFS: more than there was room for
                    self._doubts, told, tampered = None, True, True
            if self._router is not None:
                try:
                    for notice in self._router.read():
                        if self._is_tampering(notice):
                            self._router_doubted = tampered = True
                except OSError:
                    self._router_doubted = tampered = True
            for chains in (self._host_chains, self._router_chains):
                if chains is not None and _about_our_chains(chains):
                    self._router_doubted = tampered = True
            if self._folder is not None and self._folder.read(timeout=0):
                self._router_doubted = tampered = True
        return told or tampered, tampered

    def take(self) -> list[Notice] | None:
        """What was told of the host since the last time; None where some was lost."""
        with self._lock:
            doubts, self._doubts = self._doubts, []
            return doubts

    def doubt_router(self) -> None:
        """Whatever is told: the router is to be looked at as a whole."""
        with self._lock:
            self._router_doubted = True

    def take_router_doubt(self) -> bool:
        """Whether since the last time somebody changed what is ours in the router, or may have."""
        with self._lock:
            doubted, self._router_doubted = self._router_doubted, False
            return doubted

    def _is_about_our_link(self, notice: Notice) -> bool:
        """The host's end of the link is down or gone, or an address of it; IPv4 routes go along without a notice."""
        kind, body = notice
        if not self.host_link or not (is_about_link(kind) or is_about_address(kind)) or link_of(body) != self.host_link:
            return False
        is_down = kind == rtnl.NEW_LINK and not number(body[8:12]) & rtnl.IFF_UP
        return is_down or kind in (rtnl.DEL_LINK, rtnl.DEL_ADDRESS)

    def _is_tampering(self, notice: Notice) -> bool:
        """Whether somebody changed what is ours in the router. What the kernel does by itself there is known."""
        kind, body = notice
        if kind in _ROUTES:
            return body[7] == rtnl.UNICAST and (_is_ours(notice) or FIRST_TABLE <= table_of(body) < _LAST_TABLE)
        if kind == rtnl.NEW_LINK:
            index, up = link_of(body), bool(number(body[8:12]) & rtnl.IFF_UP)
            was_up = index in self._up
            (self._up.add if up else self._up.discard)(index)
            return was_up and not up
        return kind in (rtnl.DEL_LINK, rtnl.DEL_ADDRESS, *_RULES, *_NEXTHOPS)


def _about_our_chains(chains: Notices) -> bool:
    """Whether somebody changed a chain or set of ours, or a chain that calls one of ours. Takes all that waits.

    Where some was lost, as with a large restore by another tool, the next full comparison is waited for: such a tool
    writes all the time.
    """
    found = False
    with contextlib.suppress(OSError):
        for kind, body in chains.read():
            if kind in _PART_NAMES and not found:
                named = attributes(body, 4)
                part = string(named.get(_PART_NAMES[kind], b"")) if _PART_NAMES[kind] else ""
                found = (string(named.get(1, b"")), part) in _PARTS
    return found


def _is_ours(notice: Notice) -> bool:
    kind, body = notice
    return kind in _ROUTES and body[5] in _OURS


def link_of(body: bytes) -> int:
    """The index in a message about a link or an address: both have it at the same place."""
    return number(body[4:8])


def table_of(route: bytes) -> int:
    found = attributes(route, 12)
    return number(found[15]) if 15 in found else route[4]


def is_about_link(kind: int) -> bool:
    return kind in _LINKS


def is_about_address(kind: int) -> bool:
    return kind in _ADDRESSES


def destination_of(kind: int, body: bytes) -> tuple[int, bytes, int] | None:
    """IP version, address and prefix length of a route that came or went; None for what is no such route."""
    if kind not in _ROUTES or body[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    version = 4 if body[0] == socket.AF_INET else 6
    return version, attributes(body, 12).get(1, bytes(4 if version == 4 else 16)), body[1]


assert sys.byteorder == "little", "netlink messages are packed for it in cni_plugin.netlink, too"
