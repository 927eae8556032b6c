"""Root folders of the Debian releases that the plugin has to start on, as debootstrap makes its smallest ones.

No Python is among a release's required packages; a look makes sure. Whoever uses one mounts it read-only.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from install import debian
from install.cache import made_once

RELEASES = {"bullseye": "2.31", "bookworm": "2.36", "trixie": "2.41"}
"""Debian 11, 12 and 13, and the version of the C library of each."""
DROPPED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/zoneinfo")
"""What takes room and says nothing about programs."""


class RootError(Exception):
    """A root folder could not be made; the message has the end of what debootstrap said."""


def ensure(release: str) -> Path:
    """The root folder of a release, made where it is missing: a minute and the network. Raises RootError, OSError."""

    def make(folder: Path) -> Path:
        _make(release, folder / "root")
        return folder / "root"

    pins = [debian.architecture(), Path(__file__).read_text()]
    return made_once(f"roots/{release}", pins, make, f"making a smallest root of Debian {release} (a minute)")


def _make(release: str, folder: Path) -> None:
    command = ["debootstrap", "--variant=minbase", release, str(folder), debian.mirror()]
    done = subprocess.run(
        command,
        env=debian.proxy_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RootError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    for name in DROPPED:
        shutil.rmtree(folder / name, ignore_errors=True)
