"""The plugin's log: whole lines in an ordinary file, or nothing; never an error, never a wait."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import logfile

pytestmark = pytest.mark.timeout(20)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_how_grave_what_and_how_long(tmp_path: Path) -> None:
    logfile.append(str(tmp_path / "log"), "info", "warning", command="ADD", pod="shop/web-1", troubles=["a\nb"])
    (line,) = lines(tmp_path / "log")
    assert list(line) == ["time", "level", "command", "pod", "troubles", "ms"]
    assert (line["level"], line["command"], line["troubles"]) == ("warning", "ADD", ["a\nb"])
    assert line["ms"] >= 0
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


LEVELS = ["debug", "info", "warning", "error"]


@pytest.mark.parametrize("threshold", LEVELS)
def test_what_is_below_the_threshold_is_not_written(tmp_path: Path, threshold: str) -> None:
    for level in LEVELS:
        logfile.append(str(tmp_path / "log"), threshold, level)
    assert [line["level"] for line in lines(tmp_path / "log")] == LEVELS[LEVELS.index(threshold) :]


def test_nothing_that_is_logged_can_forge_a_line(tmp_path: Path) -> None:
    logfile.append(str(tmp_path / "log"), "info", "info", pod='x"}\n{"level":"error"}\r\u2028\x00\udcff')
    assert len((tmp_path / "log").read_bytes().splitlines()) == 1
    assert lines(tmp_path / "log")[0]["level"] == "info"


def test_a_line_that_is_too_long_keeps_the_beginning_of_each_field(tmp_path: Path) -> None:
    operations = ["put 198.51.100.1 on lo"] * 10_000
    logfile.append(str(tmp_path / "log"), "info", "info", command="ADD", operations=operations, msg="m" * 100_000)
    assert (tmp_path / "log").stat().st_size < logfile.LINE_LIMIT
    (line,) = lines(tmp_path / "log")
    assert line["command"] == "ADD"
    assert line["operations"].startswith('["put 198.51.100.1 on lo","put') and "250001 characters" in line["operations"]
    assert line["msg"].startswith("mmm")


def test_lines_of_many_calls_at_once_do_not_mix(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for number in range(400):
            pool.submit(logfile.append, str(tmp_path / "log"), "info", "info", number=number, text="x" * (number * 20))
    assert sorted(line["number"] for line in lines(tmp_path / "log")) == list(range(400))


def test_a_file_that_was_rotated_away_is_begun_anew(tmp_path: Path) -> None:
    logfile.append(str(tmp_path / "log"), "info", "info", number=1)
    (tmp_path / "log").rename(tmp_path / "log.old")
    logfile.append(str(tmp_path / "log"), "info", "info", number=2)
    assert [line["number"] for name in ("log.old", "log") for line in lines(tmp_path / name)] == [1, 2]


def test_a_file_that_nobody_rotates_keeps_one_predecessor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "SIZE_LIMIT", 1000)
    for number in range(65):
        logfile.append(str(tmp_path / "log"), "info", "info", number=number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    kept = [line["number"] for name in ("log.1", "log") for line in lines(tmp_path / name)]
    assert kept == list(range(kept[0], 65)), "the last lines, none missing"
    assert len(kept) >= 10


def test_a_file_is_not_rotated_twice_for_one_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call finds the file too long at the same time, and comes second."""
    monkeypatch.setattr(logfile, "SIZE_LIMIT", 10)
    path = tmp_path / "log"
    path.write_text("old\n")
    stat = logfile.posix.stat  # type: ignore[attr-defined]

    def other_was_faster(name: str) -> os.stat_result:
        path.rename(tmp_path / "log.1")
        path.write_text("new\n")
        return stat(name)  # type: ignore[no-any-return]

    monkeypatch.setattr(logfile.posix, "stat", other_was_faster)  # type: ignore[attr-defined]
    logfile.append(str(path), "info", "info")
    assert path.read_text() == "new\n"
    assert (tmp_path / "log.1").read_text().startswith("old\n{")


# --- what is no ordinary file ---------------------------------------------------------------------------


@pytest.fixture(params=["folder", "fifo", "fifo with a reader", "full fifo", "socket", "symlink", "device", "below",
                        "nowhere", "too long", "not Unicode", "nul", "proc", "proc by a folder"])  # fmt: skip
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path | None]]:
    """A path that must not be written to, and the file behind it that must not change."""
    path, precious, opened = tmp_path / "log", None, []
    match request.param:
        case "folder":
            path.mkdir()
        case "fifo" | "fifo with a reader" | "full fifo":
            os.mkfifo(path)
            if request.param != "fifo":
                opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            if request.param == "full fifo":
                opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                os.write(opened[-1], bytes(1 << 16))
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "symlink":
            precious = tmp_path / "precious"
            precious.write_text("kept")
            path.symlink_to(precious)
        case "device":
            path = Path("/dev/full")
        case "below":
            path.touch()
            path = path / "log"
        case "nowhere":
            path = tmp_path / "no" / "folder" / "log"
        case "too long":
            path = tmp_path / ("x" * 300)
        case "proc":
            precious = path = Path("/proc/self/comm")
        case "proc by a folder":
            (tmp_path / "way").symlink_to("/proc/self")
            precious = path = tmp_path / "way" / "comm"
    yield {"not Unicode": f"{tmp_path}/\ud800", "nul": f"{tmp_path}/\0"}.get(request.param, str(path)), precious
    for descriptor in opened:
        if request.param == "fifo with a reader":
            assert os.read(descriptor, 100) == b""
        os.close(descriptor)


def test_what_is_no_ordinary_file_is_left_alone_and_costs_nothing(odd: tuple[str, Path | None]) -> None:
    path, precious = odd
    before = precious.read_text() if precious else None
    logfile.append(path, "info", "error", msg="x")
    assert (precious.read_text() if precious else None) == before


@pytest.mark.parametrize("sudden", ["full disk", "read-only"])
def test_a_disk_that_takes_nothing_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sudden: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError({"full disk": 28, "read-only": 30}[sudden], sudden)

    monkeypatch.setattr(logfile.posix, "write" if sudden == "full disk" else "open", refuse)  # type: ignore[attr-defined]
    before = set(os.listdir("/proc/self/fd"))
    logfile.append(str(tmp_path / "log"), "info", "error", msg="x")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        for number in range(600):
            logfile.append(str(tmp_path / "log"), "info", "error", number=number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(lines(tmp_path / "log")) == 600
