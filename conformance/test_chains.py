"""Our plugin in chains of reference plugins, last and in the middle, driven by libcni itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conformance.chains import NETWORK, OURS, POD, RUN_DIR, Libcni, chain
from conformance.contract.calls import VERSIONS, speaks
from conformance.contract.world import changes
from install.node.installer import Target, put_entry, take_entry_out
from tests.fake_helper import NONE, FakeHelper, tunnels
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import Conflist, Pod
from tests.testbed.host import Host
from tests.testbed.manifests import BOTH_8080
from tests.testbed.namespaces import CommandFailed
from tests.testbed.scene import Scene

VIPS = {4: "198.51.100.7", 6: "2001:db8::7"}
STANDALONE = {"tunnels": [{"vips": list(VIPS.values()), "mode": "vxlan-gpe"}]}
POD_ARGUMENTS = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-1", "K8S_POD_UID": "u-1"}
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
MAPPINGS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}

IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
MAIN: dict[str, dict[str, Any]] = {
    "ptp": {"type": "ptp", "ipam": IPAM},
    "bridge": {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": IPAM},
}
TUNING = {"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
PLACES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "last": ([TUNING, PORTMAP], []),
    "in the middle": ([], [TUNING, PORTMAP]),
}

CHAINS = [("ptp", "last", version) for version in VERSIONS] + [
    (main, place, version)
    for main, place in (("ptp", "in the middle"), ("bridge", "last"), ("bridge", "in the middle"))
    for version in ("0.4.0", "1.0.0", "1.1.0")
]


def listed(main: str, place: str, version: str, own: Mapping[str, Any]) -> Conflist:
    before, after = PLACES[place]
    return chain(own, version=version, before=[MAIN[main], *before], after=after)


@pytest.fixture
def libcni(peer_folder: Path) -> Iterator[Libcni]:
    with Host("node") as host:
        yield Libcni(host, peer_folder)


def in_order(text: str) -> Any:
    """A JSON value with the order of its keys."""
    return json.loads(text, object_pairs_hook=lambda pairs: pairs)


def vips_of(libcni: Libcni) -> set[str]:
    shown = libcni.pod("ip", "-o", "addr", "show", "dev", "lo")
    return {vip for vip in VIPS.values() if f" {vip}/" in shown}


@pytest.mark.parametrize(("main", "place", "version"), CHAINS)
def test_a_pod_lives_through_a_chain(libcni: Libcni, main: str, place: str, version: str) -> None:
    libcni.configure(listed(main, place, version, STANDALONE))
    before = libcni.view()
    printed = json.loads(libcni.run("add", POD_ARGUMENTS, MAPPINGS).stdout)
    (added,) = libcni.seen()
    assert in_order(added.stdout) == in_order(json.dumps(added.config["prevResult"])), "passed on as it came"
    assert printed["cniVersion"] == version
    assert not any(vip in json.dumps(printed) for vip in VIPS.values()), "a VIP is no address of the pod's own"
    if place == "last":
        assert printed == json.loads(added.stdout)
    assert vips_of(libcni) == set(VIPS.values())

    verbs = [verb for verb in ("CHECK", "STATUS") if speaks(version, verb)]
    for verb in verbs:
        libcni.run(verb.lower(), POD_ARGUMENTS, MAPPINGS)
    libcni.run("del", POD_ARGUMENTS, MAPPINGS)
    assert changes(before, libcni.view()) == ""
    libcni.run("del", POD_ARGUMENTS, MAPPINGS)
    assert [call.verb for call in libcni.seen()] == ["ADD", *verbs, "DEL", "DEL"]
    assert all(call.status == 0 for call in libcni.seen())


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize("main", MAIN)
def test_collecting_garbage_takes_everything_away(libcni: Libcni, main: str, version: str) -> None:
    libcni.configure(listed(main, "last", version, STANDALONE))
    before = libcni.view()
    libcni.run("add", POD_ARGUMENTS, MAPPINGS)
    libcni.run("gc")
    assert changes(before, libcni.view()) == ""
    assert [call.verb for call in libcni.seen()] == ["ADD", "DEL", "GC"][: 2 + speaks(version, "GC")]


def test_what_libcni_would_drop_is_kept_by_us(libcni: Libcni, peer_folder: Path) -> None:
    """What decodes results drops it between plugins; a runtime of another make may not, and so must not we."""
    libcni.configure(listed("ptp", "last", "1.1.0", STANDALONE))
    libcni.run("add", POD_ARGUMENTS)
    (added,) = libcni.seen()
    changed = added.config
    changed["prevResult"] |= {"vendor.example/key": [1, {"z": None, "a": "✓"}]}
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "another",
        "CNI_NETNS": POD,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(peer_folder),
    }
    done = libcni.host.run("/run/witness/service-tunnel", input=json.dumps(changed), env=environment)
    assert in_order(done.stdout) == in_order(json.dumps(changed["prevResult"]))


@pytest.mark.parametrize("place", PLACES)
def test_the_helpers_tunnels_arrive_through_libcni(libcni: Libcni, place: str) -> None:
    libcni.host.path(RUN_DIR).mkdir()
    libcni.configure(listed("ptp", place, "1.1.0", {"whenHelperIsAway": "retry"}))
    before = libcni.view()
    with FakeHelper(libcni.host.path(f"{RUN_DIR}/helper.sock"), tunnels(*VIPS.values())) as helper:
        libcni.run("add", POD_ARGUMENTS)
    (question,) = helper.questions
    assert (question["network"], question["interface"], question["netns"]) == (NETWORK, "eth0", POD)
    assert (question["namespace"], question["name"], question["uid"]) == ("shop", "web-1", "u-1")
    assert vips_of(libcni) == set(VIPS.values())
    libcni.run("check", POD_ARGUMENTS)
    libcni.run("del", POD_ARGUMENTS)
    assert changes(before, libcni.view()) == ""


def test_the_real_helpers_tunnels_arrive_through_libcni(peer_folder: Path) -> None:
    with Scene((NodeSpec("worker1"),)) as scene:
        libcni = Libcni(scene.cluster.nodes["worker1"].host, peer_folder)
        scene.manifests.apply_service("web", {"cmd.nu/tunnel": ",".join(VIPS.values())}, {"app": "web"}, BOTH_8080)
        pod = Pod("web-1", "default", {"app": "web"}, {}, "worker1")
        scene.manifests.apply_pod(pod)
        libcni.configure(listed("ptp", "last", "1.1.0", {"whenHelperIsAway": "retry", "helperWait": 60}))
        before = libcni.view()
        libcni.run("add", pod.attachment.arguments)
        assert vips_of(libcni) == set(VIPS.values())
        libcni.run("check", pod.attachment.arguments)
        libcni.run("del", pod.attachment.arguments)
        assert changes(before, libcni.view()) == ""


def test_a_pod_without_tunnels_passes_unchanged(libcni: Libcni) -> None:
    libcni.host.path(RUN_DIR).mkdir()
    libcni.configure(listed("bridge", "last", "1.0.0", {"whenHelperIsAway": "retry"}))
    with FakeHelper(libcni.host.path(f"{RUN_DIR}/helper.sock"), NONE):
        libcni.run("add", POD_ARGUMENTS)
    assert vips_of(libcni) == set()
    assert "svctun" not in libcni.pod("ip", "link")
    libcni.run("check", POD_ARGUMENTS)


def test_the_pods_annotation_arrives_as_a_capability(libcni: Libcni) -> None:
    libcni.configure(listed("ptp", "last", "1.1.0", {"capabilities": {ANNOTATIONS: True}}))
    libcni.run("add", POD_ARGUMENTS, {ANNOTATIONS: {"cmd.nu/tunnel": VIPS[4]}})
    assert vips_of(libcni) == {VIPS[4]}


def test_check_tells_libcni_what_is_missing(libcni: Libcni) -> None:
    libcni.configure(listed("ptp", "last", "1.1.0", STANDALONE))
    libcni.run("add", POD_ARGUMENTS)
    libcni.pod("ip", "addr", "del", f"{VIPS[4]}/32", "dev", "lo")
    with pytest.raises(CommandFailed, match=VIPS[4]):
        libcni.run("check", POD_ARGUMENTS)


FAILURES: dict[str, tuple[dict[str, Any], int, str]] = {
    "nobody answers": ({"whenHelperIsAway": "retry", "helperWait": 0.1}, 11, "shop/web-1 waits for its tunnels"),
    "a wrong key": ({"tunnels": 5}, 7, "tunnels is a number"),
    "a wrong VIP": ({"tunnels": [{"vips": ["198.51.100.300"]}]}, 7, "198.51.100.300"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_arrives_through_libcni_and_the_chain_is_torn_down(libcni: Libcni, failure: str, place: str) -> None:
    own, code, words = FAILURES[failure]
    libcni.configure(listed("ptp", place, "1.1.0", own))
    before = libcni.view()
    with pytest.raises(CommandFailed) as caught:
        libcni.run("add", POD_ARGUMENTS, MAPPINGS)
    (added,) = libcni.seen()
    error = json.loads(added.stdout)
    assert (error["code"], error["cniVersion"]) == (code, "1.1.0")
    told = caught.value.stderr
    assert words in error["msg"]
    assert error["msg"] in told
    assert error.get("details", "") in told
    libcni.run("del", POD_ARGUMENTS, MAPPINGS)  # as runtimes do after an ADD that failed
    assert changes(before, libcni.view()) == ""


def test_a_pod_is_deleted_after_its_namespace_is_gone(libcni: Libcni) -> None:
    libcni.configure(listed("ptp", "last", "1.1.0", STANDALONE))
    libcni.run("add", POD_ARGUMENTS, MAPPINGS)
    libcni.host.run("ip", "netns", "del", "pod")
    libcni.run("del", POD_ARGUMENTS, MAPPINGS)
    assert list(libcni.host.path(f"{RUN_DIR}/attachments").iterdir()) == []


@pytest.mark.parametrize("inlined", [True, False])
def test_what_the_installer_drops_into_the_networks_folder_is_run_by_libcni(libcni: Libcni, inlined: bool) -> None:
    alone = chain({}, version="1.0.0", before=[MAIN["ptp"]], after=[])
    libcni.configure({**alone, "plugins": alone["plugins"][:1]})
    target = Target(Path("/run"), Path("/run/net.d"), Path(), {**OURS, **STANDALONE}, drop_in=not inlined)
    libcni.host.call(put_entry, target, mounts=True)
    assert libcni.host.path(f"/run/net.d/{NETWORK}/service-tunnel.conf").exists() != inlined
    libcni.run("add")
    assert VIPS[4] in libcni.pod("ip", "addr", "show", "dev", "lo")
    libcni.run("del")
    assert [seen.verb for seen in libcni.seen()] == ["ADD", "DEL"]
    libcni.host.call(take_entry_out, target.conf_dir, target.say, mounts=True)
    assert [path.name for path in libcni.host.path("/run/net.d").iterdir()] == ["10-testbed.conflist"]
