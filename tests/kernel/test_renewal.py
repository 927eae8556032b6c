"""A helper that lays the router out otherwise than the one before it: built anew beside it, and no packet is lost."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel import pictures
from tests.testbed.cluster import Node, NodeSpec
from tests.testbed.holding import Held
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY
from tests.testbed.scene import PATIENCE, VIPS, Helper, Scene
from tests.testbed.stream import Stream

NODES = (NodeSpec("ingress1", ingress=True), NodeSpec("worker1"))
KILLS = int(os.environ.get("TEST_KILLS", "30")) // 2
PACE = PATIENCE / 10_000
"""Seconds between two datagrams of a flow; emulated processors, which need more patience, take no more."""
MARK = "service-tunnel router, layout "
SECOND = "service-tunnel-2", "svctun-2"


def serve(scene: Scene) -> None:
    scene.apply_service()
    scene.add_pods([("ingress1", "pod1"), ("worker1", "pod2")], {"app": "web"})
    scene.sync()
    scene.settle()


def age(host: Host) -> None:
    """Makes the router look as if another version had built it."""
    host.run("ip", "link", "set", "svctun", "alias", f"{MARK}0", check=False)
    host.run("ip", "-n", "service-tunnel", "rule", "add", "pref", "7", "table", "999", "protocol", "116", check=False)


def is_new(host: Host) -> bool:
    """The first router is of the helper's layout, and there is nothing of a second one."""
    links = host.run("ip", "link").stdout
    return f"alias {MARK}1" in links and f"{SECOND[1]}@" not in links and links.count("svctun") == 1


def picture(node: Node) -> dict[str, str]:
    """Without what is another for a device that was made anew: numbers and hardware addresses."""
    anew = re.compile(r"@if\d+|(?<![0-9a-f:])[0-9a-f]{2}(:[0-9a-f]{2}){5}(?![0-9a-f:])")
    return {name: re.sub(" +", " ", anew.sub("", shown)) for name, shown in pictures.picture(node).items()}


@contextmanager
def unharmed(scene: Scene) -> Iterator[None]:
    """Streams to both VIPs pass all the while, and connections stay: nothing of it is lost or delayed for long."""
    client = scene.cluster.client
    with (
        Held(client, VIPS[4], 8080, 20) as held,
        Stream(client, VIPS[4], 8080, 10, PACE) as stream4,
        Stream(client, VIPS[6], 8080, 10, PACE) as stream6,
    ):
        yield
        counts = [stream.count() for stream in (stream4, stream6)]
        scene.wait(lambda: held.report().kept == 20, "all connections, alive")
        assert held.report().moved == 0
    assert min(count.sent for count in counts) > 100
    assert [count.lost for count in counts] == [0, 0], counts


def test_a_renewal_that_is_killed_at_random_points_harms_no_flow_and_is_brought_to_its_end() -> None:
    dice = random.Random(116)
    with Scene(NODES) as scene:
        serve(scene)
        node = scene.cluster.nodes["ingress1"]
        before = picture(node)
        scene.helpers["ingress1"].stop()
        age(node.host)
        began = time.monotonic()
        scene.start_helpers(["ingress1"])
        whole = time.monotonic() - began
        begun = 0
        with unharmed(scene):
            scene.helpers["ingress1"].kill()
            for _ in range(KILLS):
                age(node.host)
                helper = scene.helpers["ingress1"] = scene.start_on("ingress1", ())["ingress1"]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    helper.process.wait(dice.uniform(whole / 3, whole))
                assert helper.process.poll() is None, helper.log.read_text()[-3000:]
                helper.kill()
                begun += not is_new(node.host)
            scene.start_helpers(["ingress1"])
        assert begun > KILLS / 4, "the helper was killed before it began, or after it was done"
        now = picture(node)
        assert {k: v for k, v in now.items() if v != before[k]} == {k: v for k, v in before.items() if v != now[k]}


@contextmanager
def keeper(host: Host) -> Iterator[None]:
    """`keep-namespace`, as the container that may make namespaces runs it."""
    code = (sys.executable, "-m", "node_helper.cli", "keep-namespace")
    process = host.popen(*code, env={"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for name in ("service-tunnel", SECOND[0]):
            assert f"/run/netns/{name} is" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_where_another_program_makes_the_namespaces_they_are_emptied_and_stay() -> None:
    with Scene(NODES, node_options={"ingress1": ["--namespace-kept"]}, helpers=False) as scene:
        node = scene.cluster.nodes["ingress1"]
        with keeper(node.host):
            scene.start_helpers(scene.cluster.nodes)
            serve(scene)
            before, made = picture(node), inodes(node.host)
            scene.helpers["ingress1"].stop()
            age(node.host)
            with unharmed(scene):
                scene.start_helpers(["ingress1"])
            assert is_new(node.host)
            assert picture(node) == before
            assert inodes(node.host) == made
            left = node.host.run("ip", "netns", "exec", SECOND[0], "sh", "-c", CONTENT).stdout.split("\n")
            assert [line for line in left if line and not line.startswith("lo ")] == []


CONTENT = (
    "ip -brief link; ip nexthop; ip rule | grep 116; ip route show table all proto 116; "
    "iptables -t mangle -S | grep HMARK; ip6tables -t mangle -S | grep HMARK; true"
)


def inodes(host: Host) -> str:
    return host.run("stat", "-c", "%i", "/run/netns/service-tunnel", f"/run/netns/{SECOND[0]}").stdout


def test_while_there_is_no_place_for_a_second_router_the_old_one_goes_on() -> None:
    with Scene(NODES, node_options={"ingress1": ["--namespace-kept"]}, helpers=False) as scene:
        host = scene.cluster.nodes["ingress1"].host
        with keeper(host):
            scene.start_helpers(scene.cluster.nodes)
            serve(scene)
            scene.helpers["ingress1"].stop()
        age(host)
        host.run("ip", "netns", "del", SECOND[0])
        with unharmed(scene):
            helper: Helper = scene.start_on("ingress1", ())["ingress1"]
            scene.helpers["ingress1"] = helper
            scene.wait(lambda: f"{SECOND[0]} is not there" in helper.log.read_text(), "it says what is missing")
            assert not is_new(host)
            with keeper(host):
                scene.wait(lambda: is_new(host), "the router of the new layout")
                scene.wait(helper.synced, "the helper")
