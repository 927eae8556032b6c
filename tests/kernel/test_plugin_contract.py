"""The built plugin's verbs from outside, with a helper in every mood: results, errors, records, the log.

What ADD does inside a pod's namespace has tests of its own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fake_helper import NONE, UNKNOWN, FakeHelper
from tests.kernel.plugin_calls import SINCE_0_4, VARIABLES, VERSIONS, Pod, result

# ---- ADD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_add_returns_prevresult_as_it_came(pod: Pod, version: str) -> None:
    with FakeHelper(pod.socket, NONE):
        reply = pod.call("ADD", pod.conf(version)).succeeded()
    assert reply.json == result(version)
    assert list(reply.json) == list(result(version)), "the order of the keys is kept too"


def test_the_answer_has_the_configurations_version(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        reply = pod.call("ADD", pod.conf("1.0.0", prevResult=result("1.1.0"))).succeeded()
    assert reply.json == result("1.1.0") | {"cniVersion": "1.0.0"}


def test_add_without_a_version_speaks_the_first(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        assert pod.call("ADD", pod.conf(cniVersion=..., prevResult={})).succeeded().json == {"cniVersion": "0.1.0"}


@pytest.mark.parametrize("version", VERSIONS)
def test_add_leaves_a_record_and_asks_for_the_pod(pod: Pod, version: str) -> None:
    with FakeHelper(pod.socket, NONE) as helper:
        pod.call("ADD", pod.conf(version)).succeeded()
    (record,) = pod.records()
    assert (record.network, record.container, record.interface) == ("pods", "0123456789abcdef", "eth0")
    assert (record.namespace, record.name, record.uid) == ("shop", "web-1", "u-1")
    assert (record.netns, record.inode) == (pod.netns, Path(pod.netns).stat().st_ino)
    assert (record.ips, record.state) == (("10.9.0.2",), "ready")
    (question,) = helper.questions
    assert question == {
        "v": 1,
        "op": "tunnels",
        "namespace": "shop",
        "name": "web-1",
        "uid": "u-1",
        "container": "0123456789abcdef",
        "interface": "eth0",
        "network": "pods",
        "netns": pod.netns,
        "ips": ["10.9.0.2"],
    }


def test_a_big_result_passes_whole(pod: Pod) -> None:
    big = result("1.0.0") | {"vendor.example/more": ["x" * 1000] * 2000}
    with FakeHelper(pod.socket, NONE):
        assert pod.call("ADD", pod.conf(prevResult=big)).succeeded().json == big


def test_without_a_kubernetes_pod_nobody_is_asked(pod: Pod) -> None:
    with FakeHelper(pod.socket, UNKNOWN) as helper:
        pod.call("ADD", pod.conf(whenHelperIsAway="retry"), environ={"CNI_ARGS": ""}).succeeded()
    assert helper.connections == 0


def test_a_run_dir_that_cannot_be_made_gives_code_5(pod: Pod) -> None:
    (pod.folder / "file").touch()
    assert "runDir" in pod.call("ADD", pod.conf(runDir=str(pod.folder / "file" / "run"))).failed(5)["msg"]


def test_a_log_that_cannot_be_written_fails_nothing(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD", pod.conf(log={"file": "/nowhere/at/all.log"})).succeeded()


def test_the_log_has_one_line_of_json_for_a_call(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD").succeeded()
    (line,) = (pod.folder / "log").read_text().splitlines()
    assert json.loads(line)["pod"] == "shop/web-1"


# ---- a helper that is away, slow, or talks rubbish ------------------------------------------------------------------

TROUBLES = [
    pytest.param(None, id="hangs up"),
    pytest.param(UNKNOWN, id="does not know"),
    pytest.param(b"\0\0\0\x03abc", id="rubbish"),
    pytest.param(b"\xff\xff\xff\xff", id="four gigabytes announced"),
    pytest.param({"v": 1, "answer": "tunnels", "pod": {"tunnels": [{"vips": [1]}]}}, id="wrong types"),
]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_helper_in_trouble_is_asked_until_it_answers(pod: Pod, trouble: Any) -> None:
    with FakeHelper(pod.socket, trouble, trouble, NONE) as helper:
        pod.call("ADD", pod.conf(whenHelperIsAway="retry", helperWait=10)).succeeded()
    assert helper.connections == 3


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_helper_that_stays_in_trouble_gives_code_11_under_retry(pod: Pod, trouble: Any) -> None:
    with FakeHelper(pod.socket, trouble):
        assert "shop/web-1" in pod.call("ADD", pod.conf(whenHelperIsAway="retry")).failed(11)["msg"]
    assert pod.records() == []


def test_a_slow_helper_is_waited_for(pod: Pod) -> None:
    holder: list[FakeHelper] = []

    def slowly(_: dict[str, Any]) -> dict[str, Any]:
        holder[0].wait_closing(0.5)
        return NONE

    with FakeHelper(pod.socket, slowly) as helper:
        holder.append(helper)
        pod.call("ADD", pod.conf(whenHelperIsAway="retry", helperWait=10)).succeeded()


def test_a_silent_helper_is_given_up_after_helper_wait(pod: Pod) -> None:
    holder: list[FakeHelper] = []

    def never(_: dict[str, Any]) -> None:
        holder[0].wait_closing(60)

    with FakeHelper(pod.socket, never) as helper:
        holder.append(helper)
        began = time.monotonic()
        pod.call("ADD", pod.conf(whenHelperIsAway="retry", helperWait=0.5)).failed(11)
        assert 0.5 <= time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("policy", "tunnelled", "namespace", "passes"),
    [
        ("pass", "shop\n", "shop", True),
        ("retry", None, "shop", False),
        ("retry", None, "kube-system", True),
        ("retry-if-tunnelled", None, "shop", True),
        ("retry-if-tunnelled", "other\n", "shop", True),
        ("retry-if-tunnelled", "other\nshop\n", "shop", False),
        ("retry-if-tunnelled", "kube-system\n", "kube-system", True),
    ],
)
def test_policy_and_namespace_decide_about_a_helper_that_is_away(
    pod: Pod, policy: str, tunnelled: str | None, namespace: str, passes: bool
) -> None:
    if tunnelled is not None:
        (pod.folder / "state" / "tunnelled-namespaces").write_text(tunnelled)
    args = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-1"
    reply = pod.call("ADD", pod.conf(whenHelperIsAway=policy), environ={"CNI_ARGS": args})
    if passes:
        assert reply.succeeded().json == result("1.0.0")
        assert [record.state for record in pod.records()] == ["ready"]
    else:
        reply.failed(11)
        assert pod.records() == []


def test_the_default_policy_keeps_only_pods_of_tunnelled_namespaces_waiting(pod: Pod) -> None:
    pod.call("ADD").succeeded()
    (pod.folder / "state" / "tunnelled-namespaces").write_text("shop\n")
    pod.call("ADD").failed(11)


def test_an_exempt_pod_does_not_wait_long(pod: Pod) -> None:
    began = time.monotonic()
    conf = pod.conf(whenHelperIsAway="retry", helperWait=15, exemptNamespaces=["shop"])
    pod.call("ADD", conf).succeeded()
    assert time.monotonic() - began < 5


# ---- DEL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_del_forgets_the_attachment_twice_without_a_word(pod: Pod, version: str) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD", pod.conf(version)).succeeded()
    for _ in range(2):
        assert pod.call("DEL", pod.conf(version)).succeeded().text == b""
        assert pod.records() == []


@pytest.mark.parametrize("path", [None, "", "/run/netns/never-was"], ids=["unset", "empty", "gone"])
@pytest.mark.parametrize("prev_result", [..., {"cniVersion": "1.0.0"}], ids=["no prevResult", "prevResult"])
def test_del_succeeds_without_namespace_and_result(pod: Pod, path: str | None, prev_result: Any) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD").succeeded()
    pod.call("DEL", pod.conf(prevResult=prev_result), environ={"CNI_NETNS": path}).succeeded()
    assert pod.records() == []


def test_del_succeeds_when_the_namespaces_file_is_no_namespace(pod: Pod) -> None:
    (pod.folder / "left-over").touch()
    pod.call("DEL", environ={"CNI_NETNS": str(pod.folder / "left-over")}).succeeded()


@pytest.mark.parametrize("namespace", ["shop", "kube-system"])
def test_del_succeeds_after_an_add_that_failed(pod: Pod, namespace: str) -> None:
    conf = pod.conf(whenHelperIsAway="sometimes", tunnels=5)
    pod.call("ADD", conf).failed(7)
    pod.call("DEL", pod.conf(whenHelperIsAway="sometimes", tunnels=5, prevResult=...)).succeeded()


@pytest.mark.parametrize(
    "changes", [{"runDir": "/proc/nowhere"}, {"runDir": 5}, {"name": ...}, {"log": "x"}, {"prevResult": 5}]
)
def test_del_succeeds_with_a_configuration_that_add_refuses(pod: Pod, changes: dict[str, Any]) -> None:
    changed = pod.conf(**({"log": {"file": str(pod.folder / "log")}} | changes))
    pod.call("DEL", changed, environ={"CNI_NETNS": ""}).succeeded()


# ---- CHECK, GC, STATUS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", SINCE_0_4)
def test_check_is_content_right_after_add(pod: Pod, version: str) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD", pod.conf(version)).succeeded()
    assert pod.call("CHECK", pod.conf(version)).succeeded().text == b""


def test_check_misses_an_attachment_that_was_never_made(pod: Pod) -> None:
    assert "0123456789abcdef" in pod.call("CHECK").failed(102)["msg"]


def test_gc_forgets_what_the_runtime_does_not_list(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        for container in ("kept", "stale"):
            pod.call("ADD", environ={"CNI_CONTAINERID": container}).succeeded()
        pod.call("ADD", pod.conf(name="other"), environ={"CNI_CONTAINERID": "stale"}).succeeded()
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    conf = pod.conf("1.1.0", prevResult=..., **{"cni.dev/valid-attachments": valid})
    assert pod.call("GC", conf, environ=dict.fromkeys(VARIABLES - {"CNI_PATH"})).succeeded().text == b""
    assert [(record.network, record.container) for record in pod.records()] == [("other", "stale"), ("pods", "kept")]


def test_gc_without_a_list_removes_nothing(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD").succeeded()
    pod.call("GC", pod.conf("1.1.0")).succeeded()
    assert len(pod.records()) == 1


def test_status_does_not_depend_on_the_helper(pod: Pod) -> None:
    conf = pod.conf("1.1.0", prevResult=...)
    assert pod.call("STATUS", conf, environ=dict.fromkeys(VARIABLES)).succeeded().text == b""


def test_status_tells_when_no_record_can_be_written(pod: Pod) -> None:
    (pod.folder / "file").touch()
    error = pod.call("STATUS", pod.conf("1.1.0", runDir=str(pod.folder / "file"))).failed(50)
    assert "runDir" in error["msg"]
