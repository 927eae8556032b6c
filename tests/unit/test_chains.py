"""Chains of previous owners: every packet of a bucket that moved finds its way to whoever had it, and no loop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import TUNNEL_ID, HandOn
from node_helper import chains as chains_module
from node_helper.buckets import BucketTable, effective, fresh, in_use, rebalance
from node_helper.chains import NO_HANDOVER, Handover, chain_id, chains, handovers, lines
from node_helper.local_buckets import local_owners
from tests.unit.bucket_histories import NAMES, UID, histories

A, B, C, D = (f"10.244.0.{number}" for number in range(1, 5))
LINES = st.sets(st.lists(NAMES, min_size=2, max_size=4, unique=True).map(tuple), max_size=6)


def travelled(steps: dict[str, Handover], head: str, identifier: int) -> list[str]:
    """Who sees a packet that nobody knows, when it comes to `head` with this tunnel id."""
    way = [head]
    while identifier != TUNNEL_ID:
        hand_ons = {step.tunnel_id: step for step in steps.get(way[-1], NO_HANDOVER).hand_ons}
        if identifier not in hand_ons:
            break
        way.append(hand_ons[identifier].endpoint)
        identifier = hand_ons[identifier].next_id
        assert len(way) < 10, "it goes round in circles"
    return way


@settings(deadline=None)
@given(st.lists(NAMES, unique=True, max_size=4))
def test_an_id_has_24_bits_and_no_chain_has_that_of_none(chain: list[str]) -> None:
    assert chain_id(()) == TUNNEL_ID
    if chain:
        assert 256 <= chain_id(chain) < 1 << 24
        assert chain_id(chain) == chain_id(tuple(chain))


def test_ids_are_the_same_in_every_version() -> None:
    """During an upgrade one side of a tunnel is newer than the other."""
    assert (chain_id([A]), chain_id([A, B]), chain_id([B, A])) == (10508235, 2666411, 11568865)


@settings(deadline=None)
@given(LINES)
def test_a_packet_sees_each_owner_of_its_line_in_order(owners: set[tuple[str, ...]]) -> None:
    steps = dict(handovers(owners))
    for head, *chain in owners:
        assert travelled(steps, head, chain_id(chain)) == [head, *chain]


@settings(deadline=None)
@given(LINES, st.data())
def test_who_is_gone_is_left_out_before_pods_are_told(owners: set[tuple[str, ...]], data: st.DataObject) -> None:
    for head, *chain in owners:
        some = data.draw(st.sets(st.sampled_from(chain)))
        left = [name for name in chain if name in some]
        assert travelled(dict(handovers(owners)), head, chain_id(left)) == [head, *left]


@settings(deadline=None)
@given(LINES)
def test_who_may_hand_on_to_a_pod_is_known_to_it(owners: set[tuple[str, ...]]) -> None:
    steps = handovers(owners)
    for name, handover in steps.items():
        for step in handover.hand_ons:
            assert name in steps[step.endpoint].peers
        assert name not in handover.peers


@settings(deadline=None)
@given(LINES, st.sampled_from([1, 2, 7]))
def test_nothing_goes_round_in_circles_though_ids_collide(owners: set[tuple[str, ...]], ids: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains_module, "_IDS", ids)
        steps = dict(handovers(owners))
        for head, *chain in owners:
            travelled(steps, head, chain_id(chain))


def test_two_chains_with_one_id_are_told_apart_the_same_way_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains_module, "_IDS", 1)
    for order in ([(A, C, D), (A, B), (A, D)], [(A, D), (A, B), (A, C, D)]):
        assert handovers(order)[A].hand_ons == (HandOn(256, B, TUNNEL_ID),)


def test_at_rest_no_pod_has_to_know_anything() -> None:
    table = fresh(UID, [A, B, C], 8)
    assert lines(table, [A, B, C]) == frozenset()
    assert chains(table, in_use(table), {A, B, C}) == ((),) * 8


@settings(deadline=None)
@given(histories(), st.data())
def test_a_chain_has_each_endpoint_once_and_only_living_ones(table: BucketTable, data: st.DataObject) -> None:
    names = [*table.endpoints, *table.former]
    some = st.sets(st.sampled_from(names)) if names else st.just(set[str]())
    usable, alive, local = (data.draw(some) for _ in range(3))
    for only in (None, local):
        owners = effective(table, usable) if only is None else local_owners(table, usable & only, usable)
        for owner, chain in zip(owners, chains(table, owners, alive, only), strict=True):
            assert owner not in chain and len(set(chain)) == len(chain) and set(chain) <= alive
            assert only is None or set(chain) <= only


@settings(deadline=None)
@given(histories(), st.data())
def test_pods_know_every_chain_that_an_ingress_node_sends(table: BucketTable, data: st.DataObject) -> None:
    """Whichever endpoints the ingress node knows to be usable already, or not yet, and whoever is gone."""
    names = [*table.endpoints, *table.former]
    some = st.sets(st.sampled_from(names)) if names else st.just(set[str]())
    usable, alive, local = (data.draw(some) for _ in range(3))
    for only in (None, local):
        steps = dict(handovers(lines(table, usable, only, usable)))
        for able in (usable, set(table.endpoints) - set(table.away)):
            owners = effective(table, able) if only is None else local_owners(table, able & only, able)
            for owner, chain in zip(owners, chains(table, owners, alive, only), strict=True):
                if owner is not None:
                    assert travelled(steps, owner, chain_id(chain)) == [owner, *chain]


def test_who_ceased_to_be_usable_is_the_latest_before_any_table_says_so() -> None:
    table = rebalance(fresh(UID, [A, B], 8), UID, [A, B, C], 8)
    owners = effective(table, [B, C])
    for bucket, chain in enumerate(chains(table, owners, {A, B, C})):
        if table.owner(bucket) == A:
            assert chain[:1] == (A,)
        else:
            assert chain == table.stack(bucket)
    assert not any(A in chain for chain in chains(table, owners, {B, C}))
