"""When the end of an ingress node's helper waits, by what its status says."""

from __future__ import annotations

from typing import Any

import pytest

from node_helper.keeper import wait_until_left


def status(ingress: bool, labelled: bool, synced: bool = True) -> dict[str, Any]:
    nodes = [{"name": "n1", "ingress": labelled}, {"name": "other", "ingress": True}]
    return {"node": "n1", "synced": synced} | ({"ingress": ingress, "nodes": nodes} if synced else {})


STAYS, LEAVING, LEFT = status(True, True), status(True, False), status(False, False)


@pytest.mark.parametrize(
    ("told", "patience", "words", "asked"),
    [
        ([STAYS] * 3, 99, "stays", 3),
        ([STAYS, STAYS, LEAVING, LEAVING, LEFT], 99, "is no ingress node", 5),
        ([LEAVING] * 9, 4, "still leaving", 4),
        ([LEFT], 99, "is no ingress node", 1),
        ([status(True, True, synced=False)], 99, "is no ingress node", 1),
    ],
)
def test_the_end_waits_for_a_node_that_leaves_and_for_no_other(
    told: list[dict[str, Any]], patience: int, words: str, asked: int
) -> None:
    answers = iter(told)
    looks = 0

    def ask() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return next(answers)

    assert words in wait_until_left(ask, lambda: looks < patience, looks=3) and looks == asked
