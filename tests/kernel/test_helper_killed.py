"""`kill -9` of the helper at whatever point of its work: the kernel converges, and flows never stop meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.testbed.scene import VIPS, Scene
from tests.testbed.stream import Stream

KILLS = int(os.environ.get("TEST_KILLS", "100"))
OTHERS = [f"198.51.100.{number}" for number in range(10, 30)]
"""VIPs whose endpoints change at each start, so that there is something to program."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(options=["--resync", "3600"]) as scene:
        scene.apply_service()
        for number, vip in enumerate(OTHERS):
            scene.apply_service(f"other{number}", vip, selector={"app": "other"}, annotations={})
        scene.add_pods((("worker1", "pod1"), ("worker2", "pod2"), ("worker1", "pod3")), {"app": "web"})
        scene.add_pods((("worker1", "pod4"), ("worker2", "pod5"), ("worker2", "pod6")), {"app": "other"})
        scene.sync()
        scene.settle()
        for vip in (*VIPS.values(), *OTHERS):
            scene.cluster.announce(vip, ["ingress1"])
        yield scene


def router(scene: Scene, node: str) -> dict[tuple[str, str], str]:
    """(table, VIP) -> the outer address to which its packets go."""
    host = scene.cluster.nodes[node].host
    inside = ("ip", "netns", "exec", "service-tunnel", "ip")
    hops = {}
    for line in host.run(*inside, "nexthop").stdout.splitlines():
        words = line.split()
        hops[words[1]] = words[words.index("dst") + 1]
    found = {}
    for family in ("-4", "-6"):
        for line in host.run(*inside, family, "route", "show", "table", "all", "proto", "116").stdout.splitlines():
            words = line.split()
            if "nhid" in words:
                found[words[words.index("table") + 1], words[0]] = hops[words[words.index("nhid") + 1]]
    assert set(hops.values()) == set(found.values()), "no nexthop object is left over"
    return found


@pytest.mark.timeout(600)
def test_a_helper_that_is_killed_at_random_points_harms_no_flow_and_what_is_left_converges(scene: Scene) -> None:
    dice = random.Random(116)
    scene.helpers["ingress1"].kill()
    began = time.monotonic()
    scene.start_helpers(["ingress1"])
    whole = time.monotonic() - began
    others = [pod for pod in scene.cluster.pods if pod.labels["app"] == "other"]
    client = scene.cluster.client
    with Stream(client, VIPS[4], 8080) as stream4, Stream(client, VIPS[6], 8080) as stream6:
        for number in range(KILLS):
            changed = others[1 + number % 2]  # the first one stays, so that the VIPs are served all the time
            changed.ready = not changed.ready
            scene.sync()
            helper = scene.helpers["ingress1"] = scene.start_on("ingress1", ())["ingress1"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.process.wait(dice.uniform(0, whole))
            assert helper.process.poll() is None, helper.log.read_text()[-3000:]
            helper.kill()
        scene.start_helpers(["ingress1"])
        scene.settle()
        scene.wait(lambda: router(scene, "ingress1") == router(scene, "ingress2"), "both routers alike")
        counts = [stream.count() for stream in (stream4, stream6)]
    assert all(count.sent > 20 * KILLS for count in counts)
    assert [count.lost for count in counts] == [0, 0], counts
