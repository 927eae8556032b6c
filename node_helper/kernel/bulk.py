"""Bucket routes by the hundred thousand: messages and dumps cut from a pattern instead of built and parsed one by one.

A node with 1,000 VIPs has 256,000 of them, and making an object of each costs seconds and hundreds of megabytes. All
routes of a VIP are the same but for two numbers, table and nexthop; and what a dump says of our routes has those and
the VIP at the same places in every message. `make bench` measures it as part of `start-up`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from struct import Struct

from cni_plugin.netlink import Message, NetlinkError, Socket, attribute_list, rtnl, u32
from cni_plugin.netlink.address import FAMILY, unpack
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE

_DST, _PRIORITY, _METRICS, _TABLE, _NEXTHOP = 1, 6, 8, 15, 30
_HEAD = 12
"""Bytes of a struct rtmsg."""
_numbers = Struct("=HHIHHI")
_u32 = Struct("=I")
_table = Struct("=HHI")
_CLONED = 0x200
_LAST_SHORT = 255
"""The last table whose number has room in a struct rtmsg; ours are beyond."""

BucketRoute = tuple[bytes, int, int, int]
"""The VIP as it is on the wire, table, nexthop id, mtu."""


def put_routes(socket: Socket, vip: str, routes: Iterable[tuple[int, int]], mtu: int) -> list[NetlinkError]:
    """Puts a VIP's routes, given as (bucket, nexthop id); returns the refusals, each naming its route."""
    routes = list(routes)
    address = ip_address(vip)
    pattern = rtnl.put_route(_route(vip, FIRST_TABLE, nexthop=1, mtu=mtu))
    start = _HEAD + 4 + len(address.packed)
    before, after = pattern.body[:start], pattern.body[start + _numbers.size :]
    if _numbers.unpack_from(pattern.body, start) != (8, _TABLE, FIRST_TABLE, 8, _NEXTHOP, 1):
        raise AssertionError("a route's message has another shape than is expected here")
    refused = socket.send_alike(
        pattern.type,
        pattern.flags,
        f"{len(before)}sHHIHHI{len(after)}s",
        [(before, 8, _TABLE, FIRST_TABLE + bucket, 8, _NEXTHOP, identifier, after) for bucket, identifier in routes],
    )
    return [
        NetlinkError(code, rtnl.put_route(_route(vip, FIRST_TABLE + routes[index][0])).what, says)
        for index, code, says in refused
    ]


def put_alike(
    socket: Socket, like: rtnl.Route, places: Iterable[tuple[bytes, int]], metric: int = 0
) -> list[NetlinkError]:
    """Puts routes that differ in destination and table only; returns the refusals, each naming its route.

    `places`: addresses as on the wire, and tables: all below 256 or none, as that of `like`.
    `metric`: the kernel's own where it is 0. Routes of other metrics stay beside these.
    """
    places = list(places)
    refused = _send_at(socket, rtnl.put_route(like), like, places, u32(_PRIORITY, metric) if metric else b"")
    errors = []
    for index, code, says in refused:
        packed, table = places[index]
        route = like.replace(destination=f"{unpack(packed)}/{8 * len(packed)}", table=table)
        errors.append(NetlinkError(code, rtnl.put_route(route).what, says))
    return errors


def delete_routes(socket: Socket, vip: str, buckets: Iterable[int]) -> list[NetlinkError]:
    """Deletes a VIP's routes; that one is not there is no refusal."""
    messages = [rtnl.delete_route(_route(vip, FIRST_TABLE + bucket)) for bucket in buckets]
    return [error for _, error in socket.run_all(messages) if error.errno not in (2, 3)]


def delete_all(socket: Socket, version: int) -> None:
    """Deletes every route that `dump_bucket_routes` lists; that one is not there any more is nothing to tell."""
    places = [(vip, table) for vip, table, _, _ in dump_bucket_routes(socket, version) if table > _LAST_SHORT]
    like = _route("0.0.0.0" if version == 4 else "::", FIRST_TABLE)
    _send_at(socket, rtnl.delete_route(like), like, places)


def _send_at(
    socket: Socket, message: Message, like: rtnl.Route, places: Iterable[tuple[bytes, int]], further: bytes = b""
) -> list[tuple[int, int, str]]:
    """Sends a message about `like` for each of these destinations and tables instead; what is refused, by index.

    `further`: attributes that come after its own.
    """
    size = len(ip_address(like.destination.partition("/")[0]).packed)
    start = _HEAD + 4 + size
    before, after = message.body[: _HEAD + 4], message.body[start + 8 :] + further
    if message.body[start : start + 8] != _table.pack(8, _TABLE, like.table):
        raise AssertionError("a route's message has another shape than is expected here")
    return socket.send_alike(
        message.type,
        message.flags,
        f"{len(before)}s{size}sHHI{len(after)}s",
        ((before, destination, 8, _TABLE, table, after) for destination, table in places),
    )


def _route(vip: str, table: int, nexthop: int = 0, mtu: int = 0) -> rtnl.Route:
    address = ip_address(vip)
    destination = f"{vip}/{address.max_prefixlen}"
    return rtnl.route(address.version, destination, table, ANNOUNCED, nexthop_id=nexthop, mtu=mtu)


def dump_bucket_routes(socket: Socket, version: int) -> Iterator[BucketRoute]:
    """Every unicast route of ours to a single address, by nexthop object, in all tables."""
    family, bits = FAMILY[version], 32 if version == 4 else 128
    head = bytes([family, bits, 0, 0])
    shapes: dict[int, _Shape] = {}
    request = bytes([family]) + bytes(11)
    for answer in socket.dump(rtnl.GET_ROUTE, request, f"listing IPv{version} routes"):
        if answer[5] != ANNOUNCED or answer[7] != rtnl.UNICAST or answer[:4] != head:
            continue
        if _u32.unpack_from(answer, 8)[0] & _CLONED:  # what the kernel learned about a path
            continue
        shape = shapes.get(len(answer))
        if shape is None or not shape.fits(answer):
            shape = shapes[len(answer)] = _Shape(answer)
        yield shape.read(answer)


class _Shape:
    """Where a dump's messages of one length have what we look for."""

    def __init__(self, answer: bytes) -> None:
        self._places: dict[int, int] = {}
        start = _HEAD
        for kind, payload in attribute_list(answer, _HEAD):
            self._places[kind] = start + 4
            start += (4 + len(payload) + 3) & ~3
        metrics = self._places.pop(_METRICS, 0)
        # The mtu is the only metric of ours; with others, or none, the routes are not as we make them.
        self._mtu = metrics + 4 if metrics and answer[metrics - 4 : metrics + 4] == _ONLY_MTU else 0
        self._heads = [(place - 4, answer[place - 4 : place]) for place in self._places.values()]
        if self._mtu:
            self._heads.append((metrics - 4, _ONLY_MTU))
        self._size = 4 if answer[0] == FAMILY[4] else 16

    def fits(self, answer: bytes) -> bool:
        for place, head in self._heads:  # noqa: SIM110 - a generator takes twice as long, 256,000 times
            if not answer.startswith(head, place):
                return False
        return True

    def read(self, answer: bytes) -> BucketRoute:
        destination = self._places.get(_DST, 0)
        table, nexthop = self._places.get(_TABLE), self._places.get(_NEXTHOP)
        return (
            answer[destination : destination + self._size],
            _u32.unpack_from(answer, table)[0] if table else answer[4],
            _u32.unpack_from(answer, nexthop)[0] if nexthop else 0,
            _u32.unpack_from(answer, self._mtu)[0] if self._mtu else 0,
        )


_ONLY_MTU = Struct("=HHHH").pack(12, _METRICS, 8, 2)
"""The beginning of the nest of metrics that has just RTAX_MTU."""


def vip_of(packed: bytes) -> str:
    return unpack(packed)
