"""A node's folders with a pod whose namespace is a file, and a pod side that only remembers what pods have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from cni_plugin import attachment, config
from cni_plugin.environment import Invocation
from cni_plugin.tunnel import NOTHING, PodTunnels, Tunnel

RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "unknown": {"kept": [1.5, None]}}
WANTED = PodTunnels((Tunnel(("198.51.100.7",)),))


class FakePodSide(ModuleType):
    """Stands in for `cni_plugin.pod`: remembers what each pod has."""

    class PodError(Exception):
        """Like the real one."""

        def __init__(self, msg: str, details: str = "") -> None:
            super().__init__(msg)
            self.details = details

    def __init__(self) -> None:
        super().__init__("cni_plugin.pod")
        self.pods: dict[str, PodTunnels] = {}
        self.failure: Exception | None = None
        """What every call raises; `refusal`: what `configure` does where something is wanted."""
        self.refusal: Exception | None = None
        self.absent: list[str] = []
        self.watch: Any = None
        self.had = NOTHING
        """What the last `configure` was told of what the pod may have; `inode`: which namespace is meant."""
        self.inode = 0
        self.interface = ""
        self.warnings: list[str] = []

    def configure(
        self,
        netns_path: str,
        interface: str,
        wanted: PodTunnels,
        had: PodTunnels = NOTHING,
        inode: int = 0,
        warn: Callable[[str], None] | None = None,
    ) -> list[str]:
        if self.watch:
            self.watch()
        self.had, self.inode = had, inode
        if self.failure or (self.refusal and wanted.tunnels):
            raise self.failure or self.refusal  # type: ignore[misc]  # one of them is there
        if not wanted.tunnels:
            self.pods.pop(netns_path, None)
            return []
        if warn:
            for words in self.warnings:
                warn(words)
        self.interface = interface
        self.pods[netns_path] = wanted
        return ["198.51.100.7 on lo"]

    def missing(self, netns_path: str, interface: str, wanted: PodTunnels, inode: int = 0) -> list[str]:
        if self.failure:
            raise self.failure
        if self.absent:
            return self.absent
        present = self.pods.get(netns_path, NOTHING)
        return [] if set(present.tunnels) == set(wanted.tunnels) else [f"{present} is not {wanted}"]


class Node:
    """A node's folders, and one pod on it whose namespace is an ordinary file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.netns = path / "netns"
        self.netns.touch()
        self.run_dir = path / "run"
        self.socket = path / "h.sock"
        (path / "state").mkdir()

    def conf(self, **changes: Any) -> config.NetConf:
        fields: dict[str, Any] = {
            "cni_version": "1.0.0",
            "name": "pods",
            "helper_socket": str(self.socket),
            "run_dir": str(self.run_dir),
            "state_dir": str(self.path / "state"),
            "helper_wait": 0.05,
            "log_file": str(self.path / "log"),
            "prev_result": RESULT,
        }
        return config.NetConf(**(fields | changes))

    def invocation(self, command: str = "ADD", namespace: str = "shop", **changes: Any) -> Invocation:
        args = {"K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": "web-1", "K8S_POD_UID": "u-1"} if namespace else {}
        fields = {"container_id": "c1", "netns": str(self.netns), "ifname": "eth0", "args": args}
        return Invocation(command, **(fields | changes))

    def records(self) -> list[attachment.Attachment]:
        found, troubles = attachment.read_all(str(self.run_dir))
        assert not troubles
        return found

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "log").read_text().splitlines()]
