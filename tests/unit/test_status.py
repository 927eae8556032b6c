"""What `status` shows: which endpoint has how many buckets, what is announced, what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from node_helper.model import ObjectKey, Problem, Snapshot
from node_helper.plan.ingress import plan_ingress
from node_helper.reconcile import Round
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService
from node_helper.settings import Settings
from node_helper.status import as_text, status
from tests.unit.planning import ME, VIPS, endpoint, facts, service, tables

SETTINGS = Settings(node=ME, manifests=Path("/m"), buckets=8)
ENDS = (endpoint("10.244.2.1"), endpoint("10.244.2.2"), endpoint("10.244.2.3", ready=False))
REACH = ("10.244.2.1", "10.244.2.2", "10.244.2.3")


def one_round(served: TunnelService, reach: tuple[str, ...] = REACH, draining: bool = False) -> Round:
    stored, host_facts = tables([served], 8), facts(reach)
    _, host, problems = plan_ingress([served], stored, host_facts, ME, 8, 1, draining)
    return Round(
        Snapshot(), (served,), ServiceIndex([served]), stored, host_facts, host, tuple(problems), True, draining
    )


def test_before_the_first_cycle_it_says_so() -> None:
    found = status(SETTINGS, None, 1.26)
    assert found == {"node": ME, "roles": ["ingress", "node"], "uptime_seconds": 1.3, "buckets": 8, "synced": False}
    assert "not yet synced" in as_text(found)


def test_endpoints_are_shown_with_their_share_of_the_buckets() -> None:
    (found,) = status(SETTINGS, one_round(service(endpoints=ENDS)), 60)["services"]
    assert found["announced"] == found["forwarded"] == list(VIPS)
    shares = [(e["address"], e["usable"], e["buckets"]) for e in found["endpoints"]]
    assert shares == [("10.244.2.1", True, 4), ("10.244.2.2", True, 4), ("10.244.2.3", False, 0)]


def test_an_endpoint_that_is_not_reached_from_here_has_no_buckets_here() -> None:
    shown = status(SETTINGS, one_round(service(endpoints=ENDS), REACH[:1]), 60)
    assert [e["buckets"] for e in shown["services"][0]["endpoints"]] == [8, 0, 0]
    assert [p["reason"] for p in shown["problems"]] == ["UnreachableEndpoint"]
    assert "UnreachableEndpoint (Service shop/web)" in as_text(shown)


def test_a_draining_node_announces_nothing_and_forwards_all() -> None:
    shown = status(SETTINGS, one_round(service(endpoints=ENDS), draining=True), 60)
    assert shown["services"][0]["announced"] == []
    assert shown["services"][0]["forwarded"] == list(VIPS)
    assert "draining: forwards, is not announced" in as_text(shown)


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
        {"kind": "Service", "object": "shop/api", "reason": "InvalidVIP", "message": "'x' is no IP address"}
    ]
