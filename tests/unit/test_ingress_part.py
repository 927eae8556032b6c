"""When a node is an ingress node, when it announces VIPs, and how it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from node_helper.ingress_part import EXCLUDED, IngressPart
from node_helper.model import Node
from node_helper.settings import NODE, Settings

SETTINGS = Settings(node="one", drain_time=60.0)
TUNNEL = {"node": "tunnel"}


def node(labels: Mapping[str, str]) -> Node:
    return Node("one", labels, (), ())


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def part(clock: Clock) -> IngressPart:
    return IngressPart(SETTINGS, clock)


def test_a_node_with_the_label_forwards_and_announces(part: IngressPart) -> None:
    played = part.play(node(TUNNEL), drained=False, stands=False)
    assert (played.forwards, played.silent, played.ends_in) == (True, "", None)


def test_without_a_selector_every_node_is_one_even_an_unknown(clock: Clock) -> None:
    played = IngressPart(replace(SETTINGS, ingress_selector=()), clock).play(None, drained=False, stands=False)
    assert played.forwards and not played.silent


def test_without_the_role_no_node_is_one(clock: Clock) -> None:
    settings = replace(SETTINGS, roles=frozenset({NODE}))
    assert not IngressPart(settings, clock).play(node(TUNNEL), drained=False, stands=True).forwards


@pytest.mark.parametrize("drained", [True, False])
def test_a_node_that_is_drained_or_excluded_forwards_in_silence(part: IngressPart, drained: bool) -> None:
    labels = TUNNEL if drained else {**TUNNEL, EXCLUDED: ""}
    played = part.play(node(labels), drained=drained, stands=True)
    assert played.forwards and played.silent and played.ends_in is None


@pytest.mark.parametrize("gone", [True, False])
def test_a_node_that_loses_its_label_or_object_forwards_for_the_drain_time(
    part: IngressPart, clock: Clock, gone: bool
) -> None:
    left = None if gone else node({})
    part.play(node(TUNNEL), drained=False, stands=True)
    assert part.play(left, drained=False, stands=True).ends_in == 60.0
    clock.now += 59
    played = part.play(left, drained=False, stands=True)
    assert played.forwards and played.silent and played.ends_in == 1.0
    clock.now += 1
    assert not part.play(left, drained=False, stands=True).forwards


def test_a_node_that_gets_its_label_back_announces_and_has_all_the_time_again(part: IngressPart, clock: Clock) -> None:
    part.play(node({}), drained=False, stands=True)
    clock.now += 59
    assert not part.play(node(TUNNEL), drained=False, stands=True).silent
    clock.now += 59
    assert part.play(node({}), drained=False, stands=True).ends_in == 60.0


def test_a_node_that_was_none_is_none(part: IngressPart) -> None:
    assert not part.play(node({}), drained=False, stands=False).forwards
