"""Pods that already run follow their Services: who is configured, who is left alone, what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cni_plugin import attachment, netns
from cni_plugin.attachment import ADDING, READY, Attachment
from cni_plugin.pod import PodError
from cni_plugin.tunnel import GRE, NOTHING, HandOn, PodTunnels, Tunnel
from node_helper.chains import Handover
from node_helper.model import ObjectKey, Pod, Snapshot
from node_helper.plan.handovers import Handovers
from node_helper.pods import PodKeeper, PodRound
from node_helper.service_index import ServiceIndex
from node_helper.services import TunnelService
from tests.unit.planning import OTHER, VIPS, endpoint, service

Warn = Callable[[str], None] | None
NETNS, INODE = "/run/netns/web-1", 4711
WANTED = PodTunnels((Tunnel(VIPS, GRE),))
WEB = replace(service(mode=GRE), selector={"app": "web"})


class Node:
    """One node's pods: records in a folder, and what was configured in them."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        attachment.ensure_directory(str(run_dir))
        self.results = run_dir / "results"
        self.keeper = PodKeeper(run_dir, self.results)
        self.configured: list[tuple[str, str, PodTunnels]] = []
        self.had = NOTHING
        self.netns = {NETNS: (4, INODE)}
        self.refusal: PodError | None = None
        self.operations = ["put 198.51.100.7 on lo"]

    def configure(
        self, path: str, interface: str, wanted: PodTunnels, had: PodTunnels, inode: int, warn: Warn = None
    ) -> list[str]:
        self.configured.append((path, interface, wanted))
        self.had = had
        if self.refusal:
            raise self.refusal
        return self.operations

    def add(self, name: str = "web-1", **fields: object) -> Attachment:
        record = Attachment(
            network="pods",
            container=name,
            interface="eth0",
            netns=NETNS,
            inode=INODE,
            namespace="shop",
            name=name,
            ips=("10.244.2.1",),
            state=READY,
        ).replace(**fields)
        attachment.write(str(self.run_dir), record)
        return record

    def record(self, name: str = "web-1") -> Attachment | None:
        return attachment.read(str(self.run_dir), "pods", name, "eth0")

    def look(
        self,
        *services: TunnelService,
        pods: tuple[Pod, ...] = (),
        handovers: Handovers | None = None,
        full: bool = False,
    ) -> PodRound:
        endpoints = {service.key: service.endpoints for service in services if service.endpoints}
        snapshot = Snapshot(pods={pod.key: pod for pod in pods}, endpoints=endpoints)
        return self.keeper.look(services, ServiceIndex(services), snapshot, handovers or {}, OTHER, full)


def pod(name: str = "web-1", finished: bool = False, **labels: str) -> Pod:
    address = (ip_address("10.244.2.1"),)
    return Pod(ObjectKey("shop", name), "uid", OTHER, labels or {"app": "web"}, {}, address, False, {}, finished)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path)
    monkeypatch.setattr("cni_plugin.pod.configure", node.configure)
    monkeypatch.setattr("cni_plugin.netns.identity", node.netns.get)
    return node


def test_a_pod_whose_service_was_annotated_is_configured_and_its_record_says_so(node: Node) -> None:
    node.add()
    result = node.look(WEB, pods=(pod(),))
    assert node.configured == [(NETNS, "eth0", WANTED)]
    assert result.changed == {"shop/web-1": ["put 198.51.100.7 on lo"]}
    assert result.tunnelled_ips == {"10.244.2.1"}
    record = node.record()
    assert record is not None and record.tunnels == WANTED


def test_a_pod_that_has_what_it_wants_is_left_alone_but_for_the_full_comparison(node: Node) -> None:
    node.add(tunnels=WANTED)
    assert not node.look(WEB, pods=(pod(),)).changed
    assert node.configured == []
    node.operations = []
    assert node.look(WEB, pods=(pod(),), full=True).changed == {}
    assert len(node.configured) == 1


def test_a_pod_is_configured_anew_while_buckets_have_moved_and_again_after(node: Node) -> None:
    served = service(endpoints=[replace(endpoint("10.244.2.1"), pod=ObjectKey("shop", "web-1"))])
    node.add()
    node.look(served, pods=(pod(),))
    handover = Handover((HandOn(70_000, "10.244.2.9", 100),), ("10.244.2.8",))
    node.look(served, pods=(pod(),), handovers={served.key: {"10.244.2.1": handover}})
    node.look(served, pods=(pod(),))
    assert [tunnels.tunnels[0].hand_ons for _, _, tunnels in node.configured] == [(), handover.hand_ons, ()]
    assert [tunnels.tunnels[0].peers for _, _, tunnels in node.configured] == [(), ("10.244.2.8",), ()]


def test_a_pod_without_tunnels_is_never_entered(node: Node) -> None:
    node.add()
    result = node.look(WEB, pods=(pod(app="db"),), full=True)
    assert node.configured == [] and result.tunnelled_ips == set()


def test_an_annotation_that_was_taken_away_is_taken_out_of_the_pod(node: Node) -> None:
    node.add(tunnels=WANTED)
    node.look(pods=(pod(),))
    assert node.configured == [(NETNS, "eth0", PodTunnels())] and node.had == WANTED
    record = node.record()
    assert record is not None and record.tunnels == PodTunnels()


def test_a_pod_that_left_the_source_keeps_what_it_has(node: Node) -> None:
    """It may still be answering clients; its DEL takes everything away."""
    node.add(tunnels=WANTED)
    assert node.look(WEB).tunnelled_ips == {"10.244.2.1"}
    assert node.configured == []


def test_while_add_runs_the_pod_is_the_plugins(node: Node) -> None:
    node.add(state=ADDING)
    assert node.look(WEB, pods=(pod(),)).tunnelled_ips == {"10.244.2.1"}
    assert node.configured == []


def test_tunnels_of_a_standalone_pod_are_its_owners_matter(node: Node) -> None:
    own = PodTunnels((Tunnel(("203.0.113.9",)),))
    node.add(standalone=True, tunnels=own)
    assert node.look(WEB, pods=(pod(),), full=True).tunnelled_ips == {"10.244.2.1"}
    assert node.configured == []


@pytest.mark.parametrize("now", [None, (4, 9999)])
def test_the_record_of_a_pod_that_is_gone_is_removed(node: Node, now: tuple[int, int] | None) -> None:
    """The path may even be another pod's by now."""
    node.add()
    if now is None:
        node.netns.clear()
    else:
        node.netns[NETNS] = now
    assert node.look(WEB, pods=(pod(),)).problems == []
    assert node.configured == [] and node.record() is None


@pytest.mark.parametrize("left", [{"state": ADDING}, {"standalone": True}, {}], ids=["adding", "standalone", "ready"])
def test_a_full_comparison_removes_what_pods_left_that_are_gone(node: Node, left: dict[str, Any]) -> None:
    """Without tunnels, too, and also where ADD was killed and no runtime calls GC."""
    node.add(**left)
    assert node.look(pods=(pod(),), full=True).attachments == 1
    node.netns.clear()
    assert node.look(pods=(pod(),)).attachments == 1
    assert node.look(pods=(pod(),), full=True).attachments == 0
    assert node.record() is None


def test_a_pod_that_cannot_be_configured_is_told_tried_again_and_stops_no_other(node: Node) -> None:
    node.add()
    node.add("web-2")
    node.refusal = PodError("cannot configure the pod in /run/netns/web-1", "EPERM adding 198.51.100.7 to lo")
    result = node.look(WEB, pods=(pod(), pod("web-2")))
    assert len(node.configured) == 2
    assert {(p.reason, str(p.key)) for p in result.problems} == {
        ("PodNotConfigured", "shop/web-1"),
        ("PodNotConfigured", "shop/web-2"),
    }
    assert "EPERM adding 198.51.100.7 to lo" in result.problems[0].message
    record = node.record()
    assert record is not None and record.tunnels == WANTED, "which may be in it; the next look tries again"
    node.refusal = None
    assert set(node.look(WEB, pods=(pod(), pod("web-2"))).changed) == {"shop/web-1", "shop/web-2"}


def test_a_record_of_a_pod_that_went_while_it_was_configured_does_not_come_back(node: Node) -> None:
    node.add()
    configure = node.configure

    def and_gone(*arguments: Any) -> list[str]:
        node.netns.clear()
        attachment.remove(str(node.run_dir), "pods", "web-1", "eth0")
        return configure(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cni_plugin.pod.configure", and_gone)
        node.look(WEB, pods=(pod(),))
    assert node.record() is None


@pytest.mark.parametrize("full", [False, True], ids=["a change", "a full comparison"])
@pytest.mark.parametrize("left", [None, attachment.ENDING], ids=["after", "within"])
def test_a_del_while_the_pod_is_configured_has_the_last_word(
    node: Node, monkeypatch: pytest.MonkeyPatch, full: bool, left: str | None
) -> None:
    """The namespace is still there, as it is until the runtime removes it; what DEL took out is not put back."""
    record = node.add(tunnels=WANTED if full else NOTHING)
    monkeypatch.setattr("cni_plugin.netns.of_pod", node.netns.__getitem__)
    configure = node.configure

    def meanwhile(*arguments: Any) -> list[str]:
        done = configure(*arguments)
        if len(node.configured) == 1 and left is None:
            attachment.remove(str(node.run_dir), "pods", "web-1", "eth0")
        elif len(node.configured) == 1:
            attachment.write(str(node.run_dir), record.replace(state=left))
        return done

    monkeypatch.setattr("cni_plugin.pod.configure", meanwhile)
    node.look(WEB, pods=(pod(),), full=full)
    assert [wanted for _, _, wanted in node.configured] == [WANTED, NOTHING]
    assert node.had == WANTED
    now = node.record()
    assert now is None if left is None else now is not None and now.state == left


def test_a_del_before_the_pod_is_configured_has_the_last_word(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    record = node.add()
    monkeypatch.setattr(node.keeper, "records", lambda: ([record], []))
    attachment.remove(str(node.run_dir), "pods", "web-1", "eth0")
    node.look(WEB, pods=(pod(),))
    assert node.configured == [] and node.record() is None


def test_a_new_add_while_the_pod_is_configured_goes_on_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    record = node.add()
    configure = node.configure

    def meanwhile(*arguments: Any) -> list[str]:
        attachment.write(str(node.run_dir), record.replace(state=ADDING))
        return configure(*arguments)

    monkeypatch.setattr("cni_plugin.pod.configure", meanwhile)
    node.look(WEB, pods=(pod(),))
    assert len(node.configured) == 1
    assert node.record() == record.replace(state=ADDING)


def test_before_a_pod_is_changed_its_record_says_what_it_gets(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    old = PodTunnels((Tunnel(("203.0.113.9",)),))
    node.add(tunnels=old)
    seen: list[Attachment | None] = []
    configure = node.configure

    def watched(*arguments: Any) -> list[str]:
        seen.append(node.record())
        return configure(*arguments)

    monkeypatch.setattr("cni_plugin.pod.configure", watched)
    node.look(WEB, pods=(pod(),))
    (during,) = seen
    assert during is not None and during.tunnels.tunnels == old.tunnels + WANTED.tunnels
    now = node.record()
    assert now is not None and now.tunnels == WANTED


def test_a_standalone_network_of_the_same_pod_keeps_its_tunnels(node: Node) -> None:
    own = PodTunnels((Tunnel(("203.0.113.9",)),))
    node.add()
    node.add(network="more", interface="net1", standalone=True, tunnels=own)
    node.look(WEB, pods=(pod(),))
    (configured,) = node.configured
    assert configured == (NETNS, "eth0", PodTunnels(WANTED.tunnels + own.tunnels))
    record = node.record()
    assert record is not None and record.tunnels == WANTED


def test_what_a_running_pod_cannot_have_is_logged_once_and_is_no_problem(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure = node.configure

    def without_ipv6(*arguments: Any) -> list[str]:
        arguments[-1]("VIP 2001:db8::7 is left out: IPv6 is disabled in the pod")
        return configure(*arguments)

    monkeypatch.setattr("cni_plugin.pod.configure", without_ipv6)
    node.add()
    with capture_logs() as logs:
        assert node.look(WEB, pods=(pod(),)).problems == []
        assert node.look(WEB, pods=(pod(),), full=True).problems == []
    assert [(line["pod"], line["log_level"]) for line in logs] == [("shop/web-1", "warning")]
    assert "2001:db8::7 is left out" in logs[0]["warning"]
    record = node.record()
    assert record is not None and record.tunnels == WANTED


def test_a_record_that_cannot_be_read_is_told_and_stops_no_other(node: Node) -> None:
    node.add()
    Path(attachment.directory(str(node.run_dir)), "rubbish").write_bytes(b"\xc1")
    result = node.look(WEB, pods=(pod(),))
    assert set(result.changed) == {"shop/web-1"}
    assert [p.reason for p in result.problems] == ["UnreadableRecord"]
    assert "rubbish" in result.problems[0].message


def test_an_endpoint_here_without_a_record_is_told_with_the_way_out(node: Node) -> None:
    def with_pod(name: str, where: str = OTHER) -> TunnelService:
        return replace(WEB, endpoints=(replace(endpoint("10.244.2.1", where), pod=ObjectKey("shop", name)),))

    (problem,) = node.look(with_pod("old")).problems
    assert problem.reason == "NoAttachment"
    assert "pod shop/old, an endpoint of Service shop/web" in problem.message
    assert "libcni's cache at the next full comparison" in problem.message
    (problem,) = node.look(with_pod("old"), full=True).problems
    assert f"not adopted: {node.results} has no entry of it" in problem.message and "restarted" in problem.message
    assert node.look(with_pod("old")).problems == [problem], "told once"
    assert node.look(with_pod("old", "elsewhere")).problems == []
    assert node.look(with_pod("done"), pods=(pod("done", finished=True),)).problems == []
    node.add("old")
    assert node.look(with_pod("old")).problems == []


def cached(node: Node, name: str, **entry: object) -> None:
    """An entry of libcni's cache, of a pod in a namespace that is really there: this process's."""
    node.results.mkdir(exist_ok=True)
    whole = {
        "kind": "cniCacheV1", "containerId": name, "networkName": "pods", "ifName": "eth0",
        "netns": "/proc/self/ns/net", "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
        "result": {"ips": [{"address": "10.244.2.1/24"}]}, **entry,
    }  # fmt: skip
    (node.results / f"pods-{name}-eth0").write_text(json.dumps(whole))


@pytest.fixture
def old(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose cache knows pods of which there are no records."""
    monkeypatch.setattr(netns, "OWN", "/proc/self/ns/uts")
    status = Path("/proc/self/ns/net").stat()
    node.netns["/proc/self/ns/net"] = (status.st_dev, status.st_ino)
    for name in ("web-1", "web-2"):
        cached(node, name)
    return node


def test_an_older_pod_that_is_to_have_tunnels_is_adopted_at_a_full_look_and_configured_in_it(old: Node) -> None:
    assert [problem.reason for problem in old.look(WEB, pods=(pod(),)).problems] == ["NoAttachment"]
    result = old.look(WEB, pods=(pod(), pod("web-2", app="other")), full=True)
    assert result.problems == [] and set(result.changed) == {"shop/web-1"}
    record = old.record()
    assert record is not None and record.tunnels == WANTED
    assert old.record("web-2") is None, "nothing is wanted of it"
    assert old.look(WEB, pods=(pod(),), full=True).attachments == 1


@pytest.mark.parametrize(
    "left",
    [replace(pod(), terminating=True), replace(pod(), finished=True), replace(pod(), host_network=True)],
    ids=["terminating", "finished", "on the node's network"],
)
def test_an_older_pod_that_ends_or_has_no_namespace_of_its_own_is_not_adopted(old: Node, left: Pod) -> None:
    old.look(WEB, pods=(left,), full=True)
    assert old.record() is None


def test_a_pod_whose_record_went_because_it_ends_is_not_adopted(old: Node) -> None:
    ending = replace(pod(), terminating=True)
    served = service(endpoints=[replace(endpoint("10.244.2.1"), pod=ending.key)])
    assert [problem.reason for problem in old.look(served, pods=(ending,), full=True).problems] == ["NoAttachment"]
    assert old.record() is None


def test_why_an_older_pod_is_not_adopted_is_told(old: Node) -> None:
    cached(old, "web-1", netns="/never/was")
    (problem,) = old.look(WEB, pods=(pod(),), full=True).problems
    assert "not adopted: its network namespace: '/never/was' is not there" in problem.message
    old.results.rename(old.results.with_name("away"))
    old.results.write_text("")
    (problem,) = old.look(WEB, pods=(pod(),), full=True).problems
    assert "has no entry of it" in problem.message


def test_a_record_that_cannot_be_written_ends_no_look(old: Node) -> None:
    folder = Path(attachment.directory(str(old.run_dir)))
    folder.rmdir()
    folder.write_text("")
    (problem,) = [one for one in old.look(WEB, pods=(pod(),), full=True).problems if one.reason == "NoAttachment"]
    assert "Not a directory" in problem.message or "no folder" in problem.message


def test_a_pod_here_without_a_record_is_told_where_no_endpoints_are_watched(node: Node) -> None:
    """As on nodes that have the role `node` alone: the Service's selector says as much."""
    bare = replace(WEB, endpoints=())
    old = pod("old")
    (problem,) = node.look(bare, pods=(old,)).problems
    assert problem.reason == "NoAttachment" and "pod shop/old, an endpoint of Service shop/web" in problem.message
    for other in (
        replace(old, terminating=True),
        replace(old, finished=True),
        replace(old, host_network=True),
        replace(old, node="elsewhere"),
        replace(old, ips=()),
        replace(old, labels={"app": "another"}),
    ):
        assert node.look(bare, pods=(other,)).problems == []
    node.add("old")
    assert node.look(bare, pods=(old,)).problems == []


def test_a_second_interface_bears_no_tunnels_and_takes_none_away(node: Node) -> None:
    """As multus adds: packets come to the pod's own address, that of eth0, which keeps what it has."""
    node.add(tunnels=WANTED)
    for number, had in enumerate((NOTHING, WANTED), 1):
        node.add(interface=f"net{number}", ips=("172.16.0.2",), tunnels=had)
    result = node.look(WEB, pods=(pod(),), full=True)
    assert [interface for _, interface, _ in node.configured] == ["eth0"]
    for number in (1, 2):
        second = attachment.read(str(node.run_dir), "pods", "web-1", f"net{number}")
        assert second is not None and second.tunnels == NOTHING
    assert result.tunnelled_ips == {"10.244.2.1"}


def test_an_interface_that_is_the_only_one_of_ours_bears_the_tunnels(node: Node) -> None:
    node.add(interface="net1")
    node.add("web-2", interface="eth0")
    node.look(WEB, pods=(pod(),))
    assert [interface for _, interface, _ in node.configured] == ["net1"]
