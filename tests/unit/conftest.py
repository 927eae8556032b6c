"""What tests of the plugin's verbs share: a node, a pod side that only remembers, a helper."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import cni_plugin
from cni_plugin import netns
from tests.fake_helper import FakeHelper, tunnels
from tests.unit.fake_node import FakePodSide, Node

# Time limits of single examples fail on a busy machine alone; a test that hangs has pytest-timeout.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("same")
"""The same examples in every run: a change is judged by itself. `--hypothesis-profile=search` looks for others."""


@pytest.fixture
def pod_side(monkeypatch: pytest.MonkeyPatch) -> FakePodSide:
    fake = FakePodSide()
    monkeypatch.setitem(sys.modules, "cni_plugin.pod", fake)
    monkeypatch.setattr(cni_plugin, "pod", fake, raising=False)
    return fake


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """With a file in the place of the pod's namespace, which only root could make."""
    made, of_pod = Node(tmp_path), netns.of_pod
    stand_in = {str(made.netns): netns.identity(str(made.netns))}
    monkeypatch.setattr(netns, "of_pod", lambda path: stand_in.get(path) or of_pod(path))
    return made


@pytest.fixture
def helper(node: Node) -> Iterator[FakeHelper]:
    with FakeHelper(node.socket, tunnels("198.51.100.7")) as running:
        yield running
