"""A release's root folder, read-only, with the built plugin in it, as a place to run the plugin in.

Everything is mounted in a mount namespace of the one call, so nothing is left of it. What a case changes about the
place it says in shell; what it changes about the process, too, from inside.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = "/opt/cni/bin/service-tunnel"
POD = "/run/netns/pod"
TIME_LIMIT = 60.0
"""Seconds after which a call counts as hanging."""

PLACE = r"""
set -e
mount -t tmpfs -o mode=755 tmpfs "$R"
cd "$ROOT"
for entry in *; do
    if [ -L "$entry" ]; then
        cp -P "$entry" "$R/$entry"  # /bin -> usr/bin
        continue
    fi
    mkdir "$R/$entry"
    case $entry in
        bin | etc | lib* | sbin | usr) mount --bind "$entry" "$R/$entry" && mount -o remount,bind,ro "$R/$entry" ;;
    esac
done
cd /
mount -t proc proc "$R/proc"
mount --bind /dev "$R/dev"
mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
mount --bind "$RUN" "$R/run"
mkdir -p "$R/opt/cni/bin"
mount --bind "$PLUGIN" "$R/opt/cni/bin"
mount -o remount,bind,ro "$R/opt/cni/bin"
if [ -n "$NETNS" ]; then
    mkdir -p "$R/run/netns"
    : >"$R/run/netns/pod"
    mount --bind "$NETNS" "$R/run/netns/pod"
fi
eval "$SETUP"
mount -o remount,ro "$R"
exec chroot "$R" /bin/bash -c "$COMMAND"
"""
"""Bash is one of the smallest root's programs; only it can give a process any name."""

RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": POD}],
    "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {},
}
VIPS = ("198.51.100.7", "2001:db8::7")


@dataclass(frozen=True)
class Case:
    """One way to be called."""

    command: str = f"exec {PROGRAM}"
    """In the root, for bash."""
    setup: str = ""
    """Before that, outside; the root is at $R and can still be written to."""
    quiet: bool = True
    """Whether nothing may be on stderr; the system's loader complains there of what it was told to load."""


PLAINLY = Case()


@dataclass(frozen=True)
class Sandbox:
    """Where the plugin is called."""

    root: Path
    plugin: Path
    """The folder that was built."""
    folder: Path
    """An empty folder, for as long as the place lives; /run of the place is in it, and so outlives a call."""
    netns: str = ""
    """Path of the pod's network namespace, for this process."""
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})

    def call(self, verb: str, case: Case = PLAINLY, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """One verb for the pod; `stdin` is its chain entry unless given."""
        return self.run(
            case,
            json.dumps(chain_entry()).encode() if stdin is None else stdin,
            CNI_COMMAND=verb,
            CNI_CONTAINERID="c1",
            CNI_NETNS=POD,
            CNI_IFNAME="eth0",
            CNI_PATH="/opt/cni/bin",
        )

    def run(self, case: Case, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        """A case's command with these variables in its environment."""
        mount_point, run = self.folder / "root", self.folder / "run"
        mount_point.mkdir(exist_ok=True)
        run.mkdir(exist_ok=True)
        place = {
            "R": str(mount_point),
            "RUN": str(run),
            "ROOT": str(self.root),
            "PLUGIN": str(self.plugin),
            "NETNS": self.netns,
            "SETUP": case.setup,
            "COMMAND": case.command,
        }
        return subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", PLACE],
            env={**self.environment, **place, **variables},
            input=stdin,
            capture_output=True,
            timeout=TIME_LIMIT,
        )


def chain_entry(**changes: Any) -> dict[str, Any]:
    """A chain entry with tunnels of its own: no helper is needed."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "service-tunnel",
        "tunnels": [{"vips": list(VIPS), "mode": "vxlan-gpe"}],
        "prevResult": RESULT,
        **changes,
    }
