"""Scenes for kernel tests. Building one takes seconds, minutes on emulated processors, so tests share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from cni_plugin.tunnel import MPLS
from tests.kernel.plugin_calls import binary, netns, pod  # noqa: F401 - fixtures
from tests.testbed.holding import Held
from tests.testbed.manifests import service_port
from tests.testbed.scene import MAPPED_VIPS, Scene

REMOTE = (("worker1", "pod1"), ("worker1", "pod2"), ("worker2", "pod3"), ("ingress1", "pod4"))
"""Pods on workers, and one on an ingress node itself."""
LOCAL = (("ingress1", "pod1"), ("ingress1", "pod2"), ("ingress1", "pod3"), ("ingress1", "pod4"), ("ingress2", "pod5"))
"""In mode mpls a label reaches pods of the ingress node only."""
MAPPED = (
    service_port(80, 8080),
    service_port(80, 8080, protocol="UDP"),
    service_port(8443, "https"),
    service_port(9090),
)
"""Ports of the Service `mapped`: its ports are not the programs'."""


def places(mode: str) -> tuple[tuple[str, str], ...]:
    return LOCAL if mode == MPLS else REMOTE


def wait_for_answers(scene: Scene, *held: Held) -> None:
    """Until every connection was answered by its pod to a question that was asked from now on."""
    first = [[each.answers for each in connections.each()] for connections in held]
    # The first answer may belong to a question from before; the second cannot.

    def answered() -> bool:
        return all(
            each.outcome == "open" and each.answers >= before + 2
            for connections, befores in zip(held, first, strict=True)
            for each, before in zip(connections.each(), befores, strict=True)
        )

    scene.wait(answered, "answers to all connections")


def announce_where_served(scene: Scene, mode: str, vips: Mapping[int, str]) -> None:
    """In mode mpls only the node that has the one pod serves it, and so only that one would announce it."""
    for vip in vips.values():
        scene.cluster.announce(vip, [places(mode)[0][0]] if mode == MPLS else None)


class SharedScenes:
    """The scene that tests of one mode share, with one mode's standing at a time."""

    def __init__(self) -> None:
        self._mode = ""
        self._scene: Scene | None = None

    def of(self, mode: str) -> Scene:
        """Two Services, `web` and `mapped`, before the same pods; IPv6 addresses are checked for duplicates."""
        if self._scene is None or self._mode != mode:
            self.close()
            self._mode = mode
            self._scene = Scene(mode=mode, rp_filter=1, detect_duplicates=True)
            self._scene.apply_service()
            self._scene.apply_service("mapped", ",".join(MAPPED_VIPS.values()), MAPPED, selector={"app": "web"})
            self._scene.add_pods(places(mode), {"app": "web"}, (8080, 9443, 9090), {"https": 9443})
            self._scene.sync()
        self._scene.settle()
        return self._scene

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None


@pytest.fixture(scope="session")
def shared_scenes() -> Iterator[SharedScenes]:
    scenes = SharedScenes()
    yield scenes
    scenes.close()


@pytest.fixture(scope="module")
def scene(mode: str, shared_scenes: SharedScenes) -> Scene:
    """Nodes and pods filter reverse paths strictly, as many distributions do. What a test changes, it puts back."""
    return shared_scenes.of(mode)
