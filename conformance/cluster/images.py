"""The images of the cluster, made here: no registry is asked.

    service-tunnel   the project's own (`install.image`), by the name that the manifests give it
    server           the same with one more layer: the testbed's server, which says whom it sees
    small            Debian's static busybox alone: pods that do next to nothing, and the sandboxes

All are in one OCI archive, which `ctr images import` takes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.cluster.programs import debians
from install import image
from tests.testbed import server

OURS = "docker.io/library/service-tunnel:0.1.0"
SERVER = "localhost/cluster/server:1"
SMALL = "localhost/cluster/small:1"
NAMES = (OURS, SERVER, SMALL)
COMMANDS = "sh cat ls ip sleep true false touch wget hostname grep test env echo kill id".split()
"""Of busybox, in the image `small`."""
_TYPE = "application/vnd.oci.image."
_PROCESSOR = {"x86_64": "amd64", "aarch64": "arm64"}


class Layout:
    """An OCI image layout in an archive, written as it grows."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._manifests: list[dict[str, Any]] = []
        self._written: set[str] = set()

    def blob(self, kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        self._put(f"blobs/sha256/{digest}", content)
        return {"mediaType": _TYPE + kind, "digest": f"sha256:{digest}", "size": len(content)}

    def _put(self, name: str, content: bytes) -> None:
        if name not in self._written:
            self._written.add(name)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            self._archive.addfile(entry, io.BytesIO(content))

    def image(self, name: str, layers: Sequence[dict[str, Any]], config: Mapping[str, Any]) -> None:
        """One image of layers that are not compressed, so that their names are their digests."""
        here = {"architecture": _PROCESSOR[platform.machine()], "os": "linux"}
        layers_ = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
        described = self.blob("config.v1+json", json.dumps({**here, "config": config, "rootfs": layers_}).encode())
        manifest = {"schemaVersion": 2, "mediaType": f"{_TYPE}manifest.v1+json", "config": described}
        made = self.blob("manifest.v1+json", json.dumps({**manifest, "layers": layers}).encode())
        names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        self._manifests.append({**made, "platform": here, "annotations": names})

    def finish(self) -> None:
        self._put("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": f"{_TYPE}index.v1+json", "manifests": self._manifests}
        self._put("index.json", json.dumps(index).encode())


def layer(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, folders: Sequence[str] = ()) -> bytes:
    """A layer of programs and folders."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def make(folder: Path) -> tuple[Path, Path]:
    """The archive and the root of the project's image, in `folder`; raises ImageError, DebianError."""
    root = folder / "root"
    image.root(root)
    whole = subprocess.run(
        ["tar", "--numeric-owner", "--sort=name", "--mtime=@0", "-C", str(root), "-c", "."],
        check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    path = folder / "images.tar"
    with tarfile.open(path, "w") as archive:
        _put_images(Layout(archive), whole)
    return path, root


def _put_images(layout: Layout, root: bytes) -> None:
    ours = layout.blob("layer.v1.tar", root)
    variables = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    layout.image(OURS, [ours], variables)
    program = layout.blob("layer.v1.tar", layer({"server.py": Path(server.__file__).read_bytes()}))
    layout.image(SERVER, [ours, program], variables)
    busybox = (debians() / "bin" / "busybox").read_bytes()
    links = {f"bin/{command}": "busybox" for command in COMMANDS}
    small = layer({"bin/busybox": busybox}, links, ["bin", "etc", "proc", "sys", "dev", "tmp"])
    waiting = ["/bin/sh", "-c", "trap exit TERM INT; while :; do sleep 3600 & wait $!; done"]
    layout.image(SMALL, [layout.blob("layer.v1.tar", small)], {"Env": ["PATH=/bin"], "Cmd": waiting})
    layout.finish()
