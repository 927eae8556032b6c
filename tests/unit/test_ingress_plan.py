"""What an ingress node is to have: which endpoints, by which way, which size of packets, and what it cannot serve."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import GRE, MODES, MPLS, TUNNEL_ID, VXLAN_GPE
from node_helper.buckets import BucketTable, rebalance
from node_helper.chains import chain_id
from node_helper.model import ObjectKey, Problem
from node_helper.plan.ingress import IngressPlanner, all_vips, candidates, plan_ingress
from node_helper.plan.state import ANNOUNCED, FIRST_LABEL, FORWARDED, Hop, HostFacts, HostWanted, RouterWanted
from node_helper.services import TunnelService
from tests.unit.planning import ADDRESSES, ME, OTHER, VIPS, endpoint, facts, service, tables

BUCKETS, SEED = 8, 7
LOCAL = (endpoint("10.244.1.1", ME), endpoint("10.244.1.2", ME))
REMOTE = (endpoint("10.244.2.1"), endpoint("10.244.2.2"))
EVERYWHERE = tuple(str(e.address) for e in (*LOCAL, *REMOTE))


def plan(
    *services: TunnelService, host: HostFacts | None = None, draining: bool = False
) -> tuple[RouterWanted, HostWanted, list[Problem]]:
    """The plan with every endpoint's address in the stored tables."""
    return plan_ingress(
        services, tables(services, BUCKETS), host or facts(EVERYWHERE), ME, BUCKETS, SEED, draining=draining
    )


def endpoints_of(router: RouterWanted, vip: str) -> set[str]:
    return {hop.endpoint for hop in router.vips[vip].hops if hop is not None}


# --- which endpoints ------------------------------------------------------------------------------------


def test_every_usable_endpoint_takes_its_share_of_the_buckets() -> None:
    router, _, problems = plan(service(endpoints=LOCAL + REMOTE))
    for vip in VIPS:
        owners = [hop.endpoint for hop in router.vips[vip].hops if hop is not None]
        assert sorted(owners) == sorted(EVERYWHERE * (BUCKETS // 4))
    assert problems == []


def test_under_local_policy_only_this_nodes_endpoints_count() -> None:
    router, _, _ = plan(service(endpoints=LOCAL + REMOTE, local=True))
    assert endpoints_of(router, VIPS[0]) == {"10.244.1.1", "10.244.1.2"}
    assert None not in router.vips[VIPS[0]].hops, "buckets of other nodes' endpoints fall to own ones"


def test_in_mode_mpls_only_this_nodes_endpoints_count_and_each_has_a_label() -> None:
    router, host, _ = plan(service(endpoints=LOCAL + REMOTE, mode=MPLS))
    assert host.labels == {FIRST_LABEL: "10.244.1.1", FIRST_LABEL + 1: "10.244.1.2"}
    assert set(router.vips[VIPS[0]].hops) == {
        Hop(4, MPLS, "", "", FIRST_LABEL),
        Hop(4, MPLS, "", "", FIRST_LABEL + 1),
    }
    assert {hop.version for hop in router.vips[VIPS[1]].hops if hop} == {6}


def test_a_service_without_usable_endpoints_keeps_no_route() -> None:
    router, host, _ = plan(service(endpoints=[endpoint("10.244.2.1", ready=False)]))
    assert router.vips == {} and host.served == {}
    assert host.vips == frozenset(VIPS), "its VIPs are still known as ours: nothing of them is tracked"


def test_a_service_without_local_endpoints_is_not_announced_under_local_policy() -> None:
    _, host, problems = plan(service(endpoints=REMOTE, local=True), service("api", REMOTE, ["203.0.113.9"]))
    assert set(host.served) == {"203.0.113.9"}
    assert problems == []


def test_a_newcomer_has_no_bucket_before_the_table_that_names_it_is_stored() -> None:
    served = service(endpoints=REMOTE)
    stored = rebalance(None, served.uid, ["10.244.2.1"], BUCKETS)
    router, _, _ = plan_ingress([served], {served.key: stored}, facts(EVERYWHERE), ME, BUCKETS, SEED)
    assert endpoints_of(router, VIPS[0]) == {"10.244.2.1"}


def test_a_service_without_a_table_is_left_until_it_has_one() -> None:
    router, host, problems = plan_ingress([service(endpoints=REMOTE)], {}, facts(EVERYWHERE), ME, BUCKETS, SEED)
    assert not router.vips and not host.served and not problems


def test_an_endpoint_that_is_not_reached_is_told_and_gets_no_bucket() -> None:
    router, host, problems = plan(service(endpoints=REMOTE), host=facts(["10.244.2.2"]))
    assert endpoints_of(router, VIPS[0]) == {"10.244.2.2"}
    assert host.served
    (problem,) = problems
    assert problem.reason == "UnreachableEndpoint"
    assert "10.244.2.1 of Service shop/web" in problem.message and "no route" in problem.message


def test_a_service_of_which_no_endpoint_is_reached_takes_nothing_from_the_others() -> None:
    router, host, problems = plan(
        service(endpoints=REMOTE), service("api", LOCAL, ["203.0.113.9"]), host=facts(["10.244.1.1", "10.244.1.2"])
    )
    assert set(router.vips) == set(host.served) == {"203.0.113.9"}
    assert len(problems) == 2


def test_a_node_without_an_address_of_the_vips_version_does_not_serve_it() -> None:
    router, host, problems = plan(service(endpoints=REMOTE), host=facts(EVERYWHERE, addresses=(ADDRESSES[0],)))
    assert set(router.vips) == set(host.served) == {VIPS[0]}
    assert router.ip_versions == (4,)
    assert [(p.reason, str(p.key)) for p in problems] == [("NoNodeAddress", "shop/web")]
    assert f"{ME} has no IPv6 address" in problems[0].message


def test_without_mpls_in_the_kernel_services_of_other_modes_go_on() -> None:
    labelled, plain = service(endpoints=LOCAL, mode=MPLS), service("api", LOCAL, ["203.0.113.9"])
    router, host, problems = plan(labelled, plain, host=facts(EVERYWHERE, mpls=False))
    assert set(router.vips) == {"203.0.113.9"} and not host.labels
    assert {p.reason for p in problems} == {"NoMPLS"}
    assert "modprobe mpls_router" in problems[0].message


# --- by which way ---------------------------------------------------------------------------------------


def test_own_pods_get_packets_from_the_node_and_others_from_what_the_host_would_use() -> None:
    """On an overlay the host has another address towards other nodes' pods, and these drop what has a wrong one."""
    overlay = dict.fromkeys(EVERYWHERE, "10.244.1.0")
    router, _, _ = plan(service(endpoints=LOCAL + REMOTE), host=facts(EVERYWHERE, sources=overlay))
    sources = {hop.endpoint: hop.source for hop in router.vips[VIPS[0]].hops if hop is not None}
    assert sources == {
        "10.244.1.1": ADDRESSES[0],
        "10.244.1.2": ADDRESSES[0],
        "10.244.2.1": "10.244.1.0",
        "10.244.2.2": "10.244.1.0",
    }
    assert set(router.addresses) == {*ADDRESSES, "10.244.1.0"}, "the router answers from all of them"


def test_an_endpoint_on_ipv6_is_reached_over_ipv6() -> None:
    six = endpoint("fd00:2::5")
    host = facts(["fd00:2::5"], sources={"fd00:2::5": ADDRESSES[1]})
    router, _, _ = plan(service(endpoints=[six]), host=host)
    assert set(router.vips[VIPS[0]].hops) == {Hop(4, VXLAN_GPE, "fd00:2::5", ADDRESSES[1])}


BOTH, FOUR, SIX = endpoint("10.244.2.1", further=["fd00:2::1"]), endpoint("10.244.2.2"), endpoint("fd00:2::3")


def owners_of(router: RouterWanted, version: int) -> list[str]:
    return [hop.endpoint for hop in router.vips[VIPS[0] if version == 4 else VIPS[1]].hops if hop is not None]


def test_a_vip_leads_to_endpoints_with_an_address_of_its_ip_version() -> None:
    """The others could not answer: a pod without IPv6 has no way back to a client that has nothing else."""
    served = service(endpoints=[BOTH, FOUR, SIX])
    host = facts(["10.244.2.1", "10.244.2.2", "fd00:2::3"])
    router, wanted, problems = plan(served, host=host)
    four, six = owners_of(router, 4), owners_of(router, 6)
    assert (set(four), set(six)) == ({"10.244.2.1", "10.244.2.2"}, {"10.244.2.1", "fd00:2::3"})
    assert len(four) == len(six) == BUCKETS
    assert all(a == b for a, b in zip(four, six, strict=True) if a == "10.244.2.1" == b)
    assert set(wanted.served) == set(VIPS) and problems == []
    everywhere = tables([served], BUCKETS)[served.key]
    for bucket in range(BUCKETS):
        owner = everywhere.owner(bucket)
        assert owner in (four[bucket], six[bucket]), "buckets of who can answer stay with it"


def test_a_vip_of_which_no_endpoint_with_its_ip_version_is_ready_is_not_served() -> None:
    served = service(endpoints=[FOUR, endpoint("fd00:2::3", ready=False)])
    router, wanted, _ = plan(served, host=facts(["10.244.2.2", "fd00:2::3"]))
    assert set(wanted.served) == set(router.vips) == {VIPS[0]}


def test_a_newcomer_without_an_address_as_yet_leaves_its_buckets_where_they_were() -> None:
    """Slices of the two IP versions do not come at the same moment."""
    old = [endpoint(f"10.244.2.{n}", further=[f"fd00:2::{n}"]) for n in (1, 2, 3)]
    names = [str(e.address) for e in old]
    newcomer = endpoint("10.244.2.4")
    before, _, _ = plan(service(endpoints=old), host=facts(names))
    served = service(endpoints=[*old, newcomer])
    table = {served.key: rebalance(rebalance(None, served.uid, names, BUCKETS), served.uid, served.usable, BUCKETS)}
    router, _, _ = plan_ingress([served], table, facts(served.usable), ME, BUCKETS, SEED)
    assert owners_of(router, 6) == owners_of(before, 6)
    assert str(newcomer.address) in owners_of(router, 4)


def test_buckets_of_a_newcomer_without_an_address_as_yet_do_not_go_to_who_terminates() -> None:
    """Connections of who terminates, and is perhaps reached no more, are handed on to it; new ones it gets none."""
    leaver, stays, newcomer = (f"10.244.2.{n}" for n in (1, 2, 3))
    old = [endpoint(leaver, terminating=True, further=["fd00:2::1"]), endpoint(stays, further=["fd00:2::2"])]
    served = service(endpoints=[*old, endpoint(newcomer)])
    before = rebalance(None, served.uid, [leaver, stays], BUCKETS)
    before = rebalance(before, served.uid, [leaver, stays, newcomer], BUCKETS)
    everybody = [leaver, stays, newcomer]
    table = {served.key: rebalance(before, served.uid, served.usable, BUCKETS, served.usable, everybody)}
    for reached in (everybody, [stays, newcomer]):
        router, _, _ = plan_ingress([served], table, facts(reached), ME, BUCKETS, SEED)
        assert set(owners_of(router, 6)) == {stays}
        ids = {hop.tunnel_id for hop in router.vips[VIPS[1]].hops if hop}
        assert chain_id([leaver]) in ids


def test_previous_owners_of_another_ip_version_are_not_handed_flows() -> None:
    served = service(endpoints=[BOTH, endpoint("10.244.2.2", terminating=True), SIX])
    host = facts(["10.244.2.1", "10.244.2.2", "fd00:2::3"])
    router, _ = plan_moved(served, moved(served, ["10.244.2.2", "fd00:2::3"]), host)
    ids = {version: {hop.tunnel_id for hop in router.vips[VIPS[version // 6]].hops if hop} for version in (4, 6)}
    assert ids[4] == {TUNNEL_ID, chain_id(["10.244.2.2"])}
    assert chain_id(["10.244.2.2"]) not in ids[6]


@pytest.mark.parametrize(
    ("mode", "mtu", "expected"),
    [(VXLAN_GPE, 1500, 1464), (GRE, 1500, 1476), (VXLAN_GPE, 9000, 8964), (VXLAN_GPE, 1450, 1414)],
)
def test_a_vips_mtu_is_the_path_less_the_encapsulation(mode: str, mtu: int, expected: int) -> None:
    router, host, _ = plan(
        service(endpoints=REMOTE, mode=mode), host=facts(EVERYWHERE, mtus=dict.fromkeys(EVERYWHERE, mtu))
    )
    assert {table.mtu for table in router.vips.values()} == {expected}
    assert host.served == dict.fromkeys(VIPS, (ANNOUNCED, expected))


def test_the_narrowest_path_counts_also_in_mode_mpls() -> None:
    narrow = facts(EVERYWHERE, mtus={"10.244.1.2": 1450, "10.244.2.1": 1300})
    router, host, _ = plan(service(endpoints=LOCAL + REMOTE, mode=MPLS), host=narrow)
    assert {mtu for _, mtu in host.served.values()} == {1446}, "1300 is the path of an endpoint elsewhere"
    assert {table.mtu for table in router.vips.values()} == {1450}, "the kernel takes the pushed label off by itself"
    router, _, _ = plan(service(endpoints=LOCAL + REMOTE), host=narrow)
    assert router.vips[VIPS[0]].mtu == 1300 - 36


@pytest.mark.parametrize("mtu", [100, 576, 1280, 1300])
def test_no_mtu_is_below_what_its_ip_version_allows(mtu: int) -> None:
    router, _, _ = plan(service(endpoints=REMOTE), host=facts(EVERYWHERE, mtus=dict.fromkeys(EVERYWHERE, mtu)))
    assert router.vips[VIPS[0]].mtu == max(mtu - 36, 576)
    assert router.vips[VIPS[1]].mtu == 1280


def test_replies_may_enter_by_the_devices_that_lead_to_endpoints_and_by_no_other() -> None:
    host_facts = facts(EVERYWHERE)
    paths = {**host_facts.paths, "10.244.1.1": replace(host_facts.paths["10.244.1.1"], device="cni0")}
    _, host, _ = plan(service(endpoints=LOCAL), host=replace(host_facts, paths=paths))
    assert host.loose == {"cni0", "eth0"}
    _, host, _ = plan(service(endpoints=LOCAL[:1]), host=replace(host_facts, paths=paths))
    assert host.loose == {"cni0"}


# --- buckets that moved ---------------------------------------------------------------------------------


def moved(served: TunnelService, before: list[str], alive: list[str] | None = None) -> dict[ObjectKey, BucketTable]:
    """As stored when just these endpoints were usable before."""
    old = rebalance(None, served.uid, before, BUCKETS)
    everybody = [str(e.address) for e in served.endpoints] if alive is None else alive
    return {served.key: rebalance(old, served.uid, served.usable, BUCKETS, served.usable, everybody)}


def plan_moved(
    served: TunnelService, stored: dict[ObjectKey, BucketTable], host: HostFacts | None = None
) -> tuple[RouterWanted, HostWanted]:
    router, wanted, problems = plan_ingress([served], stored, host or facts(EVERYWHERE), ME, BUCKETS, SEED)
    assert problems == []
    return router, wanted


@pytest.mark.parametrize("mode", [VXLAN_GPE, GRE])
def test_a_bucket_that_moved_goes_to_its_owner_by_the_id_of_who_had_it(mode: str) -> None:
    served = service(endpoints=REMOTE, mode=mode)
    router, _ = plan_moved(served, moved(served, ["10.244.2.1"]))
    for vip in VIPS:
        hops = [hop for hop in router.vips[vip].hops if hop is not None]
        assert {(hop.mode, hop.endpoint, hop.tunnel_id) for hop in hops} == {
            (mode, "10.244.2.1", TUNNEL_ID),
            (mode, "10.244.2.2", chain_id(["10.244.2.1"])),
        }


def test_a_terminating_endpoint_has_no_bucket_and_is_named_as_who_had_them() -> None:
    served = service(endpoints=[REMOTE[0], endpoint("10.244.2.2", terminating=True)])
    router, _ = plan_moved(served, moved(served, ["10.244.2.1", "10.244.2.2"]))
    hops = [hop for hop in router.vips[VIPS[0]].hops if hop is not None]
    assert {hop.endpoint for hop in hops} == {"10.244.2.1"}
    assert sorted(hop.tunnel_id for hop in hops) == [TUNNEL_ID] * 4 + [chain_id(["10.244.2.2"])] * 4
    gone = service(endpoints=REMOTE[:1])
    router, _ = plan_moved(gone, moved(gone, ["10.244.2.1", "10.244.2.2"], alive=["10.244.2.2"]))
    assert {hop.tunnel_id for hop in router.vips[VIPS[0]].hops if hop} == {TUNNEL_ID}, "nobody to hand on to"


def test_who_ceases_to_be_usable_is_named_before_a_table_says_so() -> None:
    ready, flapped = service(endpoints=REMOTE), service(endpoints=[endpoint("10.244.2.1", ready=False), REMOTE[1]])
    router, _ = plan_moved(flapped, tables([ready], BUCKETS))
    assert {(hop.endpoint, hop.tunnel_id) for hop in router.vips[VIPS[0]].hops if hop} == {
        ("10.244.2.2", TUNNEL_ID),
        ("10.244.2.2", chain_id(["10.244.2.1"])),
    }


def test_who_is_only_not_reached_from_here_is_not_named() -> None:
    served = service(endpoints=REMOTE)
    router, _, _ = plan(served, host=facts(["10.244.2.2"]))
    assert {(hop.endpoint, hop.tunnel_id) for hop in router.vips[VIPS[0]].hops if hop} == {("10.244.2.2", TUNNEL_ID)}


def test_under_local_policy_this_nodes_endpoints_name_each_other_only() -> None:
    served = service(endpoints=[endpoint("10.244.1.1", ME, terminating=True), LOCAL[1], *REMOTE], local=True)
    router, _ = plan_moved(served, moved(served, list(EVERYWHERE)))
    hops = [hop for hop in router.vips[VIPS[0]].hops if hop is not None]
    assert {hop.endpoint for hop in hops} == {"10.244.1.2"}
    assert {hop.tunnel_id for hop in hops} == {TUNNEL_ID, chain_id(["10.244.1.1"])}


def test_in_mode_mpls_a_bucket_that_moved_goes_by_vxlan_gpe_since_a_label_has_no_id() -> None:
    served = service(endpoints=LOCAL, mode=MPLS)
    router, host = plan_moved(served, moved(served, ["10.244.1.1"]))
    assert set(router.vips[VIPS[0]].hops) == {
        Hop(4, MPLS, "", "", FIRST_LABEL),
        Hop(4, VXLAN_GPE, "10.244.1.2", ADDRESSES[0], tunnel_id=chain_id(["10.244.1.1"])),
    }
    assert router.tunnels == {(MPLS, 4), (VXLAN_GPE, 4)}
    assert {table.mtu for table in router.vips.values()} == {1464}, "room for VXLAN-GPE"
    assert {mtu for _, mtu in host.served.values()} == {1460}, "and for the label that the kernel takes from it"


@pytest.mark.parametrize(("mode", "expected"), [(GRE, 1472), (VXLAN_GPE, 1464)])
def test_while_buckets_have_moved_a_vips_mtu_has_room_for_the_key(mode: str, expected: int) -> None:
    served = service(endpoints=REMOTE, mode=mode)
    router, host = plan_moved(served, moved(served, ["10.244.2.1"]))
    assert {table.mtu for table in router.vips.values()} == {expected}
    assert {mtu for _, mtu in host.served.values()} == {expected}


# --- labels ---------------------------------------------------------------------------------------------


def test_an_endpoint_keeps_its_label_when_others_come_and_go() -> None:
    _, first, _ = plan(service(endpoints=LOCAL, mode=MPLS))
    known = {endpoint: label for label, endpoint in first.labels.items()}
    third = endpoint("10.244.1.0", ME)
    reach = (*EVERYWHERE, "10.244.1.0")
    _, second, _ = plan(service(endpoints=(third, *LOCAL), mode=MPLS), host=facts(reach, labels=known))
    assert second.labels == {**first.labels, FIRST_LABEL + 2: "10.244.1.0"}


def test_a_label_that_becomes_free_is_not_given_to_another_in_the_same_step() -> None:
    """Packets with it may still be on their way over the link to the router."""
    known = {"10.244.1.1": FIRST_LABEL, "10.244.1.2": FIRST_LABEL + 1}
    newcomer = endpoint("10.244.1.9", ME)
    host_facts = facts((*EVERYWHERE, "10.244.1.9"), labels=known)
    _, host, _ = plan(service(endpoints=(LOCAL[0], newcomer), mode=MPLS), host=host_facts)
    assert host.labels == {FIRST_LABEL: "10.244.1.1", FIRST_LABEL + 2: "10.244.1.9"}


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 30)),
    st.dictionaries(st.integers(0, 30), st.integers(FIRST_LABEL, FIRST_LABEL + 40), max_size=20),
)
def test_labels_are_stable_and_never_shared(wanted: set[int], held: dict[int, int]) -> None:
    kept = {f"10.244.1.{n}": label for label, n in {label: n for n, label in held.items()}.items()}
    local = [endpoint(f"10.244.1.{n}", ME) for n in wanted]
    reach = [str(e.address) for e in local]
    served = service(endpoints=local, mode=MPLS)
    _, host, _ = plan(served, host=facts(reach, labels=kept))
    assert sorted(host.labels.values()) == sorted(reach)
    for label, address in host.labels.items():
        assert kept.get(address, label) == label
    again = {address: label for label, address in host.labels.items()}
    _, second, _ = plan(served, host=facts(reach, labels=again))
    assert second.labels == host.labels


# --- the host and the node ------------------------------------------------------------------------------


def test_while_draining_every_vip_is_forwarded_and_none_announced() -> None:
    router, host, _ = plan(service(endpoints=REMOTE), draining=True)
    assert {protocol for protocol, _ in host.served.values()} == {FORWARDED} == {117}
    announced, _, _ = plan(service(endpoints=REMOTE))
    assert router == announced, "the router does not notice"


def test_the_router_answers_from_the_nodes_addresses_and_knows_its_versions() -> None:
    router, host, _ = plan()
    assert router == RouterWanted(BUCKETS, SEED, ADDRESSES)
    assert host == HostWanted(router=True)


def test_services_with_client_affinity_are_hashed_by_address() -> None:
    router, _, _ = plan(service(endpoints=REMOTE, affinity=True), service("api", REMOTE, ["203.0.113.9"]))
    assert router.by_address == frozenset(VIPS)


def test_planning_needs_the_paths_of_the_candidates_only() -> None:
    local = service(endpoints=LOCAL + REMOTE, local=True)
    assert candidates(local, ME) == ("10.244.1.1", "10.244.1.2")
    assert IngressPlanner(ME, BUCKETS, SEED).endpoints([local]) == {"10.244.1.1", "10.244.1.2"}
    assert IngressPlanner(ME, BUCKETS, SEED).endpoints([local, service("api", REMOTE)]) == set(EVERYWHERE)
    assert IngressPlanner("elsewhere", BUCKETS, SEED).endpoints([local]) == frozenset()
    assert all_vips([local]) == set(VIPS)


endpoints = st.lists(
    st.builds(
        endpoint,
        st.integers(1, 9).map(lambda n: f"10.244.0.{n}"),
        st.sampled_from((ME, OTHER)),
        st.booleans(),
        st.booleans(),
    ),
    unique_by=lambda e: e.address,
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(endpoints, st.sampled_from(MODES), st.booleans()), max_size=4),
    st.sets(st.integers(1, 9)),
    st.booleans(),
    st.sampled_from((ADDRESSES, ADDRESSES[:1], ADDRESSES[1:])),
    st.lists(st.integers(1, 9).map(lambda n: f"10.244.0.{n}"), max_size=5),
)
def test_any_plan_is_whole(
    services: list[tuple[list[object], str, bool]],
    reach: set[int],
    mpls: bool,
    addresses: tuple[str, ...],
    before: list[str],
) -> None:
    """Whatever endpoints, modes, paths: no bucket of a served VIP is empty, and none leads to where it must not."""
    planned = [
        service(f"s{n}", ends, [f"198.51.100.{n}", f"2001:db8::{n + 1}"], mode, local)  # type: ignore[arg-type]
        for n, (ends, mode, local) in enumerate(services)
    ]
    host_facts = facts([f"10.244.0.{n}" for n in reach], addresses, mpls=mpls)
    stored = {key: table for one in planned for key, table in moved(one, before).items()}
    router, host, problems = plan_ingress(planned, stored, host_facts, ME, BUCKETS, SEED)
    assert set(host.served) == set(router.vips) <= host.vips
    assert {ip_address(vip).version for vip in router.vips} <= set(router.ip_versions)
    by_label = host.labels
    for one in planned:
        local = {str(e.address) for e in one.endpoints if e.node == ME}
        for vip in map(str, one.vips):
            if vip not in router.vips:
                continue
            table = router.vips[vip]
            assert len(table.hops) == BUCKETS
            for hop in table.hops:
                assert hop is not None
                owner = by_label[hop.label] if hop.mode == MPLS else hop.endpoint
                assert owner in host_facts.paths and owner in candidates(one, ME)
                assert owner in local or not (one.local_policy or one.mode == MPLS)
                assert not hop.source or hop.source in router.addresses
    for problem in problems:
        assert str(problem.key) in problem.message
