"""The fwmark rule tree, walked as the kernel walks it: every mark ends in its own table, and after few rules."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.netlink.rtnl import GOTO, NOP, TO_TABLE, Rule
from node_helper.plan.rule_tree import END, FIRST_PRIORITY, rule_tree
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE, MARK

SIZES = tuple(1 << bits for bits in range(13))


@cache
def ordered(buckets: int) -> tuple[list[Rule], dict[int, int]]:
    """The rules as the kernel keeps them, and the place of each priority."""
    chain = sorted(rule_tree(4, buckets), key=lambda rule: rule.priority)
    return chain, {rule.priority: place for place, rule in enumerate(chain)}


def walk(buckets: int, mark: int) -> tuple[list[int], int]:
    """The tables that are looked up for a mark, none of which has a route, and how many rules that takes.

    As `fib_rules_lookup` of the kernel's net/core/fib_rules.c: in order of priority; a goto leads to the rule of its
    target's priority.
    """
    chain, places = ordered(buckets)
    tables: list[int] = []
    visited = position = 0
    while position < len(chain):
        rule = chain[position]
        visited += 1
        position += 1
        if mark & rule.mask != rule.mark:
            continue
        if rule.action == TO_TABLE:
            tables.append(rule.table)
        elif rule.action == GOTO:
            position = places[rule.goto]
    return tables, visited


@pytest.mark.parametrize("buckets", SIZES)
def test_every_mark_ends_in_its_own_table_and_no_other(buckets: int) -> None:
    depth = buckets.bit_length() - 1
    step = max(1, buckets // 64)
    for bucket in {*range(0, buckets, step), buckets - 1, buckets // 2}:
        tables, visited = walk(buckets, MARK + bucket)
        assert tables == [FIRST_TABLE + bucket]
        assert visited <= depth + 4, "the first rule, the tree, the lookup, the goto behind it, the end"


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SIZES), st.integers(0, 0xFFFFFFFF))
def test_any_mark_is_looked_up_in_at_most_one_table(buckets: int, mark: int) -> None:
    tables, _ = walk(buckets, mark)
    if mark & MARK:
        assert tables == [FIRST_TABLE + (mark & (buckets - 1))]
    else:
        assert tables == []


def test_an_unmarked_packet_meets_two_rules() -> None:
    assert walk(4096, 0) == ([], 2)


@pytest.mark.parametrize("buckets", SIZES)
def test_a_gotos_target_is_added_before_the_goto(buckets: int) -> None:
    seen: set[int] = set()
    for rule in rule_tree(6, buckets):
        if rule.action == GOTO:
            assert rule.goto in seen
            assert rule.goto > rule.priority, "the kernel goes forward only"
        seen.add(rule.priority)


@pytest.mark.parametrize("buckets", SIZES)
def test_the_rules_are_ours_and_have_priorities_of_their_own(buckets: int) -> None:
    rules = rule_tree(6, buckets)
    assert {(rule.version, rule.protocol) for rule in rules} == {(6, ANNOUNCED)}
    assert len({rule.priority for rule in rules}) == len(rules) == 3 * buckets + 1
    assert all(FIRST_PRIORITY <= rule.priority <= END for rule in rules)
    assert rules[0].action == NOP and rules[0].priority == END


def test_the_tree_of_both_ip_versions_is_the_same() -> None:
    four, six = rule_tree(4, 64), rule_tree(6, 64)
    assert [rule.replace(version=6) for rule in four] == list(six)
