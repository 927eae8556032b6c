"""How long an ingress node's sudden death is felt, with BIRD and BFD as the example has them, and what it costs.

The node's links stay up, as behind a switch, and nothing passes any more: only BFD tells the router. There is no peer;
what others do in such a case is measured by `make faults`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from tests.bench.figures import Figure, alone
from tests.bench.progress import Tell
from tests.testbed.announced import announced_scene, wait_for_paths
from tests.testbed.bird import Routing, dead
from tests.testbed.holding import Held
from tests.testbed.scene import VIPS, Scene

FIGURES: Mapping[str, str] = {
    "failover": "an ingress node's sudden death, BFD 100 ms x 3: the longest silence of any of 40 flows",
    "failover-lost": "the same: how many of 2,000 open TCP connections are lost",
}
NODE, OTHER = "ingress1", "ingress2"
VIP = VIPS[4]
PORT = 8080
FLOWS, INTERVAL = 40, 0.005
"""Flows of UDP, and seconds between the datagrams of each."""
WATCHED = 3.0
"""Seconds of a death that flows are watched."""
BEFORE = 0.5
"""Seconds that they are watched before it."""
CONNECTIONS, ASKING = 2000, 1.0
"""Of TCP, and seconds between the requests of each."""
LIMIT = 60.0


def measure(wanted: Sequence[str], runs: int, tell: Tell) -> Iterator[Figure]:
    """A tenth of `runs` deaths, two at least; few runs take few connections."""
    deaths, connections = max(2, runs // 10), CONNECTIONS if runs >= 50 else 50
    silences: list[float] = []
    lost: list[float] = []
    with announced_scene() as (scene, routing):
        wait_for_paths(scene, routing, {NODE, OTHER})
        with Held(scene.cluster.client, VIP, PORT, connections, interval=ASKING) as held:
            gone = 0
            for number in range(deaths):
                tell(f"death {number + 1} of {deaths}")
                silences.append(1000 * _one_death(scene, routing))
                # Each has asked and was answered, or has been without an answer for long.
                scene.wait(lambda: held.report().stalled == 0, "all connections are open or lost")
                lost.append(held.report().lost - gone)
                gone = held.report().lost
    for name in wanted:
        unit, samples = {"failover": ("ms", silences), "failover-lost": ("connections", lost)}[name]
        yield alone(name, unit, samples)


def _one_death(scene: Scene, routing: Routing) -> float:
    """The longest silence, in seconds; the node is back when this returns."""
    found: list[float] = []

    def watch() -> None:
        found.append(scene.cluster.client.call(longest_silence, VIP, PORT, WATCHED))

    watching = threading.Thread(target=watch)
    watching.start()
    time.sleep(BEFORE)
    with dead(scene.cluster.nodes[NODE].host):
        watching.join(LIMIT)
        wait_for_paths(scene, routing, {OTHER})
    wait_for_paths(scene, routing, {NODE, OTHER})
    (silence,) = found
    return silence


def longest_silence(vip: str, port: int, seconds: float) -> float:
    """Seconds that any of the flows was without an answer, the time at the end among it."""
    flows = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(FLOWS)]
    poll = select.poll()
    for flow in flows:
        flow.connect((vip, port))
        poll.register(flow, select.POLLIN)
    by_number = {flow.fileno(): flow for flow in flows}
    begin = due = time.monotonic()
    heard = dict.fromkeys(by_number, begin)
    longest = 0.0
    while (now := time.monotonic()) < begin + seconds:
        if now >= due:
            due += INTERVAL
            for flow in flows:
                with contextlib.suppress(ConnectionError):  # told of an earlier one, which is silence, too
                    flow.send(b"still there?")
        for number, _ in poll.poll(max(0.0, 1000 * (due - time.monotonic()))):
            with contextlib.suppress(ConnectionError, BlockingIOError):
                by_number[number].recv(1 << 11)
                now = time.monotonic()
                longest, heard[number] = max(longest, now - heard[number]), now
    end = time.monotonic()
    for flow in flows:
        flow.close()
    return max(longest, *[end - last for last in heard.values()])
