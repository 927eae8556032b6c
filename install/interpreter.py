"""The Python that the plugin is frozen with: Debian 11's, unpacked into a cache, on whatever Debian this machine runs.

A frozen program needs at least the C library that its interpreter was built against. Debian 12's libpython wants
glibc 2.36, Debian 11's runs from 2.29 on, and the interpreter itself starts on every newer system: so no old root
folder has to be entered, some packages are unpacked and used where they lie. It starts no slower than newer ones
(docs/benchmarks.md). docs/decisions/0012-debian-11s-python-freezes-the-plugin.md has the reasons and what it costs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from install import debian
from install.cache import made_once

RELEASE = "bullseye"
PYTHON = "python3.9"
PACKAGES = (
    "python3.9-minimal=3.9.2-1+deb11u7",
    "libpython3.9=3.9.2-1+deb11u7",
    "libpython3.9-minimal=3.9.2-1+deb11u7",
    "libpython3.9-stdlib=3.9.2-1+deb11u7",
    "libffi7=3.3-6",  # _ctypes, which has setns
    "libexpat1=2.2.10-2+deb11u7",  # libpython is linked to it
    "zlib1g=1:1.2.11.dfsg-2+deb11u2",  # as it is to this one, and PyInstaller's boot loader
)
PROJECT = Path(__file__).resolve().parents[1]
CONSTRAINTS = PROJECT / "install" / "constraints.txt"


class InterpreterError(RuntimeError):
    """A program of the interpreter's, or the one that fetches its packages, failed; the text has what it said."""


def interpreter() -> Interpreter:
    """The interpreter, made where it is missing. Raises DebianError, InterpreterError and OSError."""
    pins = [
        RELEASE,
        debian.architecture(),
        *PACKAGES,
        *_requirements(),
        CONSTRAINTS.read_text(),
        Path(__file__).read_text(),
    ]
    what = f"unpacking the Python of Debian {RELEASE} for the plugin"
    return Interpreter(made_once("interpreter", pins, _make, what))


class Interpreter:
    """An unpacked Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, arguments: Sequence[str | Path], **environment: str) -> None:
        """Runs it with nothing of this process' Python settings; raises InterpreterError with what it said."""
        root = self.folder / "root"
        libraries = [root / where / _triplet(root) for where in ("usr/lib", "lib")]
        settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": str(self.folder / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            **environment,
        }
        _run([root / "usr/bin" / PYTHON, *arguments], settings)


def _run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise InterpreterError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")


def _make(folder: Path) -> Path:
    debian.unpack_packages(RELEASE, PACKAGES, folder / "root")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        f"--constraint={CONSTRAINTS}",
    ]
    only = ["--python-version=3.9", "--implementation=cp", "--only-binary=:all:"]
    site = folder / "site"
    _run([*pip, *only, f"--target={site}", *_requirements()])
    _search_own_folder(folder)
    return folder


def _search_own_folder(folder: Path) -> None:
    """Has what the plugin starts with find its libraries in the plugin's folder, and the boot loader start once.

    An RPATH, unlike a RUNPATH, is searched before the folders of LD_LIBRARY_PATH. The loader's is for zlib, which is
    loaded before its first line runs; that of Python's own library is told without /proc, too.

    Without this the loader sets LD_LIBRARY_PATH and, for that to take effect, executes itself anew, a seventh of
    the time that VERSION takes. Its call of execvp becomes one that takes no arguments, changes nothing and is always a
    success; it goes on from there.
    """
    site, root = folder / "site", folder / "root"
    (python,) = (root / "usr/lib").glob(f"*/lib{PYTHON}.so.1.0")
    loaders = list((site / "PyInstaller" / "bootloader").glob("*/run"))
    # Where each lies in the plugin's folder is PyInstaller's habit. Both name the same folder, which is searched once.
    places = {python: "$ORIGIN", **dict.fromkeys(loaders, "$ORIGIN/_internal")}
    names = folder / "names"
    names.write_text("execvp getpid\n")
    patchelf = site / "bin" / "patchelf"
    for file, place in places.items():
        _run([patchelf, "--force-rpath", "--set-rpath", place, file])
    for loader in loaders:
        _run([patchelf, "--rename-dynamic-symbols", names, loader])


def _requirements() -> list[str]:
    """The extra `build` of pyproject.toml: pip cannot see by itself what another Python needs of it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted: list[str] = project["optional-dependencies"]["build"]
    return wanted


def _triplet(root: Path) -> str:
    return next(path.parent.name for path in (root / "usr/lib").glob(f"*/lib{PYTHON}.so.1.0"))
