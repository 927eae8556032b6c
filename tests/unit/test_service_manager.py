"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_helper.service_manager import ServiceManager

UNIT = Path(__file__).parents[2] / "docs" / "examples" / "service-tunnel-helper.service"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def heard(listener: socket.socket) -> list[str]:
    listener.setblocking(False)
    found = []
    try:
        while True:
            found.append(listener.recv(4096).decode())
    except BlockingIOError:
        return found


def test_it_says_that_it_is_ready_how_it_is_and_that_it_stops(listener: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.getsockname()})
    manager.ready()
    manager.status("3 Services, 6 VIPs, 0 problems")
    manager.alive()
    manager.stopping()
    assert heard(listener) == [
        "READY=1",
        "STATUS=3 Services, 6 VIPs, 0 problems",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping; traffic goes on",
    ]


def test_a_status_is_told_when_it_is_another_one(listener: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.getsockname()})
    for text in ("one", "one", "two", "one"):
        manager.status(text)
    assert heard(listener) == ["STATUS=one", "STATUS=two", "STATUS=one"]


def test_an_abstract_socket_is_meant_by_a_leading_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0svctun-test-{os.getpid()}")
        ServiceManager({"NOTIFY_SOCKET": f"@svctun-test-{os.getpid()}"}).ready()
        assert heard(listening) == ["READY=1"]


@pytest.mark.parametrize("path", ["", "/nonexistent/notify"])
def test_without_a_service_manager_nothing_happens(path: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": path})
    manager.ready()
    manager.stopping()
    assert manager.watchdog is None


def test_one_that_does_not_read_keeps_the_helper_from_nothing(listener: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": listener.getsockname()})
    for _ in range(5000):  # more than the socket holds
        manager.alive()
    assert len(heard(listener)) < 5000


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_are_due_at_half_the_time(environment: dict[str, str], seconds: float | None) -> None:
    assert ServiceManager(environment).watchdog == seconds


def test_the_unit_of_the_documentation_waits_for_the_helpers_word() -> None:
    text = UNIT.read_text()
    assert "Type=notify" in text
    assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)
