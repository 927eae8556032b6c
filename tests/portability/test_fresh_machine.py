"""The project's first promise to a contributor: a fresh Debian 12 with git, make and Python needs one command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.portability import fresh

pytestmark = pytest.mark.timeout(1800)  # the machine may have to be set up


@pytest.fixture(scope="module")
def machine() -> Path:
    return fresh.machine()


def test_lint_and_unit_tests_pass_on_a_fresh_debian_12(machine: Path, tmp_path: Path) -> None:
    files, layer = tmp_path / "tree", tmp_path / "layer"
    files.mkdir()
    layer.mkdir()
    command = f"cd {fresh.CLONE} && git init -q && make lint unit"
    code, output = fresh.run(machine, command, tree=fresh.tree(files), layer=layer)
    assert code == 0, output[-6000:]
    tables = re.findall(r"^(lint|unit) +here, kernel \S+ +(\d+) +0 +0 ", output, re.MULTILINE)
    assert [(part, int(passed) > 3) for part, passed in tables] == [("lint", True), ("unit", True)]


def test_a_second_setup_finds_everything_and_a_bare_make_works(machine: Path, tmp_path: Path) -> None:
    files, layer = tmp_path / "tree", tmp_path / "layer"
    files.mkdir()
    layer.mkdir()
    code, output = fresh.run(machine, f"cd {fresh.CLONE} && make setup && make", tree=fresh.tree(files), layer=layer)
    assert code == 0, output
    assert output.startswith("  make help "), "setup has nothing to say"
