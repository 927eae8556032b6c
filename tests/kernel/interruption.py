"""The plugin in a forked child in which one call into the kernel goes wrong, or never returns.

No hook in the product: the child replaces what lies beneath it (functions of `posix`, methods of sockets,
setns), counts the calls, and at the one that a test names raises an error or kills itself. So a test can go
through all of them, one by one, until a run does not get that far any more.
"""

from __future__ import annotations

import _socket
import importlib
import json
import os
import pkgutil
import posix
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import cni_plugin
from cni_plugin import __main__ as plugin
from cni_plugin import netns
from cni_plugin.tunnel import to_plain
from tests.fake_helper import FakeHelper
from tests.kernel.test_pod_netns import ETH0, picture, pod_netns, web, without_numbers
from tests.testbed.namespaces import TestbedError, call_in
from tests.testbed.scene import PATIENCE

FILE_CALLS = ("open", "read", "write", "rename", "unlink", "mkdir", "listdir", "stat", "fstat")
SOCKET_CALLS = ("setsockopt", "bind", "connect", "send", "sendall", "recv", "recv_into")
EVERY_CALL = frozenset({*FILE_CALLS, *SOCKET_CALLS, "setns"})
CHANGES = frozenset({"open", "write", "rename", "unlink", "mkdir", "connect", "send", "sendall", "setns"})
"""The calls that may change something. Killed before another call, a process leaves what it leaves before the next of
these."""
KILL = 0
_PATIENCE = PATIENCE / 10

# What the plugin imports on the way is not what is interrupted here.
for _found in pkgutil.walk_packages(cni_plugin.__path__, "cni_plugin."):
    importlib.import_module(_found.name)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong."""

    at: int
    """The number of the counted call, from 1; 0: nothing goes wrong."""
    errno: int = KILL
    """What the call raises instead of doing anything; KILL: the process ends before the call."""
    lasting: bool = False
    """Every later call fails as well."""
    counted: frozenset[str] = EVERY_CALL


NO_FAULT = Fault(0)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    status: int | None
    """None: it was killed."""
    text: bytes
    """Standard output."""
    calls: tuple[str, ...]
    """All counted calls in order; of a run that was killed none."""


def run_plugin(environ: Mapping[str, str], conf: Mapping[str, Any], fault: Fault) -> Ended:
    """One call of the plugin's `main`."""
    stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
    try:
        os.write(stdin, json.dumps(conf).encode())

        def child() -> tuple[int, tuple[str, ...]]:
            os.lseek(stdin, 0, os.SEEK_SET)
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            posix.environ.clear()
            posix.environ.update({name.encode(): value.encode() for name, value in environ.items()})
            calls = _arm(fault)
            return plugin.main(), tuple(calls)

        try:
            status, calls = call_in(netns.OWN, None, child, PATIENCE)
        except TestbedError as error:
            if fault.errno != KILL or "status 9" not in str(error):
                raise
            status, calls = None, ()
        return Ended(status, os.pread(stdout, 1 << 20, 0), calls)
    finally:
        os.close(stdin)
        os.close(stdout)


def _arm(fault: Fault) -> list[str]:
    """Replaces what is beneath the plugin, for the rest of this process's life; returns where the calls are noted."""
    calls: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == fault.at or (fault.lasting and len(calls) > fault.at):
                if fault.errno == KILL:
                    signal.raise_signal(signal.SIGKILL)
                raise OSError(fault.errno, os.strerror(fault.errno))
            return function(*args, **kwargs)

        return call

    methods = {name: noted(name, getattr(_socket.socket, name)) for name in SOCKET_CALLS if name in fault.counted}
    substitutes: dict[int, Any] = {id(_socket.socket): type("socket", (_socket.socket,), methods)}
    for name in fault.counted.intersection(FILE_CALLS):
        substitutes[id(getattr(posix, name))] = noted(name, getattr(posix, name))
    substitutes[id(netns._setns)] = noted("setns", netns._setns)
    for module in [_socket, posix, *(found for name, found in sys.modules.items() if name.startswith("cni_plugin"))]:
        for name, value in list(vars(module).items()):
            if id(value) in substitutes:
                setattr(module, name, substitutes[id(value)])
    return calls


class Site:
    """A pod with a Service in front of it, the node's folders, its helper; and how all looks with and without ADD."""

    def __init__(self, netns_path: str, folder: Path) -> None:
        self.netns = netns_path
        self.folder = folder
        (folder / "state").mkdir()
        self.environ = {
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns_path,
            "CNI_IFNAME": ETH0,
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1",
        }
        self.conf = {
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "service-tunnel",
            "helperSocket": str(folder / "h.sock"),
            "runDir": str(folder / "run"),
            "stateDir": str(folder / "state"),
            "whenHelperIsAway": "retry",
            "helperWait": 30.0,
            "log": {"file": str(folder / "log")},
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
            "cni.dev/valid-attachments": [],
        }
        self.succeed("ADD")
        self.full = self.look()
        self.succeed("DEL")
        self.empty = self.look()

    def run(self, verb: str, fault: Fault = NO_FAULT) -> Ended:
        return run_plugin({**self.environ, "CNI_COMMAND": verb}, self.conf, fault)

    def succeed(self, verb: str) -> None:
        ended = self.run(verb)
        assert ended.status == 0, ended.text

    def look(self) -> dict[str, Any]:
        """Everything in the namespace, and the files of the plugin."""
        found = (self.folder / "run").rglob("*")
        files = {str(file.relative_to(self.folder)): file.read_bytes() for file in found if file.is_file()}
        return without_numbers(picture(self.netns)) | {"files": files}

    def differs(self, from_: Mapping[str, Any]) -> str:
        """Where the site does not look like that, in a few lines; empty where it does."""
        deadline = time.monotonic() + _PATIENCE
        while (now := self.look()) != from_ and time.monotonic() < deadline:
            pass  # a local route to an IPv6 address comes some time after the address
        return "\n".join(f"{name}: {_difference(from_[name], now[name])}" for name in now if now[name] != from_[name])


def _difference(one: Any, two: Any) -> str:
    if isinstance(one, dict):
        found = [f"{key}: {one.get(key)} {two.get(key)}" for key in {*one, *two} if one.get(key) != two.get(key)]
    else:
        ones, twos = (text if isinstance(text, list) else text.splitlines() for text in (one, two))
        found = [f"-{line}" for line in ones if line not in twos] + [f"+{line}" for line in twos if line not in ones]
    return "; ".join(sorted(found)[:8])


AnySite = TypeVar("AnySite", bound=Site)


@contextmanager
def sites(mode: str, count: int, kind: type[AnySite]) -> Iterator[list[AnySite]]:
    """Several, to be interrupted at the same time."""
    reply = {"v": 1, "answer": "tunnels", "pod": to_plain(web(mode))}
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="svctun-")))
            stack.enter_context(FakeHelper(folder / "h.sock", reply))
            made.append(kind(stack.enter_context(pod_netns("1")), folder))
        yield made


def everywhere(several: list[AnySite], count: int, check: Callable[[AnySite, int], str]) -> None:
    """`check` for each number from 1 to `count`, each on a site that nobody else has; fails with all complaints."""
    free: SimpleQueue[AnySite] = SimpleQueue()
    for site in several:
        free.put(site)

    def one(number: int) -> str:
        site = free.get()
        try:
            return check(site, number)
        finally:
            free.put(site)

    with ThreadPoolExecutor(len(several)) as threads:
        complaints = [said for said in threads.map(one, range(1, count + 1)) if said]
    assert not complaints, "\n".join(complaints)
