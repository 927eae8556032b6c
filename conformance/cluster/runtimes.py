"""Container runtimes of a node: where their programs are, and how they are configured, started and given images.

Folders are those that people's nodes have (/opt/cni/bin, /etc/cni/net.d, /run/containerd). Settings that differ from
the defaults: no AppArmor, and nothing that would need CAP_SYS_RESOURCE, which a container of a CI service lacks.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conformance import peers
from conformance.cluster.images import NAMES, SMALL
from conformance.cluster.programs import LIBRARIES, debians

CRIO = "CRIO"
"""Variable with the path of a `crio`, where the PATH has none."""

_OF_CONTAINERD_2 = f"""
version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{SMALL}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{{programs}}/usr/sbin/runc"
"""
_OF_CONTAINERD_1_6 = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SMALL}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{{programs}}/usr/sbin/runc"
"""
_RUNC_OF_CRIO = "/opt/cluster/bin/runc"
_WITHOUT_OOM_SCORE = """#!/bin/sh
# CRI-O has no switch for it: a score below 0 needs CAP_SYS_RESOURCE, which privileged containers are to have, too.
before=
for word; do
  if [ "$before" = --bundle ]; then
    sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj": 0/; /"CAP_SYS_RESOURCE",$/d' "$word/config.json"
  fi
  before=$word
done
exec {programs}/usr/sbin/runc "$@"
"""
_OF_CRIO = f"""
[crio.api]
listen = "/run/crio/crio.sock"
[crio.runtime]
default_runtime = "runc"
conmon_cgroup = "pod"
cgroup_manager = "cgroupfs"
drop_infra_ctr = false
apparmor_profile = "unconfined"
pinns_path = "{{pinns}}"
[crio.runtime.runtimes.runc]
runtime_path = "{_RUNC_OF_CRIO}"
runtime_root = "/run/runc"
monitor_path = "{{programs}}/usr/bin/conmon"
[crio.image]
pause_image = "{SMALL}"
pause_command = ""
[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dirs = ["/opt/cni/bin"]
[crio.nri]
enable_nri = false
"""

_CONTAINERS = """
[containers]
apparmor_profile = "unconfined"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["{programs}/usr/bin/conmon"]
[engine.runtimes]
runc = ["{programs}/usr/sbin/runc"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "testbed"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A container runtime for kubelet."""

    name: str
    command: tuple[str, ...]
    """What starts it; the last part of the first word is its name."""
    socket: str
    imports: Sequence[tuple[str, ...]]
    """Commands after each of which more images are known to it; `{}` stands for the archive."""
    files: dict[str, str]
    folder: Path | None = field(default=None)
    """Where it finds programs that must be its own."""

    @property
    def program(self) -> str:
        return Path(self.command[0]).name


def containerd_2() -> Runtime:
    return _containerd("containerd 2", peers.ensure(peers.CONTAINERD), _OF_CONTAINERD_2)


def containerd_1_6() -> Runtime:
    return _containerd("containerd 1.6", debians() / "usr" / "bin", _OF_CONTAINERD_1_6)


def _containerd(name: str, folder: Path, config: str) -> Runtime:
    path, socket = "/etc/containerd/config.toml", "/run/containerd/containerd.sock"
    return Runtime(
        name,
        (str(folder / "containerd"), "--config", path, "--log-level", "info"),
        socket,
        [(str(folder / "ctr"), "-a", socket, "-n", "k8s.io", "images", "import", "{}")],
        {path: config.format(programs=debians())},
        folder,
    )


def crio() -> Runtime:
    """CRI-O, where the machine has it; `pinns` stands beside it."""
    found = crio_found()
    assert found
    path = "/etc/crio/crio.conf"
    podman = str(debians() / "usr" / "bin" / "podman")
    return Runtime(
        "CRI-O",
        (found, f"--config={path}", "--config-dir="),
        "/run/crio/crio.sock",
        [("env", f"LD_LIBRARY_PATH={library_path()}", podman, "pull", f"oci-archive:{{}}:{name}") for name in NAMES],
        {
            path: _OF_CRIO.format(programs=debians(), pinns=Path(found).with_name("pinns")),
            _RUNC_OF_CRIO: _WITHOUT_OOM_SCORE.format(programs=debians()),
            **containers_files(),
        },
    )


def crio_found() -> str:
    """The path of `crio`; empty where there is none."""
    return os.environ.get(CRIO) or shutil.which("crio") or ""


def library_path() -> str:
    """Of the libraries that Debian's podman brings along."""
    return ":".join(str(debians() / folder.format(platform.machine())) for folder in LIBRARIES)


def containers_files() -> dict[str, str]:
    """What podman and CRI-O read, both: where images are, that signatures are not asked for, how short names go on."""
    return {
        "/etc/containers/containers.conf": _CONTAINERS.format(programs=debians()),
        "/etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        "/etc/containers/registries.conf": 'unqualified-search-registries = ["docker.io"]\n',
        "/etc/containers/storage.conf": _STORAGE,
    }
