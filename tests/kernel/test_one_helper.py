"""One helper writes a node's routes: of several that are started one runs, and the others say who it is."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_helper.asks import answers, question
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

RACES = 5
NOBODY = 65534
UNPRIVILEGED = f"""
import os, socket, sys
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
held = socket.socket(socket.AF_UNIX)
held.bind("\\0service-tunnel/ingress")
held.listen()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("node1") as host:
        host.run("mkdir", "/run/manifests")
        yield host


def start(host: Host, number: int, *options: str) -> subprocess.Popen[str]:
    """A helper with a socket and folders of its own, as one that was started by mistake may have."""
    own = f"/run/helper{number}"
    places = ("--socket", f"{own}/helper.sock", "--run-dir", f"{own}/run", "--state-dir", f"{own}/state")
    return host.popen(
        *(sys.executable, "-m", "node_helper.cli", "run", "--manifests", "/run/manifests", "--node", "node1"),
        *(*places, *options),
        env={"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def socket_of(host: Host, number: int) -> Path:
    return host.path(f"/run/helper{number}/helper.sock")


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def end(helper: subprocess.Popen[str]) -> str:
    helper.terminate()
    return helper.communicate(timeout=30)[0]


@pytest.mark.parametrize("race", range(RACES))
def test_of_two_helpers_that_start_at_once_one_runs_and_the_other_names_it(host: Host, race: int) -> None:
    helpers = [start(host, number) for number in (1, 2)]
    wait(lambda: any(helper.poll() is not None for helper in helpers), "one of them gives up")
    loser = next(n for n, helper in enumerate(helpers) if helper.poll() is not None)
    winner = helpers[1 - loser]
    words = helpers[loser].communicate(timeout=30)[0]
    assert helpers[loser].returncode == 1
    named = re.search(r"another helper is running on this node in the role ingress: process (\d+) ", words)
    assert named and int(named[1]) == winner.pid, words
    assert "started" not in words
    wait(lambda: answers(socket_of(host, 2 - loser)), "the other one serves its socket")
    assert winner.poll() is None
    assert "traffic goes on" in end(winner)


def test_a_killed_helper_leaves_the_name_to_the_next(host: Host) -> None:
    for _ in range(3):
        helper = start(host, 1)
        wait(lambda: answers(socket_of(host, 1)), "it serves its socket")
        helper.kill()
        helper.communicate(timeout=30)


def synced(host: Host, number: int) -> bool:
    return answers(socket_of(host, number)) and bool(question(socket_of(host, number), "status")["status"]["synced"])


def test_the_two_roles_may_be_two_processes_and_neither_takes_from_the_other(host: Host) -> None:
    helpers = [start(host, 1, "--roles", "ingress", "--ingress-selector", "")]
    wait(lambda: synced(host, 1), "the ingress helper is ready")
    assert host.path("/run/netns/service-tunnel").exists()
    helpers.append(start(host, 2, "--roles", "node"))
    wait(lambda: synced(host, 2), "the node helper is ready")
    assert host.path("/run/netns/service-tunnel").exists(), "the router is the ingress helper's"
    third = start(host, 3, "--roles", "node")
    assert f"in the role node: process {helpers[1].pid} " in third.communicate(timeout=60)[0]
    for helper in helpers:
        assert "traffic goes on" in end(helper)


def test_a_name_that_another_user_holds_is_told_as_such(host: Host) -> None:
    squatter = host.popen(sys.executable, "-c", UNPRIVILEGED, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert squatter.stdout is not None
        pid = squatter.stdout.readline().strip()
        words = start(host, 1).communicate(timeout=60)[0]
        assert f"process {pid} of uid {NOBODY} holds the name @service-tunnel/ingress" in words
    finally:
        squatter.kill()
        squatter.communicate()
