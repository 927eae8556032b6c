"""A helper that gives no answer, in each way in which one can fail to: who decides then, and how long it takes."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from cni_plugin import attachment
from tests.fake_helper import UNKNOWN, FakeHelper, Reply, tunnels
from tests.kernel.private_netns import private_netns
from tests.testbed.cni import plugin_binary

WAIT = 0.4
"""Seconds of helperWait."""
SLACK = 4.0
"""Seconds that a busy machine may add: it starts sixteen at once."""


@contextmanager
def silent(path: Path) -> Iterator[None]:
    """Takes connections, and never says a word."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


@contextmanager
def left_behind(path: Path) -> Iterator[None]:
    """The socket of a helper that has ended."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    yield


WRONG: dict[str, Reply] = {
    "not synced": UNKNOWN,
    "ends during the ask": None,
    "half a frame": b"\0\0\1\0half",
    "half a length": b"\0\0",
    "rubbish": b"\0\0\0\5\xff\xc1abc",
    "too long": b"\x7f\xff\xff\xff",
    "an answer to something else": {"v": 1, "status": {}},
    "a newer protocol": {"v": 2, "answer": "none"},
    "tunnels that are none": {"v": 1, "answer": "tunnels", "pod": {"tunnels": [{}], "sources": []}},
}
"""Replies that are no answer."""
AWAY: dict[str, Callable[[Path], AbstractContextManager[object]]] = {
    "no socket yet": lambda _: nullcontext(),
    "a socket that nobody listens on": left_behind,
    "hangs": silent,
    **{state: lambda path, reply=reply: FakeHelper(path, reply) for state, reply in WRONG.items()},  # type: ignore[misc]
}

POLICIES = {
    # By whenHelperIsAway: which namespaces' pods start without an answer.
    "retry-if-tunnelled": {"untold", "exempt", "exempt-and-tunnelled"},
    "retry": {"exempt", "exempt-and-tunnelled"},
    "pass": {"tunnelled", "untold", "exempt", "exempt-and-tunnelled"},
}
NAMESPACES = ("tunnelled", "untold", "exempt", "exempt-and-tunnelled")
LISTED = "another\ntunnelled\nexempt-and-tunnelled\n"


class Call:
    """One ADD with folders of its own."""

    def __init__(self, folder: Path, netns: str, policy: str, namespace: str, wait: float = WAIT) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "state").mkdir()
        (folder / "state" / "tunnelled-namespaces").write_text(LISTED)
        self.socket = folder / "h.sock"
        self._conf = {
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "service-tunnel",
            "helperSocket": str(self.socket),
            "runDir": str(folder / "run"),
            "stateDir": str(folder / "state"),
            "whenHelperIsAway": policy,
            "helperWait": wait,
            "exemptNamespaces": ["exempt", "exempt-and-tunnelled"],
            "log": {"file": str(folder / "log")},
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
        }
        self._environ = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-1",
        }
        self.pod = f"{namespace}/web-1"

    def add(self) -> None:
        began = time.monotonic()
        done = subprocess.run(
            [plugin_binary()], env=self._environ, input=json.dumps(self._conf).encode(), capture_output=True, timeout=60
        )
        self.seconds = time.monotonic() - began
        self.status = done.returncode
        self.answer = json.loads(done.stdout)
        found, troubles = attachment.read_all(str(self.folder / "run"))
        self.records = [(record.state, record.tunnels.tunnels) for record in found] + troubles


def verdict(call: Call, passes: bool) -> str:
    """What is not as it should be after an ADD whose helper never answered."""
    if not WAIT <= call.seconds <= WAIT + SLACK:
        return f"it took {call.seconds:.2f} s"
    if passes:
        good = call.status == 0 and call.answer["ips"] and call.records == [("ready", ())]
    else:
        good = call.status == 1 and call.answer["code"] == 11 and call.pod in call.answer["msg"] and call.records == []
    return "" if good else f"status {call.status}, {call.answer}, records {call.records}"


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    """No pod here ever gets a tunnel, so one namespace does for all."""
    with private_netns() as path:
        yield path


def test_without_an_answer_policy_and_namespace_decide_after_helper_wait(tmp_path: Path, netns: str) -> None:
    cases = [(state, policy, namespace) for state in AWAY for policy in POLICIES for namespace in NAMESPACES]

    def one(number: int) -> str:
        state, policy, namespace = cases[number]
        call = Call(tmp_path / str(number), netns, policy, namespace)
        with AWAY[state](call.socket):
            call.add()
        said = verdict(call, namespace in POLICIES[policy])
        return said and f"{state}, {policy}, {namespace}: {said}"

    with ThreadPoolExecutor(16) as threads:
        complaints = [said for said in threads.map(one, range(len(cases))) if said]
    assert not complaints, "\n".join(complaints)


def test_a_helper_that_comes_back_within_helper_wait_is_used(tmp_path: Path) -> None:
    """Whatever was wrong before: the first answer counts."""
    for number, (state, reply) in enumerate(WRONG.items()):
        with private_netns() as own:
            call = Call(tmp_path / str(number), own, "retry", "untold", wait=30.0)
            with FakeHelper(call.socket, reply, reply, tunnels("198.51.100.7")):
                call.add()
            # There is no eth0 in this namespace, so the tunnel cannot be had; that it is tried is the point.
            assert call.answer["code"] == 101 and "no interface 'eth0'" in call.answer["details"], state
            assert call.records == []


def test_an_exempt_pod_does_not_wait_for_longer_than_a_second(tmp_path: Path, netns: str) -> None:
    call = Call(tmp_path / "exempt", netns, "retry", "exempt", wait=60.0)
    with silent(call.socket):
        call.add()
    assert call.status == 0 and 1.0 <= call.seconds <= 1.0 + SLACK


def test_a_node_that_never_had_a_helper_lets_pods_pass(tmp_path: Path, netns: str) -> None:
    call = Call(tmp_path / "never", netns, "retry-if-tunnelled", "tunnelled")
    (call.folder / "state" / "tunnelled-namespaces").unlink()
    call.add()
    assert verdict(call, passes=True) == ""
