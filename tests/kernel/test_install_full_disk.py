"""The installer on file systems that are full or read-only: real ones, in mount namespaces of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIST = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}


def session(folder: Path, mounts: str, *steps: str) -> str:
    """Shell steps where `install` is the command, with folders bin and net.d on file systems of their own."""
    source = folder / "source"
    source.mkdir()
    (source / "service-tunnel").write_text("#!/bin/sh\necho plugin v1\n" + "#" * 100_000)
    (source / "service-tunnel").chmod(0o755)
    for name in ("bin", "net.d"):
        (folder / name).mkdir()
    (folder / "list").write_text(json.dumps(LIST))
    head = [
        f"cd {folder}",
        f"command() {{ {sys.executable} -m install.node.cli $* --bin-dir bin --conf-dir net.d 2>&1; }}",
        "put() { command install --source source; }; away() { command uninstall; }",
        f"mount -t tmpfs -o {mounts} none net.d && mount -t tmpfs none bin && cp list net.d/10.conflist",
        "show() { echo [$(ls -A net.d bin bin/.service-tunnel 2>/dev/null)]; cmp list net.d/10.conflist; }",
    ]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "\n".join([*head, *steps])], env=environ, capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_full_configuration_folder_stays_as_it_is_and_works_when_there_is_room(tmp_path: Path) -> None:
    fill = "dd if=/dev/zero of=net.d/full bs=4k status=none 2>/dev/null"
    said = session(
        tmp_path, "size=32k", fill, "put; echo $?; show", "rm net.d/full; put; echo $?; away; echo $?; ls net.d"
    )
    assert "cannot change" in said and "No space left on device: make room; nothing was changed\n1\n" in said
    assert "net.d: 10.conflist full]" in said
    assert said.count("has the entry\n") == 1 and said.endswith("\n0\n10.conflist\n")


def test_a_configuration_folder_without_an_inode_left_stays_as_it_is(tmp_path: Path) -> None:
    said = session(tmp_path, "nr_inodes=2", "put; echo $?; show")
    assert "No space left on device" in said and "net.d: 10.conflist]" in said


def test_a_full_binary_folder_gets_no_half_of_a_plugin_and_no_entry(tmp_path: Path) -> None:
    said = session(tmp_path, "size=1m", "mount -o remount,size=64k bin; put; echo $?; show")
    assert "cannot put the plugin into bin: No space left on device" in said
    assert "[bin: .service-tunnel bin/.service-tunnel: net.d: 10.conflist]" in said


@pytest.mark.parametrize("folder", ["net.d", "bin"])
def test_a_read_only_folder_is_named_with_the_way_out(tmp_path: Path, folder: str) -> None:
    said = session(tmp_path, "size=1m", f"mount -o remount,ro {folder}; put; echo $?; show; away; echo $?")
    assert f"{folder}" in said and "Read-only file system: mount it writable\n1\n" in said
    assert "net.d: 10.conflist]" in said and said.endswith("\n0\n")


def test_a_read_only_folder_that_has_all_already_is_no_trouble_until_the_entry_is_to_go(tmp_path: Path) -> None:
    said = session(tmp_path, "size=1m", "put; mount -o remount,ro net.d; put; echo $?; away; echo $?; ls net.d")
    assert said.count("as it should be\n") == 2 and "Read-only file system" in said
    assert said.endswith("\n1\n10.conflist\n")


def test_a_folder_from_which_nothing_may_be_started_is_told_before_the_chain_has_the_entry(tmp_path: Path) -> None:
    said = session(tmp_path, "size=1m", "mount -o remount,noexec bin; put; echo $?; show")
    assert "does not start on this node" in said and "noexec" in said and "net.d: 10.conflist]" in said
