"""Asking the helper: its answers, and its every way of not answering."""

from __future__ import annotations

import errno
import re
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import helper_client
from cni_plugin.helper_client import Answer, ask
from cni_plugin.tunnel import PodTunnels, Tunnel
from tests.fake_helper import NONE, UNKNOWN, FakeHelper, tunnels

REQUEST = {"op": "tunnels", "namespace": "shop", "name": "web-1", "ips": ["10.0.0.2"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h.sock"


def test_the_tunnels_of_a_pod_arrive(path: Path) -> None:
    with FakeHelper(path, tunnels("198.51.100.7", "2001:db8::7", mode="gre")) as helper:
        answer = ask(str(path), REQUEST, 5)
    assert answer == Answer("tunnels", PodTunnels((Tunnel(("198.51.100.7", "2001:db8::7"), "gre"),)))
    assert helper.questions == [{"v": 1, **REQUEST}]


def test_a_pod_without_tunnels_is_told_in_one_round_trip(path: Path) -> None:
    with FakeHelper(path, NONE) as helper:
        assert ask(str(path), REQUEST, 5) == Answer("none")
    assert helper.connections == 1


def test_a_process_that_gets_no_socket_is_told_so_and_tries_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(helper_client, "socket", refuse)
    answer = ask(str(path), REQUEST, 0)
    assert answer.kind == "unknown"
    assert "Too many open files" in answer.trouble


def test_a_reply_in_single_bytes_arrives_whole(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            for byte in b"\0\0\0\x10\x82\xa1v\x01\xa6answer\xa4none":
                connection.sendall(bytes((byte,)))

    thread = threading.Thread(target=serve)
    thread.start()
    assert ask(str(path), REQUEST, 5) == Answer("none")
    thread.join(5)
    listener.close()


def late(helper: list[FakeHelper], seconds: float) -> Any:
    def reply(question: dict[str, Any]) -> dict[str, Any]:
        helper[0].wait_closing(seconds)
        return NONE

    return reply


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(UNKNOWN, id="does not know yet"),
        pytest.param(None, id="hangs up"),
        pytest.param(b"\0\0", id="is cut off in the length"),
        pytest.param(b"\0\0\0\x09\x80", id="is cut off in the message"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="speaks another protocol"),
        pytest.param(b"\0\0\0\x01\xc1", id="sends what is no msgpack"),
        pytest.param({"v": 2, "answer": "none"}, id="is of another version"),
        pytest.param({"v": 1, "answer": "maybe"}, id="gives an unknown answer"),
        pytest.param({"v": 1}, id="gives no answer"),
        pytest.param({"v": 1, "answer": "tunnels"}, id="names no tunnels"),
        pytest.param({"v": 1, "answer": "tunnels", "pod": {"tunnels": [{"vips": 5}], "sources": []}}, id="wrong type"),
    ],
)
def test_a_helper_that_recovers_is_asked_again_and_believed(path: Path, trouble: Any) -> None:
    with FakeHelper(path, trouble, trouble, NONE) as helper:
        assert ask(str(path), REQUEST, 5) == Answer("none")
    assert helper.connections == 3


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(UNKNOWN, "does not know"), (None, "rubbish.*ended"), (b"\0\0\0\x01\xc1", "rubbish"), ({"v": 1}, "rubbish")],
)
def test_a_helper_that_does_not_recover_leaves_the_pod_unknown_with_the_reason(
    path: Path, trouble: Any, words: str
) -> None:
    with FakeHelper(path, trouble):
        began = time.monotonic()
        answer = ask(str(path), REQUEST, 0.3)
        took = time.monotonic() - began
    assert answer.kind == "unknown"
    assert answer.pod == PodTunnels()

    assert re.search(words, answer.trouble)
    assert 0.25 < took < 2


def test_a_socket_that_is_not_there_leaves_the_pod_unknown(path: Path) -> None:
    answer = ask(str(path), REQUEST, 0)
    assert answer.kind == "unknown"
    assert str(path) in answer.trouble
    assert "No such file" in answer.trouble


def test_a_socket_without_a_listener_leaves_the_pod_unknown(path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    assert "refused" in ask(str(path), REQUEST, 0.05).trouble


def test_a_path_too_long_for_a_socket_leaves_the_pod_unknown(tmp_path: Path) -> None:
    assert ask(f"{tmp_path}/{'a' * 200}", REQUEST, 0).kind == "unknown"


def test_a_helper_that_comes_up_while_waiting_is_found(path: Path) -> None:
    helper = FakeHelper(path, NONE)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(ask(str(path), REQUEST, 10)))
    thread.start()
    threading.Event().wait(0.2)  # some attempts fail meanwhile
    with helper:
        thread.join(10)
    assert answers == [Answer("none")]


def test_a_slow_helper_is_waited_for(path: Path) -> None:
    holder: list[FakeHelper] = []
    with FakeHelper(path, late(holder, 0.4)) as helper:
        holder.append(helper)
        assert ask(str(path), REQUEST, 5) == Answer("none")


def test_a_silent_helper_is_given_up_in_time(path: Path) -> None:
    holder: list[FakeHelper] = []
    with FakeHelper(path, late(holder, 60)) as helper:
        holder.append(helper)
        began = time.monotonic()
        answer = ask(str(path), REQUEST, 0.3)
        assert time.monotonic() - began < 2
    assert "does not answer" in answer.trouble


def test_a_helper_that_dribbles_is_given_up_in_time(path: Path) -> None:
    stop = threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(struct.pack(">I", 1 << 20))
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"\xc0")
                except OSError:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    began = time.monotonic()
    answer = ask(str(path), REQUEST, 0.4)
    stop.set()
    thread.join(5)
    listener.close()
    assert answer.kind == helper_client.UNKNOWN
    assert time.monotonic() - began < 2
