"""`make bench` still runs and says what its contract says; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.bench.memory_peak import KINDS
from tests.bench.registry import names
from tests.testbed.namespaces import REPOSITORY

pytestmark = pytest.mark.timeout(600)
BUILD = REPOSITORY / "build"
QUICK = ("plugin*", "routes-nhid", "convergence-p50")
"""Of each kind one; the others take minutes, whatever the number of runs."""
TYPES = {"name": str, "value": float, "unit": str, "peer": str, "low": float, "high": float, "runs": int}


def leftovers() -> set[Path]:
    groups = {path for top in KINDS for path in Path(top).glob("service-tunnel-bench-*")}
    return {*BUILD.glob("bench-*"), *groups}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    before = leftovers()
    command = [sys.executable, "-m", "tests.bench", "--runs", "2", "--output", str(output), *QUICK]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert leftovers() <= before
    written: list[dict[str, Any]] = json.loads(output.read_text())
    return written


def test_what_is_asked_for_is_measured(figures: list[dict[str, Any]]) -> None:
    assert [figure["name"] for figure in figures] == [n for n in names() if any(fnmatchcase(n, q) for q in QUICK)]


def test_every_figure_has_what_the_contract_says(figures: list[dict[str, Any]]) -> None:
    for figure in figures:
        assert figure.keys() == {*TYPES, "ratio"}
        assert all(isinstance(figure[key], kind) for key, kind in TYPES.items()), figure
        assert figure["value"] > 0
        assert figure["runs"] >= 2


def test_a_figure_with_a_peer_has_a_ratio_within_its_spread(figures: list[dict[str, Any]]) -> None:
    with_peer = [figure for figure in figures if figure["peer"]]
    assert with_peer
    assert not [figure for figure in with_peer if not 0 < figure["low"] <= figure["ratio"] <= figure["high"]]
    assert not [figure for figure in figures if not figure["peer"] and figure["ratio"] is not None]


def test_a_name_that_is_none_is_an_error_of_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "hover"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no benchmark 'hover'" in done.stderr
