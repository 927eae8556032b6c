"""What the verbs do when something went wrong before: undo of ADD, a second ADD, DEL in any state, GC.

The pod side here is a fake; interruptions of the real one, at each operation, are in tests/kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from cni_plugin import attachment, config, verbs
from cni_plugin.errors import IoFailure, Missing, TryLater
from cni_plugin.tunnel import NOTHING, PodTunnels, Tunnel
from tests.fake_helper import UNKNOWN, FakeHelper
from tests.unit.fake_node import WANTED, FakePodSide, Node

OTHER = PodTunnels((Tunnel(("203.0.113.9",)),))
RECORD = "pods:c1:eth0"

# ---- ADD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [FakePodSide.PodError("no route", "EPERM"), ValueError("x")])
def test_a_pod_side_that_fails_leaves_no_record(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, failure: Exception
) -> None:
    pod_side.refusal = failure
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is another test's subject
        verbs.add(node.invocation(), node.conf())
    assert node.records() == []


def test_a_pod_that_cannot_be_cleared_keeps_its_record_for_del_and_gc(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    pod_side.failure = FakePodSide.PodError("no route", "EPERM")
    with pytest.raises(Exception, match="no route"):
        verbs.add(node.invocation(), node.conf())
    assert [(record.state, record.tunnels) for record in node.records()] == [(attachment.ADDING, WANTED)]
    assert "EPERM" in str(node.log()) or "no route" in str(node.log())
    pod_side.failure = None
    verbs.delete(node.invocation("DEL"), node.conf())
    assert pod_side.had == WANTED
    assert node.records() == []


def let_the_disk_be_full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the record is to say *ready*, and all is done."""
    write = attachment.write

    def full_disk(run_dir: str, record: attachment.Attachment) -> None:
        if record.state == attachment.READY:
            raise OSError(28, "No space left on device")
        write(run_dir, record)

    monkeypatch.setattr(attachment, "write", full_disk)


def test_a_failure_after_the_pod_was_configured_takes_its_tunnels_away_again(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_the_disk_be_full_at_the_end(monkeypatch)
    with pytest.raises(IoFailure, match="No space left"):
        verbs.add(node.invocation(), node.conf())
    assert pod_side.pods == {}
    assert node.records() == []


def interrupted(node: Node, tunnels: PodTunnels, **changes: Any) -> attachment.Attachment:
    """The record of an ADD that was killed, in a namespace that may have these tunnels."""
    inode = node.netns.stat().st_ino
    record = attachment.Attachment("pods", "c1", "eth0", str(node.netns), inode, tunnels=tunnels).replace(**changes)
    attachment.write(str(node.run_dir), record)
    return record


def test_a_second_add_says_in_its_record_what_the_first_may_have_left(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    interrupted(node, OTHER)
    during: list[attachment.Attachment] = []
    pod_side.watch = lambda: during.extend(node.records())
    verbs.add(node.invocation(), node.conf())
    assert [record.tunnels.tunnels for record in during] == [OTHER.tunnels + WANTED.tunnels]
    assert [(record.state, record.tunnels) for record in node.records()] == [(attachment.READY, WANTED)]


def test_a_second_add_that_has_to_wait_undoes_what_the_first_left(node: Node, pod_side: FakePodSide) -> None:
    interrupted(node, OTHER)
    pod_side.pods[str(node.netns)] = OTHER
    with FakeHelper(node.socket, UNKNOWN), pytest.raises(TryLater):
        verbs.add(node.invocation(), node.conf(when_helper_is_away="retry"))
    assert (pod_side.pods, pod_side.had) == ({}, OTHER)
    assert node.records() == []


def test_what_an_earlier_pod_of_the_same_path_had_is_not_looked_for(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    interrupted(node, OTHER, inode=1)
    during: list[attachment.Attachment] = []
    pod_side.watch = lambda: during.extend(node.records())
    verbs.add(node.invocation(), node.conf())
    assert [record.tunnels for record in during] == [WANTED]


def test_a_first_record_that_cannot_be_written_leaves_all_as_it_was(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs.add(node.invocation(), node.conf())
    before = node.records()

    def full_disk(run_dir: str, record: attachment.Attachment) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attachment, "write", full_disk)
    with pytest.raises(IoFailure, match=f"{node.run_dir}.*No space left"):
        verbs.add(node.invocation(), node.conf())
    assert pod_side.pods == {str(node.netns): WANTED}
    assert node.records() == before


def unfinished(node: Node, name: str) -> Path:
    """What a plugin leaves that is killed before its rename."""
    attachment.ensure_directory(str(node.run_dir))
    file = node.run_dir / "attachments" / f".{name}.4711"
    file.write_bytes(b"\x8b")
    return file


@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
def test_an_unfinished_record_is_swept_up_and_others_are_not(node: Node, helper: FakeHelper, verb: str) -> None:
    others = [unfinished(node, name) for name in ("pods:c11:eth0", "pods:c1:eth01", "other:c1:eth0")]
    ours = unfinished(node, RECORD)
    if verb == "GC":
        valid = (config.ValidAttachment("c11", "eth0"), config.ValidAttachment("c1", "eth01"))
        verbs.collect_garbage(node.invocation("GC"), node.conf(valid_attachments=valid))
    elif verb == "DEL":
        verbs.delete(node.invocation("DEL", netns=""), node.conf())
    else:
        verbs.add(node.invocation(namespace=""), node.conf())
    assert not ours.exists()
    assert all(other.exists() for other in others)


# ---- DEL ---------------------------------------------------------------------------------------------------------


def test_del_takes_tunnels_and_record_away_and_does_so_twice(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    verbs.add(node.invocation(), node.conf())
    for _ in range(2):
        assert verbs.delete(node.invocation("DEL"), node.conf(prev_result=None)) == ""
        assert pod_side.pods == {}
        assert node.records() == []


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_del_without_a_namespace_forgets_the_record(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, path: str
) -> None:
    verbs.add(node.invocation(), node.conf())
    verbs.delete(node.invocation("DEL", netns=path), node.conf())
    assert node.records() == []


def test_del_survives_a_pod_side_that_fails_and_logs_why(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    pod_side.failure = RuntimeError("kernel on fire")
    assert verbs.delete(node.invocation("DEL"), node.conf()) == ""
    assert node.records() == []
    assert "kernel on fire" in str(node.log()[-1]["troubles"])


def test_del_clears_the_pod_when_its_record_is_damaged(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    (node.run_dir / "attachments" / "pods:c1:eth0").write_bytes(b"rubbish")
    verbs.delete(node.invocation("DEL"), node.conf())
    assert pod_side.pods == {}
    assert node.records() == []


def test_del_never_touches_the_hosts_own_namespace(node: Node, pod_side: FakePodSide) -> None:
    pod_side.pods["/proc/self/ns/net"] = WANTED
    verbs.delete(node.invocation("DEL", netns="/proc/self/ns/net"), node.conf())
    assert pod_side.pods


def test_del_succeeds_where_nothing_can_be_read(node: Node, pod_side: FakePodSide) -> None:
    assert verbs.delete(node.invocation("DEL"), node.conf(run_dir=str(node.netns))) == ""
    assert node.log()[-1]["level"] == "warning"


@pytest.mark.parametrize("state", [attachment.ADDING, attachment.READY])
def test_del_clears_what_the_record_says_may_be_there(node: Node, pod_side: FakePodSide, state: str) -> None:
    interrupted(node, WANTED, state=state)
    pod_side.pods[str(node.netns)] = WANTED
    verbs.delete(node.invocation("DEL"), node.conf())
    assert (pod_side.pods, pod_side.had) == ({}, WANTED)


def test_del_without_a_path_finds_nothing_to_clear_and_forgets(node: Node, pod_side: FakePodSide) -> None:
    interrupted(node, WANTED)
    verbs.delete(node.invocation("DEL", netns=""), node.conf())
    assert node.records() == []


def test_del_leaves_the_pod_alone_that_has_the_path_now(node: Node, pod_side: FakePodSide) -> None:
    interrupted(node, WANTED, inode=1)
    pod_side.pods[str(node.netns)] = OTHER
    verbs.delete(node.invocation("DEL"), node.conf())
    assert pod_side.pods == {str(node.netns): OTHER}
    assert node.records() == []


# ---- several attachments of one pod ------------------------------------------------------------------------------


def second(node: Node, **changes: Any) -> config.NetConf:
    """The chain of another network, with tunnels of its own."""
    return node.conf(name="more", tunnels=({"vips": ["203.0.113.9"]},), **changes)


def test_a_second_network_adds_its_tunnels_to_the_firsts(node: Node, pod_side: FakePodSide, helper: FakeHelper) -> None:
    verbs.add(node.invocation(), node.conf())
    verbs.add(node.invocation(ifname="net1"), second(node))
    assert pod_side.pods[str(node.netns)].tunnels == OTHER.tunnels + WANTED.tunnels
    assert pod_side.interface == "eth0", "by which packets come in"
    assert {record.interface: record.tunnels.tunnels for record in node.records()} == {
        "eth0": WANTED.tunnels,
        "net1": OTHER.tunnels,
    }
    verbs.check(node.invocation("CHECK"), node.conf())
    verbs.check(node.invocation("CHECK", ifname="net1"), second(node))


@pytest.mark.parametrize(("ends", "left"), [("eth0", OTHER), ("net1", WANTED)])
def test_one_networks_end_takes_its_own_tunnels(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, ends: str, left: PodTunnels
) -> None:
    verbs.add(node.invocation(), node.conf())
    verbs.add(node.invocation(ifname="net1"), second(node))
    verbs.delete(node.invocation("DEL", ifname=ends), node.conf() if ends == "eth0" else second(node))
    assert pod_side.pods[str(node.netns)].tunnels == left.tunnels
    assert [record.interface for record in node.records()] == [pod_side.interface] != [ends]
    verbs.delete(node.invocation("DEL", ifname=pod_side.interface), second(node) if ends == "eth0" else node.conf())
    assert pod_side.pods == {}


def test_a_second_network_that_fails_leaves_the_firsts_tunnels(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs.add(node.invocation(), node.conf())
    let_the_disk_be_full_at_the_end(monkeypatch)
    with pytest.raises(IoFailure):
        verbs.add(node.invocation(ifname="net1"), second(node))
    assert pod_side.pods == {str(node.netns): WANTED}
    assert [record.interface for record in node.records()] == ["eth0"]


def test_another_network_that_is_added_meanwhile_is_not_overlooked(
    node: Node, pod_side: FakePodSide, helper: FakeHelper
) -> None:
    """Both are about to configure the pod: whoever wrote its record later sees the other, and the other looks again."""

    def meanwhile() -> None:
        pod_side.watch = None
        verbs.add(node.invocation(ifname="net1"), second(node))

    pod_side.watch = meanwhile
    verbs.add(node.invocation(), node.conf())
    assert set(pod_side.pods[str(node.netns)].tunnels) == {*WANTED.tunnels, *OTHER.tunnels}


def test_the_same_tunnel_by_two_networks_is_there_once_and_stays_to_the_last(node: Node, pod_side: FakePodSide) -> None:
    for interface in ("net1", "net2"):
        verbs.add(node.invocation(ifname=interface), second(node))
        assert pod_side.pods[str(node.netns)].tunnels == OTHER.tunnels
    verbs.delete(node.invocation("DEL", ifname="net1"), second(node))
    assert pod_side.pods[str(node.netns)].tunnels == OTHER.tunnels


def test_where_one_network_knows_the_senders_they_count_for_the_pod(node: Node, pod_side: FakePodSide) -> None:
    guarded = WANTED.replace(sources=("10.0.1.1",))
    interrupted(node, guarded, state=attachment.READY)
    verbs.add(node.invocation(ifname="net1"), second(node))
    assert pod_side.pods[str(node.netns)].sources == ("10.0.1.1",)


def test_del_of_an_interface_without_a_record_leaves_the_others_tunnels(node: Node, pod_side: FakePodSide) -> None:
    first = interrupted(node, WANTED, state=attachment.READY)
    pod_side.pods[str(node.netns)] = WANTED
    verbs.delete(node.invocation("DEL", ifname="net1"), node.conf())
    assert pod_side.pods == {str(node.netns): WANTED}
    assert node.records() == [first]


def test_del_says_in_the_record_that_the_pod_is_no_longer_the_helpers_to_configure(
    node: Node, pod_side: FakePodSide
) -> None:
    interrupted(node, WANTED, state=attachment.READY)
    during: list[str] = []
    pod_side.watch = lambda: during.extend(record.state for record in node.records())
    verbs.delete(node.invocation("DEL"), node.conf())
    assert during == [attachment.ENDING]
    interrupted(node, WANTED, state=attachment.ENDING)
    with pytest.raises(Missing, match="DEL or GC of this attachment was interrupted"):
        verbs.check(node.invocation("CHECK"), node.conf())


def newer(node: Node) -> bytes:
    """Puts a newer version's record in the place of the attachment's."""
    body: bytes = msgpack.packb({"v": attachment.FORMAT + 1, "all": "new"})
    attachment.ensure_directory(str(node.run_dir))
    (node.run_dir / "attachments" / RECORD).write_bytes(body)
    return body


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC"])
def test_a_newer_versions_record_is_left_alone_and_named(
    node: Node, pod_side: FakePodSide, helper: FakeHelper, verb: str
) -> None:
    body = newer(node)
    conf = node.conf(valid_attachments=())
    says = "newer version"
    if verb in ("ADD", "CHECK"):
        with pytest.raises(IoFailure, match=says):
            (verbs.add if verb == "ADD" else verbs.check)(node.invocation(verb), conf)
        assert pod_side.pods == {}
    else:
        pod_side.pods[str(node.netns)] = WANTED
        (verbs.delete if verb == "DEL" else verbs.collect_garbage)(node.invocation(verb), conf)
        assert says in str(node.log()[-1]["troubles"])
        assert bool(pod_side.pods) == (verb == "GC"), "DEL means this pod, whoever wrote its record"
    assert (node.run_dir / "attachments" / RECORD).read_bytes() == body


# ---- CHECK, GC ---------------------------------------------------------------------------------------------------


def test_check_says_that_an_add_was_interrupted(node: Node, pod_side: FakePodSide) -> None:
    interrupted(node, NOTHING)
    with pytest.raises(Missing, match="interrupted"):
        verbs.check(node.invocation("CHECK"), node.conf())


def test_gc_clears_the_pods_of_what_it_forgets_and_no_others(node: Node, pod_side: FakePodSide) -> None:
    interrupted(node, WANTED)
    pod_side.pods = {str(node.netns): WANTED, "/run/netns/other": WANTED}
    verbs.collect_garbage(node.invocation("GC"), node.conf(valid_attachments=()))
    assert pod_side.pods == {"/run/netns/other": WANTED}
    assert node.records() == []


def test_gc_keeps_the_record_of_a_pod_that_it_could_not_clear(node: Node, pod_side: FakePodSide) -> None:
    record = interrupted(node, WANTED)
    pod_side.failure = FakePodSide.PodError("the kernel is busy")
    verbs.collect_garbage(node.invocation("GC"), node.conf(valid_attachments=()))
    assert [(left.tunnels, left.state) for left in node.records()] == [(record.tunnels, attachment.ADDING)]
    assert "the kernel is busy" in str(node.log()[-1]["troubles"])


def test_gc_goes_on_behind_what_it_cannot_do(node: Node, pod_side: FakePodSide) -> None:
    for name in ("pods:a:eth0", "pods:z:eth0", "other:a:eth0", "README"):
        interrupted(node, NOTHING)
        (node.run_dir / "attachments" / name).write_bytes(b"rubbish")
    (node.run_dir / "attachments" / "pods:b:eth0").mkdir()
    interrupted(node, WANTED)
    verbs.collect_garbage(node.invocation("GC"), node.conf(valid_attachments=(config.ValidAttachment("z", "eth0"),)))
    left = sorted(file.name for file in (node.run_dir / "attachments").iterdir())
    assert left == ["README", "other:a:eth0", "pods:b:eth0", "pods:z:eth0"]
    assert "pods:b:eth0" in str(node.log()[-1]["troubles"])


def test_gc_forgets_only_what_is_not_valid_in_its_own_network(node: Node) -> None:
    def record(network: str, container: str, interface: str = "eth0") -> attachment.Attachment:
        return attachment.Attachment(network, container, interface, netns="/run/netns/x", inode=1)

    keep = [record("pods", "a"), record("pods", "b", "net1"), record("other", "c")]
    for one in [*keep, record("pods", "b"), record("pods", "c")]:
        attachment.write(str(node.run_dir), one)
    valid = (config.ValidAttachment("a", "eth0"), config.ValidAttachment("b", "net1"))
    verbs.collect_garbage(node.invocation("GC"), node.conf(valid_attachments=valid))
    assert sorted(one.file_name for one in node.records()) == sorted(one.file_name for one in keep)
