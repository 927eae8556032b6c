"""How many messages the kernel gets: as many as something changed, however much there is; counted on their way out."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from tests.bench.convergence import UPLINK
from tests.bench.one_node import BUCKETS, ENDPOINTS
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

SERVICES = 20
SHARE = (BUCKETS // ENDPOINTS, BUCKETS // ENDPOINTS + 1)
"""Buckets of one endpoint: 256 divided by five."""
SMALLER_SHARE = (BUCKETS // (ENDPOINTS + 1), BUCKETS // (ENDPOINTS + 1) + 1)


@pytest.fixture(scope="module")
def steps() -> dict[str, Counter[str]]:
    with Host("node5") as host:
        host.run("sh", "-ec", UPLINK)
        command = 'cd "$0" && exec "$@"'
        program = (sys.executable, "-m", "tests.kernel.counted_cycles", str(SERVICES))
        done = host.run("sh", "-c", command, str(REPOSITORY), *program, timeout=100)
    return {name: Counter(counts) for name, counts in json.loads(done.stdout).items()}


def test_at_the_start_each_route_and_nexthop_is_sent_once(steps: dict[str, Counter[str]]) -> None:
    start = steps["start"]
    own = 3  # the router's two default routes at most, and what comes with its link
    assert SERVICES * (BUCKETS + 1) <= start["new route"] <= SERVICES * (BUCKETS + 1) + own
    assert start["new nexthop"] == SERVICES * ENDPOINTS
    assert start["add to set"] == SERVICES


@pytest.mark.parametrize("step", ["nothing changed", "nothing changed again"])
def test_when_nothing_changed_nothing_is_sent(steps: dict[str, Counter[str]], step: str) -> None:
    assert steps[step] == {}


def test_a_full_comparison_of_what_is_right_only_reads(steps: dict[str, Counter[str]]) -> None:
    assert set(steps["nothing changed, all compared"]) == {"dump of routes", "other read"}


def test_an_endpoint_that_goes_costs_a_message_for_each_of_its_buckets(steps: dict[str, Counter[str]]) -> None:
    gone = steps["an endpoint went"]
    assert gone["new route"] in SHARE
    assert gone == {"new route": gone["new route"], "del nexthop": 1}


def test_an_endpoint_that_comes_back_costs_the_same(steps: dict[str, Counter[str]]) -> None:
    back = steps["an endpoint came back"]
    del back["other read"]  # the way to it, where the kernel has told of something on it
    # One nexthop for each endpoint that had its buckets meanwhile: flows that began there go on there.
    assert 1 <= back.pop("new nexthop") < ENDPOINTS
    assert back == {"new route": steps["an endpoint went"]["new route"]}


def test_a_new_endpoint_costs_a_message_for_each_bucket_that_it_gets(steps: dict[str, Counter[str]]) -> None:
    came = steps["an endpoint came"]
    assert came["new route"] in SMALLER_SHARE
    # One for each endpoint that it takes buckets from: the nexthop says who had them, for flows that go on there.
    assert 1 <= came["new nexthop"] <= ENDPOINTS
    assert set(came) <= {"new route", "new nexthop", "other read"}


def test_a_service_with_client_affinity_is_a_member_of_a_set_and_has_nothing_read_again(
    steps: dict[str, Counter[str]],
) -> None:
    came = steps["a Service with client affinity came"]
    assert came["new route"] == BUCKETS + 1
    assert came["add to set"] == 2, "as a VIP, and as one that is hashed by address"
    assert came["new nexthop"] == ENDPOINTS
    assert "dump of routes" not in came
    assert not [name for name in came if name.startswith("del")]
