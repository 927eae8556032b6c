"""The virtual machine's own promises: exit codes, output, limits, nothing left behind, and a kernel with everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel_features import TRIALS
from tests.vm.image import PROJECT, ensure

pytestmark = pytest.mark.timeout(900)  # the image may have to be built; a start that hangs is repeated, up to twice


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.vm", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments: str) -> tuple[int, str]:
    machine = start(*arguments)
    output, _ = machine.communicate()
    return machine.returncode, output


def processes_of(label: str) -> list[str]:
    """Command lines that name a run: the supervisor's, its inner part's and QEMU's do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended while we looked
            continue
        if label in line:
            found.append(line)
    return found


def assert_nothing_is_left_of(label: str) -> None:
    deadline = time.monotonic() + 10
    while processes_of(label) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(label) == []
    assert "kube-service-tunnel/vm" not in Path("/proc/mounts").read_text()


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """The image is there before the first machine starts, so that what a machine says is its command's alone."""
    ensure()


@pytest.fixture
def label() -> Iterator[str]:
    name = f"self-test-{uuid.uuid4().hex[:8]}"
    yield name
    for folder in (PROJECT / "build" / "vm").glob(f"{name}-*"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_the_command_s_output_and_exit_code_arrive_and_nothing_is_left(label: str) -> None:
    code, output = run("--label", label, "--limit", "120", "--", "bash", "-c", "echo 'its  output'; id -u; pwd; exit 7")
    assert (code, output.splitlines()) == (7, ["its  output", "0", "/project"])
    assert_nothing_is_left_of(label)


def test_what_is_written_in_the_checkout_stays_and_what_is_written_elsewhere_does_not(label: str) -> None:
    name = f"build/vm/{label}.txt"
    code, output = run("--label", label, "--limit", "120", "--", "bash", "-c", f"date >{name} && date >/etc/{label}")
    kept = PROJECT / name
    assert (code, kept.exists()) == (0, True), output
    kept.unlink()
    code, output = run("--label", label, "--limit", "120", "--", "ls", f"/etc/{label}")
    assert code == 2, output


def test_its_kernel_has_every_feature_and_its_python_every_pin(label: str) -> None:
    program = "import tests.kernel_features as k; print(k.lacking()); import pytest, yaml, click, msgpack, structlog"
    code, output = run("--label", label, "--limit", "120", "--", "python", "-c", program)
    assert (code, output.strip()) == (0, "()"), f"of {list(TRIALS)} it lacks {output}"


def test_the_limit_ends_a_command_that_does_not_end(label: str) -> None:
    began = time.monotonic()
    code, output = run("--label", label, "--limit", "15", "--", "sleep", "1000")
    assert code == 124
    assert "stopped at its limit of 15 s" in output
    assert time.monotonic() - began < 40
    assert_nothing_is_left_of(label)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_everything(label: str, number: signal.Signals) -> None:
    machine = start("--label", label, "--limit", "120", "--", "bash", "-c", "echo ready; sleep 1000")
    assert machine.stdout is not None
    assert machine.stdout.readline() == "ready\n"
    assert len(processes_of(label)) >= 3
    os.kill(machine.pid, number)
    assert machine.wait(10) != 0
    machine.stdout.close()
    assert_nothing_is_left_of(label)


def test_a_machine_that_goes_down_by_itself_is_a_failure_with_its_last_words(label: str) -> None:
    code, output = run("--label", label, "--limit", "120", "--", "bash", "-c", "echo c >/proc/sysrq-trigger")
    assert code == 125
    assert "went down before the command had ended" in output
    assert "sysrq triggered crash" in output
