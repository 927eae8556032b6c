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

from tests.kernel.test_testbed import wait_for
from tests.testbed.namespaces import REPOSITORY
from tests.testbed.scene import VIPS

LIMIT = 900.0
"""Seconds; an emulated machine needs most of it."""
HANGS = 240
"""Seconds by its own account that say that something in it hung: on two busy processors it takes 30."""
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
    verdict = re.search(r"all \d+ findings are as they should be; (\d+) s$", output.strip())
    assert verdict, output
    assert int(verdict[1]) < HANGS, "it is promised to take less than a minute where nothing else runs"
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


def tried(command: str) -> str:
    """What a command says that the demo has named."""
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.timeout(LIMIT)
def test_a_kept_demo_can_be_explored_until_it_is_taken_down(demo: Demo) -> None:
    status, output = demo.run("--keep", "--brief")
    assert status == 0, output
    commands = re.findall(r"^    ((?:build/|ip |sed |tail ).*)$", output, re.MULTILINE)
    told = [(command, tried(command)) for command in commands]
    assert all(said.strip() for command, said in told if not command.startswith("sed ")), told

    def said(part: str) -> str:
        """What the first command with this in it said."""
        return next(said for command, said in told if part in command)

    assert "default/web " in said("service-tunnel-helper status")
    traced = re.search(r"\(pod default/(web-\d)\)", said("service-tunnel-helper trace"))
    assert traced, "the pod of a flow"
    assert f"{traced[1]} answers" in said(f"ask {VIPS[4]} --source-port 40000"), "and it does answer this flow"
    assert "encap ip" in said("ip netns exec service-tunnel ip nexthop")
    assert said(f"ip netns exec {NAME}-router ip route show {VIPS[4]}").count("nexthop via") == 2
    assert f"{VIPS[4]}/32" in said(" ip addr") and f"{VIPS[4]} via" in said("ip route show proto 116")
    status_command = next(command for command in commands if command.endswith("service-tunnel-helper status"))
    wait_for(lambda: "default/web" not in tried(status_command), "the Service's end, whose annotation was taken away")

    status, output = demo.run("--keep")
    assert status == 2
    assert "kept already" in output

    status, output = demo.run("--down")
    assert status == 0
    assert output.startswith("taken down: client, router"), output
    assert demo.left() == []
    assert demo.run("--down") == (0, "no demo is kept: nothing to take down\n")


def run_changed(change: str, *arguments: str, where: str = "--here") -> subprocess.CompletedProcess[str]:
    """The demo in a process in which the code `change` was run before; `where` may be nothing."""
    code = f"import runpy\n{change}\nrunpy.run_module('tests.demo', run_name='__main__', alter_sys=True)"
    return subprocess.run(
        [sys.executable, "-c", code, *filter(None, [where]), "--brief", *arguments],
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


WITHOUT_TELEPORT = "from tests import kernel_features; kernel_features.TRIALS['teleport'] = 'false'"


def test_a_kernel_that_lacks_something_is_named() -> None:
    done = run_changed(WITHOUT_TELEPORT)
    assert done.returncode == 2
    assert re.match(r"demo: kernel \S+ lacks teleport$", done.stderr.strip()), done.stderr


def test_where_the_kernel_lacks_something_the_same_demo_is_handed_over_to_the_virtual_machine() -> None:
    """tests/vm shows that it arrives there; here it is only told which program would begin."""
    noting = "import os, sys; os.execv = lambda program, argv: sys.exit(print('instead:', *argv[1:]))"
    done = run_changed(f"{WITHOUT_TELEPORT}\n{noting}", where="")
    assert (done.returncode, done.stderr) == (0, "")
    lacks, where, command = done.stdout.splitlines()
    assert re.fullmatch(r"kernel \S+ lacks teleport: the demo runs in a virtual machine instead", lacks)
    assert "Debian's stock kernel" in where
    assert re.fullmatch(
        r"instead: -m tests\.vm .* -- env TEST_PATIENCE=\d+ python -m tests\.demo --here --brief", command
    )


def test_what_would_end_with_the_virtual_machine_cannot_be_kept() -> None:
    done = run_changed(WITHOUT_TELEPORT, "--keep", where="")
    assert done.returncode == 2
    assert "lacks teleport: the demo runs in a virtual machine" in done.stdout
    assert "nothing that --keep could leave" in done.stderr


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
