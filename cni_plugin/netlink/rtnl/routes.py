"""Routes of IPv4 and IPv6: rtnetlink(7)."""

from __future__ import annotations

from _struct import pack, unpack_from
from sys import byteorder

from cni_plugin.netlink import CREATE, EXCL, REPLACE, Message, Socket, attribute, attributes, nested, number, u32
from cni_plugin.netlink.address import BITS, FAMILY, VERSION, family, unpack, version
from cni_plugin.netlink.address import pack as pack_address
from cni_plugin.record import Record

NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26

TABLE_MAIN = 254
UNICAST, LOCAL = 1, 2
PROTO_KERNEL, PROTO_BOOT, PROTO_STATIC = 2, 3, 4

_METRIC_MTU, _METRIC_ADVMSS = 2, 8
_OWN_METRICS = (_METRIC_MTU, _METRIC_ADVMSS)
"""Those with a field of their own."""
_ONLINK = 4
_CLONED = 0x200
"""RTM_F_CLONED: not a route but what the kernel learned about one destination, as its path MTU."""


class Route(Record):
    version: int
    destination: str
    """`address/length`; `default` for length 0."""
    table: int
    protocol: int
    link: int
    gateway: str
    mtu: int
    advmss: int
    nexthop_id: int
    scope: int
    kind: int
    onlink: bool
    source: str
    """Preferred source address."""
    metrics: bytes = b""
    """The other metrics as the kernel gives them: window, initial congestion window and the like."""
    hops: bytes = b""
    """All next hops as the kernel gives them, where there are several; `link` and `gateway` are the first's."""


def dump_routes(socket: Socket, ip_version: int = 0, protocols: tuple[int, ...] = ()) -> list[Route]:
    """All unicast routes of all tables; of one IP version, and only of some protocols, where these are given.

    Of routes to one destination in one table that which the kernel prefers comes first. Routes for some kinds
    of service or some sources only are left out.
    """
    family = FAMILY.get(ip_version, 0)
    what = f"listing IPv{ip_version} routes" if ip_version else "listing routes"
    return [
        _route(answer, VERSION[answer[0]])
        for answer in socket.dump(GET_ROUTE, pack("=BBBBBBBBI", family, *[0] * 8), what)
        if answer[7] == UNICAST
        and answer[0] in VERSION
        and not (answer[2] or answer[3] or _is_learned(answer))
        and (not protocols or answer[5] in protocols)
    ]


def _is_learned(answer: bytes) -> bool:
    """Whether a dump's entry is an exception of a route: an IPv6 dump lists these with the route's protocol."""
    return bool(unpack_from("=I", answer, 8)[0] & _CLONED)


def lookup_route(socket: Socket, address: str) -> Route:
    """The route that a packet to `address` would take (`ip route get`)."""
    raw = pack_address(address)
    body = pack("=BBBBBBBBI", family(address), len(raw) * 8, *[0] * 7) + attribute(1, raw)
    return _route(socket.get(GET_ROUTE, body, f"looking up the route to {address}"), version(address))


def _route(answer: bytes, ip_version: int) -> Route:
    _, length, _, _, table, protocol, scope, kind, flags = unpack_from("=BBBBBBBBI", answer)
    found = attributes(answer, 12)
    metrics = attributes(found.get(8, b""))
    hop = found
    hops = b""
    if 9 in found and len(found[9]) >= 8:  # RTA_MULTIPATH
        first = found[9]
        hops = _settings_of(first)
        hop = attributes(first[: int.from_bytes(first[:2], byteorder)], 8)
        hop[4] = first[4:8]
        flags |= first[2]
    gateway = hop.get(5, b"")
    if 18 in hop and len(hop[18]) > 2:  # RTA_VIA: a gateway of another family
        gateway = hop[18][2:]
    return Route(
        ip_version,
        f"{unpack(found[1])}/{length}" if length and 1 in found else "default",
        number(found[15]) if 15 in found else table,
        protocol,
        number(hop.get(4, b"")),
        unpack(gateway) if len(gateway) in (4, 16) else "",
        number(metrics.get(_METRIC_MTU, b"")),
        number(metrics.get(_METRIC_ADVMSS, b"")),
        number(found.get(30, b"")),
        scope,
        kind,
        bool(flags & _ONLINK),
        unpack(found[7]) if len(found.get(7, b"")) in (4, 16) else "",
        b"".join([attribute(kind, metrics[kind]) for kind in sorted(metrics) if kind not in _OWN_METRICS]),
        hops,
    )


def _settings_of(hops: bytes) -> bytes:
    """Next hops without what the kernel says of their present state (dead, without carrier)."""
    result = bytearray(hops)
    start = 0
    while start + 8 <= len(hops):
        result[start + 2] &= _ONLINK
        start += (int.from_bytes(hops[start : start + 2], byteorder) + 3) & ~3 or len(hops)
    return bytes(result)


def gateways_by(route: Route, link: int) -> list[str]:
    """The gateways of a route that are reached by one device."""
    if not route.hops:
        return [route.gateway] if route.gateway and route.link == link else []
    found = []
    start = 0
    while start + 8 <= len(route.hops):
        length = int.from_bytes(route.hops[start : start + 2], byteorder)
        gateway = attributes(route.hops[start : start + length], 8).get(5, b"")
        if int.from_bytes(route.hops[start + 4 : start + 8], byteorder) == link and len(gateway) in (4, 16):
            found.append(unpack(gateway))
        start += (length + 3) & ~3 or len(route.hops)
    return found


def put_route(route: Route) -> Message:
    """Adds a route, or replaces the one of the same destination, table and metric."""
    return Message(NEW_ROUTE, CREATE | REPLACE, _route_body(route), f"setting {_route_name(route)}")


def add_route(route: Route) -> Message:
    """Adds a route; the kernel refuses with EEXIST where there is one of the same destination, table and metric."""
    return Message(NEW_ROUTE, CREATE | EXCL, _route_body(route), f"adding {_route_name(route)}")


def delete_route(route: Route) -> Message:
    return Message(DEL_ROUTE, 0, _route_body(route), f"deleting {_route_name(route)}")


def _route_name(route: Route) -> str:
    return f"the route to {route.destination} (IPv{route.version}) in table {route.table}"


def _route_body(route: Route) -> bytes:
    length = 0
    parts = []
    if route.destination != "default":
        address, _, bits = route.destination.partition("/")
        length = int(bits) if bits else BITS[route.version]
        parts.append(attribute(1, pack_address(address)))
    table = route.table if route.table < 256 else 0
    parts.append(u32(15, route.table))
    # A dump names gateway and device of a nexthop object too, a request must not.
    if route.nexthop_id:
        parts.append(u32(30, route.nexthop_id))
    elif route.hops:
        parts.append(attribute(9, route.hops))
    elif route.gateway:
        raw = pack_address(route.gateway)
        if version(route.gateway) == route.version:
            parts.append(attribute(5, raw))
        else:
            parts.append(attribute(18, pack("=H", family(route.gateway)) + raw))
    if route.link and not (route.nexthop_id or route.hops):
        parts.append(u32(4, route.link))
    if route.source:
        parts.append(attribute(7, pack_address(route.source)))
    metrics = [u32(kind, value) for kind, value in ((_METRIC_MTU, route.mtu), (_METRIC_ADVMSS, route.advmss)) if value]
    if route.metrics:
        metrics.append(route.metrics)
    if metrics:
        parts.append(nested(8, *metrics))
    head = pack(
        "=BBBBBBBBI",
        FAMILY[route.version],
        length,
        0,
        0,
        table,
        route.protocol,
        route.scope,
        route.kind,
        _ONLINK if route.onlink and not route.hops else 0,
    )
    return head + b"".join(parts)


def route(
    ip_version: int,
    destination: str,
    table: int = TABLE_MAIN,
    protocol: int = PROTO_BOOT,
    link: int = 0,
    gateway: str = "",
    mtu: int = 0,
    advmss: int = 0,
    nexthop_id: int = 0,
    scope: int = 0,
    onlink: bool = False,
    source: str = "",
) -> Route:
    """A unicast route with everything that is not named left at the kernel's default."""
    return Route(
        ip_version,
        destination,
        table,
        protocol,
        link,
        gateway,
        mtu,
        advmss,
        nexthop_id,
        scope,
        UNICAST,
        onlink,
        source,
    )
