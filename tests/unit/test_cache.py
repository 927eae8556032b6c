"""What takes long is made once: whole or not at all, by one at a time, and forgotten when nobody uses it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from install import cache
from install.cache import made_once


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVC_TUNNEL_CACHE", str(tmp_path))
    return tmp_path


def put(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "made").mkdir()
        (folder / "made" / "text").write_text(text)
        (folder / "scaffolding").touch()
        return folder / "made"

    return make


def quiet(_: str) -> None:
    """Nobody listens."""


def test_the_second_time_it_is_found(place: Path) -> None:
    first = made_once("tools/go", ["1"], put("a"), "building", quiet)
    assert made_once("tools/go", ["1"], put("b"), "building", quiet) == first
    assert (first / "text").read_text() == "a"
    assert sorted(path.name for path in (place / "tools").iterdir()) == [first.name, "go.lock"]


def test_other_pins_make_another(place: Path) -> None:
    assert made_once("x", ["1"], put("a"), "building", quiet) != made_once("x", ["2"], put("a"), "building", quiet)


def test_what_fails_leaves_nothing_and_may_be_tried_again(place: Path) -> None:
    def fail(folder: Path) -> Path:
        (folder / "half").touch()
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        made_once("x", ["1"], fail, "building", quiet)
    assert [path.name for path in place.iterdir()] == ["x.lock"]
    assert made_once("x", ["1"], put("a"), "building", quiet).is_dir()


def test_what_a_kill_left_is_removed(place: Path) -> None:
    (place / "making-x-0123").mkdir()
    made = made_once("x", ["1"], put("a"), "building", quiet)
    assert sorted(path.name for path in place.iterdir()) == [made.name, "x.lock"]


def test_two_at_once_make_one(place: Path) -> None:
    begun, go, calls = threading.Event(), threading.Event(), []

    def slow(folder: Path) -> Path:
        calls.append(folder)
        begun.set()
        assert go.wait(10)
        return folder

    def wait() -> None:
        assert begun.wait(10)
        made_once("x", ["1"], slow, "building", lambda text: go.set() if "waiting" in text else None)

    second = threading.Thread(target=wait)
    second.start()
    made_once("x", ["1"], slow, "building", quiet)
    second.join(10)
    assert len(calls) == 1


def test_what_nobody_used_for_long_is_forgotten(place: Path) -> None:
    old, lately = (made_once("x", [pin], put("a"), "building", quiet) for pin in "12")
    long_ago = time.time() - cache.UNUSED_FOR - 1
    os.utime(old, (long_ago, long_ago))
    made_once("x", ["3"], put("a"), "building", quiet)
    assert lately.is_dir() and not old.exists()
