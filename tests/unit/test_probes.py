"""Which connections show whether a VIP's endpoints answer, and what their outcomes mean."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from node_helper.hmark import Flow, bucket
from node_helper.plan.probes import AGAIN, PROBES_A_SECOND, STRIKES, Answers, Due, aim
from node_helper.plan.state import Hop, VipBuckets

SEED = 7
ADDRESSES = {4: ("198.51.100.1", "192.0.2.1"), 6: ("2001:db8:1::1", "2001:db8::1")}
"""VIP and node, by IP version."""


def owner_of(source_port: int, ways: VipBuckets, version: int) -> Hop | None:
    vip, source = map(ip_address, ADDRESSES[version])
    return ways.hops[bucket(Flow("tcp", source, source_port, vip, 80), len(ways.hops), SEED)]


@given(st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=256, max_size=256), st.sampled_from([4, 6]))
def test_each_endpoint_with_a_bucket_is_aimed_at_once(owners: list[int | None], version: int) -> None:
    ways = VipBuckets(tuple([None if n is None else Hop(4, "gre", f"10.0.0.{n}") for n in owners]), 1400)
    found = aim(*_place(version), ways, SEED, addresses_only=False)
    expected = {hop.endpoint for hop in ways.hops if hop is not None}
    if not expected:
        assert found is None
        return
    assert found is not None
    reached = [owner_of(port, ways, version) for port in found.source_ports]
    assert sorted(hop.endpoint for hop in reached if hop is not None) == sorted(expected)


def _place(version: int) -> tuple[str, int, str]:
    vip, source = ADDRESSES[version]
    return vip, 80, source


def test_an_endpoint_by_two_ways_and_one_by_its_label_are_one_each() -> None:
    hops = [Hop(4, "mpls", "", label=16000), Hop(4, "mpls", "", label=16001)] * 4
    hops += [Hop(4, "gre", "10.0.0.1", tunnel_id=1), Hop(4, "gre", "10.0.0.1", tunnel_id=2)] * 4
    found = aim(*_place(4), VipBuckets(tuple(hops), 1400), SEED, addresses_only=False)
    assert found is not None and len(found.source_ports) == 3


def test_of_a_vip_that_is_hashed_by_addresses_the_one_endpoint_is_aimed_at_that_this_node_gets() -> None:
    hops = tuple([Hop(4, "gre", f"10.0.0.{n}") for n in range(16)])
    found = aim(*_place(4), VipBuckets(hops, 1400), SEED, addresses_only=True)
    assert found is not None and len(found.source_ports) == 1


def test_nothing_is_said_of_a_vip_with_an_endpoint_that_no_port_leads_to() -> None:
    """Of 65,536 buckets ours reach a few thousand; the one that counts may be among the others."""
    size = 1 << 16
    reached = {
        bucket(Flow("tcp", ip_address("192.0.2.1"), port, ip_address("198.51.100.1"), 80), size, SEED)
        for port in range(61_000, 65_536)
    }
    missed = next(n for n in range(size) if n not in reached)
    hops = tuple([Hop(4, "gre", "10.0.0.2" if n == missed else "10.0.0.1") for n in range(size)])
    assert aim(*_place(4), VipBuckets(hops, 1400), SEED, addresses_only=False) is None


def answering(interval: float = 10.0) -> tuple[Answers, float]:
    """A VIP that has answered once, and the time at which its next probe is due."""
    answers = Answers(interval)
    assert answers.due(["a"], 0.0) == [Due("a", 0, all_endpoints=False)]
    answers.note("a", True, 0.5)
    return answers, 0.5 + interval


def test_a_vip_is_silent_when_all_endpoints_were_three_times_and_no_sooner() -> None:
    answers, now = answering()
    for strike in range(STRIKES + 1):
        assert answers.silent == frozenset()
        assert answers.due(["a"], now) == [Due("a", strike + 1, all_endpoints=strike > 0)]
        answers.note("a", False, now)
        assert answers.due(["a"], now + AGAIN - 0.01) == []
        now += AGAIN
    assert answers.silent == {"a"}


def test_one_answer_ends_the_silence() -> None:
    answers, now = answering()
    for _ in range(STRIKES + 1):
        answers.due(["a"], now)
        answers.note("a", False, now)
        now += AGAIN
    assert answers.silent == {"a"}
    assert answers.due(["a"], now + 10) == [Due("a", STRIKES + 2, all_endpoints=True)]
    answers.note("a", True, now + 10)
    assert answers.silent == frozenset()
    assert answers.due(["a"], now + 30)[0].all_endpoints is False


def test_what_could_not_be_tried_says_nothing() -> None:
    answers, now = answering()
    for _ in range(20):
        answers.due(["a"], now)
        answers.note("a", None, now)
        now += 10
    assert answers.silent == frozenset()


def test_a_vip_that_never_answered_is_not_silent() -> None:
    answers, now = Answers(10.0), 0.0
    for _ in range(20):
        answers.due(["a"], now)
        answers.note("a", False, now)
        now += 10
    assert answers.silent == frozenset()


def test_a_vip_that_goes_is_forgotten() -> None:
    answers, now = answering()
    for _ in range(STRIKES + 1):
        answers.due(["a"], now)
        answers.note("a", False, now)
        now += AGAIN
    assert answers.due([], now) == []
    assert (answers.silent, answers.next_at()) == (frozenset(), None)
    answers.note("a", False, now)  # of a probe that was under way
    assert answers.silent == frozenset()


def test_many_vips_are_probed_more_seldom_and_never_all_at_once() -> None:
    vips = [f"vip{n}" for n in range(1000)]
    answers = Answers(10.0)
    counts = []
    for tenth in range(2000):
        found = answers.due(vips, tenth / 10)
        counts.append(len(found))
        for due in found:
            answers.note(due.vip, True, tenth / 10)
    assert max(counts) <= PROBES_A_SECOND / 10 + 1
    assert abs(sum(counts) / 200 - PROBES_A_SECOND) < 1
