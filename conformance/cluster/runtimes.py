"""Container runtimes of a node: where their programs are, and how they are configured and started.

Folders are those that people's nodes have (/opt/cni/bin, /etc/cni/net.d, /run/containerd). Settings that differ from
the defaults: no AppArmor, and nothing that would need CAP_SYS_RESOURCE, which a container of a CI service lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conformance import peers
from conformance.cluster.images import SMALL
from conformance.cluster.programs import debians

SOCKET = "/run/containerd/containerd.sock"
CONFIG = "/etc/containerd/config.toml"

_OF_2 = f"""
version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{SMALL}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{{runc}}"
"""
_OF_1_6 = f"""
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
      BinaryName = "{{runc}}"
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A containerd of some version."""

    name: str
    programs: Path
    """The folder with containerd, its shim and `ctr`."""
    config: str

    @property
    def command(self) -> tuple[str, ...]:
        return (str(self.programs / "containerd"), "--config", CONFIG, "--log-level", "info")

    def importing(self, archive: str) -> tuple[str, ...]:
        """The command that makes an archive's images known to kubelets."""
        return (str(self.programs / "ctr"), "-a", SOCKET, "-n", "k8s.io", "images", "import", archive)


def containerd_2() -> Runtime:
    return Runtime("containerd 2", peers.ensure(peers.CONTAINERD), _with_runc(_OF_2))


def containerd_1_6() -> Runtime:
    return Runtime("containerd 1.6", debians() / "usr" / "bin", _with_runc(_OF_1_6))


def _with_runc(config: str) -> str:
    return config.format(runc=debians() / "usr" / "sbin" / "runc")
