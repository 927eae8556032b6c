"""Debian's podman with its CNI backend: a runtime without Kubernetes, which runs the chain by a libcni of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conformance.cluster.node import put_network
from conformance.cluster.programs import debians
from conformance.cluster.runtimes import containers_files, library_path
from install.image import PLUGIN
from tests.testbed import server
from tests.testbed.cluster import Node
from tests.testbed.cni import bridge_chain
from tests.testbed.namespaces import REPOSITORY


class Podman:
    """On a machine of the cluster that is no node of Kubernetes; the plugin's tunnels are those of the chain entry."""

    def __init__(self, node: Node, root: Path, vips: Sequence[str]) -> None:
        """`root`: what containers have as their root, in a layer of their own."""
        self.machine = node.host
        self._root = root
        programs = debians()
        put_network(self.machine, bridge_chain(node.pod_cidrs))
        self.machine.path("/etc/containers").mkdir(parents=True, exist_ok=True)
        for path, text in containers_files().items():
            self.machine.path(path).write_text(text)
        command = (str(REPOSITORY / ".venv/bin/service-tunnel-install"), "install", f"--source={PLUGIN}")
        self.machine.run(*command, f"--tunnel={','.join(vips)}")
        self._command = ("env", f"LD_LIBRARY_PATH={library_path()}", str(programs / "usr" / "bin" / "podman"))

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.machine.run(*self._command, *arguments, check=check, timeout=120)

    def run(self, name: str, *command: str, keep: bool = False) -> str:
        """A container; with `keep` it goes on in the background."""
        how = ("--detach",) if keep else ("--rm",)
        program = f"--volume={server.__file__}:/server.py:ro"
        return self("run", *how, f"--name={name}", program, "--rootfs", f"{self._root}:O", *command).stdout

    def addresses(self, name: str) -> dict[int, str]:
        """A container's own, by IP version."""
        (found,) = json.loads(self("inspect", name).stdout)
        (network,) = found["NetworkSettings"]["Networks"].values()
        return {4: network["IPAddress"], 6: network["GlobalIPv6Address"]}
