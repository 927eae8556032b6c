"""Running functions and programs in another network and mount namespace.

A function is run in a forked child that enters the namespaces: that takes milliseconds, where starting
another Python takes tens (and ten times that in the virtual machine), and the caller's own namespaces
never change.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

REPOSITORY = Path(__file__).resolve().parents[2]
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""By which users ask for the end."""

# Loaded here, before any fork: a forked child must not have to load libraries.
_libc = ctypes.CDLL(None, use_errno=True)
# Changing warnings for a moment is not safe among threads.
_one_fork_at_a_time = threading.Lock()


class TestbedError(Exception):
    """The testbed itself could not do what was asked of it; the message names the command or object."""

    __test__ = False


class CommandFailed(TestbedError):
    """A program ended with an exit status other than 0; the message has what it wrote."""

    def __init__(self, argv: tuple[str, ...], returncode: int, stdout: str, stderr: str) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        super().__init__(f"exit status {returncode} of {' '.join(argv)}\n{stdout}{stderr}".rstrip())


def setns(descriptor: int, kind: int = 0) -> None:
    """Enter the namespace that the descriptor is open on (os.setns comes with Python 3.12)."""
    _check(_libc.setns(descriptor, kind), "setns")


def unshare(kind: int) -> None:
    """Enter new namespaces (os.unshare comes with Python 3.12)."""
    _check(_libc.unshare(kind), "unshare")


def change_root(descriptor: int) -> None:
    """Make an open folder the root, as a process in a chroot needs after it has entered a mount namespace."""
    os.fchdir(descriptor)
    os.chroot(".")


def bind_mount(source: str, target: str) -> None:
    _check(_libc.mount(source.encode(), target.encode(), None, MS_BIND, None), f"mount of {source} on {target}")


def unmount(target: str) -> None:
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"unmounting {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Place:
    """A network namespace and a mount namespace in which programs and functions can be run.

    The paths must be valid in the caller's own mount namespace, `/proc/PID/root/…` reaches into others'.
    """

    def __init__(self, name: str, net: str, process: str) -> None:
        """`net` is the path of a network namespace, `process` the folder in /proc whose mounts are used."""
        self.name = name
        self._net = net
        self._process = process
        self.processes: list[subprocess.Popen[str]] = []
        """What `popen` started, ended ones too."""

    def netns(self) -> str:
        """Path of the network namespace, as seen by the caller."""
        return self._net

    def command(self, *argv: str) -> tuple[str, ...]:
        """The command line that runs `argv` in this place."""
        # Entering a mount namespace leads to its topmost root, which is not that of a process in a chroot.
        root = f"{self._process}/root"
        spaces = (f"--net={self._net}", f"--mount={self._process}/ns/mnt", f"--root={root}", f"--wd={root}")
        return ("nsenter", *spaces, "--", *argv)

    def run(
        self,
        *argv: str,
        input: str | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; raises CommandFailed, or subprocess.TimeoutExpired after `timeout` seconds.

        `env` is added to the caller's environment. The working directory is `/`.
        """
        done = subprocess.run(
            self.command(*argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            env=_environment(env),
            timeout=timeout,
        )
        if check and done.returncode:
            raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
        return done

    def popen(self, *argv: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a program in a process group of its own, ended by `stop_processes` at the latest.

        Its streams are text; stdin is /dev/null unless the options of `subprocess.Popen` say otherwise.
        """
        options.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[str] = subprocess.Popen(
            self.command(*argv), text=True, env=_environment(env), start_new_session=True, **options
        )
        self.processes.append(process)
        return process

    def python(self, code: str, *args: str, timeout: float = 60.0) -> str:
        """Run Python code in a new interpreter, with the repository importable; returns what it printed."""
        return self.run(sys.executable, "-c", code, *args, timeout=timeout).stdout

    def call(
        self,
        function: Callable[..., Value],
        *args: Any,
        limit: float = 60.0,
        mounts: bool = False,
        **kwargs: Any,
    ) -> Value:
        """Run a function in this network namespace (with `mounts` in the mount namespace too).

        It runs in a forked child, so closures and lambdas are as good as functions, and what it changes in
        memory is lost; what it returns or raises must be picklable. Raises TimeoutError after `limit`
        seconds; everything else by name or position goes to the function.
        """
        return call_in(self._net, self._process if mounts else None, lambda: function(*args, **kwargs), limit)

    def batch(self, lines: list[str], *options: str) -> None:
        """Run many `ip` commands (without the leading `ip`) in one process; the first failure raises."""
        self.run("ip", *options, "-batch", "-", input="\n".join(lines) + "\n")

    def set_sysctls(self, values: Mapping[str, str | int]) -> None:
        """Write sysctls, named by dots (a device's own dots as slashes)."""
        self.call(write_sysctls, values)

    def sysctl(self, key: str) -> str:
        """The value of a sysctl as text."""
        return self.call(lambda: sysctl_path(key).read_text().strip())

    def stop_processes(self, grace: float = 2.0) -> None:
        """End what `popen` started: SIGTERM to each process group, SIGKILL after `grace` seconds."""
        for process in self.processes:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    # What was not yet written to a program that has ended is of no use.
                    with suppress(BrokenPipeError):
                        stream.close()
        self.processes.clear()


def sysctl_path(key: str) -> Path:
    return Path("/proc/sys", key.replace(".", "/"))


def write_sysctls(values: Mapping[str, str | int]) -> None:
    """Write sysctls of the network namespace that the caller is in."""
    for key, value in values.items():
        sysctl_path(key).write_text(f"{value}\n")


@contextmanager
def signals_held_back() -> Iterator[None]:
    """What asks for the end is answered afterwards, when what was made meanwhile is known."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def call_in(net: str, process: str | None, function: Callable[[], Value], limit: float) -> Value:
    """Run a function in a forked child, in the network namespace `net` and, if given, with a process's mounts."""
    paths = [net] if process is None else [net, f"{process}/ns/mnt", f"{process}/root"]
    descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    receiving, sending = os.pipe()
    try:
        with _one_fork_at_a_time, warnings.catch_warnings():
            # Python 3.12 and later warn of forks in a process with threads. The child runs the function
            # and nothing else, and no thread of a test run holds locks that these functions want.
            warnings.simplefilter("ignore", DeprecationWarning)
            with signals_held_back():
                child = os.fork()
                if child == 0:
                    _child(descriptors, function, sending)
    finally:
        os.close(sending)
        for descriptor in descriptors:
            os.close(descriptor)
    try:
        answer = _receive(receiving, limit)
    finally:
        os.close(receiving)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None:
        raise TestbedError(f"the child that was to run {function!r} ended with wait status {status}")
    succeeded, value, where = pickle.loads(answer)
    if succeeded:
        result: Value = value
        return result
    assert isinstance(value, BaseException)
    value.add_note(where)
    raise value


def _child(descriptors: list[int], function: Callable[[], object], sending: int) -> None:
    """The forked child's whole life; never returns."""
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in ENDING:  # a terminal sends them to the child as well; what is to be said of it, the parent says
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            for namespace in descriptors[:2]:
                setns(namespace)
            for root in descriptors[2:]:
                change_root(root)
            outcome: tuple[bool, object, str] = (True, function(), "")
        except BaseException as error:  # handed over to the caller, who raises it
            outcome = (False, error, f"in the namespace:\n{traceback.format_exc()}")
        try:
            message = pickle.dumps(outcome)
            pickle.loads(message)
        except Exception as error:  # what has no pickle is told by its text
            told = TestbedError(f"{outcome[1]!r} cannot be handed over: {error!r}")
            message = pickle.dumps((False, told, outcome[2]))
        with os.fdopen(sending, "wb") as stream:
            stream.write(struct.pack("=Q", len(message)) + message)
    finally:
        os._exit(0)


def _receive(descriptor: int, limit: float) -> bytes | None:
    """One length-prefixed message; None when the sender ended without it. Raises TimeoutError."""
    # The length tells the end, not the closing: another fork may hold a copy of the sending end.
    deadline = time.monotonic() + limit
    buffer = bytearray()
    while len(buffer) < 8 or len(buffer) < 8 + struct.unpack_from("=Q", buffer)[0]:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"no result from the namespace in {limit} s")
        chunk = os.read(descriptor, 1 << 20)
        if not chunk:
            return None
        buffer += chunk
    return bytes(buffer[8:])


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return {**own, **(added or {})}


def _signal_group(process: subprocess.Popen[str], number: int) -> None:
    if process.poll() is None:
        # It may end between the look and the signal.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
