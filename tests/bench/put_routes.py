"""Writes many routes by the helper's bulk path, as a process of its own: what `make bench` compares with `ip -batch`.

`python put_routes.py KIND …` in a namespace with the device `bench0` and the nexthop object 1. KIND is `plain` or
`nhid` with a number of tables and of routes in each, or `vips` with a number of VIPs and of buckets. Prints how many
seconds the routes took when all else was done, and the most memory that it held, in KiB.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from socket import if_nametoindex

sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))

from cni_plugin.netlink import NetlinkError, Socket, rtnl
from node_helper.kernel import bulk

FIRST = 0xC6120000
"""198.18.0.0, of the range for benchmarks."""
GATEWAY = "10.244.0.5"


def address(number: int) -> bytes:
    return (FIRST + number).to_bytes(4, "big")


def places(tables: int, routes: int) -> Iterator[tuple[bytes, int]]:
    """Destination and table of each route."""
    for table in range(tables):
        for number in range(routes):
            yield address(number), 10_000 + table


def plain(socket: Socket, tables: int, routes: int) -> list[NetlinkError]:
    like = rtnl.route(4, "198.18.0.0/32", 10_000, 116, link=if_nametoindex("bench0"), gateway=GATEWAY, onlink=True)
    return bulk.put_alike(socket, like, places(tables, routes))


def nhid(socket: Socket, tables: int, routes: int) -> list[NetlinkError]:
    return bulk.put_alike(socket, rtnl.route(4, "198.18.0.0/32", 10_000, 116, nexthop_id=1), places(tables, routes))


def vips(socket: Socket, number: int, buckets: int) -> list[NetlinkError]:
    refused = []
    hops = [(bucket, 1) for bucket in range(buckets)]
    for vip in range(number):
        refused += bulk.put_routes(socket, ".".join(map(str, address(vip))), hops, 1400)
    return refused


KINDS = {"plain": plain, "nhid": nhid, "vips": vips}


def main(kind: str, first: str, second: str) -> int:
    with Socket() as socket:
        began = time.perf_counter()
        refused = KINDS[kind](socket, int(first), int(second))
        seconds = time.perf_counter() - began
    if refused:
        print(*refused[:3], sep="\n")
        return 1
    with open("/proc/self/status") as status:
        held = next(line for line in status if line.startswith("VmHWM"))
    print(seconds, held.split()[1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
