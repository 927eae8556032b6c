"""The fwmark rules that lead a bucket's mark to its table: a binary tree of gotos.

The kernel walks rules one by one, so N buckets as N rules cost N/2 comparisons for each packet; the tree
costs log2 N (measured: 0.50 against 0.45 of plain forwarding at 64 buckets, more beyond).

Layout: a first rule sends unmarked packets to the end; then for each inner node `fwmark BIT/BIT goto` the
half with that bit set, which follows the half without; a leaf is `lookup TABLE`, then `goto end`, so that a
VIP without a route in its bucket's table is not looked up in the next one's.
"""

from __future__ import annotations

from functools import cache

from cni_plugin.netlink.rtnl import GOTO, NOP, TO_TABLE, Rule, rule
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE, MARK

FIRST_PRIORITY = 1000
END = 30000


@cache
def rule_tree(ip_version: int, buckets: int) -> tuple[Rule, ...]:
    """The rules in the order in which they can be added: a goto's target before the goto.

    `buckets` is a power of two up to 4096.
    """
    rules = [_rule(ip_version, FIRST_PRIORITY, action=GOTO, goto=END, mark=0, mask=MARK)]
    _branch(ip_version, rules, 0, buckets)
    rules.append(_rule(ip_version, END, action=NOP))
    return tuple(rules[::-1])


def _branch(ip_version: int, rules: list[Rule], low: int, high: int) -> None:
    if high - low == 1:
        priority = FIRST_PRIORITY + len(rules)
        rules.append(_rule(ip_version, priority, table=FIRST_TABLE + low, action=TO_TABLE))
        rules.append(_rule(ip_version, priority + 1, action=GOTO, goto=END))
        return
    middle, bit = (low + high) // 2, (high - low) // 2
    position = len(rules)
    rules.append(_rule(ip_version, 0))
    _branch(ip_version, rules, low, middle)
    rules[position] = _rule(
        ip_version, FIRST_PRIORITY + position, action=GOTO, goto=FIRST_PRIORITY + len(rules), mark=bit, mask=bit
    )
    _branch(ip_version, rules, middle, high)


def _rule(
    ip_version: int, priority: int, table: int = 0, mark: int = 0, mask: int = 0, action: int = NOP, goto: int = 0
) -> Rule:
    return rule(ip_version, priority, table, "", mark, mask, action, goto, ANNOUNCED)
