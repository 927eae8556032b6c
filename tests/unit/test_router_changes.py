"""Changes of the router's tables: just what differs, in an order in which nothing is used before it is there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import GRE, MPLS, VXLAN_GPE
from node_helper.plan.changes import RouterChanges, after, router_changes
from node_helper.plan.state import Hop, RouterPresent, RouterWanted, VipBuckets

HOPS = (
    *(Hop(4, VXLAN_GPE, f"10.0.0.{n}", "10.1.1.2") for n in range(1, 5)),
    Hop(6, VXLAN_GPE, "10.0.0.1", "10.1.1.2"),
    Hop(4, GRE, "10.0.0.1", "10.1.1.2"),
    Hop(4, MPLS, "", "", 16_000),
    Hop(4, VXLAN_GPE, "10.0.0.1", "10.1.1.9"),
    Hop(4, VXLAN_GPE, "10.0.0.1", "10.1.1.2", tunnel_id=70_000),
)
VIPS = ("198.51.100.7", "198.51.100.8", "2001:db8::7")
BUCKETS = 8
quick = settings(deadline=None)


def wanted(vips: dict[str, VipBuckets], buckets: int = BUCKETS) -> RouterWanted:
    return RouterWanted(buckets, 1, ("10.1.1.2",), vips)


def wanted_routers(buckets: int = BUCKETS) -> st.SearchStrategy[RouterWanted]:
    owners = st.lists(st.sampled_from((*HOPS, None)), min_size=buckets, max_size=buckets)
    # A VIP without any owner is not wanted at all.
    owned = owners.filter(any).map(tuple)
    tables = st.builds(VipBuckets, owned, st.sampled_from([1280, 1444, 1464]))
    return st.dictionaries(st.sampled_from(VIPS), tables).map(lambda vips: wanted(vips, buckets))


@st.composite
def present_routers(draw: st.DrawFn) -> RouterPresent:
    """Anything a kernel may hold: the same hop twice, hops that nothing uses, more buckets than are wanted."""
    hops = draw(st.dictionaries(st.integers(1, 12), st.sampled_from(HOPS), max_size=8))
    if not hops:
        return RouterPresent()
    routes = st.dictionaries(st.integers(0, 2 * BUCKETS), st.sampled_from(sorted(hops)), min_size=1)
    tables = st.tuples(routes, st.sampled_from([-1, 1280, 1444]))
    return RouterPresent(hops, draw(st.dictionaries(st.sampled_from(VIPS), tables)))


def meaning(present: RouterPresent) -> dict[str, tuple[dict[int, Hop], int]]:
    """What packets see: the hop of each VIP's buckets, not the numbers of nexthop objects."""
    return {vip: ({b: present.hops[i] for b, i in routes.items()}, mtu) for vip, (routes, mtu) in present.vips.items()}


def meant(router: RouterWanted) -> dict[str, tuple[dict[int, Hop], int]]:
    return {
        vip: ({b: hop for b, hop in enumerate(table.hops) if hop is not None}, table.mtu)
        for vip, table in router.vips.items()
    }


@quick
@given(wanted_routers(), present_routers())
def test_after_the_changes_the_kernel_holds_what_is_wanted_and_nothing_more(
    router: RouterWanted, present: RouterPresent
) -> None:
    result = after(router_changes(router, present), present)
    assert meaning(result) == meant(router)
    used = {i for routes, _ in result.vips.values() for i in routes.values()}
    assert used == set(result.hops)
    assert len(set(result.hops.values())) == len(result.hops), "each hop has one nexthop object"


@quick
@given(wanted_routers(), present_routers())
def test_a_second_time_there_is_nothing_to_change(router: RouterWanted, present: RouterPresent) -> None:
    changes = router_changes(router, present)
    assert not router_changes(router, after(changes, present))
    if not changes:
        assert meaning(present) == meant(router)


@quick
@given(wanted_routers(), wanted_routers())
def test_just_the_buckets_that_differ_cost_a_message(one: RouterWanted, two: RouterWanted) -> None:
    present = after(router_changes(one, RouterPresent()), RouterPresent())
    old, new = meant(one), meant(two)
    differing = 0
    for vip in old.keys() | new.keys():
        (before, old_mtu), (now, new_mtu) = old.get(vip, ({}, 0)), new.get(vip, ({}, 0))
        for bucket in before.keys() | now.keys():
            changed_mtu = vip in old and vip in new and old_mtu != new_mtu and bucket in now
            differing += before.get(bucket) != now.get(bucket) or changed_mtu
    assert router_changes(two, present).route_count() == differing


@quick
@given(wanted_routers(), present_routers())
def test_no_nexthop_is_changed_or_taken_while_a_route_uses_it(router: RouterWanted, present: RouterPresent) -> None:
    changes = router_changes(router, present)
    assert not changes.add_hops.keys() & present.hops.keys(), "the number of a nexthop that is there is never reused"
    known = present.hops.keys() | changes.add_hops.keys()
    routes = {(vip, bucket): i for vip, (have, _) in present.vips.items() for bucket, i in have.items()}
    for vip, (put, _) in changes.put_routes.items():
        assert {identifier for _, identifier in put} <= known
        routes |= {(vip, bucket): identifier for bucket, identifier in put}
    for vip, buckets in changes.delete_routes.items():
        for bucket in buckets:
            del routes[vip, bucket]  # only what is there is deleted, and once
    assert not set(routes.values()) & set(changes.delete_hops)


def test_of_256_buckets_one_that_moves_is_one_message() -> None:
    one = VipBuckets(HOPS[:2] * 128, 1464)
    moved = VipBuckets((*one.hops[:77], HOPS[0], *one.hops[78:]), 1464)
    present = after(router_changes(wanted({VIPS[0]: one}, 256), RouterPresent()), RouterPresent())
    changes = router_changes(wanted({VIPS[0]: moved}, 256), present)
    assert changes.put_routes == {VIPS[0]: ([(77, 1)], 1464)}
    assert changes.route_count() == 1
    assert not changes.add_hops and not changes.delete_hops


def test_an_endpoint_of_many_vips_has_one_nexthop() -> None:
    tables = {vip: VipBuckets((HOPS[0],) * BUCKETS, 1464) for vip in VIPS[:2]}
    assert router_changes(wanted(tables), RouterPresent()).add_hops == {1: HOPS[0]}


def test_routes_of_more_buckets_than_are_wanted_go() -> None:
    present = RouterPresent({1: HOPS[0]}, {VIPS[0]: (dict.fromkeys(range(BUCKETS), 1), 1464)})
    changes = router_changes(wanted({VIPS[0]: VipBuckets((HOPS[0],) * 2, 1464)}, 2), present)
    assert changes.delete_routes == {VIPS[0]: list(range(2, BUCKETS))}
    assert changes.route_count() == BUCKETS - 2


@pytest.mark.parametrize("mtu", [-1, 1400])
def test_another_mtu_is_written_to_every_bucket(mtu: int) -> None:
    present = RouterPresent({1: HOPS[0]}, {VIPS[0]: (dict.fromkeys(range(BUCKETS), 1), mtu)})
    changes = router_changes(wanted({VIPS[0]: VipBuckets((HOPS[0],) * BUCKETS, 1464)}), present)
    assert changes.route_count() == BUCKETS
    assert not changes.add_hops


def test_no_change_is_false_and_counts_nothing() -> None:
    assert not RouterChanges()
    assert RouterChanges().route_count() == 0
    assert RouterChanges(delete_hops=[1])
