"""The verbs with a pod side that only remembers: order of the steps, and who decides when.

The pod side here is a fake that holds which pods have what; the real one is tested in tests/kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from cni_plugin import attachment, verbs
from cni_plugin.errors import CniError, ConfigInvalid, EnvironmentInvalid, Missing, PodSideFailed, TryLater
from tests.fake_helper import NONE, FakeHelper
from tests.unit.fake_node import RESULT, WANTED, FakePodSide, Node


def test_add_returns_the_result_as_it_came(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    assert json.loads(verbs.add(node.invocation(), node.conf())) == RESULT


def test_add_tells_the_helper_all_that_names_the_pod(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    assert helper.questions == [
        {
            "v": 1,
            "op": "tunnels",
            "namespace": "shop",
            "name": "web-1",
            "uid": "u-1",
            "container": "c1",
            "interface": "eth0",
            "network": "pods",
            "netns": str(node.netns),
            "ips": ["10.0.0.2"],
        }
    ]


def test_add_configures_the_pod_and_leaves_a_ready_record(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    during: list[attachment.Attachment] = []
    pod_side.watch = lambda: during.extend(node.records())
    verbs.add(node.invocation(), node.conf())
    assert pod_side.pods == {str(node.netns): WANTED}
    (record,) = node.records()
    assert during == [record.replace(state=attachment.ADDING)], "it says what the pod is about to get"
    assert (record.state, record.tunnels, record.standalone) == (attachment.READY, WANTED, False)
    assert (record.namespace, record.name, record.uid, record.ips) == ("shop", "web-1", "u-1", ("10.0.0.2",))
    assert record.inode == node.netns.stat().st_ino


def test_the_namespace_that_was_looked_at_is_the_one_that_is_meant(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    """Its path may be another pod's by the time the helper has answered."""
    verbs.add(node.invocation(), node.conf())
    assert pod_side.inode == node.netns.stat().st_ino
    pod_side.inode = 0
    verbs.delete(node.invocation("DEL"), node.conf())
    assert pod_side.inode == node.netns.stat().st_ino


def test_what_a_pod_cannot_have_is_logged_as_a_warning(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    pod_side.warnings = ["VIP 2001:db8::7 is left out"]
    verbs.add(node.invocation(), node.conf())
    assert [line["level"] for line in node.log()] == ["warning", "info"]
    assert node.log()[0]["warnings"] == pod_side.warnings


def test_the_record_is_there_before_the_helper_is_asked(node: Node) -> None:
    seen: list[str] = []

    def look(_: dict[str, Any]) -> dict[str, Any]:
        seen.extend(record.state for record in node.records())
        return NONE

    with FakeHelper(node.socket, look):
        verbs.add(node.invocation(), node.conf())
    assert seen == [attachment.ADDING]
    assert [record.state for record in node.records()] == [attachment.READY]


def test_a_pod_without_tunnels_does_not_reach_the_pod_side(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cni_plugin.pod", None)
    with FakeHelper(node.socket, NONE):
        verbs.add(node.invocation(), node.conf())


def test_a_refusal_of_the_pod_side_is_code_101_with_its_details(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    pod_side.failure = FakePodSide.PodError("EPERM adding 198.51.100.7/32 to lo", "is the plugin root?")
    with pytest.raises(PodSideFailed) as caught:
        verbs.add(node.invocation(), node.conf())
    assert (caught.value.code, caught.value.details) == (101, "is the plugin root?")
    assert "EPERM adding" in caught.value.msg


def test_without_prevresult_add_changes_nothing(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    with pytest.raises(ConfigInvalid, match="prevResult"):
        verbs.add(node.invocation(), node.conf(prev_result=None))
    assert not node.run_dir.exists()
    assert helper.connections == 0


def test_a_namespace_that_is_not_there_is_refused_before_anything_is_changed(node: Node) -> None:
    with pytest.raises(EnvironmentInvalid, match="CNI_NETNS"):
        verbs.add(node.invocation(netns="/nowhere"), node.conf())
    assert not node.run_dir.exists()


def test_the_hosts_own_namespace_is_never_configured(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    with pytest.raises(EnvironmentInvalid, match="hostNetwork"):
        verbs.add(node.invocation(netns="/proc/self/ns/net"), node.conf())
    assert pod_side.pods == {}
    assert node.records() == []


# ---- standalone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{"tunnels": ({"vips": ["198.51.100.7"]},)}, {"pod_annotations": {"cmd.nu/tunnel": "198.51.100.7"}}],
    ids=["chain entry", "annotation"],
)
@pytest.mark.parametrize("namespace", ["shop", ""])
def test_standalone_tunnels_need_no_helper(
    node: Node, pod_side: FakePodSide, how: dict[str, Any], namespace: str
) -> None:
    verbs.add(node.invocation(namespace=namespace), node.conf(**how, when_helper_is_away="retry"))
    assert pod_side.pods == {str(node.netns): WANTED}
    (record,) = node.records()
    assert record.standalone


def test_a_chain_entry_with_tunnels_is_standalone_beside_a_helper(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    conf = node.conf(tunnels=({"vips": ["203.0.113.9"]},), pod_annotations={"cmd.nu/tunnel": "203.0.113.10"})
    verbs.add(node.invocation(), conf)
    assert helper.connections == 0
    assert [tunnel.vips for tunnel in pod_side.pods[str(node.netns)].tunnels] == [("203.0.113.9",), ("203.0.113.10",)]


ANNOTATED = {"pod_annotations": {"cmd.nu/tunnel": "203.0.113.9"}}


def test_where_a_helper_answers_a_pods_own_annotation_takes_no_address(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    verbs.add(node.invocation(), node.conf(**ANNOTATED))
    assert helper.connections == 1
    assert pod_side.pods == {str(node.netns): WANTED}
    assert [record.standalone for record in node.records()] == [False]
    assert "cmd.nu/tunnel" in str(node.log()[0]["warnings"])


@pytest.mark.parametrize("sign", ["state/tunnelled-namespaces", "h.sock"])
def test_a_pods_own_annotation_takes_no_address_while_the_nodes_helper_is_away(
    node: Node, pod_side: FakePodSide, sign: str
) -> None:
    (node.path / sign).touch()
    verbs.add(node.invocation(), node.conf(**ANNOTATED))
    assert pod_side.pods == {}
    with pytest.raises(TryLater):
        verbs.add(node.invocation(), node.conf(**ANNOTATED, when_helper_is_away="retry"))


def test_a_pod_of_no_kubernetes_has_its_annotation_beside_a_helper(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    verbs.add(node.invocation(namespace=""), node.conf(**ANNOTATED))
    assert helper.connections == 0
    assert [record.standalone for record in node.records()] == [True]


def test_other_annotations_do_not_keep_the_helper_from_being_asked(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    verbs.add(node.invocation(), node.conf(pod_annotations={"example.com/x": "y"}))
    assert helper.connections == 1


def test_without_kubernetes_nobody_is_asked(node: Node, helper: FakeHelper) -> None:
    verbs.add(node.invocation(namespace=""), node.conf(when_helper_is_away="retry"))
    assert helper.connections == 0
    assert [record.state for record in node.records()] == [attachment.READY]


# ---- a helper that is away -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "listed", "namespace", "passes"),
    [
        ("pass", "shop\n", "shop", True),
        ("retry", None, "shop", False),
        ("retry", None, "kube-system", True),
        ("retry-if-tunnelled", None, "shop", True),
        ("retry-if-tunnelled", "", "shop", True),
        ("retry-if-tunnelled", "other\nshop2\n", "shop", True),
        ("retry-if-tunnelled", "other\nshop\n", "shop", False),
        ("retry-if-tunnelled", "kube-system\n", "kube-system", True),
    ],
)
def test_the_policy_and_the_namespace_decide_when_the_helper_is_away(
    node: Node, policy: str, listed: str | None, namespace: str, passes: bool
) -> None:
    if listed is not None:
        (node.path / "state" / "tunnelled-namespaces").write_text(listed)
    conf = node.conf(when_helper_is_away=policy)
    if passes:
        assert json.loads(verbs.add(node.invocation(namespace=namespace), conf)) == RESULT
        assert [record.state for record in node.records()] == [attachment.READY]
        assert any(line["level"] == "warning" for line in node.log())
    else:
        with pytest.raises(TryLater, match="shop/web-1") as caught:
            verbs.add(node.invocation(namespace=namespace), conf)
        assert caught.value.code == 11
        assert node.records() == []


# ---- CHECK, STATUS ----------------------------------------------------------------------------------------------


def test_check_is_content_after_add(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    assert verbs.check(node.invocation("CHECK"), node.conf()) == ""


def test_check_names_what_the_pod_lacks(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    pod_side.absent = ["198.51.100.7 is not on lo", "device svctun-gpe is missing"]
    with pytest.raises(Missing, match=r"198\.51\.100\.7 is not on lo; device svctun-gpe is missing") as caught:
        verbs.check(node.invocation("CHECK"), node.conf())
    assert caught.value.code >= 100


def test_check_says_when_the_record_is_of_another_namespace(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    verbs.add(node.invocation(), node.conf())
    (record,) = node.records()
    attachment.write(str(node.run_dir), record.replace(inode=1))
    with pytest.raises(Missing, match="another network namespace"):
        verbs.check(node.invocation("CHECK"), node.conf())


def test_check_misses_the_record(node: Node) -> None:
    with pytest.raises(Missing, match=r"no attachment record.*eth0.*c1"):
        verbs.check(node.invocation("CHECK"), node.conf())


def test_check_says_when_the_record_is_damaged(node: Node) -> None:
    attachment.ensure_directory(str(node.run_dir))
    (node.run_dir / "attachments" / "pods:c1:eth0").write_bytes(b"rubbish")
    with pytest.raises(Missing, match="damaged"):
        verbs.check(node.invocation("CHECK"), node.conf())


def test_check_needs_the_result_of_add(node: Node) -> None:
    with pytest.raises(ConfigInvalid, match="prevResult"):
        verbs.check(node.invocation("CHECK"), node.conf(prev_result=None))


def test_check_reports_a_pod_it_cannot_look_into(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    pod_side.failure = FakePodSide.PodError("cannot look into the pod", "EPERM")
    with pytest.raises(PodSideFailed) as caught:
        verbs.check(node.invocation("CHECK"), node.conf())
    assert caught.value.details == "EPERM"


def test_status_is_unavailable_where_no_record_can_be_written(node: Node) -> None:
    with pytest.raises(CniError, match=str(node.netns)) as caught:
        verbs.status(node.invocation("STATUS"), node.conf(run_dir=f"{node.netns}/run"))
    assert caught.value.code == 50


# ---- the log ----------------------------------------------------------------------------------------------------


def test_each_verb_has_its_line_with_pod_container_outcome_and_duration(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    conf = node.conf(log_level="debug")
    verbs.add(node.invocation(), conf)
    verbs.check(node.invocation("CHECK"), conf)
    verbs.delete(node.invocation("DEL"), conf)
    verbs.collect_garbage(node.invocation("GC"), conf.replace(valid_attachments=()))
    verbs.status(node.invocation("STATUS"), conf)
    assert [line["command"] for line in node.log()] == ["ADD", "CHECK", "DEL", "GC", "STATUS"]
    for line in node.log():
        assert (line["pod"], line["container"], line["interface"]) == ("shop/web-1", "c1", "eth0")
        assert line["outcome"] == "ok"
        assert 0 <= line["ms"] < 600_000
    assert node.log()[0]["operations"] == ["198.51.100.7 on lo"]


def test_a_pod_without_tunnels_and_a_call_that_failed_say_so(node: Node, pod_side: FakePodSide) -> None:
    with FakeHelper(node.socket, NONE):
        verbs.add(node.invocation(), node.conf())
    verbs.log_error(node.invocation(), node.conf(), Missing("it is gone", "restart the pod"))
    none, error = node.log()
    assert (none["level"], none["outcome"], none["tunnels"]) == ("info", "none", 0)
    assert (error["level"], error["outcome"], error["code"], error["msg"]) == ("error", "error", 102, "it is gone")


def test_what_is_asked_for_all_the_time_is_logged_only_where_that_is_wanted(node: Node, pod_side: FakePodSide) -> None:
    verbs.status(node.invocation("STATUS"), node.conf())
    assert not (node.path / "log").exists()


@pytest.mark.parametrize("place", ["/nowhere/at/all.log", "/", "\0"])
def test_a_log_that_cannot_be_written_fails_nothing(node: Node, place: str) -> None:
    with FakeHelper(node.socket, NONE):
        verbs.add(node.invocation(), node.conf(log_file=place))


def test_a_log_that_grew_too_big_becomes_its_own_predecessor(node: Node) -> None:
    (node.path / "log").write_bytes(b"x" * (5 << 20))
    verbs.status(node.invocation("STATUS"), node.conf(log_level="debug"))
    verbs.status(node.invocation("STATUS"), node.conf(log_level="debug"))
    assert len(node.log()) == 1
    assert (node.path / "log.1").stat().st_size > 5 << 20
