"""Stored bucket tables: every node ends with the same one, few writes, and a store that fails stops nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import MODES
from node_helper.bucket_store import FolderBucketStore
from node_helper.bucket_text import decode, encode
from node_helper.buckets import BucketTable, effective, fresh, rebalance, resized
from node_helper.model import Endpoint, ObjectKey, Problem, Service, Snapshot
from node_helper.services import TUNNEL_BUCKETS, TunnelService
from node_helper.tables import WRITE_INTERVAL, TableKeeper, TableReader, TableRound
from tests.unit.planning import endpoint, service

BUCKETS = 64
DRAIN_TIME = 600.0
WEB = ObjectKey("shop", "web")
ONE, TWO, THREE, FOUR = (f"10.244.0.{n}" for n in range(1, 5))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """One helper's keeper with its state folder; `restart` forgets what was in memory."""

    def __init__(self, folder: Path, name: str = "node", store: FolderBucketStore | None = None) -> None:
        self.clock = Clock()
        self.store = store or FolderBucketStore(folder / "manifests")
        self.local = FolderBucketStore(folder / name)
        self.restart()

    def restart(self, size: int = BUCKETS) -> None:
        self.keeper = TableKeeper(self.store, self.local, size, self.clock, DRAIN_TIME)

    def look(self, *endpoints: Endpoint | str, annotation: str | None = None, uid: str = "") -> TableRound:
        """A look at the Service shop/web with these endpoints; addresses are ready ones."""
        return self.look_at(web(*endpoints, uid=uid), annotation)

    def look_at(self, served: TunnelService, annotation: str | None = None) -> TableRound:
        return self.keeper.look([served], snapshot(served, annotation))

    def look_later(self, *endpoints: Endpoint | str) -> TableRound:
        self.clock.now += WRITE_INTERVAL
        return self.look(*endpoints)


def web(*endpoints: Endpoint | str, uid: str = "") -> TunnelService:
    served = service(endpoints=[endpoint(e) if isinstance(e, str) else e for e in endpoints])
    return replace(served, uid=uid) if uid else served


def snapshot(served: TunnelService, annotation: str | None = None) -> Snapshot:
    annotations = {} if annotation is None else {TUNNEL_BUCKETS: annotation}
    return Snapshot(services={served.key: Service(served.key, served.uid, "", annotations, {}, ())})


def loads(table: BucketTable) -> dict[str | None, int]:
    owners = [table.owner(bucket) for bucket in range(table.size)]
    return {owner: owners.count(owner) for owner in owners}


def moved(one: BucketTable, two: BucketTable) -> set[str | None]:
    """Who lost a bucket."""
    return {one.owner(b) for b in range(one.size) if one.owner(b) != two.owner(b)}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# --- storing --------------------------------------------------------------------------------------------


def test_the_first_table_is_stored_and_is_in_force(node: Node) -> None:
    result = node.look(ONE, TWO)
    assert result.written == 1 and result.problems == []
    text = node.store.read(WEB)
    assert text is not None
    assert decode(text, "uid-web") == result.tables[WEB] == fresh("uid-web", [ONE, TWO], BUCKETS)


def test_a_second_look_at_the_same_writes_nothing(node: Node) -> None:
    first = node.look(ONE, TWO)
    again = node.look_later(ONE, TWO)
    assert (again.written, again.again_in, again.tables) == (0, None, first.tables)


def test_a_newcomer_takes_just_its_share(node: Node) -> None:
    before = node.look(ONE, TWO).tables[WEB]
    after = node.look_later(ONE, TWO, THREE).tables[WEB]
    assert sorted(loads(after).values()) == [21, 21, 22]
    assert sum(before.owner(b) != after.owner(b) for b in range(BUCKETS)) == loads(after)[THREE]


def test_a_leaver_moves_no_bucket_of_the_others(node: Node) -> None:
    before = node.look(ONE, TWO, THREE).tables[WEB]
    after = node.look_later(ONE, THREE).tables[WEB]
    assert moved(before, after) == {TWO}


def test_a_service_without_usable_endpoints_gets_no_table_and_keeps_the_one_it_has(node: Node) -> None:
    assert node.look().tables == {}
    table = node.look(ONE, TWO).tables[WEB]
    assert node.look_later(endpoint(ONE, ready=False)).tables == {WEB: table}


def test_an_endpoint_that_is_briefly_not_ready_keeps_its_buckets(node: Node) -> None:
    before = node.look(ONE, TWO).tables[WEB]
    meanwhile = node.look_later(ONE, endpoint(TWO, ready=False)).tables[WEB]
    assert meanwhile.owners == before.owners
    assert set(effective(meanwhile, [ONE])) == {ONE}
    assert node.look_later(ONE, TWO).tables[WEB].owners == before.owners


def test_the_table_says_who_is_away_and_who_had_its_buckets_meanwhile(node: Node) -> None:
    before = node.look(ONE, TWO).tables[WEB]
    meanwhile = node.look_later(ONE, endpoint(TWO, ready=False)).tables[WEB]
    assert meanwhile.away == (TWO,)
    after = node.look_later(ONE, TWO).tables[WEB]
    assert after.away == ()
    for bucket in range(BUCKETS):
        flapped = before.owner(bucket) == TWO
        assert meanwhile.stack(bucket) == ((TWO,) if flapped else ())
        assert after.stack(bucket) == ((ONE,) if flapped else ())


@pytest.mark.parametrize("mode", MODES)
def test_who_was_away_for_a_moment_is_told_of_and_then_that_it_is_back(node: Node, mode: str) -> None:
    """Also where nobody rests, because each node has endpoints of its own."""
    gone, here = replace(web(ONE), mode=mode), replace(web(ONE, TWO), mode=mode)
    node.look_at(here)
    node.look_at(gone)
    told = []
    for _ in range(4):
        node.clock.now += WRITE_INTERVAL
        told.append(node.look_at(here).tables[WEB].away)
    assert (TWO,) in told and told[-1] == ()


def test_previous_owners_are_in_the_table_while_they_exist(node: Node) -> None:
    node.look(ONE, TWO)
    moving = node.look_later(TWO, endpoint(ONE, terminating=True)).tables[WEB]
    assert moving.former == (ONE,) and set(moving.stacks()) == {(), (ONE,)}
    gone = node.look_later(TWO)
    assert gone.written == 1
    assert gone.tables[WEB] == BucketTable("uid-web", BUCKETS, (TWO,), moving.owners)


def test_an_endpoint_that_was_never_ready_gets_no_buckets(node: Node) -> None:
    assert node.look(ONE, endpoint(TWO, ready=False)).tables[WEB].endpoints == (ONE,)


def test_a_terminating_endpoint_gives_its_buckets_away_unless_it_is_the_last(node: Node) -> None:
    node.look(ONE, TWO)
    assert node.look_later(ONE, endpoint(TWO, terminating=True)).tables[WEB].endpoints == (ONE,)
    table = node.look_later(endpoint(ONE, terminating=True), endpoint(TWO, terminating=True)).tables[WEB]
    assert set(loads(table)) <= {ONE, TWO}


def test_two_changes_within_a_second_cost_one_write_and_the_rest_is_told(node: Node) -> None:
    node.look(ONE)
    node.clock.now += 0.25
    early = node.look(ONE, TWO)
    assert early.written == 0
    assert early.tables[WEB].endpoints == (ONE,), "the newcomer waits for a stored table"
    assert early.again_in == pytest.approx(WRITE_INTERVAL - 0.25)
    node.clock.now += early.again_in or 0
    assert node.look(ONE, TWO).written == 1


def test_a_table_that_was_deleted_is_put_back_as_it_was(node: Node) -> None:
    node.look(ONE)
    table = node.look_later(ONE, TWO).tables[WEB]
    node.store.remove(WEB)
    again = node.look_later(ONE, TWO)
    assert again.tables[WEB] == table
    assert node.store.read(WEB) == encode(table)


def test_another_number_of_buckets_splits_them_and_moves_no_flow(node: Node) -> None:
    before = node.look(ONE, TWO, THREE).tables[WEB]
    node.restart(size=2 * BUCKETS)
    after = node.look(ONE, TWO, THREE).tables[WEB]
    assert after.size == 2 * BUCKETS
    split = sum(before.owner(b // 2) != after.owner(b) for b in range(after.size))
    assert split <= 2, "but for the one or two that balance moves"


def test_a_service_that_went_is_forgotten(node: Node) -> None:
    node.look(ONE)
    assert node.keeper.look([], Snapshot()).tables == {}
    assert node.keeper._last == {} and node.keeper._written_at == {}


def test_the_copy_of_a_service_that_is_no_more_goes_from_the_state_folder(node: Node) -> None:
    node.look(ONE)
    assert node.local.keys() == {WEB}
    node.restart()
    unreadable = Snapshot(problems=(Problem("File", ObjectKey("", "web.yaml"), "UnreadableFile", "…"),))
    node.keeper.look([], unreadable)
    assert node.local.keys() == {WEB}, "the Service may be in the file that cannot be read"
    node.keeper.look([], snapshot(web(ONE)))
    assert node.local.keys() == {WEB}, "it is there, only without an annotation"
    node.keeper.look([], Snapshot())
    assert node.local.keys() == set()
    node.look(ONE)
    assert node.local.keys() == {WEB}
    node.keeper.look([], Snapshot())
    assert node.local.keys() == set()


def test_fewer_buckets_are_merged_here_and_the_stored_number_stays(node: Node) -> None:
    """Or helpers that differ would write over each other for ever."""
    before = node.look(ONE, TWO, THREE).tables[WEB]
    text = node.store.read(WEB)
    node.restart(size=BUCKETS // 4)
    for _ in range(2):
        result = node.look_later(ONE, TWO, THREE)
        assert [p.reason for p in result.problems] == ["BucketCountDiffers"]
        assert node.store.read(WEB) == text and result.written == 0
        assert result.tables[WEB] == resized(before, BUCKETS // 4)
    node.look_later(ONE, TWO)
    assert decode(node.store.read(WEB) or "", "uid-web").size == BUCKETS


def test_a_table_that_was_deleted_may_come_back_with_fewer_buckets(node: Node) -> None:
    """The operator's way to fewer: all helpers with the smaller number, then the stored tables deleted."""
    node.look(ONE, TWO)
    node.restart(size=BUCKETS // 4)
    assert node.look_later(ONE, TWO).problems
    node.store.remove(WEB)
    result = node.look_later(ONE, TWO)
    assert result.problems == [] and result.written == 1
    assert decode(node.store.read(WEB) or "", "uid-web").size == BUCKETS // 4


def test_more_endpoints_than_buckets_is_told_for_as_long_as_it_is_so(node: Node) -> None:
    crowd = web(*(f"10.244.1.{n}" for n in range(1, BUCKETS + 4)))
    for _ in range(2):
        result = node.look_at(crowd)
        assert [p.reason for p in result.problems] == ["TooFewBuckets"]
        assert "3 get no traffic" in result.problems[0].message
        assert sorted(loads(result.tables[WEB]).values()) == [1] * BUCKETS
    assert node.look_later(ONE).problems == []


# --- several nodes --------------------------------------------------------------------------------------


class Racing(FolderBucketStore):
    """Lets another go first, once: between this one's reading and its writing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.meanwhile: Callable[[], object] = lambda: None

    def read(self, key: ObjectKey) -> str | None:
        text = super().read(key)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return text


@pytest.mark.parametrize("known", [(), (ONE, TWO)])
def test_two_nodes_that_see_the_same_at_once_store_one_table(tmp_path: Path, known: tuple[str, ...]) -> None:
    store = Racing(tmp_path / "manifests")
    slow, fast = Node(tmp_path, "slow", store), Node(tmp_path, "fast")
    if known:
        fast.look(*known)
        slow.look(*known)
        fast.clock.now += WRITE_INTERVAL
    rounds: list[TableRound] = []
    store.meanwhile = lambda: rounds.append(fast.look(ONE, TWO, THREE))
    rounds.append(slow.look(ONE, TWO, THREE))
    assert [r.written for r in rounds] == [1, 0]
    assert rounds[0].tables == rounds[1].tables


def test_two_nodes_that_see_different_endpoints_meet_after_at_most_two_writes(tmp_path: Path) -> None:
    store = Racing(tmp_path / "manifests")
    slow, fast = Node(tmp_path, "slow", store), Node(tmp_path, "fast")
    store.meanwhile = lambda: fast.look(ONE, TWO)
    first = slow.look(ONE, TWO, THREE)  # has heard of the third already
    assert first.written == 1
    late = fast.look_later(ONE, TWO, THREE)
    assert late.written == 0
    assert late.tables == first.tables == slow.look_later(ONE, TWO, THREE).tables


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from((ONE, TWO, THREE, FOUR)), min_size=1))),
    st.sets(st.sampled_from((ONE, TWO, THREE, FOUR)), min_size=1),
)
def test_whatever_nodes_saw_and_when_they_agree_once_they_see_the_same(
    tmp_path_factory: pytest.TempPathFactory, views: list[tuple[str, set[str]]], at_last: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("race")
    nodes = {name: Node(folder, name) for name in "abc"}
    for name, seen in views:
        nodes[name].look_later(*sorted(seen))
    # The first look may find what another has just stored, and then the next write has to wait. Whoever saw an
    # endpoint go and come back before a table told of it tells of that first (`lapses`).
    looks = [[node.look_later(*sorted(at_last)) for node in nodes.values()] for _ in range(6)]
    rounds = looks[-1]
    assert sum(r.written for look in looks for r in look) <= 1 + len(nodes)
    assert sum(r.written for look in looks[-2:] for r in look) == 0
    assert len({encode(r.tables[WEB]) for r in rounds}) == 1
    assert rounds[0].tables[WEB].endpoints == tuple(sorted(at_last))


NAMES = "abc"
SEEN = st.sets(st.sampled_from((ONE, TWO, THREE, FOUR)), min_size=1)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(st.sampled_from(NAMES), SEEN), min_size=1, max_size=4), max_size=8), SEEN)
def test_writers_that_get_between_each_others_reading_and_writing_agree_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, set[str]]]], at_last: set[str]
) -> None:
    """In each round the first has read when the second begins, who has read when the third does, and so on."""
    folder = tmp_path_factory.mktemp("race")
    stores = {name: Racing(folder / "manifests") for name in NAMES}
    nodes = {name: Node(folder, name, stores[name]) for name in NAMES}
    seen_stored = []

    def look(turns: list[tuple[str, set[str]]]) -> None:
        (name, seen), *others = turns
        stores[name].meanwhile = (lambda: look(others)) if others else lambda: None
        nodes[name].look_later(*sorted(seen))
        seen_stored.append(FolderBucketStore(folder / "manifests").read(WEB))

    for turns in rounds:
        look([turn for index, turn in enumerate(turns) if turn[0] not in {before for before, _ in turns[:index]}])
    assert all(text is not None and decode(text, "uid-web") for text in seen_stored), "at no time anything but a table"
    looks = [[node.look_later(*sorted(at_last)) for node in nodes.values()] for _ in range(6)]
    assert sum(found.written for look in looks[-2:] for found in look) == 0
    tables = {encode(found.tables[WEB]) for found in looks[-1]}
    assert tables == {FolderBucketStore(folder / "manifests").read(WEB)}
    assert looks[-1][0].tables[WEB].endpoints == tuple(sorted(at_last))
    held = loads(looks[-1][0].tables[WEB]).values()
    assert max(held) - min(held) <= 1


def test_all_nodes_together_write_once_a_second(tmp_path: Path) -> None:
    one, two = Node(tmp_path, "one"), Node(tmp_path, "two")
    one.look(ONE)
    two.look(ONE)
    assert one.look_later(ONE, TWO).written == 1
    two.clock.now += 0.3
    soon = two.look(ONE, TWO, THREE)
    assert soon.written == 0 and soon.again_in == pytest.approx(WRITE_INTERVAL)
    assert soon.tables[WEB].endpoints == (ONE, TWO)
    assert two.look_later(ONE, TWO, THREE).written == 1


@pytest.mark.parametrize("skew", [-1e9, -3600.0, 3600.0, 1e9])
def test_clocks_that_differ_do_not_matter(tmp_path: Path, skew: float) -> None:
    """Nothing of a clock is in a table, and nobody compares another's with its own."""
    one, two = Node(tmp_path, "one"), Node(tmp_path, "two")
    two.clock.now += skew
    for ends in ((ONE,), (ONE, TWO), (TWO, THREE), (THREE,)):
        looks = [node.look_later(*ends) for _ in range(2) for node in (one, two)]
        assert looks[-1].tables == looks[-2].tables
        assert sum(look.written for look in looks) == 1


def test_a_fresh_node_applies_the_stored_table(tmp_path: Path) -> None:
    old = Node(tmp_path, "old")
    for ends in ((ONE,), (ONE, TWO), (TWO, THREE)):
        table = old.look_later(*ends).tables[WEB]
    assert table != fresh("uid-web", [TWO, THREE], BUCKETS), "it has a past"
    joined = Node(tmp_path, "joined").look(TWO, THREE)
    assert joined.tables[WEB] == table and joined.written == 0


# --- previous owners are forgotten -----------------------------------------------------------------------


def past(table: BucketTable) -> set[str]:
    return {name for stack in table.stacks() for name in stack}


def test_previous_owners_are_forgotten_when_their_time_is_over(node: Node) -> None:
    node.look(ONE)
    moved = node.look_later(ONE, TWO)
    assert past(moved.tables[WEB]) == {ONE} and moved.again_in == DRAIN_TIME
    node.clock.now += DRAIN_TIME - 1
    before = node.look(ONE, TWO)
    assert before.written == 0 and before.again_in == pytest.approx(1)
    assert past(before.tables[WEB]) == {ONE}
    node.clock.now += 1
    after = node.look(ONE, TWO)
    assert (after.written, after.again_in) == (1, None)
    assert past(after.tables[WEB]) == set()
    assert after.tables[WEB].owners == moved.tables[WEB].owners


def test_each_move_has_a_time_of_its_own(node: Node) -> None:
    node.look(ONE)
    node.look_later(ONE, TWO)
    node.clock.now += DRAIN_TIME / 2
    both = node.look(ONE, TWO, THREE).tables[WEB]
    assert past(both) == {ONE, TWO}
    node.clock.now += DRAIN_TIME / 2
    half = node.look(ONE, TWO, THREE)
    kept = {bucket for bucket in range(BUCKETS) if half.tables[WEB].stack(bucket)}
    assert kept == {bucket for bucket in range(BUCKETS) if both.owner(bucket) == THREE}
    assert half.again_in == pytest.approx(DRAIN_TIME / 2)


def test_a_bucket_that_moves_the_same_way_again_begins_anew(node: Node) -> None:
    away = endpoint(TWO, ready=False)
    node.look(ONE, TWO)
    node.look_later(ONE, away)
    node.look_later(ONE, TWO)
    node.clock.now += DRAIN_TIME - 1
    assert past(node.look(ONE, away).tables[WEB]) == {TWO}
    node.clock.now += DRAIN_TIME / 2
    assert past(node.look(ONE, away).tables[WEB]) == {TWO}


def test_whoever_has_seen_a_move_first_forgets_it_and_the_others_follow(tmp_path: Path) -> None:
    old, young = Node(tmp_path, "old"), Node(tmp_path, "young")
    old.look(ONE)
    old.look_later(ONE, TWO)
    old.clock.now += DRAIN_TIME / 2
    young.look(ONE, TWO)
    old.clock.now += DRAIN_TIME / 2
    young.clock.now += DRAIN_TIME / 2
    assert past(young.look(ONE, TWO).tables[WEB]) == {ONE}
    first = old.look(ONE, TWO)
    second = young.look(ONE, TWO)
    assert (first.written, second.written) == (1, 0)
    assert first.tables == second.tables and past(first.tables[WEB]) == set()
    young.clock.now += DRAIN_TIME
    assert young.look(ONE, TWO).written == 0


def test_of_two_that_forget_at_once_one_writes(tmp_path: Path) -> None:
    store = Racing(tmp_path / "manifests")
    slow, fast = Node(tmp_path, "slow", store), Node(tmp_path, "fast")
    fast.look(ONE)
    fast.look_later(ONE, TWO)
    slow.look(ONE, TWO)
    for one in (slow, fast):
        one.clock.now += DRAIN_TIME
    slow.keeper._settled.clear()  # so that the other's turn is between its reading and its writing
    rounds: list[TableRound] = []
    store.meanwhile = lambda: rounds.append(fast.look(ONE, TWO))
    rounds.append(slow.look(ONE, TWO))
    assert [r.written for r in rounds] == [1, 0]
    assert rounds[0].tables == rounds[1].tables and past(rounds[0].tables[WEB]) == set()


def test_a_restart_counts_anew_rather_than_to_forget_too_early(node: Node) -> None:
    node.look(ONE)
    node.look_later(ONE, TWO)
    node.clock.now += DRAIN_TIME - 1
    node.restart()
    assert past(node.look(ONE, TWO).tables[WEB]) == {ONE}
    node.clock.now += 2
    assert past(node.look(ONE, TWO).tables[WEB]) == {ONE}


def test_without_a_store_previous_owners_are_forgotten_too(tmp_path: Path) -> None:
    break_writing(tmp_path)
    node = Node(tmp_path)
    node.look(ONE)
    assert past(node.look_later(ONE, TWO).tables[WEB]) == {ONE}
    node.clock.now += DRAIN_TIME
    assert past(node.look(ONE, TWO).tables[WEB]) == set()


# --- a helper that writes no tables ----------------------------------------------------------------------


def test_a_reader_has_what_is_stored_and_the_same_object_while_it_is_the_same(node: Node) -> None:
    reader, served = TableReader(node.store), web(ONE, TWO)
    assert reader.read([served]) == {}
    table = node.look(ONE, TWO).tables[WEB]
    first = reader.read([served])
    assert first == {WEB: table}
    assert reader.read([served])[WEB] is first[WEB]
    changed = node.look_later(ONE, TWO, THREE).tables[WEB]
    assert reader.read([served]) == {WEB: changed}
    assert reader.read([]) == {}


@pytest.mark.parametrize("text", ["rubbish", encode(fresh("another", [ONE], BUCKETS)), '{"v":99}'])
def test_a_reader_goes_on_with_the_last_good_table(node: Node, text: str) -> None:
    reader = TableReader(node.store)
    table = node.look(ONE, TWO).tables[WEB]
    assert reader.read([web(ONE, TWO)]) == {WEB: table}
    node.store.write(WEB, text, expected=node.store.read(WEB))
    assert reader.read([web(ONE, TWO)]) == {WEB: table}
    assert reader.read([web(ONE, TWO, uid="uid-reborn")]) == {}


# --- what must not be used ------------------------------------------------------------------------------

STORED = encode(fresh("uid-web", [ONE, TWO], BUCKETS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("rubbish", "not JSON"),
        (STORED[:-20], "not JSON"),
        ("{}", "format version"),
        (json.dumps(json.loads(STORED) | {"owners": "AAAA"}), "owners"),
        (json.dumps(json.loads(STORED) | {"uid": "another"}), "belongs to the Service with uid 'another'"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_and_replaced_by_the_last_good_one(
    node: Node, text: str, says: str
) -> None:
    node.look(ONE)
    table = node.look_later(ONE, TWO).tables[WEB]
    node.store.write(WEB, text, expected=node.store.read(WEB))
    result = node.look_later(ONE, TWO)
    assert result.tables[WEB] == table
    (problem,) = result.problems
    assert (problem.reason, problem.key) == ("UnusableBucketTable", WEB)
    assert says in problem.message and "shop/web" in problem.message
    assert node.store.read(WEB) == encode(table)
    assert node.look_later(ONE, TWO).problems == []


def test_the_table_of_a_newer_helper_is_left_to_it(node: Node) -> None:
    """Or two versions would write over each other for as long as an upgrade takes."""
    table = node.look(ONE, TWO).tables[WEB]
    newer = json.dumps(json.loads(STORED) | {"v": 99})
    node.store.write(WEB, newer, expected=node.store.read(WEB))
    for _ in range(2):
        result = node.look_later(ONE, TWO, THREE)
        assert result.written == 0
        assert [p.reason for p in result.problems] == ["NewerBucketTable"]
        assert "upgrade" in result.problems[0].message
        assert not moved(table, result.tables[WEB]) - {ONE, TWO}
    assert node.store.read(WEB) == newer


def test_a_service_that_was_deleted_and_made_again_begins_anew(node: Node) -> None:
    node.look(ONE)
    node.look_later(ONE, TWO)
    node.clock.now += WRITE_INTERVAL
    again = node.look(ONE, TWO, uid="uid-reborn")
    assert again.tables[WEB] == fresh("uid-reborn", [ONE, TWO], BUCKETS)
    assert again.written == 1


# --- a store that fails ---------------------------------------------------------------------------------


def break_writing(folder: Path) -> None:
    """Where the folder should be there is a file; being root helps as little as with a read-only mount."""
    (folder / "manifests").mkdir()
    (folder / "manifests" / ".service-tunnel").write_text("in the way")


def test_a_store_that_cannot_be_written_is_told_and_every_node_has_the_same_table(tmp_path: Path) -> None:
    break_writing(tmp_path)
    rounds = [Node(tmp_path, name).look(ONE, TWO) for name in ("a", "b")]
    assert rounds[0].tables == rounds[1].tables == {WEB: fresh("uid-web", [ONE, TWO], BUCKETS)}
    for result in rounds:
        assert result.written == 0
        assert [p.reason for p in result.problems] == ["NoBucketStore"]
        assert "going on with an own table" in result.problems[0].message


def test_without_a_store_changes_still_move_as_little_as_can_be(tmp_path: Path) -> None:
    break_writing(tmp_path)
    node = Node(tmp_path)
    before = node.look(ONE, TWO, THREE).tables[WEB]
    after = node.look_later(ONE, THREE).tables[WEB]
    assert moved(before, after) == {TWO}


def test_a_store_that_cannot_be_read_is_told_and_the_last_table_stays(tmp_path: Path) -> None:
    node = Node(tmp_path)
    table = node.look(ONE, TWO).tables[WEB]
    path = tmp_path / "manifests" / ".service-tunnel" / "buckets" / "shop.web"
    path.unlink()
    path.mkdir()
    result = node.look_later(ONE, TWO)
    assert result.tables[WEB] == table
    assert [p.reason for p in result.problems] == ["NoBucketStore"]
    assert str(path) in result.problems[0].message


@pytest.mark.parametrize("writer", [True, False])
def test_a_restart_without_the_store_goes_on_from_the_state_folder(tmp_path: Path, writer: bool) -> None:
    """Also on a node that only ever read the table that another wrote."""
    first, second = Node(tmp_path, "first"), Node(tmp_path, "second")
    for ends in ((ONE,), (ONE, TWO), (TWO, THREE)):
        table = first.look_later(*ends).tables[WEB]
        assert second.look_later(*ends).tables[WEB] == table
    assert table != fresh("uid-web", [TWO, THREE], BUCKETS), "it has a past"
    (tmp_path / "manifests").rename(tmp_path / "gone")
    break_writing(tmp_path)
    node = first if writer else second
    node.restart()
    assert node.look(TWO, THREE).tables[WEB] == table


def test_without_store_and_state_the_services_own_yaml_counts(tmp_path: Path) -> None:
    """`kubectl get -o yaml` of a cluster brings the table along as an annotation."""
    break_writing(tmp_path)
    past = rebalance(fresh("uid-web", [ONE, TWO], BUCKETS), "uid-web", [TWO, THREE], BUCKETS)
    assert Node(tmp_path).look(TWO, THREE, annotation=encode(past)).tables[WEB] == past
    assert Node(tmp_path, "b").look(TWO, THREE, annotation="rubbish").tables[WEB].endpoints == (TWO, THREE)


def test_a_state_folder_that_cannot_be_written_costs_nothing_but_the_copy(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "node").write_text("in the way")
    result = node.look(ONE, TWO)
    assert result.written == 1 and result.problems == []


def test_a_copy_that_could_not_be_written_is_made_once_it_can_be(tmp_path: Path) -> None:
    """Though neither the Service nor its table is another than before."""
    node = Node(tmp_path)
    (tmp_path / "node").write_text("in the way")
    table = node.look(ONE, TWO).tables[WEB]
    (tmp_path / "node").unlink()
    assert node.look(ONE, TWO).tables == {WEB: table}
    assert node.local.read(WEB) == encode(table)
    (tmp_path / "manifests").rename(tmp_path / "gone")
    break_writing(tmp_path)
    node.restart()
    assert node.look(ONE, TWO).tables == {WEB: table}


def test_no_copy_is_made_of_a_service_that_went_meanwhile(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "node").write_text("in the way")
    node.look(ONE, TWO)
    (tmp_path / "node").unlink()
    node.keeper.look([], Snapshot())
    assert node.local.keys() == set()


def test_one_service_whose_table_cannot_be_stored_costs_the_others_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    bad = replace(web(ONE), key=ObjectKey("shop", "bad"))
    (tmp_path / "manifests" / ".service-tunnel" / "buckets" / "shop.bad").mkdir(parents=True)
    both = Snapshot(services={**snapshot(bad).services, **snapshot(web(ONE)).services})
    result = node.keeper.look([bad, web(ONE)], both)
    assert result.written == 1
    assert set(result.tables) == {WEB, bad.key}
    assert [p.key for p in result.problems] == [bad.key]
