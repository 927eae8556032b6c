"""The place that a test calls the plugin in: one of each release, with a pod's network namespace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.private_netns import batch, private_netns
from tests.portability import roots
from tests.portability.sandbox import Sandbox
from tests.testbed.cni import plugin_binary


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("tests/portability needs root: it mounts, and makes network namespaces. Run it as root.")


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder that was built: what a case does to it harms nobody, and nobody rebuilds it meanwhile."""
    copy = tmp_path_factory.mktemp("plugin") / "service-tunnel"
    shutil.copytree(plugin_binary().parent, copy, symlinks=True)
    copy.parent.chmod(0o755)
    return copy


@pytest.fixture(scope="session", params=roots.RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def root(release: str) -> Path:
    return roots.ensure(release)


@pytest.fixture
def sandbox(root: Path, plugin: Path, tmp_path: Path) -> Sandbox:
    """Without a pod."""
    return Sandbox(root, plugin, tmp_path)


@pytest.fixture
def pod(root: Path, plugin: Path, tmp_path: Path) -> Iterator[Sandbox]:
    """With a pod that has an interface, an address of each kind and default routes."""
    with private_netns() as netns:
        batch(
            netns,
            "link add eth0 type veth peer name peer0",
            "link set peer0 up",
            "addr add 10.9.0.2/24 dev eth0",
            "addr add fd09::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.9.0.1",
            "route add ::/0 via fd09::1 dev eth0",
        )
        yield Sandbox(root, plugin, tmp_path, netns)
