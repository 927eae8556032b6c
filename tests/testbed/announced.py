"""A scene whose VIPs are announced by real routing daemons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from tests.testbed.bird import Routing, Speaker, on_node
from tests.testbed.cluster import Node
from tests.testbed.scene import VIPS, Scene

PLACES = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"))


@contextmanager
def announced_scene(start: Callable[[Node], Speaker] = on_node) -> Iterator[tuple[Scene, Routing]]:
    """Two ingress nodes, each with the daemon that `start` starts, and three pods behind the VIPs."""
    with Scene(rp_filter=1) as scene:
        scene.apply_service()
        for vip in VIPS.values():
            scene.cluster.withdraw(vip)
        scene.add_pods(PLACES, {"app": "web"})
        scene.sync()
        scene.settle()
        with Routing(scene.cluster, start) as routing:
            yield scene, routing


def wait_for_paths(scene: Scene, routing: Routing, nodes: Collection[str]) -> None:
    """Until the router sends the packets of all VIPs to these nodes."""
    wanted = set(nodes)
    scene.wait(
        lambda: all(routing.paths(vip) == wanted for vip in VIPS.values()), f"VIPs by way of {wanted or 'nobody'}"
    )
