"""A pod to try a plugin on: a network namespace with an interface, and folders, and what can be seen in them.

What a plugin leaves behind is found by comparing two views: what `ip` and `nft` list, the sysctls, and the files. The
namespace has no name and ends with the descriptor that keeps it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from conformance.contract.calls import Call, Reply, perform, perform_at_once, right_call
from conformance.contract.profile import Profile

Value = TypeVar("Value")
View = frozenset[str]
"""One line for each thing that is there."""

_CLONE_NEWNET = 0x40000000
_SYSCTLS = ("net/ipv4", "net/ipv6", "net/mpls")
_READY_WITHIN = 10.0  # seconds for the interface to be up

# IPv6 addresses that come and go by themselves would look like something left behind.
_POD = """
link set lo up
link add eth0 address 02:00:00:00:00:02 type veth peer name outside address 02:00:00:00:00:01
addr add 10.9.0.2/24 dev eth0
addr add fd09::2/64 dev eth0 nodad
link set outside up
link set eth0 up
route add default via 10.9.0.1 dev eth0
route add default via fd09::1 dev eth0
"""
_ROUTES = {
    "local fd09::2 dev eth0 table local",
    "multicast ff00::/8 dev eth0 table local",
    "multicast ff00::/8 dev outside table local",
}
_LOOK = {"-4": "link\naddr\nroute show table all\nrule\n", "-6": "addr\nroute show table all\nrule\n"}
"""What is asked of `ip`, by the family that routes and rules are shown of."""


class World:
    """One pod's place, for one plugin."""

    def __init__(self, profile: Profile, binary: Path, parent: Path) -> None:
        """Folders are made below `parent`; raises OSError where the caller is not root."""
        self.profile = profile
        self.binary = binary
        self._parent = Path(mkdtemp(dir=parent))
        self.folder, self._given = self._parent / "plugin", self._parent / "given"
        for folder in (self.folder, self._given):
            folder.mkdir()
        self.untouched: View = frozenset()
        """What is there before anything is done."""
        self.as_found = True
        """Whether nothing has been done since the last look, which saw what was there before."""
        # A thread for each namespace, and what it starts is there, too: the plugin runs on the node.
        self._pod, self._node = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._descriptor = self.in_pod(_enter_new_namespace)
        self.netns = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        os.close(self.on_node(_enter_new_namespace))
        self.in_pod(_make_pod)
        self.untouched = self.view()
        self.as_found = True

    def in_pod(self, function: Callable[[], Value]) -> Value:
        return self._pod.submit(function).result()

    def perform(self, call: Call) -> Reply:
        """The plugin runs on the node, as it does under a runtime."""
        self.as_found = False
        return self.on_node(lambda: perform(self.binary, call))

    def perform_at_once(self, calls: list[Call]) -> list[Reply]:
        self.as_found = False
        return self.on_node(lambda: perform_at_once(self.binary, calls))

    def on_node(self, function: Callable[[], Value]) -> Value:
        return self._node.submit(function).result()

    def call(self, verb: str, version: str) -> Call:
        """A right call of the plugin for this pod."""
        own = self.profile.own_keys(self.folder)
        return right_call(verb, version, self.profile.type, self.netns, self.binary, own, self._given)

    def view(self) -> View:
        """Everything that can be seen: what pod and node have, and the files in the folder but for logs."""
        logs = self.profile.log_files(self.folder)
        files = (path for path in self.folder.rglob("*") if not path.is_dir() and path not in logs)
        shown = {f"file {path.relative_to(self.folder)}" for path in files}
        view = self.in_pod(view_of_pod) | self.on_node(_view_of_node) | shown
        self.as_found = view == self.untouched
        return view

    def close(self) -> None:
        self._pod.shutdown()
        self._node.shutdown()
        os.close(self._descriptor)
        shutil.rmtree(self._parent)


def changes(before: View, after: View) -> str:
    """What is otherwise in `after`, as text; empty where nothing is."""
    gone = [f"- {line}" for line in sorted(before - after)]
    return "\n".join([*gone, *(f"+ {line}" for line in sorted(after - before))])


def _enter_new_namespace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace cannot be made: {os.strerror(number)} (is this root?)")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _make_pod() -> None:
    for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0")):
        Path("/proc/sys/net/ipv6/conf/default", key).write_text(value)
    _run("ip", "-batch", "-", text=_POD)
    deadline = time.monotonic() + _READY_WITHIN
    # The kernel brings links up, and makes the routes of IPv6 addresses, a little later.
    while _run("ip", "-br", "link", "show", "type", "veth").count(" UP ") < 2 or _ROUTES - _routes():
        if time.monotonic() > deadline:
            raise TimeoutError("the pod's interface does not come up")
        time.sleep(0.005)


def _routes() -> set[str]:
    return {line.partition(" proto")[0] for line in _run("ip", "-6", "route", "show", "table", "all").splitlines()}


def _view_of_node() -> View:
    return frozenset(f"node {line}" for line in _listed("-4", "link\nroute show table all\nrule\n"))


def _listed(family: str, look: str) -> set[str]:
    return {" ".join(line.split()) for line in _run("ip", family, "-d", "-o", "-batch", "-", text=look).splitlines()}


def view_of_pod() -> View:
    lines = set()
    for family, look in _LOOK.items():
        lines |= _listed(family, look)
    rules = _run("nft", "list", "ruleset")
    if rules.strip():
        lines |= {f"nft {line.strip()}" for line in rules.splitlines()}
    for top in _SYSCTLS:
        for folder, inner, names in os.walk(f"/proc/sys/{top}"):
            inner[:] = [name for name in inner if name != "neigh"]  # a third of them, and nobody sets those
            lines |= {f"sysctl {folder[len('/proc/sys/') :]}/{name} = {_read(f'{folder}/{name}')}" for name in names}
    return frozenset(lines)


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, 1 << 16).decode().strip()
        finally:
            os.close(descriptor)
    except OSError as error:  # some are for writing only, some have no value yet
        return str(error.strerror)


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}")
    return done.stdout
