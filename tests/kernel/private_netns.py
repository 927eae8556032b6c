"""Network namespaces without a name, for tests of one: nothing is left of them when they are no longer open."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

from cni_plugin.netns import entered
from tests.testbed.namespaces import CLONE_NEWNET, unshare

SELF = "/proc/thread-self/ns/net"


@contextmanager
def private_netns() -> Iterator[str]:
    """A new namespace with `lo` up; yields a path that is valid in this process until the end."""
    with ThreadPoolExecutor(1) as thread:  # it ends, and what keeps the namespace is the descriptor
        descriptor = thread.submit(_new).result()
    try:
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        run(path, "ip", "link", "set", "lo", "up")
        yield path
    finally:
        os.close(descriptor)


def _new() -> int:
    unshare(CLONE_NEWNET)
    return os.open(SELF, os.O_RDONLY | os.O_CLOEXEC)


def run(netns: str, *command: str, text: str = "") -> str:
    """Standard output of a program that runs in a namespace; fails the test with what it said."""
    inside = os.stat(netns).st_ino == os.stat(SELF).st_ino  # a test that is there already
    with nullcontext() if inside else entered(netns):
        done = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{text}")
    return done.stdout


def wait_until_up(netns: str, *devices: str) -> None:
    """The kernel finds out by and by that both ends of a veth are up."""
    deadline = time.monotonic() + 10
    while any("state UP" not in run(netns, "ip", "-o", "link", "show", device) for device in devices):
        assert time.monotonic() < deadline, f"not all of {devices} came up"


def wait_until_delivered(netns: str, *addresses: str) -> None:
    """An IPv6 address has its local route some time after it was added, although it is not tentative."""
    deadline = time.monotonic() + 10
    while any(
        f"local {address} " not in run(netns, "ip", "-6", "route", "show", "table", "local") for address in addresses
    ):
        assert time.monotonic() < deadline, f"not all of {addresses} are delivered to"


def batch(netns: str, *lines: str) -> None:
    """Many `ip` commands, without the leading `ip`."""
    run(netns, "ip", "-batch", "-", text="\n".join(lines) + "\n")
