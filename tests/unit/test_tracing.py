"""`trace` says what the router does: it agrees with the plan, bucket by bucket."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import MODES, MPLS
from node_helper.buckets import rebalance
from node_helper.hmark import Flow, bucket
from node_helper.plan.ingress import plan_ingress
from node_helper.plan.state import FIRST_TABLE
from node_helper.tracing import trace
from tests.unit.planning import ADDRESSES, ME, OTHER, VIPS, endpoint, facts, service, tables

BUCKETS, SEED = 64, 0x1234
ENDS = (endpoint("10.244.1.1", ME), endpoint("10.244.1.2", ME), endpoint("10.244.2.1"), endpoint("10.244.2.2"))
REACH = tuple(str(e.address) for e in ENDS)


def flow(number: int = 1, vip: str = VIPS[0], protocol: str = "tcp") -> Flow:
    source = "2001:db8:99::" if ":" in vip else "203.0.113.0"
    return Flow(protocol, ip_address(source) + number % 250, 1024 + number, ip_address(vip), 80)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 60_000), min_size=1, max_size=20),
    st.sampled_from(MODES),
    st.booleans(),
    st.booleans(),
    st.sets(st.sampled_from(REACH), min_size=1),
    st.sampled_from(VIPS),
)
def test_it_names_the_endpoint_to_which_the_planned_router_sends(
    numbers: list[int], mode: str, local: bool, affinity: bool, reach: set[str], vip: str
) -> None:
    served = service(endpoints=ENDS, mode=mode, local=local, affinity=affinity)
    stored, host_facts = tables([served], BUCKETS), facts(reach)
    router, host, _ = plan_ingress([served], stored, host_facts, ME, BUCKETS, SEED)
    for number in numbers:
        asked = flow(number, vip)
        if vip not in router.vips:
            with pytest.raises(LookupError, match="no usable endpoint"):
                trace(asked, [served], stored, host_facts, ME, BUCKETS, SEED)
            continue
        found = trace(asked, [served], stored, host_facts, ME, BUCKETS, SEED)
        hop = router.vips[vip].hops[found["bucket"]]
        assert hop is not None
        assert found["endpoint"] == (host.labels[hop.label] if hop.mode == MPLS else hop.endpoint)
        assert found["bucket"] == bucket(asked, BUCKETS, SEED, affinity)
        assert found["table"] == FIRST_TABLE + found["bucket"]


def test_it_agrees_where_endpoints_have_one_ip_version_only() -> None:
    served = service(endpoints=[*ENDS[2:], endpoint("fd00:2::3"), endpoint("10.244.2.9", further=["fd00:2::9"])])
    table = rebalance(None, served.uid, [str(e.address) for e in served.endpoints[:3]], BUCKETS)
    stored = {served.key: rebalance(table, served.uid, served.usable, BUCKETS, served.usable, served.usable)}
    host_facts = facts(served.usable)
    router, _, _ = plan_ingress([served], stored, host_facts, ME, BUCKETS, SEED)
    for vip in VIPS:
        for number in range(100):
            found = trace(flow(number, vip), [served], stored, host_facts, ME, BUCKETS, SEED)
            hop = router.vips[vip].hops[found["bucket"]]
            assert hop is not None
            assert (found["endpoint"], found["tunnel_id"]) == (hop.endpoint, hop.tunnel_id)


def test_it_names_all_that_an_operator_wants_to_know() -> None:
    served = service(endpoints=ENDS[2:3])
    found = trace(flow(), [served], tables([served], BUCKETS), facts(REACH), ME, BUCKETS, SEED)
    assert found | {"bucket": 0, "table": 0} == {
        "service": "shop/web",
        "vip": VIPS[0],
        "mode": "vxlan-gpe",
        "bucket": 0,
        "table": 0,
        "endpoint": "10.244.2.1",
        "pod": "shop/pod-10.244.2.1",
        "stored_owner": "10.244.2.1",
        "previous_owners": [],
        "tunnel_id": 100,
        "route": {"device": "eth0", "mtu": 1500, "gateway": ""},
    }


def test_it_names_the_stored_owner_where_that_is_not_reached_from_here() -> None:
    served = service(endpoints=ENDS)
    stored = {served.key: rebalance(None, served.uid, ["10.244.2.1", "10.244.2.2"], BUCKETS)}
    found = [trace(flow(n), [served], stored, facts(["10.244.2.2"]), ME, BUCKETS, SEED) for n in range(40)]
    assert {f["endpoint"] for f in found} == {"10.244.2.2"}
    assert {f["stored_owner"] for f in found} == {"10.244.2.1", "10.244.2.2"}


def test_it_names_who_had_the_bucket_before_and_the_id_that_the_router_sends() -> None:
    served = service(endpoints=ENDS[2:])
    old = rebalance(None, served.uid, ["10.244.2.1"], BUCKETS)
    stored = {served.key: rebalance(old, served.uid, served.usable, BUCKETS)}
    router, _, _ = plan_ingress([served], stored, facts(REACH), ME, BUCKETS, SEED)
    seen = set()
    for number in range(40):
        found = trace(flow(number), [served], stored, facts(REACH), ME, BUCKETS, SEED)
        hop = router.vips[VIPS[0]].hops[found["bucket"]]
        assert hop is not None and found["tunnel_id"] == hop.tunnel_id
        seen.add((found["endpoint"], *found["previous_owners"]))
    assert seen == {("10.244.2.1",), ("10.244.2.2", "10.244.2.1")}


def test_icmp_and_client_affinity_do_not_look_at_ports() -> None:
    served = service(endpoints=ENDS, affinity=True)
    stored = tables([served], BUCKETS)
    one, two = (Flow("tcp", ip_address("203.0.113.9"), port, ip_address(VIPS[0]), 80) for port in (1000, 2000))
    assert trace(one, [served], stored, facts(REACH), ME, BUCKETS, SEED) == trace(
        two, [served], stored, facts(REACH), ME, BUCKETS, SEED
    )


@pytest.mark.parametrize(
    ("vip", "host_facts", "says"),
    [
        ("198.51.100.99", facts(REACH), "198.51.100.99 is no VIP that is served: see `service-tunnel-helper status`"),
        (VIPS[0], facts(), f"Service shop/web has no usable endpoint that {ME} can reach"),
        (VIPS[1], facts(REACH, ADDRESSES[:1]), f"{ME} has no IPv6 address, so {VIPS[1]} is not served there"),
    ],
)
def test_a_flow_that_does_not_come_this_way_is_told_why(vip: str, host_facts: object, says: str) -> None:
    served = service(endpoints=ENDS)
    with pytest.raises(LookupError) as raised:
        trace(flow(vip=vip), [served], tables([served], BUCKETS), host_facts, ME, BUCKETS, SEED)  # type: ignore[arg-type]
    assert raised.value.args[0] == says


def test_a_mode_that_the_kernel_lacks_leads_nowhere() -> None:
    served = service(endpoints=ENDS, mode=MPLS)
    with pytest.raises(LookupError, match="no usable endpoint"):
        trace(flow(), [served], tables([served], BUCKETS), facts(REACH, mpls=False), ME, BUCKETS, SEED)


def test_a_service_that_has_no_table_yet_leads_nowhere() -> None:
    with pytest.raises(LookupError, match="no usable endpoint"):
        trace(flow(), [service(endpoints=ENDS)], {}, facts(REACH), ME, BUCKETS, SEED)


def test_policy_local_on_a_node_without_endpoints_leads_nowhere() -> None:
    served = service(endpoints=ENDS, local=True)
    with pytest.raises(LookupError, match=f"that {OTHER}x can reach"):
        trace(flow(), [served], tables([served], BUCKETS), facts(REACH), f"{OTHER}x", BUCKETS, SEED)
