"""What `status` shows: which endpoint has how many buckets, what is announced, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import __version__, wire
from node_helper.asks import ANSWER_LIMIT
from node_helper.buckets import rebalance
from node_helper.model import Node, ObjectKey, Problem, Snapshot
from node_helper.plan.ingress import plan_ingress
from node_helper.problem_history import ProblemHistory
from node_helper.reconcile import Round
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService
from node_helper.settings import Settings
from node_helper.status import status as status_of
from node_helper.status_text import as_text
from tests.unit.planning import ME, VIPS, endpoint, facts, service, tables

SETTINGS = Settings(node=ME, manifests=Path("/m"), buckets=8)
ENDS = (endpoint("10.244.2.1"), endpoint("10.244.2.2"), endpoint("10.244.2.3", ready=False))
REACH = ("10.244.2.1", "10.244.2.2", "10.244.2.3")


def status(
    settings: Settings, result: Round | None, uptime: float, patterns: Sequence[str] = (), **times: Any
) -> dict[str, Any]:
    """With the problems of the round as they stand."""
    history = ProblemHistory(clock=lambda: 1_800_000_000.0)
    history.note(result.problems if result else ())
    return status_of(settings, result, uptime, history.times(), patterns=patterns, **times)


def one_round(served: TunnelService, reach: tuple[str, ...] = REACH, draining: str = "") -> Round:
    stored, host_facts = tables([served], 8), facts(reach)
    _, host, problems = plan_ingress([served], stored, host_facts, ME, 8, 1, bool(draining))
    return Round(
        Snapshot(), (served,), ServiceIndex([served]), stored, host_facts, host, tuple(problems), True, draining
    )


def test_before_the_first_cycle_it_says_so() -> None:
    found = status(SETTINGS, None, 1.26)
    assert found == {"node": ME, "roles": ["ingress", "node"], "uptime_seconds": 1.3, "buckets": 8, "synced": False} | {
        "version": __version__,
        "last_failure": None,
    }
    assert "not yet synced" in as_text(found)


def test_endpoints_are_shown_with_their_share_of_the_buckets() -> None:
    (found,) = status(SETTINGS, one_round(service(endpoints=ENDS)), 60)["services"]
    assert found["announced"] == found["forwarded"] == list(VIPS)
    shares = [(e["address"], e["usable"], e["buckets"]) for e in found["endpoints"]]
    assert shares == [("10.244.2.1", True, 4), ("10.244.2.2", True, 4), ("10.244.2.3", False, 0)]


def test_buckets_that_moved_lately_are_counted_by_who_had_them_and_who_has_them() -> None:
    served = service(endpoints=ENDS)
    old = rebalance(None, served.uid, ["10.244.2.1"], 8)
    table = rebalance(old, served.uid, served.usable, 8)
    shown = status(SETTINGS, replace(one_round(served), tables={served.key: table}), 60)
    assert shown["services"][0]["moves"] == [["10.244.2.1", "10.244.2.2", 4]]
    assert "\n  4 buckets moved lately from 10.244.2.1 to 10.244.2.2" in as_text(shown)
    at_rest = status(SETTINGS, one_round(served), 60)
    assert at_rest["services"][0]["moves"] == [] and "moved" not in as_text(at_rest)


def test_an_endpoint_that_is_not_reached_from_here_has_no_buckets_here() -> None:
    shown = status(SETTINGS, one_round(service(endpoints=ENDS), REACH[:1]), 60)
    assert [e["buckets"] for e in shown["services"][0]["endpoints"]] == [8, 0, 0]
    assert [p["reason"] for p in shown["problems"]] == ["UnreachableEndpoint"]
    assert "UnreachableEndpoint (Service shop/web, for " in as_text(shown)


def test_a_draining_node_announces_nothing_and_forwards_all() -> None:
    shown = status(SETTINGS, one_round(service(endpoints=ENDS), draining="drained"), 60)
    assert shown["services"][0]["announced"] == []
    assert shown["services"][0]["forwarded"] == list(VIPS)
    assert "draining: forwards, is not announced: drained" in as_text(shown)


def test_a_node_that_is_no_ingress_node_shows_no_buckets() -> None:
    result = replace(one_round(service(endpoints=ENDS)), ingress=False)
    shown = status(SETTINGS, result, 60)
    assert {e["buckets"] for e in shown["services"][0]["endpoints"]} == {0}
    text = as_text(shown)
    assert "the Node lacks the ingress label" in text and "buckets" not in text


def test_problems_are_shown_with_object_and_message() -> None:
    problem = Problem("Service", ObjectKey("shop", "api"), "InvalidVIP", "'x' is no IP address")
    result = replace(one_round(service(endpoints=ENDS)), problems=(problem,))
    assert status(SETTINGS, result, 60)["problems"] == [
        {
            "kind": "Service",
            "object": "shop/api",
            "reason": "InvalidVIP",
            "message": "'x' is no IP address",
            "since": "2027-01-15T08:00:00Z",
            "passed": None,
            "times": 1,
        }
    ]


def test_a_problem_that_has_passed_is_shown_with_its_time() -> None:
    now, history = [1_800_000_000.0], ProblemHistory(clock=lambda: now[0])
    problem = Problem("Service", ObjectKey("shop", "api"), "NoEndpoints", "none is ready")
    for problems in ((problem,), (), (problem,), ()):
        history.note(problems)
        now[0] += 60
    shown = status_of(SETTINGS, one_round(service(endpoints=ENDS)), 60, history.times())
    assert shown["problems"] == []
    (passed,) = shown["passed_problems"]
    assert (passed["since"], passed["passed"], passed["times"]) == ("2027-01-15T08:02:00Z", "2027-01-15T08:03:00Z", 2)
    text = as_text(shown, datetime(2027, 1, 15, 10, 3, 5, tzinfo=UTC))
    assert "NoEndpoints (Service shop/api, until 2 h ago, 2 times): none is ready" in text


def test_the_last_failure_is_shown_with_its_time() -> None:
    failure = ("ENOSPC adding device svctun", 1_800_000_000.0)
    for result in (None, one_round(service(endpoints=ENDS))):
        shown = status(SETTINGS, result, 60, failure=failure)
        assert shown["last_failure"] == {"message": failure[0], "at": "2027-01-15T08:00:00Z"}
        text = as_text(shown, datetime(2027, 1, 15, 8, 0, 59, tzinfo=UTC))
        assert text.endswith("last failure, 59 s ago: ENOSPC adding device svctun")


def test_nodes_are_shown_with_addresses_and_the_ingress_ones_by_name() -> None:
    def node(name: str, address: str, **labels: str) -> Node:
        return Node(name, labels, (ip_address(address),), ())

    nodes = {n.name: n for n in (node("ingress1", "10.1.1.2", node="tunnel"), node("worker1", "10.1.3.2"))}
    result = replace(one_round(service(endpoints=ENDS)), snapshot=Snapshot(nodes=nodes))
    shown = status(SETTINGS, result, 60)
    assert shown["nodes"] == [
        {"name": "ingress1", "addresses": ["10.1.1.2"], "ingress": True},
        {"name": "worker1", "addresses": ["10.1.3.2"], "ingress": False},
    ]
    assert "nodes      2, ingress: ingress1 (10.1.1.2)" in as_text(shown)


def many(number: int) -> Round:
    """A round of so many Services with five endpoints each."""
    ends = tuple(endpoint(f"10.244.2.{n}") for n in range(1, 6))
    result = one_round(service(endpoints=ends), tuple(f"10.244.2.{n}" for n in range(1, 6)))
    one = result.services[0]
    services = tuple(replace(one, key=ObjectKey("shop", f"web-{n:04}")) for n in range(number))
    return replace(result, services=services, tables={s.key: result.tables[one.key] for s in services})


@pytest.mark.parametrize("pattern", ["shop/web-0003", "web-0003", "*-0003"])
def test_a_service_can_be_chosen_by_name(pattern: str) -> None:
    shown = status(SETTINGS, many(20), 60, [pattern])
    assert [one["name"] for one in shown["services"]] == ["shop/web-0003"]
    assert shown["totals"]["services"] == 20
    assert "10.244.2.5" in as_text(shown)


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        (VIPS[0], 5),
        (VIPS[1], 5),
        ("10.244.2.4", 5),
        ("worker*", 5),
        ("pod-10.244.2.1", 5),
        ("198.51.100.8", 0),
        ("w", 0),
    ],
)
def test_a_service_can_be_chosen_by_vip_endpoint_pod_and_node(pattern: str, number: int) -> None:
    shown = status(SETTINGS, many(5), 60, [pattern])
    assert len(shown["services"]) == number
    assert ("no Service of that kind" in as_text(shown)) == (number == 0)


def test_what_is_wrong_with_a_service_comes_along_with_it_alone() -> None:
    problems = tuple(Problem("Service", ObjectKey("shop", f"web-{n:04}"), "InvalidVIP", "no") for n in range(5))
    shown = status(SETTINGS, replace(many(5), problems=problems), 60, ["web-0002"])
    assert [problem["object"] for problem in shown["problems"]] == ["shop/web-0002"]


def test_a_large_node_is_shown_in_a_line_per_service_and_with_all_in_full() -> None:
    problems = tuple(Problem("Service", ObjectKey("shop", f"web-{n:04}"), "InvalidVIP", "no") for n in range(500))
    shown = status(SETTINGS, replace(many(2000), problems=problems), 60)
    lines = as_text(shown).splitlines()
    assert len(lines) < 2050
    assert f"shop/web-0003  {','.join(VIPS)}  vxlan-gpe  5 of 5  announced" in lines
    assert "  and 480 more, with `--all`: 480 InvalidVIP" in lines
    assert len(as_text(shown, all_of_it=True).splitlines()) > 2000 * 7 + 500


def test_the_status_of_2000_services_with_5_endpoints_each_fits_into_an_answer() -> None:
    frame = wire.frame({"status": status(SETTINGS, many(2000), 60)}, ANSWER_LIMIT)
    assert wire.MESSAGE_LIMIT < len(frame) < ANSWER_LIMIT / 100


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_span_of_time_is_told_in_two_units(seconds: float, says: str) -> None:
    assert f", up {says}\n" in as_text(status(SETTINGS, None, seconds))
