"""The helper's socket: questions are answered, and nobody who asks wrongly costs the others anything."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import wire
from node_helper import asks
from node_helper.asks import AskServer, SocketTaken, question

PATIENCE = 0.2


async def echo(asked: dict[str, Any]) -> dict[str, Any]:
    return {"echo": asked.get("text")}


async def wrong(_: dict[str, Any]) -> dict[str, Any]:
    raise LookupError("198.51.100.9 is no VIP")


async def broken(_: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("a fault of ours")


async def unspeakable(_: dict[str, Any]) -> dict[str, Any]:
    return {"path": Path("/has/no/form/on/the/wire")}


HANDLERS = {"echo": echo, "wrong": wrong, "broken": broken, "unspeakable": unspeakable}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "helper.sock"


def served(path: Path, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario while a helper serves the socket."""
    server_is_up(AskServer(path, HANDLERS), scenario)


def server_is_up(server: AskServer, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario while this server serves its socket."""

    async def whole() -> None:
        await server.start()
        try:
            async with asyncio.timeout(20):
                await scenario()
        finally:
            await server.stop()

    asyncio.run(whole())


async def ask(path: Path, op: str, **fields: Any) -> dict[str, Any]:
    return await asyncio.to_thread(question, path, op, **fields)


async def raw(path: Path, data: bytes, end: bool = False) -> bytes:
    """What comes back for bytes; `end`: nothing more will be sent."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# --- questions and answers ------------------------------------------------------------------------------


def test_a_question_is_answered(path: Path) -> None:
    async def scenario() -> None:
        assert await ask(path, "echo", text="what?") == {"v": 1, "echo": "what?"}

    served(path, scenario)


def test_many_may_ask_at_once(path: Path) -> None:
    async def scenario() -> None:
        answers = await asyncio.gather(*(ask(path, "echo", text=str(n)) for n in range(100)))
        assert [answer["echo"] for answer in answers] == [str(n) for n in range(100)]

    served(path, scenario)


@pytest.mark.parametrize(
    ("op", "says"),
    [
        ("wrong", "198.51.100.9 is no VIP"),
        ("broken", "the helper failed on this question: ZeroDivisionError('a fault of ours') (see its log)"),
        ("dance", "unknown question 'dance'"),
    ],
)
def test_what_cannot_be_answered_is_told_in_words(path: Path, op: str, says: str) -> None:
    async def scenario() -> None:
        with pytest.raises(LookupError) as raised:
            await ask(path, op)
        assert raised.value.args[0] == says
        assert (await ask(path, "echo", text="still there"))["echo"] == "still there"

    served(path, scenario)


def test_an_answer_without_a_form_on_the_wire_is_our_fault_and_told(path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(LookupError, match="the helper failed on this question"):
            await ask(path, "unspeakable")

    served(path, scenario)


@pytest.mark.parametrize("asked", [None, 7, [1], {}, {"op": "echo"}, {"v": 2, "op": "echo"}, {"v": "1", "op": "echo"}])
def test_another_protocol_is_told_which_one_is_spoken(path: Path, asked: object) -> None:
    async def scenario() -> None:
        answer = wire.unpack((await raw(path, wire.frame(asked)))[4:])
        assert answer == {"v": 1, "error": "this helper speaks protocol 1"}

    served(path, scenario)


# --- rubbish --------------------------------------------------------------------------------------------

WHOLE = wire.frame({"v": 1, "op": "echo", "text": "x"})


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff" + bytes(100),
        (wire.MESSAGE_LIMIT + 1).to_bytes(4, "big") + bytes(100),
        b"\0\0\0\x03\xc1\xc1\xc1",
        b"\0\0\0\0",
        WHOLE[:3] + bytes((WHOLE[3] + 1,)) + WHOLE[4:] + b"\0",
    ],
    ids=["http", "huge", "too long", "no msgpack", "nothing", "more than one value"],
)
def test_rubbish_loses_its_connection_and_nothing_else(path: Path, data: bytes) -> None:
    async def scenario() -> None:
        assert await raw(path, data) == b""
        assert (await ask(path, "echo", text="fine"))["echo"] == "fine"

    served(path, scenario)


@pytest.mark.parametrize("length", [0, 2, 4, 9, len(WHOLE) - 1])
def test_half_a_question_is_no_question(path: Path, length: int) -> None:
    async def scenario() -> None:
        assert await raw(path, WHOLE[:length], end=True) == b""

    served(path, scenario)


@pytest.mark.parametrize("length", [0, 9])
def test_who_says_nothing_more_is_not_waited_for(path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asks, "_PATIENCE", PATIENCE)

    async def scenario() -> None:
        silent = asyncio.create_task(raw(path, WHOLE[:length]))
        assert (await ask(path, "echo", text="meanwhile"))["echo"] == "meanwhile"
        assert not silent.done()
        assert await silent == b""

    served(path, scenario)


def test_a_question_in_single_bytes_is_answered(path: Path) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        for byte in WHOLE:
            writer.write(bytes((byte,)))
            await writer.drain()
        assert wire.unpack((await reader.read())[4:]) == {"v": 1, "echo": "x"}
        writer.close()

    served(path, scenario)


def test_who_asks_and_leaves_costs_nothing(path: Path) -> None:
    async def scenario() -> None:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(str(path))
            writer.write(WHOLE)
            writer.transport.abort()
        assert (await ask(path, "echo", text="fine"))["echo"] == "fine"

    served(path, scenario)


# --- limits ---------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_question_that_is_too_long_is_not_even_read(path: Path) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write((asks._QUESTION_LIMIT + 1).to_bytes(4, "big"))
        async with asyncio.timeout(asks._PATIENCE / 2):
            assert await reader.read() == b"", "the length alone is enough"
        writer.close()
        longest = "x" * (asks._QUESTION_LIMIT - 30)
        assert (await ask(path, "echo", text=longest))["echo"] == longest

    served(path, scenario)


def test_a_question_that_drips_is_not_waited_for_longer_than_one_that_does_not_come(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "_PATIENCE", PATIENCE)

    async def scenario() -> None:
        began = asyncio.get_running_loop().time()
        reader, writer = await asyncio.open_unix_connection(str(path))
        gone = asyncio.create_task(reader.read())
        writer.write((60_000).to_bytes(4, "big"))
        while not gone.done():
            writer.write(b"x")
            await asyncio.wait({gone}, timeout=PATIENCE / 10)
        assert asyncio.get_running_loop().time() - began < 20 * PATIENCE
        writer.close()

    served(path, scenario)


def test_who_does_not_take_the_answer_is_let_go_and_no_file_stays_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "_PATIENCE", PATIENCE)
    heard = asyncio.Event()

    async def much(_: dict[str, Any]) -> dict[str, Any]:
        heard.set()
        return {"status": "x" * 1_000_000}  # more than a socket holds

    async def scenario() -> None:
        before = open_files()
        takers = []
        for _ in range(10):
            taker = socket.socket(socket.AF_UNIX)
            taker.connect(str(path))
            taker.sendall(wire.frame({"v": 1, "op": "much"}))
            takers.append(taker)
        while not heard.is_set() or open_files() > before + len(takers):  # until only our own ends are left
            await asyncio.sleep(0.01)
        for taker in takers:
            taker.close()

    server = AskServer(path, {"much": much})
    server_is_up(server, scenario)


def test_silent_clients_cannot_use_up_the_connections(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asks, "_CONNECTIONS", 20)

    async def scenario() -> None:
        before = open_files()
        silent = [await asyncio.open_unix_connection(str(path)) for _ in range(60)]
        assert (await ask(path, "echo", text="fine"))["echo"] == "fine"
        assert open_files() - before - len(silent) <= 20 + 1
        first, last = silent[0][0], silent[-1][0]
        assert await first.read() == b"", "who has been silent for longest goes first"
        assert not last.at_eof(), "who has just come stays"
        for _, writer in silent:
            writer.close()

    served(path, scenario)


def test_while_all_wait_for_an_answer_one_more_is_to_come_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asks, "_CONNECTIONS", 5)
    answer_now = asyncio.Event()

    async def slow(_: dict[str, Any]) -> dict[str, Any]:
        await answer_now.wait()
        return {"answer": "none"}

    async def scenario() -> None:
        waiting = [asyncio.create_task(raw(path, wire.frame({"v": 1, "op": "slow"}))) for _ in range(5)]
        while server._open < 5 or server._silent:
            await asyncio.sleep(0.01)
        assert await raw(path, wire.frame({"v": 1, "op": "slow"})) == b""
        answer_now.set()
        assert all(wire.unpack(answer[4:])["answer"] == "none" for answer in await asyncio.gather(*waiting))
        assert (await ask(path, "slow"))["answer"] == "none"

    server = AskServer(path, {"slow": slow})
    server_is_up(server, scenario)


def test_silent_clients_do_not_hold_up_the_end(path: Path) -> None:
    async def scenario() -> None:
        for _ in range(5):
            await asyncio.open_unix_connection(str(path))
        began = asyncio.get_running_loop().time()
        await server.stop()
        assert asyncio.get_running_loop().time() - began < asks._PATIENCE / 2

    server = AskServer(path, HANDLERS)
    server_is_up(server, scenario)


# --- one socket, one helper -----------------------------------------------------------------------------


def test_a_second_helper_on_one_socket_is_refused_and_the_first_goes_on(path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(
            SocketTaken, match=r"another helper is running: it answers on .*helper\.sock \(see `status`\)"
        ):
            await AskServer(path, HANDLERS).start()
        assert (await ask(path, "echo", text="first"))["echo"] == "first"
        assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left of the second"

    served(path, scenario)


def test_the_socket_of_a_helper_that_is_gone_is_taken_over(path: Path) -> None:
    for _ in range(2):

        async def scenario() -> None:
            assert (await ask(path, "echo", text="here"))["echo"] == "here"

        served(path, scenario)
        assert path.exists(), "there is no moment without a socket at the path"


@pytest.mark.parametrize("rubbish", ["file", "fresh"])
def test_what_is_left_of_a_crash_is_no_obstacle(path: Path, rubbish: str) -> None:
    path.parent.mkdir()
    (path if rubbish == "file" else path.with_name(f".{path.name}.{os.getpid()}")).write_text("left")

    async def scenario() -> None:
        assert (await ask(path, "echo", text="here"))["echo"] == "here"

    served(path, scenario)


def test_only_root_may_ask(path: Path) -> None:
    async def scenario() -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    served(path, scenario)


# --- the operator's side --------------------------------------------------------------------------------


def test_without_a_helper_the_operator_is_told_what_to_look_at(path: Path) -> None:
    with pytest.raises(
        ConnectionError, match=r"no helper answers on .*helper\.sock.*is `run` running\? another --socket\?"
    ):
        question(path, "status")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "no helper answers"),
        (b"\0\0\0\x01", "no helper answers"),
        (b"\xff\xff\xff\xff", "no helper answers"),
        (wire.frame([1, 2]), "in a form that is not known here"),
    ],
)
def test_something_else_that_answers_is_told_as_such(tmp_path: Path, reply: bytes, says: str) -> None:
    path = tmp_path / "s"

    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4)
            writer.write(reply)
            writer.close()

        async with await asyncio.start_unix_server(serve, str(path)):
            with pytest.raises(ConnectionError, match=says):
                await ask(path, "status")

    asyncio.run(scenario())


def test_a_path_that_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(ConnectionError, match="xxx"):
        question(path, "status")
    with pytest.raises(OSError, match="too long"):
        asyncio.run(AskServer(path, HANDLERS).start())


def test_an_answer_that_is_too_long_is_told_with_its_size(path: Path) -> None:
    async def much(_: dict[str, Any]) -> dict[str, Any]:
        return {"status": "x" * (wire.MESSAGE_LIMIT + 1)}

    async def whole() -> None:
        server = AskServer(path, {"status": much})
        await server.start()
        with pytest.raises(LookupError, match=f"message of .* bytes, {wire.MESSAGE_LIMIT} are allowed"):
            await ask(path, "status")
        await server.stop()

    asyncio.run(whole())


def test_a_long_answer_may_be_longer_than_what_strangers_may_send(path: Path) -> None:
    async def much(_: dict[str, Any]) -> dict[str, Any]:
        return {"status": "x" * (3 * wire.MESSAGE_LIMIT)}

    async def whole() -> None:
        server = AskServer(path, {"status": much, "trace": much}, long=["status"])
        await server.start()
        assert len((await ask(path, "status"))["status"]) == 3 * wire.MESSAGE_LIMIT
        with pytest.raises(LookupError, match="are allowed"):
            await ask(path, "trace")
        await server.stop()

    asyncio.run(whole())


def test_a_question_is_never_longer_than_its_limit(path: Path) -> None:
    async def scenario() -> None:
        assert await raw(path, (asks._QUESTION_LIMIT + 1).to_bytes(4, "big")) == b""

    served(path, scenario)
