"""The demo as a user runs it: a process with an exit status, which leaves nothing unless told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.testbed.namespaces import REPOSITORY

LIMIT = 900.0
"""Seconds; an emulated machine needs most of it."""
NAME = "demotest"
"""What these tests keep is not what somebody may be looking at."""


def _with_a_terminals_signals() -> None:
    """These tests may themselves run in the background, where Ctrl-C and hanging up are ignored, and inherited so."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Demo:
    """A demo as a process, with marks by which everything that it starts or writes is found."""

    folder: Path
    mark: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.demo", "--here", "--name", NAME, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "DEMO_MARK": self.mark, "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_with_a_terminals_signals,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output

    def left(self) -> list[str]:
        """Processes, files and names of namespaces that are there of it."""
        mark = f"DEMO_MARK={self.mark}".encode()
        found = [str(path) for path in self.folder.iterdir()]
        found += [str(path) for path in Path("/run/netns").glob(f"{NAME}-*")]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append((entry / "cmdline").read_text().replace("\0", " "))
                except OSError:
                    continue
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, uuid.uuid4().hex)
    yield demo
    demo.run("--down")
    assert demo.left() == []


@pytest.mark.timeout(LIMIT)
def test_the_demo_is_as_expected_and_leaves_nothing(demo: Demo) -> None:
    status, output = demo.run()
    assert status == 0, output
    assert demo.left() == []
    assert re.search(r"all \d+ findings are as they should be; \d+ s$", output.strip()), output
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("building client", signal.SIGTERM),
        ("starting service-tunnel-helper", signal.SIGINT),
        ("holding", signal.SIGINT),
    ],
    ids=["SIGTERM while building", "Ctrl-C while helpers start", "Ctrl-C while connections are held"],
)
def test_an_interrupted_demo_leaves_nothing(demo: Demo, moment: str, number: signal.Signals) -> None:
    process = demo.start()
    assert process.stdout is not None
    output = ""
    while moment not in output:
        line = process.stdout.readline()
        assert line, f"ended before {moment!r}:\n{output}"
        output += line
    # As a terminal does it: to the whole process group, twice by an impatient user.
    os.killpg(process.pid, number)
    output += process.stdout.readline()
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number, output + rest
    assert "Traceback" not in output + rest
    assert demo.left() == []


@pytest.mark.timeout(LIMIT)
def test_a_demo_whose_reader_goes_away_ends_and_leaves_nothing(demo: Demo) -> None:
    process = demo.start()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT) == 128 + signal.SIGHUP
    assert demo.left() == []


@pytest.mark.timeout(LIMIT)
def test_a_kept_demo_can_be_explored_until_it_is_taken_down(demo: Demo) -> None:
    status, output = demo.run("--keep", "--brief")
    assert status == 0, output
    commands = re.findall(r"^    (build/.*|ip netns .*)$", output, re.MULTILINE)
    assert len(commands) >= 8, output
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command

    status, output = demo.run("--keep")
    assert status == 2
    assert "kept already" in output

    status, output = demo.run("--down")
    assert status == 0
    assert output.startswith("taken down: client, router"), output
    assert demo.left() == []
    assert demo.run("--down") == (0, "no demo is kept: nothing to take down\n")


def run_changed(change: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo in a process in which the code `change` was run before."""
    code = f"import runpy\n{change}\nrunpy.run_module('tests.demo', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", code, "--here", "--brief", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.mark.timeout(LIMIT)
def test_a_finding_that_is_not_as_it_should_be_is_the_exit_status() -> None:
    done = run_changed("from tests.demo import story; story.announced_routes = lambda host: 1")
    assert done.returncode == 1
    assert re.search(r"VIP routes to announce, protocol 116 .* 1 and 1 +NOT$", done.stdout, re.MULTILINE), done.stdout
    assert "1 of 4 findings are not as they should be" in done.stdout


@pytest.mark.timeout(LIMIT)
def test_an_act_that_cannot_go_on_is_told_without_a_stack_trace() -> None:
    failing = (
        "from tests.testbed import traffic, namespaces\n"
        "def serve(pod, *ports): raise namespaces.TestbedError('no server today')\n"
        "traffic.serve = serve"
    )
    done = run_changed(failing)
    assert done.returncode == 1
    assert re.search(r"this act +goes to its end +no server today +NOT$", done.stdout, re.MULTILINE), done.stdout
    assert "the demo did not come to its end" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_user_who_is_not_root_is_told_so() -> None:
    done = run_changed("import os; os.geteuid = lambda: 1000")
    assert done.returncode == 2
    assert done.stderr.startswith("demo: it makes network namespaces, so it needs root"), done.stderr


def test_a_kernel_that_lacks_something_is_named() -> None:
    done = run_changed("from tests import kernel_features; kernel_features.TRIALS['teleport'] = 'false'")
    assert done.returncode == 2
    assert re.match(r"demo: kernel \S+ lacks teleport$", done.stderr.strip()), done.stderr


def test_a_kept_process_that_is_not_ours_any_more_is_let_live(demo: Demo) -> None:
    state = REPOSITORY / "build" / f"{NAME}.json"
    state.parent.mkdir(exist_ok=True)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        host = f'{{"name": "client", "pid": {stranger.pid}, "started": "another boot 1"}}'
        state.write_text(f'{{"scratch": "{demo.folder}", "hosts": [{host}]}}')
        assert demo.run("--down") == (0, "no demo is kept: nothing to take down\n")
        assert stranger.poll() is None
        assert not state.exists()
    finally:
        stranger.kill()
        stranger.wait()
