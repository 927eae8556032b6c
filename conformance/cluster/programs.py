"""The programs of a node: those of `conformance.peers`, and some of Debian's packages, unpacked, not installed.

An installed containerd would start where systemd runs, and Debian's runc cannot stand beside Docker's.
"""

from __future__ import annotations

from pathlib import Path

from install import debian
from install.cache import Say, made_once

PACKAGES = ("runc", "containerd", "busybox-static")


def debians(say: Say = print) -> Path:
    """A folder with the packages' files; of the release that is installed here, whose libraries they want."""

    def make(folder: Path) -> Path:
        debian.unpack_packages(debian.release(), PACKAGES, folder)
        return folder

    pins = [debian.release(), debian.architecture(), *PACKAGES]
    return made_once("debian", pins, make, "unpacking Debian's container runtime (half a minute)", say)
