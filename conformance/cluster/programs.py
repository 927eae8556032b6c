"""The programs of a node: those of `conformance.peers`, and some of Debian's packages, unpacked, not installed.

An installed containerd would start where systemd runs, and Debian's runc cannot stand beside Docker's. They are Debian
12's on any machine, with the libraries that a younger release does not have.
"""

from __future__ import annotations

from pathlib import Path

from install import debian
from install.cache import Say, made_once

RELEASE = "bookworm"
PACKAGES = (
    "runc", "containerd", "busybox-static", "podman", "conmon", "golang-github-containers-common",
    "libassuan0", "libdevmapper1.02.1", "libgpgme11", "libgpg-error0", "libglib2.0-0", "libseccomp2", "libsubid4",
)  # fmt: skip
LIBRARIES = ("usr/lib/{}-linux-gnu", "lib/{}-linux-gnu")


def debians(say: Say = print) -> Path:
    """A folder with the packages' files."""

    def make(folder: Path) -> Path:
        debian.unpack_packages(RELEASE, PACKAGES, folder)
        return folder

    pins = [RELEASE, debian.architecture(), *PACKAGES]
    return made_once("debian", pins, make, "unpacking Debian's container runtimes (half a minute)", say)
