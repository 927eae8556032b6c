"""Other users of the node, real ones: what they ask is not answered, what they offer is not believed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import helper_client, peer, trust, wire
from node_helper.asks import AskServer, SocketTaken, answers, question
from node_helper.private_folder import NotPrivate, make_private

STRANGER = 4711
AS_STRANGER = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups")
AS_ROOT_OF_ITS_OWN = (*AS_STRANGER, "unshare", "--user", "--map-root-user")
PYTHON = ("/usr/bin/python3", "-ISE", "-c")

ASK = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
    print(os.geteuid(), s.recv(100))
except ConnectionError as error:
    print(os.geteuid(), b"")
"""
LISTEN = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
s.listen()
print(os.geteuid(), flush=True)
while True:
    c, _ = s.accept()
    c.settimeout(5)
    print(c.recv(1000), flush=True)
    c.sendall(bytes.fromhex(sys.argv[2]))
    c.close()
"""
QUESTION = wire.frame({"v": 1, "op": "drain", "draining": True})
ANSWER = wire.frame({"v": 1, "answer": "none"})


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder below /tmp into which everybody may look and write, like a careless operator's."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


class Helper:
    """A helper's socket, served in a thread; `asked` is what reached its handlers."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._server = AskServer(path, {"drain": self._drain})
        self._loop.run_until_complete(self._server.start())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _drain(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        return {"draining": True}

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def helper(place: Path) -> Iterator[Helper]:
    serving = Helper(place / "run" / "helper.sock")
    yield serving
    serving.stop()


def ask_as(user: tuple[str, ...], path: Path) -> str:
    command = [*user, *PYTHON, ASK, str(path), QUESTION.hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


@contextlib.contextmanager
def listening(user: tuple[str, ...], path: Path) -> Iterator[subprocess.Popen[str]]:
    """Somebody listens on `path` and answers like a helper; its stdout says what it was asked."""
    command = [*user, *PYTHON, LISTEN, str(path), ANSWER.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            running.stdout.readline()
            yield running
        finally:
            running.kill()


# --- who may ask ----------------------------------------------------------------------------------------


def test_another_user_does_not_reach_the_socket(place: Path, helper: Helper) -> None:
    assert "PermissionError" in ask_as(AS_STRANGER, place / "run" / "helper.sock")
    assert helper.asked == []


@pytest.mark.parametrize("user", [AS_STRANGER, AS_ROOT_OF_ITS_OWN], ids=["user", "root of a user namespace"])
def test_another_user_who_reaches_the_socket_is_not_heard(place: Path, helper: Helper, user: tuple[str, ...]) -> None:
    (place / "run").chmod(0o755)
    (place / "run" / "helper.sock").chmod(0o666)
    uid = 0 if user is AS_ROOT_OF_ITS_OWN else STRANGER
    assert ask_as(user, place / "run" / "helper.sock") == f"{uid} b''\n"
    assert helper.asked == []
    assert question(place / "run" / "helper.sock", "drain") == {"v": 1, "draining": True}, "root is heard as before"


@contextlib.contextmanager
def child_of(uid: int, work: Callable[[], None]) -> Iterator[int]:
    """The pid of a process of another user, which has loaded what we have: the checkout may be root's alone."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_a_helper_that_is_not_root_answers_its_own_user_and_root(place: Path) -> None:
    path = place / "own" / "helper.sock"

    async def hear(asked: dict[str, Any]) -> dict[str, Any]:
        return {"heard": asked["op"]}

    async def serve() -> None:
        await AskServer(path, {"drain": hear}).start()
        await asyncio.sleep(60)

    with child_of(STRANGER, lambda: asyncio.run(serve())):
        wait_for(path)
        assert "heard" in ask_as(AS_STRANGER, path)
        assert "heard" in ask_as((), path)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


# --- whom to believe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [AS_STRANGER, AS_ROOT_OF_ITS_OWN], ids=["user", "root of a user namespace"])
def test_the_plugin_says_nothing_to_a_socket_of_another_user(place: Path, user: tuple[str, ...]) -> None:
    with listening(user, place / "h.sock") as stranger:
        answer = helper_client.ask(str(place / "h.sock"), {"op": "tunnels"}, 0)
        assert answer.kind == helper_client.UNKNOWN
        assert f"belongs to uid {STRANGER}, not to root" in answer.trouble
        assert stranger.stdout
        assert stranger.stdout.readline() == "b''\n", "not a byte was said"


def test_the_plugin_believes_roots_socket(place: Path) -> None:
    with listening((), place / "h.sock"):
        assert helper_client.ask(str(place / "h.sock"), {"op": "tunnels"}, 0).kind == helper_client.NONE


def test_the_operators_commands_say_nothing_to_a_socket_of_another_user(place: Path) -> None:
    with listening(AS_STRANGER, place / "h.sock") as stranger:
        with pytest.raises(ConnectionError, match=f"belongs to uid {STRANGER}, not to root"):
            question(place / "h.sock", "drain", draining=True)
        assert stranger.stdout
        assert stranger.stdout.readline() == "b''\n"
        assert not answers(place / "h.sock"), "it is no helper, so it cannot keep one from starting"


def test_root_is_trusted_and_who_runs_this_process_and_nobody_else() -> None:
    left, right = socket.socketpair()
    assert peer.uid(left) == os.geteuid() == 0
    left.close()
    right.close()
    assert trust.is_trusted(0)
    assert not trust.is_trusted(STRANGER)
    assert not trust.is_trusted(trust.OVERFLOW)


def test_where_everybody_is_nobody_nobody_is_believed() -> None:
    with child_of(trust.OVERFLOW, lambda: os._exit(3 if trust.is_trusted(trust.OVERFLOW) else 0)) as pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with child_of(STRANGER, lambda: os._exit(3 if trust.is_trusted(STRANGER) else 0)) as pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


# --- the socket's folder, and what lies there already ---------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750, 0o711, 0o770])
def test_a_folder_that_was_open_is_closed(place: Path, mode: int) -> None:
    run = place / "run"
    (run / "attachments").mkdir(parents=True)
    run.chmod(mode)
    serving = Helper(run / "helper.sock")
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "helper.sock").stat().st_mode) == 0o600
    assert (run / "helper.sock").stat().st_uid == 0
    serving.stop()


def test_a_mask_that_takes_nothing_makes_no_difference(place: Path) -> None:
    before = os.umask(0)
    try:
        serving = Helper(place / "run" / "helper.sock")
    finally:
        assert os.umask(before) == 0, "the mask is what it was"
    assert stat.S_IMODE((place / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "run" / "helper.sock").stat().st_mode) == 0o600
    serving.stop()


def test_a_folder_of_another_user_is_refused(place: Path) -> None:
    (place / "run").mkdir()
    os.chown(place / "run", STRANGER, STRANGER)
    with pytest.raises(NotPrivate, match=f"belongs to uid {STRANGER}: chown it to root"):
        Helper(place / "run" / "helper.sock")


def test_a_link_that_another_user_put_there_is_not_followed(place: Path) -> None:
    (place / "roots").mkdir(mode=0o755)
    subprocess.run([*AS_STRANGER, "ln", "-s", "roots", str(place / "run")], check=True)
    with pytest.raises(NotPrivate, match=f"belongs to uid {STRANGER}"):
        make_private(place / "run")
    assert stat.S_IMODE((place / "roots").stat().st_mode) == 0o755


def test_a_link_of_roots_is(place: Path) -> None:
    (place / "disk").mkdir(mode=0o755)
    (place / "run").symlink_to("disk")
    make_private(place / "run")
    assert stat.S_IMODE((place / "disk").stat().st_mode) == 0o700


@pytest.mark.parametrize(("mode", "refused"), [(0o755, False), (0o775, True), (0o777, True), (0o1777, True)])
def test_a_folder_that_others_use_is_never_closed(place: Path, mode: int, refused: bool) -> None:
    folder = place / "var"
    folder.mkdir()
    (folder / ".X11-unix").mkdir()
    folder.chmod(mode)
    with pytest.raises(NotPrivate, match="not this helper's alone") if refused else contextlib.nullcontext():
        make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_temporary_folder_is_never_closed_not_even_while_it_is_empty(place: Path) -> None:
    place.chmod(0o1777)
    with pytest.raises(NotPrivate):
        make_private(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o1777


def test_a_file_in_the_folders_place_is_told(place: Path) -> None:
    (place / "run").touch()
    with pytest.raises(OSError, match=r"run"):
        make_private(place / "run")


@pytest.mark.parametrize("planted", ["socket", "listener", "link", "file", "fifo"])
def test_what_another_user_left_at_the_sockets_path_is_replaced(place: Path, planted: str) -> None:
    run = place / "run"
    run.mkdir()
    run.chmod(0o777)
    path = run / "helper.sock"
    precious = place / "precious"
    precious.write_text("kept")
    commands = {"link": ["ln", "-s", str(precious)], "file": ["touch"], "fifo": ["mkfifo"]}
    with contextlib.ExitStack() as stack:
        if planted in commands:
            subprocess.run([*AS_STRANGER, *commands[planted], str(path)], check=True)
        elif planted == "listener":
            stack.enter_context(listening(AS_STRANGER, path))
        else:
            with listening(AS_STRANGER, path):
                pass
        serving = Helper(path)
        assert question(path, "drain") == {"v": 1, "draining": True}
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o600)
        assert precious.read_text() == "kept"
        serving.stop()


def test_a_helper_of_roots_is_not_replaced(place: Path, helper: Helper) -> None:
    with pytest.raises(SocketTaken):
        Helper(place / "run" / "helper.sock")


# --- files that decide ----------------------------------------------------------------------------------


def test_a_file_of_roots_is_read(place: Path) -> None:
    (place / "file").write_bytes(b"shop\n")
    assert trust.read_file(str(place / "file"), 100) == b"shop\n"
    assert trust.read_file(str(place / "file"), 3) == b"sho"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["stranger's", "writable", "group-writable", "link", "fifo", "folder", "device"])
def test_a_file_that_others_could_have_written_is_not_read(place: Path, kind: str) -> None:
    path = place / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        (place / "roots").write_text("x")
        path.symlink_to("roots")
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_text("kube-system\n")
        path.chmod({"writable": 0o666, "group-writable": 0o664}.get(kind, 0o600))
        if kind == "stranger's":
            os.chown(path, STRANGER, STRANGER)
    with pytest.raises(OSError, match=r"so it is not read|symbolic links"):
        trust.read_file(str(path), 100)
