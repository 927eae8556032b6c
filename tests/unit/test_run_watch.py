"""The rules of the test run itself, from tests/conftest.py, seen on small suites of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugin.tunnel import MODES
from tests.vm.image import PROJECT


def run_suite(folder: Path, source: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_suite.py").write_text(source)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", *arguments]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    variables = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=["alone", "with xdist"])
def test_a_skip_that_nobody_allowed_fails_the_run(tmp_path: Path, arguments: list[str]) -> None:
    ran = run_suite(
        tmp_path, "import pytest\ndef test_one(): pytest.skip('no time')\ndef test_two(): pass\n", *arguments
    )
    assert ran.returncode == 1, ran.stdout
    assert "nobody allowed it" in ran.stdout
    assert "test_one: no time" in ran.stdout


def test_a_module_that_skips_itself_fails_the_run(tmp_path: Path) -> None:
    ran = run_suite(tmp_path, "import pytest\npytest.importorskip('absent_library')\n")
    assert ran.returncode == 1, ran.stdout


def test_a_run_without_skips_passes(tmp_path: Path) -> None:
    assert run_suite(tmp_path, "def test_one(): pass\n").returncode == 0


def test_a_test_that_takes_a_mode_runs_once_per_tunnel_mode(tmp_path: Path) -> None:
    ran = run_suite(tmp_path, "def test_one(mode): pass\n", "--collect-only", "-q")
    assert {
        "test_suite.py::test_one[vxlan-gpe]",
        "test_suite.py::test_one[gre]",
        "test_suite.py::test_one[mpls]",
    } <= set(ran.stdout.splitlines())


LACKING = """
from pathlib import Path
from tests import conftest
conftest.KERNEL_TESTS = Path(__file__).parent
conftest.lacking_modes = lambda: ("gre", "mpls")
def test_one(mode): pass
def test_two(): pass
"""
"""A suite of kernel tests where the kernel has not every mode."""


def test_modes_that_the_kernel_lacks_are_left_out_and_named(tmp_path: Path) -> None:
    ran = run_suite(tmp_path, LACKING, "--collect-only", "-v")
    assert "<Function test_one[vxlan-gpe]>" in ran.stdout and "<Function test_two>" in ran.stdout
    assert "test_one[gre]" not in ran.stdout and "test_one[mpls]" not in ran.stdout
    assert re.search(r"^gre, mpls: not in this kernel \(.*\); 2 tests run in the VM instead$", ran.stdout, re.MULTILINE)


def test_where_every_mode_must_be_no_test_is_left_out(tmp_path: Path) -> None:
    """In the virtual machine a wrong look at the kernel must not make two of three modes pass unseen."""
    ran = run_suite(tmp_path, LACKING, "--collect-only", "-v", TEST_EVERY_MODE="1")
    assert {f"<Function test_one[{mode}]>" in ran.stdout for mode in MODES} == {True}
    assert "not in this kernel" not in ran.stdout
