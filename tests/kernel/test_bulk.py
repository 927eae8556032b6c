"""Bucket routes in bulk and the real kernel: what is put is what is dumped, and what is refused is named."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from cni_plugin.netlink import Socket, rtnl
from cni_plugin.netns import entered
from node_helper.kernel import bulk
from node_helper.kernel import router as router_module
from node_helper.kernel.notices import Notices, table_of
from node_helper.kernel.router import Router
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE
from tests.kernel.private_netns import batch, private_netns, run

VIP = {4: "198.51.100.7", 6: "2001:db8::7"}
NEIGHBOUR = {4: "198.51.100.8", 6: "2001:db8::8"}
BUCKETS = 256


@pytest.fixture
def place() -> Iterator[tuple[str, Socket]]:
    """A namespace with the nexthop objects 1 to 3 of IPv4 and 11 to 13 of IPv6."""
    with private_netns() as path:
        batch(path, "link add d0 type veth peer name d1", "link set d0 up", "link set d1 up")
        batch(path, "addr add 10.0.0.1/24 dev d0", "addr add fd00::1/64 dev d0 nodad")
        batch(path, *(f"nexthop add id {number} via 10.0.0.{number + 1} dev d0" for number in (1, 2, 3)))
        batch(path, *(f"nexthop add id 1{number} via fd00::{number + 1} dev d0" for number in (1, 2, 3)))
        with entered(path):
            socket = Socket()
        yield path, socket
        socket.close()


def wanted(version: int) -> list[tuple[int, int]]:
    first = 1 if version == 4 else 11
    return [(bucket, first + bucket % 3) for bucket in range(BUCKETS)]


def dumped(socket: Socket, version: int, vip: str) -> list[tuple[int, int, int]]:
    """(bucket, nexthop id, mtu) of a VIP."""
    raw = ip_address(vip).packed
    found = bulk.dump_bucket_routes(socket, version)
    return sorted((table - FIRST_TABLE, hop, mtu) for address, table, hop, mtu in found if address == raw)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_put_is_dumped_and_what_is_deleted_is_gone(place: tuple[str, Socket], version: int) -> None:
    path, socket = place
    for vip, mtu in ((VIP[version], 1400), (NEIGHBOUR[version], 1350)):
        assert bulk.put_routes(socket, vip, wanted(version), mtu) == []
        assert dumped(socket, version, vip) == [(bucket, hop, mtu) for bucket, hop in wanted(version)]
    shown = run(path, "ip", f"-{version}", "route", "show", "table", "1042")
    assert f"{VIP[version]} nhid {wanted(version)[42][1]} " in shown and "proto 116" in shown and "mtu 1400" in shown
    assert bulk.delete_routes(socket, VIP[version], range(0, BUCKETS, 2)) == []
    assert [bucket for bucket, _, _ in dumped(socket, version, VIP[version])] == list(range(1, BUCKETS, 2))
    assert len(dumped(socket, version, NEIGHBOUR[version])) == BUCKETS, "another VIP's stay"
    assert bulk.delete_routes(socket, VIP[version], range(BUCKETS)) == [], "what is not there is deleted already"
    assert dumped(socket, version, VIP[version]) == []


def test_all_are_deleted_at_once_and_those_of_others_stay(place: tuple[str, Socket]) -> None:
    path, socket = place
    batch(path, "route add 203.0.113.0/24 via 10.0.0.2 table 1000", "route add 203.0.113.1/32 via 10.0.0.2 table 1000")
    batch(path, "route add 2001:db8:9::1/128 via fd00::2 table 1000")
    for version in (4, 6):
        for vip in (VIP[version], NEIGHBOUR[version]):
            assert bulk.put_routes(socket, vip, wanted(version), 1400) == []
        bulk.delete_all(socket, version)
        assert list(bulk.dump_bucket_routes(socket, version)) == []
        bulk.delete_all(socket, version)
    assert len(run(path, "ip", "route", "show", "table", "1000").splitlines()) == 2
    assert "2001:db8:9::1" in run(path, "ip", "-6", "route", "show", "table", "1000")


@pytest.mark.parametrize("kept", [False, True])
def test_a_router_is_removed_routes_first(
    place: tuple[str, Socket], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nexthops first the kernel goes through all routes for each, and nobody can change a link meanwhile.

    What it deletes along with a nexthop it tells nobody: so each route is to be told, before any nexthop or link.
    """
    path, socket = place
    for version in (4, 6):
        assert bulk.put_routes(socket, VIP[version], wanted(version), 1400) == []
    router = Router(kept=kept)
    router.path = path
    monkeypatch.setattr(router_module, "run", lambda command: run(path, *command) if kept else "")
    with entered(path):
        told = Notices((1, 7, 11, 32))  # RTNLGRP_LINK, IPV4_ROUTE, IPV6_ROUTE, NEXTHOP
    with private_netns() as host, entered(host), Socket() as route:
        router.remove(route)
    kinds = [kind for kind, body in told.read() if kind != rtnl.DEL_ROUTE or table_of(body) >= FIRST_TABLE]
    told.close()
    assert kinds[: 2 * BUCKETS] == [rtnl.DEL_ROUTE] * 2 * BUCKETS
    assert rtnl.DEL_ROUTE not in kinds[2 * BUCKETS :]
    assert not kept or rtnl.DEL_LINK in kinds


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_that_is_put_again_is_replaced(place: tuple[str, Socket], version: int) -> None:
    _, socket = place
    assert bulk.put_routes(socket, VIP[version], wanted(version), 1400) == []
    other = wanted(version)[0][1] + 1
    assert bulk.put_routes(socket, VIP[version], [(7, other)], 1300) == []
    found = dumped(socket, version, VIP[version])
    assert found[7] == (7, other, 1300)
    assert len(found) == BUCKETS


@pytest.mark.parametrize("version", [4, 6])
def test_a_refused_route_is_named_and_the_others_are_put(place: tuple[str, Socket], version: int) -> None:
    _, socket = place
    routes = wanted(version)
    routes[99] = (99, 4711)
    (refused,) = bulk.put_routes(socket, VIP[version], routes, 1400)
    assert str(refused) == (
        f"EINVAL setting the route to {VIP[version]}/{32 if version == 4 else 128} (IPv{version}) in table 1099: "
        "Nexthop id does not exist"
    )
    assert [bucket for bucket, _, _ in dumped(socket, version, VIP[version])] == [b for b in range(BUCKETS) if b != 99]


@pytest.mark.parametrize("version", [4, 6])
def test_only_our_routes_to_single_addresses_are_dumped(place: tuple[str, Socket], version: int) -> None:
    path, socket = place
    bits = 32 if version == 4 else 128
    network = "198.51.100.0/24" if version == 4 else "2001:db8::/64"
    batch(
        path,
        f"route add {VIP[version]}/{bits} table 1001 dev d0 proto static",
        f"route add {network} table 1002 dev d0 proto 116",
        f"route add blackhole {VIP[version]}/{bits} table 1003 proto 116",
    )
    assert list(bulk.dump_bucket_routes(socket, version)) == []


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_that_somebody_changed_is_told_as_it_is(place: tuple[str, Socket], version: int) -> None:
    """Without its nexthop object, or with other metrics: it is compared with what is wanted, and put right."""
    path, socket = place
    assert bulk.put_routes(socket, VIP[version], wanted(version)[:3], 1400) == []
    bits = 32 if version == 4 else 128
    batch(
        path,
        f"route replace {VIP[version]}/{bits} table 1001 dev d0 proto 116 mtu 1400",
        f"route replace {VIP[version]}/{bits} table 1002 nhid {wanted(version)[2][1]} proto 116 hoplimit 9",
    )
    first, second, third = dumped(socket, version, VIP[version])
    assert first == (0, wanted(version)[0][1], 1400)
    assert second == (1, 0, 1400)
    assert third == (2, wanted(version)[2][1], 0)


@pytest.mark.parametrize("version", [4, 6])
def test_routes_that_are_alike_are_put_to_many_destinations_and_a_refused_one_is_named(
    place: tuple[str, Socket], version: int
) -> None:
    path, socket = place
    first = int(ip_address(VIP[version]))
    bits = 32 if version == 4 else 128
    addresses = [str(type(ip_address(VIP[version]))(first + number)) for number in range(300)]
    link = next(link.index for link in rtnl.dump_links(socket) if link.name == "d0")
    gateway = "10.0.0.9" if version == 4 else "fd00::9"
    like = rtnl.route(version, f"{VIP[version]}/{bits}", 0x1000, ANNOUNCED, link=link, gateway=gateway, mtu=1400)
    places = [(ip_address(address).packed, 0x1000) for address in addresses]
    assert bulk.put_alike(socket, like, places) == []
    found = rtnl.dump_routes(socket, version, (ANNOUNCED,))
    assert sorted(route.destination for route in found) == sorted(f"{address}/{bits}" for address in addresses)
    assert {(route.gateway, route.mtu, route.table) for route in found} == {(gateway, 1400, 0x1000)}
    assert bulk.put_alike(socket, like, places[:1], 2000) == []
    shown = run(path, "ip", f"-{version}", "route", "show", addresses[0], "table", "4096").splitlines()
    assert len(shown) == 2 and "metric 2000" in shown[1], "it stands beside the other"
    refused = bulk.put_alike(socket, like.replace(link=4711), places[:2])
    names = [f"setting the route to {address}/{bits} (IPv{version}) in table 4096" for address in addresses[:2]]
    assert [error.what for error in refused] == names
