"""Our rtnetlink code and the real kernel: what is put is what is dumped, and what is refused is told in full."""

from __future__ import annotations

import os
import signal
import socket as sockets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest

from cni_plugin.netlink import NetlinkError, Socket, rtnl
from cni_plugin.netlink.address import BITS
from cni_plugin.netns import entered
from cni_plugin.tunnel import GRE, MPLS, TUNNEL_ID, VXLAN_GPE, VXLAN_GPE_PORT
from tests.kernel.private_netns import batch, private_netns, run

VIP = {4: "198.51.100.7", 6: "2001:db8::7"}
HERE = {4: "10.0.0.1", 6: "fd00::1"}
THERE = {4: "10.0.0.9", 6: "fd00::9"}
MANY = 5_000


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    route: Socket
    lo: int
    d0: int
    """A veth's end with the addresses HERE."""


@pytest.fixture
def place() -> Iterator[Place]:
    with private_netns() as path:
        batch(
            path,
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            f"addr add {HERE[4]}/24 dev d0",
            f"addr add {HERE[6]}/64 dev d0 nodad",
        )
        with entered(path), Socket() as route:
            links = {link.name: link.index for link in rtnl.dump_links(route)}
            yield Place(path, route, links["lo"], links["d0"])


# --- what is put is what is dumped ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "outer", "kind", "port"),
    [(VXLAN_GPE, 4, "vxlan", VXLAN_GPE_PORT), (GRE, 4, "gre", 0), (GRE, 6, "ip6gre", 0)],
)
def test_a_tunnel_device_is_up_and_takes_every_tunnel(
    place: Place, mode: str, outer: int, kind: str, port: int
) -> None:
    place.route.run(rtnl.add_tunnel_device("svctun-x", mode, outer, mtu=1400))
    device = next(link for link in rtnl.dump_links(place.route) if link.name == "svctun-x")
    expected = rtnl.Link(device.index, "svctun-x", kind, 1400, True, True, port, mode == VXLAN_GPE)
    assert device == expected
    place.route.run(rtnl.delete_link(device.index, "svctun-x"))
    assert "svctun-x" not in {link.name for link in rtnl.dump_links(place.route)}


def test_a_veth_has_its_other_end_in_the_other_namespace(place: Place) -> None:
    with private_netns() as other:
        descriptor = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
        place.route.run(rtnl.add_veth("svctun", "host0", descriptor, 9000))
        os.close(descriptor)
        with entered(other), Socket() as there:
            peer = next(link for link in rtnl.dump_links(there) if link.name == "host0")
            there.run(rtnl.set_up(peer.index, "host0"))
            assert next(link for link in rtnl.dump_links(there) if link.name == "host0").up
    own = {link.name: link for link in rtnl.dump_links(place.route)}
    assert (peer.kind, peer.mtu, peer.up) == ("veth", 9000, False)
    assert "host0" not in own


@pytest.mark.parametrize(
    ("version", "scope", "deprecated", "prefix", "flags"),
    [
        (4, rtnl.SCOPE_GLOBAL, False, 0, 0x80),
        (4, rtnl.SCOPE_HOST, False, 0, 0x80),
        (4, rtnl.SCOPE_GLOBAL, False, 30, 0x80),
        (6, rtnl.SCOPE_GLOBAL, False, 0, 0x80 | rtnl.ADDRESS_NODAD),
        (6, rtnl.SCOPE_GLOBAL, True, 0, 0x80 | 0x20 | rtnl.ADDRESS_NODAD),
    ],
)
def test_an_address_is_there_as_it_was_put_and_goes(
    place: Place, version: int, scope: int, deprecated: bool, prefix: int, flags: int
) -> None:
    message = rtnl.add_address(VIP[version], place.lo, "lo", scope, deprecated, prefix)
    place.route.run(message)
    place.route.run(message)  # a second time it is there already, which is no fault
    found = [address for address in rtnl.dump_addresses(place.route) if address.address == VIP[version]]
    assert found == [rtnl.Address(place.lo, VIP[version], prefix or BITS[version], scope, flags)]
    if not prefix:
        place.route.run(rtnl.delete_address(VIP[version], place.lo, "lo"))
        assert VIP[version] not in {address.address for address in rtnl.dump_addresses(place.route)}


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_is_dumped_as_it_was_put_and_goes(place: Place, version: int) -> None:
    destinations, tables = (f"{VIP[version]}/{BITS[version]}", "default"), (116, rtnl.TABLE_MAIN, 1007)
    for destination, table, (mtu, advmss) in product(destinations, tables, ((0, 0), (1400, 0), (1400, 1340))):
        route = rtnl.route(
            version,
            destination,
            table,
            116,
            link=place.d0,
            gateway=THERE[version],
            mtu=mtu,
            advmss=advmss,
            source=HERE[version],
        )
        place.route.run(rtnl.put_route(route))
        place.route.run(rtnl.put_route(route))
        assert rtnl.dump_routes(place.route, version, (116,)) == [route]
        place.route.run(rtnl.delete_route(route))
        assert rtnl.dump_routes(place.route, version, (116,)) == []


def test_a_route_may_have_a_gateway_of_the_other_version_or_one_that_is_on_no_subnet(place: Place) -> None:
    other = rtnl.route(4, f"{VIP[4]}/32", protocol=116, link=place.d0, gateway=THERE[6])
    onlink = rtnl.route(4, "198.51.100.8/32", protocol=116, link=place.d0, gateway="10.9.9.9", onlink=True)
    assert place.route.run_all([rtnl.put_route(other), rtnl.put_route(onlink)]) == []
    assert rtnl.dump_routes(place.route, 4, (116,)) == [other, onlink]


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_by_nexthop_object_can_be_copied_to_another_table(place: Place, version: int) -> None:
    """A pod's own default route may be one, and replies need a copy of it."""
    place.route.run(rtnl.put_nexthop(plain_nexthop(place, version)))
    place.route.run(rtnl.put_route(rtnl.route(version, "default", nexthop_id=7)))
    found = next(r for r in rtnl.dump_routes(place.route, version) if r.destination == "default")
    assert (found.nexthop_id, found.gateway, found.link) == (7, THERE[version], place.d0)
    copy = found.replace(table=116, protocol=116, advmss=1300)
    place.route.run(rtnl.put_route(copy))
    assert rtnl.dump_routes(place.route, version, (116,)) == [copy]


def plain_nexthop(place: Place, version: int, identifier: int = 7) -> rtnl.Nexthop:
    return rtnl.Nexthop(identifier, version, place.d0, THERE[version], "", "", 0, 116)


@pytest.mark.parametrize("version", [4, 6])
def test_a_replaced_nexthop_moves_the_route_that_names_it(place: Place, version: int) -> None:
    first = plain_nexthop(place, version)
    second = first.replace(gateway=THERE[version] + "9" if version == 6 else "10.0.0.99")
    route = rtnl.route(version, f"{VIP[version]}/{BITS[version]}", 1007, 116, nexthop_id=7, mtu=1400)
    place.route.run(rtnl.put_nexthop(first))
    place.route.run(rtnl.put_route(route))
    assert [r.gateway for r in rtnl.dump_routes(place.route, version, (116,))] == [first.gateway]
    place.route.run(rtnl.put_nexthop(second))
    assert rtnl.dump_nexthops(place.route) == [second]
    assert [r.gateway for r in rtnl.dump_routes(place.route, version, (116,))] == [second.gateway]
    place.route.run(rtnl.delete_nexthop(7))
    assert rtnl.dump_routes(place.route, version, (116,)) == [], "the kernel takes routes along with their nexthop"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("mode", "outer"), [(VXLAN_GPE, 4), (VXLAN_GPE, 6), (GRE, 4), (GRE, 6)])
def test_a_nexthop_with_an_encapsulation_is_dumped_as_it_was_put(
    place: Place, version: int, mode: str, outer: int
) -> None:
    place.route.run(rtnl.add_tunnel_device("svctun-x", mode, outer))
    link = next(link.index for link in rtnl.dump_links(place.route) if link.name == "svctun-x")
    hops = [
        rtnl.Nexthop(1, version, link, "", THERE[outer], HERE[outer], 0, 116, TUNNEL_ID),
        rtnl.Nexthop(2, version, link, "", THERE[outer], "", 0, 116, TUNNEL_ID),
        rtnl.Nexthop(3, version, link, "", THERE[outer], "", 0, 116, 0xFFFFFF, True),
    ]
    assert place.route.run_all([rtnl.put_nexthop(hop) for hop in hops]) == []
    assert rtnl.dump_nexthops(place.route) == hops
    shown = run(place.path, "ip", "nexthop", "show", "id", "1")
    assert " key " not in shown and " key " in run(place.path, "ip", "nexthop", "show", "id", "3")
    assert f"id {TUNNEL_ID} " in shown and f"dst {THERE[outer]} " in shown and " 64 " in shown


@pytest.mark.parametrize("mode", [MPLS])
def test_labels_and_nexthops_with_labels_are_dumped_as_they_were_put(place: Place, mode: str) -> None:
    run(place.path, "sysctl", "-q", "-w", "net.mpls.platform_labels=100000", "net.mpls.conf.d0.input=1")
    hops = [
        rtnl.Nexthop(1, 4, place.d0, THERE[4], "", "", 16_000, 116),
        rtnl.Nexthop(2, 6, place.d0, THERE[6], "", "", 16_001, 116),
    ]
    labels = [
        rtnl.Label(100, 116, place.lo, "", 0),
        rtnl.Label(16_000, 116, place.d0, THERE[4], 100),
        rtnl.Label(16_001, 116, place.d0, THERE[6], 100),
    ]
    put = [rtnl.put_label(label) for label in labels]
    assert place.route.run_all([rtnl.put_nexthop(hop) for hop in hops] + put + put) == []
    assert rtnl.dump_nexthops(place.route) == hops
    assert set(rtnl.dump_labels(place.route)) == set(labels)
    place.route.run(rtnl.delete_label(16_000, 116))
    assert {label.label for label in rtnl.dump_labels(place.route)} == {100, 16_001}


def test_a_kernel_without_labels_has_none(place: Place) -> None:
    """Without MPLS the kernel answers with the routes of all families; they are not taken for labels."""
    assert rtnl.dump_labels(place.route) == []


@pytest.mark.parametrize("version", [4, 6])
def test_rules_are_dumped_as_they_were_put_and_go(place: Place, version: int) -> None:
    rules = [
        rtnl.rule(version, 3000, action=rtnl.NOP, protocol=116),
        rtnl.rule(version, 1000, mask=0x10000, action=rtnl.GOTO, goto=3000, protocol=116),
        rtnl.rule(version, 1001, mark=0x80, mask=0x80, action=rtnl.GOTO, goto=3000, protocol=116),
        rtnl.rule(version, 1002, table=1007, protocol=116),
        rtnl.rule(version, 1160, 116, source=f"{VIP[version]}/{BITS[version]}", protocol=116),
    ]
    before = rtnl.dump_rules(place.route, version)
    assert place.route.run_all([rtnl.add_rule(rule) for rule in rules]) == []
    assert {r for r in rtnl.dump_rules(place.route, version) if r.protocol == 116} == set(rules)
    assert place.route.run_all([rtnl.delete_rule(rule) for rule in rules]) == []
    assert rtnl.dump_rules(place.route, version) == before


def test_the_way_to_an_address_is_what_ip_route_get_says(place: Place) -> None:
    found = rtnl.lookup_route(place.route, THERE[4])
    assert (found.link, found.source, found.gateway) == (place.d0, HERE[4], "")
    run(place.path, "ip", "route", "add", "default", "via", THERE[4], "mtu", "1400")
    found = rtnl.lookup_route(place.route, VIP[4])
    assert (found.link, found.gateway) == (place.d0, THERE[4])
    with pytest.raises(NetlinkError, match="ENETUNREACH looking up the route to 2001:db8:1::1"):
        rtnl.lookup_route(place.route, "2001:db8:1::1")


# --- refusals -------------------------------------------------------------------------------------------


def numbered(count: int, link: int = 0, table: int = 1000, mtu: int = 0, nexthop_id: int = 0) -> list[rtnl.Route]:
    return [
        rtnl.route(4, f"100.64.{i >> 8}.{i & 255}/32", table, 116, link=link, mtu=mtu, nexthop_id=nexthop_id)
        for i in range(count)
    ]


def test_one_refused_message_in_a_thousand_is_named_and_the_others_are_done(place: Place) -> None:
    routes = numbered(1_000, link=place.d0)
    routes[617] = routes[617].replace(link=0, nexthop_id=4711)
    refused = place.route.run_all([rtnl.put_route(route) for route in routes])
    assert [index for index, _ in refused] == [617]
    error = refused[0][1]
    assert error.errno == 22
    assert error.what == "setting the route to 100.64.2.105/32 (IPv4) in table 1000"
    assert error.kernel_says == "Nexthop id does not exist"
    assert str(error) == f"EINVAL {error.what}: {error.kernel_says}"
    assert len(rtnl.dump_routes(place.route, 4, (116,))) == 999


def test_a_refused_single_message_raises_with_the_kernels_words(place: Place) -> None:
    with pytest.raises(NetlinkError, match=r"^EADDRNOTAVAIL deleting 198\.51\.100\.7 from lo: .*[Aa]ddress not found"):
        place.route.run(rtnl.delete_address(VIP[4], place.lo, "lo"))
    assert rtnl.dump_links(place.route), "the socket is as good as before"


def test_every_one_of_many_refused_messages_is_told(place: Place) -> None:
    """A send of a thousand messages gives a thousand refusals: more than a socket of the usual size holds."""
    assert place.route._socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF) >= 2 << 20
    refused = place.route.run_all([rtnl.put_route(route) for route in numbered(MANY, nexthop_id=4711)])
    assert [index for index, _ in refused] == list(range(MANY))
    assert {error.kernel_says for _, error in refused} == {"Nexthop id does not exist"}
    assert rtnl.dump_links(place.route)


def test_thousands_of_routes_go_in_few_sends_and_come_back_in_one_dump(place: Place) -> None:
    routes = numbered(MANY, link=place.d0, mtu=1400)
    assert place.route.run_all([rtnl.put_route(route) for route in routes]) == []
    found = rtnl.dump_routes(place.route, 4, (116,))
    assert {route.destination for route in found} == {route.destination for route in routes}
    assert len(found) == MANY
    assert place.route.run_all([rtnl.delete_route(route) for route in routes]) == []
    assert rtnl.dump_routes(place.route, 4, (116,)) == []


def test_a_dump_during_changes_loses_nothing_that_was_there_all_the_time(place: Place) -> None:
    steady = numbered(2_000, link=place.d0)
    assert place.route.run_all([rtnl.put_route(route) for route in steady]) == []
    restless = numbered(200, table=1001, link=place.d0)
    stop = threading.Event()
    writer = Socket()

    def change() -> None:
        while not stop.is_set():
            writer.run_all([rtnl.put_route(route) for route in restless])
            writer.run_all([rtnl.delete_route(route) for route in restless])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20):
            found = [r.destination for r in rtnl.dump_routes(place.route, 4, (116,)) if r.table == 1000]
            assert len(found) == len(set(found)) == len(steady)
    except NetlinkError as error:
        if not error.kernel_says.startswith("the state changed at every one"):
            raise
    finally:
        stop.set()
        thread.join()
        writer.close()


def test_signals_during_sends_and_dumps_change_nothing(place: Place) -> None:
    """The kernel breaks off what a process waits for (EINTR); nothing is done twice, or not at all."""
    count = 0

    def interrupted(*_: object) -> None:
        nonlocal count
        count += 1

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        routes = numbered(MANY, link=place.d0, mtu=1400)
        for _ in range(3):
            assert place.route.run_all([rtnl.put_route(route) for route in routes]) == []
            assert len(rtnl.dump_routes(place.route, 4, (116,))) == MANY
            assert place.route.run_all([rtnl.delete_route(route) for route in routes]) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count > 10
