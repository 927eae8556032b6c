"""Who had a bucket before: chains of previous owners, and the tunnel ids that name them.

A bucket that moves from A to B leaves behind connections that only A knows. The ingress node sends the bucket's
packets to B by a tunnel whose id names the chain of those who had the bucket before, the latest first. B hands what
belongs to no connection of its own on to the first of the chain, with the id that names the rest. So a pod needs
neither the hash nor the buckets, only which id means whom; and as every step shortens the chain nothing goes round
in circles. Both sides compute the ids from the stored table and the endpoints, and need not talk to each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cni_plugin.tunnel import TUNNEL_ID, HandOn
from node_helper.buckets import BucketTable, effective, in_use
from node_helper.local_buckets import local_lines, local_owners

_FIRST_ID = 256
"""Chains have no lower id: `TUNNEL_ID` means that there was nobody before."""
_IDS = (1 << 24) - _FIRST_ID

Chain = tuple[str, ...]
"""Previous owners of a bucket, the latest first."""


def chain_id(chain: Sequence[str]) -> int:
    """The tunnel id (24 bits) that names the chain: the same on every node, without anybody having stored it.

    Two chains at one pod may have the same: with thirty chains in one case of 40,000, with a thousand in one of 34.
    Then connections of one of the two are handed to the other's endpoint, which does not know them, and end there.
    """
    if not chain:
        return TUNNEL_ID
    return _FIRST_ID + zlib.crc32(" ".join(chain).encode()) % _IDS


def chains(
    table: BucketTable,
    owners: Sequence[str | None],
    alive: Collection[str],
    local: Collection[str] | None = None,
) -> tuple[Chain, ...]:
    """The chain of each bucket, given who has it now: only of those who are alive, and without who has it.

    `owners` may differ from what the table says: who just ceased to be usable is the latest previous owner, although
    no table is stored yet that says so. `local`: the endpoints of the one node that counts (traffic policy Local,
    mode mpls); what they may have had by its buckets' own order is in it, too (`local_buckets`).
    """
    had: Sequence[Sequence[str | None]]
    if local is not None:
        had = local_lines(table, owners, local)
    else:
        latest = in_use(table)
        if not table.previous and latest == tuple(owners):
            return ((),) * table.size
        had = [(last, *stack) for last, stack in zip(latest, table.stacks(), strict=True)]
    known: dict[tuple[str | None, ...], Chain] = {}
    for line in {(owner, *before) for owner, before in zip(owners, had, strict=True)}:
        known[line] = tuple(dict.fromkeys([name for name in line[1:] if name and name != line[0] and name in alive]))
    return tuple([known[(owner, *before)] for owner, before in zip(owners, had, strict=True)])


def lines(
    table: BucketTable,
    usable: Collection[str],
    local: Collection[str] | None = None,
    everywhere: Collection[str] = (),
) -> frozenset[Chain]:
    """Owner and chain of every bucket that has a chain, by the table alone and by who is usable now, if any is.

    Both, since ingress nodes do not all hear at the same moment who is usable. Those who exist no more are in them,
    until they have gone from the table. With `local` only these count of `usable`, and `everywhere` are all nodes'.
    """
    names = {*table.endpoints, *table.former, *usable}
    present = frozenset(table.endpoints).difference(table.away)
    found = set()
    for able, all_able in ((present, present), (usable, everywhere)) if usable else ((present, present),):
        if local is None:
            owners = effective(table, able)
        else:
            owners = local_owners(table, set(able).intersection(local), all_able)
        for owner, chain in zip(owners, chains(table, owners, names, local), strict=True):
            if owner is not None and chain:
                found.add((owner, *chain))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Handover:
    """What one pod has to know for one Service."""

    hand_ons: tuple[HandOn, ...] = ()
    """Sorted, one for each tunnel id."""
    peers: tuple[str, ...] = ()
    """Sorted; who may hand on to it."""


NO_HANDOVER = Handover()


def handovers(lines: Iterable[Chain]) -> Mapping[str, Handover]:
    """By address, what each endpoint in these lines of owners has to know.

    Also for each line without some of its members: ingress nodes and pods do not learn at the same moment who is gone.
    Of two chains with the same id the shorter counts, then the first in order: so a packet's chain becomes shorter
    with each step even then.
    """
    steps: dict[str, dict[int, tuple[int, Chain]]] = {}
    peers: dict[str, set[str]] = {}
    seen: set[Chain] = set()
    for line in lines:
        for length in range(2, len(line) + 1):
            seen.update(combinations(line, length))
        for position, name in enumerate(line):
            peers.setdefault(name, set()).update(line[:position])
    for head, *rest in seen:
        chain = tuple(rest)
        known = steps.setdefault(head, {})
        identifier = chain_id(chain)
        known[identifier] = min(known.get(identifier, (len(chain), chain)), (len(chain), chain))
    return {
        name: Handover(
            tuple([HandOn(i, chain[0], chain_id(chain[1:])) for i, (_, chain) in sorted(steps.get(name, {}).items())]),
            tuple(sorted(peers[name])),
        )
        for name in peers
    }
