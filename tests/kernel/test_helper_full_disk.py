"""A helper whose folders are on a full disk: it serves all the same, says so, and writes once there is room again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed import traffic
from tests.testbed.cluster import CLIENT, NodeSpec
from tests.testbed.host import Host
from tests.testbed.pictures import differences, picture
from tests.testbed.scene import VIPS, Scene

NODE = "ingress1"
NODES = (NodeSpec(NODE, ingress=True), NodeSpec("worker1"))
RUN_DIR, STATE_DIR = "/run/service-tunnel", "/var/lib/service-tunnel"
FILLED = "filled"


@pytest.fixture
def scene() -> Iterator[Scene]:
    """The ingress node filters reverse paths strictly, so that there is a sysctl to borrow; it has no pods."""
    with Scene(NODES, options=["--resync", "3600"], rp_filter=1, helpers=False) as scene:
        for folder in (RUN_DIR, STATE_DIR):
            small = ("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", folder)
            scene.cluster.nodes[NODE].host.run("mkdir", "-p", folder)
            scene.cluster.nodes[NODE].host.run(*small)
        scene.start_helpers(["worker1"])
        yield scene


def fill(host: Host) -> None:
    for folder in (RUN_DIR, STATE_DIR):
        host.run("dd", "if=/dev/zero", f"of={folder}/{FILLED}", check=False)
        assert host.run("sh", "-c", f"echo x > {folder}/more", check=False).returncode, "there is no room"
        host.run("rm", "-f", f"{folder}/more")


def make_room(host: Host) -> None:
    for folder in (RUN_DIR, STATE_DIR):
        host.run("rm", f"{folder}/{FILLED}")


def not_written(scene: Scene) -> str:
    """What is told of it."""
    found = [p["message"] for p in scene.helpers[NODE].status()["problems"] if p["reason"] == "StateNotWritten"]
    return "\n".join(found)


def reach(scene: Scene) -> None:
    for version, vip in VIPS.items():
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]


def test_a_helper_that_starts_on_a_full_disk_serves_and_its_cleanup_still_leaves_all_as_it_was(scene: Scene) -> None:
    host = scene.cluster.nodes[NODE].host
    before = picture(host)
    fill(host)
    scene.start_helpers([NODE])
    scene.apply_service()
    scene.add_pods([("worker1", "pod1"), ("worker1", "pod2")], {"app": "web"})
    scene.sync()
    scene.settle()
    reach(scene)
    assert host.sysctl("net.ipv4.conf.eth0.rp_filter") == "2"
    scene.wait(lambda: RUN_DIR in not_written(scene) and STATE_DIR in not_written(scene), "both are told")
    assert "No space left on device" in not_written(scene)
    assert "trying again" not in scene.helpers[NODE].log.read_text(), "no cycle has failed"
    make_room(host)
    scene.wait(lambda: not not_written(scene), "all is written, without anything else to do", 30)
    scene.helpers[NODE].kill()
    scene.helper_command(NODE, "cleanup")
    assert differences(before, picture(host)) == []


def test_a_disk_that_fills_up_stops_no_change_and_a_successor_knows_what_was_borrowed(scene: Scene) -> None:
    host = scene.cluster.nodes[NODE].host
    scene.start_helpers([NODE])
    scene.apply_service()
    pods = scene.add_pods([("worker1", "pod1"), ("worker1", "pod2")], {"app": "web"})
    scene.sync()
    scene.settle()
    fill(host)
    scene.remove_pod(pods[0])
    scene.apply_service("other", "198.51.100.9", selector={"app": "web"})
    scene.settle()
    reach(scene)
    assert scene.cluster.client.call(traffic.ask_udp, "198.51.100.9", 8080).name == "pod2"
    scene.helpers[NODE].kill()
    scene.start_helpers([NODE])
    scene.settle()
    reach(scene)
    for name in ("web", "other"):
        scene.remove_service(name)
    scene.wait(lambda: host.sysctl("net.ipv4.conf.eth0.rp_filter") == "1", "what was borrowed before is given back")
    make_room(host)
    scene.wait(lambda: not not_written(scene), "all is written", 30)


def test_a_running_pod_whose_record_has_no_room_keeps_its_tunnels_and_gets_the_others_later(scene: Scene) -> None:
    host = scene.cluster.nodes[NODE].host
    scene.start_helpers([NODE])
    scene.apply_service()
    (pod,) = scene.add_pods([(NODE, "pod1")], {"app": "web"})
    scene.sync()
    scene.settle()
    fill(host)
    scene.apply_service("other", "198.51.100.9", selector={"app": "web"})
    scene.wait(lambda: reasons_of(scene, "default/pod1") == {"RecordNotWritten"}, "it is told")
    assert "198.51.100.9" not in pod.place.run("ip", "addr").stdout, "nobody would know that it has it"
    reach(scene)
    make_room(host)
    scene.wait(lambda: not reasons_of(scene, "default/pod1"), "it is written, without anything else to do", 30)
    scene.settle()
    assert scene.cluster.client.call(traffic.ask_tcp, "198.51.100.9", 8080).client == CLIENT[4]


def reasons_of(scene: Scene, name: str) -> set[str]:
    return {p["reason"] for p in scene.helpers[NODE].status()["problems"] if p["object"] == name}
