"""Pods come and go, by a real chain on one node, while the plugin beneath it is exchanged, or put on and taken off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.cni import REFERENCE_PLUGINS, CniRuntime, Pod, plugin_binary
from tests.testbed.host import Host

PODS, AT_ONCE, CHANGES = 300, 4, 20
VIP = "198.51.100.7"
PTP = {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/20"}]]}}


class Node:
    """A node whose CNI folders are outside of it, where the installer works."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.bin_dir, self.conf_dir = folder / "bin", folder / "net.d"
        for made in (self.bin_dir, self.conf_dir):
            made.mkdir()
        self.primary = self.conf_dir / "10-pods.conflist"
        self.primary.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [PTP]}))
        self.runtime = CniRuntime(host, [REFERENCE_PLUGINS, str(self.bin_dir)])
        self.builds = [plugin_binary().parent, folder / "another build"]
        shutil.copytree(self.builds[0], self.builds[1], symlinks=True)
        (self.builds[1] / "README").write_text("so that it is another")

    def command(self, verb: str, *more: str) -> None:
        folders = ["--bin-dir", str(self.bin_dir), "--conf-dir", str(self.conf_dir)]
        done = [sys.executable, "-m", "install.node.cli", verb, *folders, *more]
        subprocess.run(done, check=True, capture_output=True)

    def install(self, build: int) -> None:
        self.command("install", "--source", str(self.builds[build]), "--tunnel", VIP)

    def chain(self) -> dict[str, Any]:
        """The chain as a runtime that looks now finds it."""
        found: dict[str, Any] = json.loads(self.primary.read_text())
        return found

    def start(self, number: int) -> Pod:
        pod = Pod(f"pod{number}", "default", {}, {}, "node")
        pod.start(self.host, self.runtime, self.chain(), {})
        return pod

    def records(self) -> list[str]:
        return os.listdir(self.host.path("/run/service-tunnel/attachments"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Host("node") as host:
        yield Node(host, tmp_path)


def test_three_hundred_pods_are_made_and_deleted_during_twenty_exchanges_of_the_plugin(node: Node) -> None:
    node.install(0)
    chosen = []

    def life(number: int) -> None:
        pod = node.start(number)
        if number % 10 == 0:
            assert VIP in pod.place.run("ip", "-4", "addr", "show", "dev", "lo").stdout
        pod.stop()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        lives = [threads.submit(life, number) for number in range(PODS)]
        for change in range(1, CHANGES + 1):
            # Each is in use for its share of the pods.
            lives[change * PODS // (CHANGES + 2)].result()
            node.install(change % 2)
            chosen.append(os.readlink(node.bin_dir / "service-tunnel"))
        assert not all(one.done() for one in lives), "the pods were there before the exchanges were through"
        for one in lives:
            one.result()
    assert len(set(chosen)) == 2 and chosen[0] != chosen[1] == chosen[-1]
    assert len(os.listdir(node.bin_dir / ".service-tunnel")) == 2
    assert node.records() == []


def test_pods_are_made_and_deleted_while_the_entry_is_put_on_and_taken_off(node: Node) -> None:
    node.install(0)
    over = threading.Event()
    seen: set[bool] = set()

    def life(number: int) -> None:
        pod = node.start(number)
        seen.add(len(pod.chain["plugins"]) == 2)
        pod.chain = node.chain()  # as containerd has it, whose DEL is by the chain of that moment
        pod.stop()

    def turns() -> int:
        count = 0
        while not over.is_set():
            node.command("uninstall")
            assert (node.bin_dir / "service-tunnel").exists()
            node.install(count % 2)
            count += 1
        return count

    with ThreadPoolExecutor(AT_ONCE) as threads:
        turning = threads.submit(turns)
        try:
            for one in [threads.submit(life, number) for number in range(60)]:
                one.result()
        finally:
            over.set()
        assert turning.result() >= 2
    assert seen == {True, False}
    node.command("uninstall", "--purge")
    assert node.chain()["plugins"] == [PTP] and os.listdir(node.bin_dir) == []
    assert sorted(os.listdir(node.conf_dir)) == ["10-pods.conflist"]
