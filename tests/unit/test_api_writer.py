"""Tables and Events on their way to an API server that refuses, forgets, is slow, or hears others as well."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_helper import api_writer
from node_helper.api import Api
from node_helper.api_writer import ApiWriter, EventTeller
from node_helper.bucket_text import decode, encode
from node_helper.buckets import BucketTable, effective, fresh, rebalance, resized
from node_helper.model import ObjectKey, Problem, Service
from node_helper.services import TUNNEL_BUCKETS
from tests import fake_api
from tests.fake_api import FakeApi, Fault, Handler
from tests.table_keeper import Keeper

WEB = ObjectKey("shop", "web")
ONE, TWO, THREE = (f"10.244.0.{last}" for last in (1, 2, 3))
SIZE = 64
PATIENCE = float(os.environ.get("TEST_PATIENCE", "20"))


def service(name: str = "web", number: int = 1, **more: Any) -> dict[str, Any]:
    annotations = {"cmd.nu/tunnel": f"198.51.{100 + number // 256}.{number % 256}"}
    metadata = {"namespace": "shop", "name": name, "annotations": annotations, **more}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}}


def endpoints(*addresses: str, of: str = "web") -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": f"{of}-1", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so: {what}"
        time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with FakeApi() as running:
        yield running


@pytest.fixture
def start(server: FakeApi, tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def keeper(name: str = "one", size: int = SIZE) -> Keeper:
        made.append(Keeper(lambda: Api.connect(server.kubeconfig(tmp_path)), tmp_path / name, size))
        return made[-1]

    yield keeper
    server.end_watches()
    for one in made:
        one.close()


def stored(server: FakeApi, name: str = "web") -> BucketTable | None:
    metadata = server.get("Service", "shop", name)["metadata"]
    text = metadata["annotations"].get(TUNNEL_BUCKETS)
    return None if text is None else decode(text, metadata["uid"])


def knows(keeper: Keeper, *addresses: str) -> bool:
    return WEB in keeper.tables and keeper.tables[WEB].endpoints == addresses


def refuse_forever(server: FakeApi) -> None:
    server.always["PATCH"] = fake_api.refuse(403, "Forbidden")


@pytest.mark.parametrize(
    "fault",
    [
        fake_api.refuse(409, "Conflict"),
        fake_api.refuse(429),
        fake_api.refuse(500),
        fake_api.refuse(504),
        fake_api.close,
    ],
    ids=["409", "429", "500", "504", "closed"],
)
def test_a_table_that_is_refused_for_a_moment_is_stored_all_the_same(
    server: FakeApi, start: Callable[..., Keeper], fault: Fault
) -> None:
    """Nothing else happens that would make the helper look again."""
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    wait(lambda: knows(keeper, ONE) and stored(server) is not None, "the first table")
    server.faults["PATCH"] = deque([fault, fault])
    server.put(endpoints(ONE, TWO))
    wait(lambda: knows(keeper, ONE, TWO), "the next table")
    assert stored(server) == keeper.tables[WEB]
    wait(lambda: not keeper.problems, "no trouble")
    wait(lambda: (keeper.written, keeper.refused) == (2, 2), "counted")
    assert server.count("PATCH") == 4


def test_a_service_that_changes_in_other_things_meanwhile_gets_its_table(
    server: FakeApi, start: Callable[..., Keeper]
) -> None:
    """A label is no change for the helper, but another version of the Service for the API server."""
    server.put(service())
    keeper = start()
    wait(lambda: server.count("EndpointSlice watch") == 1 and server.count("Service watch") == 1, "watched")

    def edited_before(handler: Handler) -> None:
        server.put(service(labels={"a": "b"}))
        handler.send(*server.patch_service("shop", "web", handler.asked.body))

    server.faults["PATCH"] = deque([edited_before])
    server.put(endpoints(ONE))
    wait(lambda: knows(keeper, ONE), "the table")
    assert stored(server) == keeper.tables[WEB]
    assert server.count("PATCH") == 2


def test_a_new_service_is_served_though_its_table_cannot_be_stored(
    server: FakeApi, start: Callable[..., Keeper]
) -> None:
    """By the table that every node makes of the same endpoints; its owner hears why; stored once it can be."""
    refuse_forever(server)
    server.put(service())
    server.put(endpoints(ONE, TWO))
    keepers = [start("one"), start("two")]
    wait(lambda: all(knows(keeper, ONE, TWO) for keeper in keepers), "own tables")
    assert {keeper.tables[WEB] for keeper in keepers} == {fresh("uid-web", [ONE, TWO], SIZE)}
    (problem,) = keepers[0].problems
    assert (problem.key, problem.reason) == (WEB, "NoBucketStore")
    assert "403" in problem.message and "own table" in problem.message
    del server.always["PATCH"]
    wait(lambda: stored(server) is not None and not any(k.problems for k in keepers), "stored")
    assert stored(server) == keepers[0].tables[WEB] == keepers[1].tables[WEB]


def test_a_new_service_does_not_wait_for_an_api_server_that_hangs(
    server: FakeApi, start: Callable[..., Keeper]
) -> None:
    server.always["PATCH"] = fake_api.hang
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    wait(lambda: knows(keeper, ONE), "an own table")
    assert keeper.reasons() == {"NoBucketStore"} and "2 seconds" in keeper.problems[0].message


def test_while_writes_are_refused_the_stored_table_counts(server: FakeApi, start: Callable[..., Keeper]) -> None:
    server.put(service())
    server.put(endpoints(ONE, TWO))
    keeper = start()
    wait(lambda: knows(keeper, ONE, TWO), "the table")
    table = stored(server)
    refuse_forever(server)
    server.put(endpoints(TWO, THREE))
    wait(lambda: keeper.reasons() == {"NoBucketStore"}, "the problem")
    assert keeper.tables[WEB] == table
    assert set(effective(keeper.tables[WEB], [TWO, THREE])) == {TWO}


def test_refused_writes_are_tried_ever_more_seldom(server: FakeApi, start: Callable[..., Keeper]) -> None:
    """And not again by each cycle: 0.25 to 0.5 s, 0.5 to 1 s, 1 to 2 s, and so on."""
    refuse_forever(server)
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    began = time.monotonic()
    looks = keeper.looks
    while time.monotonic() < began + 3.0:
        server.put(service("other", int(100 * (time.monotonic() - began))))  # makes the helper look
        time.sleep(0.05)
    assert keeper.looks > looks + 20
    tries = [asked for asked in server.asked if asked.method == "PATCH"]
    assert 2 <= len(tries) <= 5


def test_a_service_is_written_once_a_second_however_often_its_endpoints_change(
    server: FakeApi, start: Callable[..., Keeper]
) -> None:
    server.put(service())
    keeper = start()
    wait(lambda: server.count("EndpointSlice watch") == 1, "watched")
    began = time.monotonic()
    last = 1
    while time.monotonic() < began + 3.0:
        last += 1
        server.put(endpoints(*(f"10.244.1.{n}" for n in range(1, 2 + last % 5))))
        time.sleep(0.05)
    server.put(endpoints(ONE, THREE))
    wait(lambda: knows(keeper, ONE, THREE), "the last state")
    times = [asked.at for asked in server.asked if asked.method == "PATCH"]
    assert all(later - earlier >= 0.95 for earlier, later in itertools.pairwise(times))
    assert len(times) <= 2 + time.monotonic() - began


def test_many_fresh_services_do_not_wait_for_each_other(server: FakeApi, start: Callable[..., Keeper]) -> None:
    """Each answer takes 20 ms, and each request is held back for a chance of up to 100 ms."""
    count = 200

    def slowly(handler: Handler) -> None:
        time.sleep(0.02)
        handler.send(*server.patch_service("shop", handler.asked.path.split("/")[-2], handler.asked.body))

    server.always["PATCH"] = slowly
    for number in range(count):
        server.put(service(f"s{number}", number))
        server.put(endpoints(f"10.244.3.{number}", of=f"s{number}"))
    keeper = start()
    wait(lambda: server.count("PATCH") > 0, "the first")
    wait(lambda: keeper.written == count, "all stored")
    times = [asked.at for asked in server.asked if asked.method == "PATCH"]
    assert len(times) == count
    assert times[-1] - times[0] < count * (0.02 + api_writer.JITTER / 2) / 2, "one after the other it is that twice"


def test_what_nobody_wants_any_more_is_not_written(server: FakeApi, start: Callable[..., Keeper]) -> None:
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    wait(lambda: knows(keeper, ONE), "the table")
    server.always["PATCH"] = fake_api.refuse(500)
    server.put(endpoints(ONE, TWO))
    wait(lambda: bool(keeper.problems), "the trouble")
    server.put(endpoints(ONE))
    wait(lambda: not keeper.problems, "no trouble")
    tries = server.count("PATCH")
    del server.always["PATCH"]
    server.put(endpoints(ONE, THREE))
    wait(lambda: knows(keeper, ONE, THREE), "the next table")
    assert server.count("PATCH") == tries + 1


def test_a_helper_that_does_not_see_the_endpoints_any_more_takes_nothing_back(
    server: FakeApi, start: Callable[..., Keeper]
) -> None:
    """It would store what it knows of before, and the others would mend that, for as long as its watch is broken."""
    server.put(service())
    server.put(endpoints(ONE, TWO))
    keeper = start()
    wait(lambda: knows(keeper, ONE, TWO), "the table")
    server.always["EndpointSlice watch"] = fake_api.refuse(500)
    server.end_watches()
    wait(lambda: not keeper.source.current(), "the trouble")
    server.put(endpoints(TWO, THREE))
    metadata = server.get("Service", "shop", "web")["metadata"]
    others = encode(rebalance(stored(server), "uid-web", [TWO, THREE], SIZE))
    annotations = {**metadata["annotations"], TUNNEL_BUCKETS: others}
    server.put(service(annotations=annotations))
    wait(lambda: knows(keeper, TWO, THREE), "the others' table")
    time.sleep(1.5)  # nothing is to happen; that can only be waited for
    assert server.count("PATCH") == 1
    del server.always["EndpointSlice watch"]
    wait(lambda: keeper.source.current() and not keeper.problems, "well again")
    assert server.count("PATCH") == 1 and knows(keeper, TWO, THREE)


def test_after_an_outage_what_waits_is_written_at_once(
    server: FakeApi, start: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at the end of a pause that has grown meanwhile."""
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    wait(lambda: knows(keeper, ONE), "the table")
    monkeypatch.setattr(api_writer, "FIRST_PAUSE", 600.0)
    monkeypatch.setattr(api_writer, "LONGEST_PAUSE", 600.0)
    server.always["PATCH"] = server.always["Service watch"] = fake_api.refuse(500)
    server.put(endpoints(ONE, TWO))
    server.end_watches()
    wait(lambda: keeper.refused > 0 or not keeper.source.current(), "the outage")
    wait(lambda: keeper.refused > 0, "a refused table")
    server.always.clear()
    wait(lambda: knows(keeper, ONE, TWO) and stored(server) == keeper.tables[WEB], "the next table")


def test_tables_are_counted_once_they_are_stored(server: FakeApi, start: Callable[..., Keeper]) -> None:
    server.faults["PATCH"] = deque([fake_api.refuse(500)] * 3)
    server.put(service())
    server.put(endpoints(ONE))
    keeper = start()
    # That it is stored a watch may tell before the request has its answer, with which it counts.
    wait(lambda: knows(keeper, ONE) and keeper.written == 1, "the table")
    server.put(service("other", 2))  # makes the helper look
    wait(lambda: keeper.stored == 1, "counted")
    assert keeper.refused == 3


# --- the number of buckets --------------------------------------------------------------------------------------


def test_helpers_with_different_numbers_of_buckets_come_to_rest(server: FakeApi, start: Callable[..., Keeper]) -> None:
    """The larger number is stored; who has fewer merges them and says so. After a change of the endpoints, too."""
    server.put(service())
    server.put(endpoints(ONE, TWO))
    few, many = start("few", SIZE), start("many", 4 * SIZE)
    for addresses in ((ONE, TWO), (ONE, TWO, THREE)):
        before = server.count("PATCH")
        server.put(endpoints(*addresses))

        def at_rest(addresses: tuple[str, ...] = addresses) -> bool:
            table = stored(server)
            return table is not None and table.size == 4 * SIZE and all(knows(k, *addresses) for k in (few, many))

        wait(at_rest, "at rest")
        assert many.tables[WEB] == stored(server)
        wait(lambda: few.tables[WEB] == resized(many.tables[WEB], SIZE), "the same, merged")
        wait(lambda: few.reasons() == {"BucketCountDiffers"}, "the problem")
        assert many.reasons() == set()
        assert server.count("PATCH") - before <= 3
    server.put(service("other", 2))
    looks = few.looks + many.looks
    wait(lambda: few.looks + many.looks >= looks + 2, "another look")
    assert few.reasons() == {"BucketCountDiffers"}, "it is told for as long as it is so"
    tries = server.count("PATCH")
    time.sleep(1.5)  # nothing is to happen; that can only be waited for
    assert server.count("PATCH") == tries


@pytest.mark.parametrize("size", [2 * SIZE, SIZE // 2])
def test_another_number_of_buckets_holds_at_once_on_this_node(
    server: FakeApi, start: Callable[..., Keeper], size: int
) -> None:
    """Also while nothing can be stored: the router has as many tables as the helper was told."""
    server.put(service())
    server.put(endpoints(ONE, TWO, THREE))
    before = start("before")
    wait(lambda: knows(before, ONE, TWO, THREE), "the table")
    before.close()
    refuse_forever(server)
    after = start("after", size)
    wait(lambda: WEB in after.tables, "a table")
    table = after.tables[WEB]
    assert table.size == size
    for bucket in range(size):
        assert table.owner(bucket) == before.tables[WEB].owner(bucket * SIZE // size)


# --- Events -------------------------------------------------------------------------------------------------------

PROBLEM = Problem("Service", WEB, "InvalidVIP", "Service shop/web: 'x' is no IP address")
ABOUT = Service(WEB, "uid-web", "", {}, {}, ())


@pytest.fixture
def teller(server: FakeApi, tmp_path: Path) -> Iterator[EventTeller]:
    made = EventTeller(Api.connect(server.kubeconfig(tmp_path)), "n1")
    yield made
    made.close()


def test_an_event_that_is_refused_is_told_later(server: FakeApi, teller: EventTeller) -> None:
    server.faults["POST"] = deque([fake_api.refuse(500), fake_api.refuse(429), fake_api.close])
    teller.tell(PROBLEM, ABOUT)
    wait(lambda: len(server.events) == 1, "the Event")
    assert server.events[0]["reason"] == "InvalidVIP"
    assert server.count("POST") == 4


def test_an_event_that_is_there_is_not_told_again(server: FakeApi, teller: EventTeller) -> None:
    teller.tell(PROBLEM, ABOUT)
    wait(lambda: len(server.events) == 1 and not teller.writer.waits(name(server)), "the Event")
    teller.tell(PROBLEM, ABOUT)
    wait(lambda: server.count("POST") == 2 and not teller.writer.waits(name(server)), "a second try")
    assert len(server.events) == 1 and teller.writer.refused == 0


def name(server: FakeApi) -> tuple[str, str]:
    return "shop", server.events[0]["metadata"]["name"]


def test_an_event_that_is_never_taken_is_given_up(
    monkeypatch: pytest.MonkeyPatch, server: FakeApi, teller: Any
) -> None:
    monkeypatch.setattr(api_writer, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(api_writer, "LONGEST_PAUSE", 0.01)
    server.always["POST"] = fake_api.refuse(403)
    teller.tell(PROBLEM, ABOUT)
    wait(lambda: server.count("POST") == 12, "the last try")
    wait(lambda: not teller.writer._things, "forgotten")


def test_a_fault_of_our_own_does_not_end_the_writing() -> None:
    writer = ApiWriter()
    done: list[int] = []

    def broken() -> bool:
        raise RuntimeError("a mistake")

    def good() -> bool:
        done.append(1)
        return True

    writer.submit("broken", broken)
    wait(lambda: not writer.waits("broken"), "tried")
    writer.submit("good", good)
    wait(lambda: done == [1], "done")
    writer.close()
