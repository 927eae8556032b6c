"""Real chains of real plugins, run by libcni on one node, with a witness of what ours is given and gives.

libcni is driven by its own `cnitool`, and by `sequence` where that cannot say what is wanted.

A node is a `Host` of the testbed, with /run, /var/lib and /var/log of its own, so nothing of a chain outlives it. In
front of our plugin stands a shell script that keeps stdin and stdout of each call: libcni decodes results and drops
what it does not know, so what a plugin really printed can only be seen there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.contract.world import View, view_of_pod
from tests.testbed.cni import Conflist, plugin_binary
from tests.testbed.host import Host

NETWORK = "testbed"
POD = "/run/netns/pod"
RUN_DIR = "/run/service-tunnel"
OURS = {"type": "service-tunnel", "log": {"level": "debug", "file": "/run/service-tunnel.log"}}

_WITNESS = """#!/bin/sh
call=$(mktemp -d "/run/calls/$(date +%s%N)-XXXXXX")
cat >"$call/stdin"
echo "$CNI_COMMAND" >"$call/verb"
{binary} <"$call/stdin" >"$call/stdout"
status=$?
echo $status >"$call/status"
cat "$call/stdout"
exit $status
"""


@dataclass(frozen=True)
class Seen:
    """One call of our plugin by libcni."""

    verb: str
    stdin: str
    stdout: str
    status: int

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdin)
        return found


def chain(
    main: Mapping[str, Any], *, version: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Conflist:
    """A list with the plugins `before` ours and `after` it; ours has what `main` gives it."""
    return {"cniVersion": version, "name": NETWORK, "plugins": [*before, {**OURS, **main}, *after]}


class Libcni:
    """`cnitool` on one node, for one pod."""

    def __init__(self, host: Host, peers: Path) -> None:
        self.host = host
        self._peers = peers
        self._cnitool = str(peers / "cnitool")
        self._path = f"/run/witness:{peers}"
        for folder in ("witness", "calls", "net.d"):
            host.path(f"/run/{folder}").mkdir()
        witness = host.path("/run/witness/service-tunnel")
        witness.write_text(_WITNESS.format(binary=plugin_binary().resolve()))
        witness.chmod(0o755)
        host.run("ip", "netns", "add", "pod")
        host.run("ip", "-n", "pod", "link", "set", "lo", "up")

    def configure(self, conflist: Conflist) -> None:
        self.host.path("/run/net.d/10-testbed.conflist").write_text(json.dumps(conflist))

    def run(
        self,
        verb: str,
        arguments: Mapping[str, str] | None = None,
        capabilities: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """`cnitool VERB`; raises CommandFailed with what libcni says unless `check` is off."""
        environment = {"CNI_PATH": self._path, "NETCONFPATH": "/run/net.d"}
        if arguments:
            environment["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in arguments.items())
        if capabilities:
            environment["CAP_ARGS"] = json.dumps(capabilities)
        return self.host.run(self._cnitool, verb, NETWORK, POD, env=environment, check=check)

    def sequence(self, *steps: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The steps of conformance/peers/cni/sequence, by one runtime; what came of each."""
        environment = {"CNI_PATH": self._path, "NETCONFPATH": "/run/net.d"}
        done = self.host.run(
            str(self._peers / "sequence"), NETWORK, env=environment, input="\n".join(map(json.dumps, steps))
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def add_pod(self, name: str) -> str:
        """Another pod's namespace; returns its path."""
        self.host.run("ip", "netns", "add", name)
        self.host.run("ip", "-n", name, "link", "set", "lo", "up")
        return f"/run/netns/{name}"

    def seen(self) -> list[Seen]:
        """The calls of our plugin, in their order."""
        folders = sorted(self.host.path("/run/calls").iterdir())
        return [
            Seen(
                (folder / "verb").read_text().strip(),
                (folder / "stdin").read_text(),
                (folder / "stdout").read_text(),
                int((folder / "status").read_text()),
            )
            for folder in folders
        ]

    def pod(self, *command: str) -> str:
        return self.host.run("ip", "netns", "exec", "pod", *command).stdout

    def view(self, pod: str = POD) -> View:
        """What a pod has, and what of attachments is on the node: devices, files with state, port mappings."""
        inside = self.host.place("pod", pod).call(view_of_pod)
        links = self.host.run("ip", "-br", "link", "show", "type", "veth").stdout
        devices = {f"veth of the node {line.split()[0]}" for line in links.splitlines()}
        ours = {line for line in self.host.run("ip", "-br", "link").stdout.splitlines() if "svctun" in line}
        mappings = {line for line in self.host.run("iptables-save").stdout.splitlines() if ":8080" in line}
        folders = (
            "/var/lib/cni/results",
            f"/var/lib/cni/networks/{NETWORK}",
            f"{RUN_DIR}/attachments",
            "/run/cni/tuning",
        )
        files = {f"{folder}/{path.name}" for folder in folders for path in _files(self.host.path(folder))}
        # host-local keeps which address it gave last, and its lock.
        files = {file for file in files if not file.endswith("/lock") and "last_reserved_ip" not in file}
        return frozenset(inside | devices | ours | mappings | files)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
