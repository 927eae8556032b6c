"""The build of the frozen plugin: what it leaves out is never missed, and a failed build leaves the old one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.cni import plugin_binary

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources that the build reads."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cni_plugin", "install"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=ignored)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def build(checkout: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "install.build", str(folder)]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_a_module_that_only_a_rare_path_needs_is_missed_by_the_build(checkout: Path, tmp_path: Path) -> None:
    module = checkout / "cni_plugin" / "errors.py"
    module.write_text(f"{module.read_text()}\n\ndef rarely() -> None:\n    import hashlib\n\n    hashlib.sha256()\n")
    folder = tmp_path / "dist" / "service-tunnel"
    folder.mkdir(parents=True)
    (folder / "service-tunnel").write_text("the one before")
    done = build(checkout, folder)
    assert done.returncode == 1
    assert "cni_plugin imports hashlib, which the bundle does not have" in done.stderr
    assert [path.read_text() for path in (tmp_path / "dist").rglob("*") if path.is_file()] == ["the one before"]


def test_the_folder_holds_what_the_recipe_names_and_nothing_else() -> None:
    folder = plugin_binary().parent
    found = {path.name.split(".")[0] for path in folder.rglob("*") if path.is_file()}
    libraries = {"libpython3", "libexpat", "libffi", "libz", "_ctypes", "_json"}
    assert found == libraries | {"service-tunnel", "encodings"}


def test_it_is_executed_once_and_takes_every_bundled_library_from_its_own_folder(tmp_path: Path) -> None:
    """PyInstaller's loader would start itself anew to search another folder; an RPATH leads there from the start."""
    log = tmp_path / "calls"
    tracer = ["strace", "-f", "-qq", "-e", "trace=execve,openat", "-e", "status=successful", f"--output={log}"]
    plugin = plugin_binary().resolve()
    subprocess.run([*tracer, plugin], env={"CNI_COMMAND": "VERSION"}, check=True, capture_output=True, timeout=30)
    calls = log.read_text()
    assert calls.count("execve(") == 1, calls
    opened = re.findall(r'openat\(AT_FDCWD, "([^"]+)"', calls)
    bundled = {path.name for path in (plugin.parent / "_internal").iterdir()}
    from_outside = {path for path in opened if Path(path).name in bundled and not path.startswith(f"{plugin.parent}/")}
    assert any(path.startswith(f"{plugin.parent}/_internal/libpython") for path in opened)
    assert not from_outside
