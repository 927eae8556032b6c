"""A comparison that finds nothing costs a hash; one that must find something finds it, in the real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from socket import AF_INET, AF_INET6

import pytest

from cni_plugin.netlink import NetlinkError, Socket
from cni_plugin.netns import entered
from node_helper.kernel.facts import FactsReader
from node_helper.kernel.fingerprints import Fingerprints, exceptions, nexthops, routes, rules
from node_helper.kernel.notices import News
from node_helper.kernel.router import Router
from node_helper.model import Node
from node_helper.plan.changes import after, router_changes
from node_helper.plan.state import Hop, RouterPresent, RouterWanted, VipBuckets
from tests.kernel.private_netns import batch, private_netns, run
from tests.testbed.host import Host

VIPS = ("198.51.100.7", "2001:db8::7")
BUCKETS = 64
EVERYTHING = [
    nexthops(),
    *(question(family) for question in (routes, exceptions, rules) for family in (AF_INET, AF_INET6)),
]


@pytest.fixture
def netns() -> Iterator[str]:
    with private_netns() as path:
        batch(path, "link add d0 type veth peer name d1", "link set d1 up", "link set d0 up")
        batch(path, "addr add 10.0.0.1/24 dev d0", "addr add fd00::1/64 dev d0 nodad")
        with entered(path):
            yield path


@pytest.mark.parametrize(
    "command",
    [
        "route add 198.51.100.7/32 via 10.0.0.9",
        "route add 198.51.100.7/32 via 10.0.0.9 table 1000 proto 116",
        "route replace default via 10.0.0.9 mtu 1400",
        "-6 route add 2001:db8::7/128 via fd00::9",
        "nexthop add id 7 via 10.0.0.9 dev d0",
        "rule add pref 7 fwmark 1 lookup 1000",
        "-6 rule add pref 7 fwmark 1 lookup 1000",
        "route del 10.0.0.0/24",
    ],
)
def test_a_fingerprint_is_another_one_after_any_change_and_else_the_same(netns: str, command: str) -> None:
    fingerprints = Fingerprints()
    before = fingerprints.take(EVERYTHING)
    assert fingerprints.take(EVERYTHING) == before
    run(netns, "ip", *command.split())
    assert fingerprints.take(EVERYTHING) != before
    fingerprints.close()


def test_a_long_list_is_read_to_its_end(netns: str) -> None:
    batch(netns, *(f"route add 198.18.{n >> 8}.{n & 255}/32 dev d0 proto 116" for n in range(5000)))
    fingerprints = Fingerprints()
    before = fingerprints.take([routes(AF_INET, 116)])
    batch(netns, "route del 198.18.0.0/32")
    without_first = fingerprints.take([routes(AF_INET, 116)])
    batch(netns, "route add 198.18.0.0/32 dev d0 proto 116", "route del 198.18.19.135/32")
    assert len({before, without_first, fingerprints.take([routes(AF_INET, 116)])}) == 3
    batch(netns, "route add 198.18.19.135/32 dev d0 proto 116", "route add 203.0.113.1/32 dev d0 proto static")
    assert fingerprints.take([routes(AF_INET, 116)]) == before
    fingerprints.close()


def test_what_the_kernel_refuses_to_list_is_told(netns: str) -> None:
    fingerprints = Fingerprints()
    with pytest.raises(NetlinkError, match="EINVAL"):
        fingerprints.take([(routes(AF_INET)[0], b"\xff" * 12)])
    fingerprints.close()


# --- the router ------------------------------------------------------------------------------------------


def wanted(endpoint: str = "10.244.2.1") -> RouterWanted:
    vips = {
        vip: VipBuckets((Hop(6 if ":" in vip else 4, "vxlan-gpe", endpoint, "10.0.0.1"),) * BUCKETS, 1400)
        for vip in VIPS
    }
    return RouterWanted(BUCKETS, 1, ("10.0.0.1",), vips, tunnels=frozenset({("vxlan-gpe", 4)}))


class Built:
    """A router with everything programmed, on a host of its own."""

    def __init__(self) -> None:
        self.router = Router()
        self._host = Socket()
        self.router.ensure(self._host, wanted())
        self.program(wanted())

    def program(self, state: RouterWanted) -> RouterPresent:
        present = self.router.read(BUCKETS)
        changes = router_changes(state, present)
        assert not self.router.apply(changes)
        return after(changes, present)

    def close(self) -> None:
        self.router.remove(self._host)
        self._host.close()


def is_as_read(host: Host, *commands: tuple[str, ...], program: RouterWanted | None = None) -> tuple[bool, bool, int]:
    """Before and after commands in the router: whether it is as it was read; and how many routes there are then."""

    def look() -> tuple[bool, bool, int]:
        built = Built()
        built.router.read(BUCKETS)
        first = built.router.is_as_read()
        if program is not None:
            built.program(program)
        for command in commands:
            run(built.router.path, *command)
        second = built.router.is_as_read()
        count = sum(len(found) for found, _ in built.router.read(BUCKETS).vips.values())
        built.close()
        return first, second, count

    return host.call(look, mounts=True)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("node") as host:
        host.run("sh", "-ec", "mkdir -p /run/netns; ip link set lo up")
        yield host


@pytest.mark.parametrize(
    ("commands", "same", "count"),
    [
        ([], True, 2 * BUCKETS),
        ([("ip", "route", "del", f"{VIPS[0]}/32", "table", "1007")], False, 2 * BUCKETS - 1),
        ([("ip", "-6", "route", "flush", "table", "1007", "proto", "116")], False, 2 * BUCKETS - 1),
        ([("ip", "nexthop", "flush")], False, 0),
        ([("ip", "nexthop", "replace", "id", "1", "blackhole")], False, BUCKETS),
        ([("ip", "route", "add", "203.0.113.0/24", "dev", "host0", "proto", "static")], True, 2 * BUCKETS),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_router_is_as_it_was_read_until_somebody_changes_what_is_ours(
    host: Host, commands: list[tuple[str, ...]], same: bool, count: int
) -> None:
    assert is_as_read(host, *commands) == (True, same, count)


def test_a_look_at_nexthops_alone_sees_those(host: Host) -> None:
    def look() -> list[bool]:
        built = Built()
        built.router.read(BUCKETS)
        run(built.router.path, "ip", "route", "del", f"{VIPS[0]}/32", "table", "1007")
        found = [built.router.is_as_read(whole=False), built.router.is_as_read(whole=True)]
        run(built.router.path, "ip", "nexthop", "del", "id", "1")
        found.append(built.router.is_as_read(whole=False))
        built.close()
        return found

    assert host.call(look, mounts=True) == [True, False, False]


def test_after_a_change_of_ours_the_router_is_read_anew(host: Host) -> None:
    assert is_as_read(host, program=wanted("10.244.2.2")) == (True, False, 2 * BUCKETS)


def doubts(*commands: tuple[str, ...]) -> list[bool]:
    """Whether the router is doubted: at first, after nothing, after each command, and once that was taken."""
    news = News()
    router = Router(news=news)
    with Socket() as host:
        router.ensure(host, wanted())
        found = [news.take_router_doubt(), news.take_router_doubt()]
        for command in commands:
            run(router.path, *command)
            news.drain()
            found.append(news.take_router_doubt())
        found.append(news.take_router_doubt())
        router.remove(host)
    news.close()
    return found


def test_a_router_is_doubted_at_first_and_when_the_kernel_tells_of_a_change_of_what_is_ours(host: Host) -> None:
    ours, others = ("ip", "rule", "del", "pref", "1000"), ("ip", "neigh", "flush", "all")
    assert host.call(doubts, ours, others, mounts=True) == [True, False, True, False, False]


# --- ways to endpoints -----------------------------------------------------------------------------------

ME = Node("me", {}, (), ())
FAR = "10.244.2.1"


@pytest.mark.parametrize(
    ("command", "mtu"),
    [
        ("route replace default via 10.0.0.9 mtu 1400", 1400),
        ("route add 10.244.2.0/24 via 10.0.0.9 mtu 1300", 1300),
        ("link set d0 mtu 1450", 1450),
        ("rule add pref 7 to 10.244.2.0/24 lookup 77", 1200),
    ],
)
def test_a_change_that_nobody_told_of_is_found_by_the_next_full_comparison(netns: str, command: str, mtu: int) -> None:
    batch(netns, "route add default via 10.0.0.9", "route add default via 10.0.0.9 mtu 1200 table 77")
    with Socket() as route:
        reader = FactsReader(route)
        first = reader.read(ME, frozenset([FAR]), [], full=True)
        assert first.paths[FAR].mtu == 1500
        assert reader.read(ME, frozenset([FAR]), [], full=True).paths is first.paths
        batch(netns, command)
        assert reader.read(ME, frozenset([FAR]), [], full=False).paths is first.paths
        assert reader.read(ME, frozenset([FAR]), [], full=True).paths[FAR].mtu == mtu
        reader.close()
