"""Two builds of the same sources are the same, whoever makes them, where and when: what is shipped can be checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from install import cache
from tests.testbed.namespaces import REPOSITORY

SOURCES = ("cni_plugin", "install", "pyproject.toml")


def sources(folder: Path) -> Path:
    """A copy of all that the build reads."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder)
    return folder


def build(checkout: Path, folder: Path, umask: int, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "install.build", str(folder)],
        cwd=checkout,
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and hash of everything below a folder, by its path in there."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def test_twice_the_same_sources_give_twice_the_same_plugin(tmp_path: Path) -> None:
    here = sources(tmp_path / "one")
    build(here, tmp_path / "dist-one" / "service-tunnel", 0o022)

    # Folders by names that are in the code, too: Python keeps one object for both, and marshal tells the difference.
    there = tmp_path / "folder" / "name" / "with a blank" / "decode" / "spec" / "state"
    shutil.copytree(here, there)
    for path in there.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    # Another user's cache: the interpreter that freezes the plugin lies elsewhere, too.
    for interpreter in cache.folder().glob("interpreter-*"):
        shutil.copytree(interpreter, tmp_path / "cache" / interpreter.name, symlinks=True)
    another = {
        "SVC_TUNNEL_CACHE": str(tmp_path / "cache"),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "USER": "somebody",
        "TMPDIR": str(tmp_path),
    }
    build(there, tmp_path / "dist-another" / "service-tunnel", 0o077, **another)

    first, second = tree(tmp_path / "dist-one"), tree(tmp_path / "dist-another")
    assert "service-tunnel/service-tunnel" in first
    del first["."], second["."]  # the folder around it is the builder's own
    assert first == second
