"""One helper per node and role: a second one would undo what the first does, as each takes away what it does not want.

The claim is the name of an abstract Unix socket. Such names belong to a network namespace, as do the routes that are
written, so it holds whatever the mount namespace and `--socket` are; the kernel gives a name to one process, however
many ask at once, and takes it back when that process ends, however it ends. Each role has a name of its own, since
they may run as processes of their own.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable

from cni_plugin import peer, trust

_NAME = "\0service-tunnel/{}"
_PATIENCE = 2.0
"""Seconds to wait for a name to become free: that of a helper that was killed can outlive it for a moment, in a program
that it was just starting."""


class AnotherHelper(Exception):
    """Somebody else holds the claim."""


class Claim:
    """Held from the moment that it is made until it is closed."""

    def __init__(self, roles: Iterable[str]) -> None:
        """Raises AnotherHelper."""
        self._held: list[socket.socket] = []
        try:
            # In one order for all, so that of two that begin together one gets all of them.
            for role in sorted(roles):
                self._held.append(_held(role))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for held in self._held:
            held.close()


def _held(role: str) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE
    while True:
        mine = socket.socket(socket.AF_UNIX)
        try:
            mine.bind(_NAME.format(role))
            mine.listen(1)  # only to be asked who holds the name
            return mine
        except OSError as error:
            mine.close()
            if error.errno != errno.EADDRINUSE:
                raise
        if time.monotonic() > deadline:
            raise AnotherHelper(_words(role, _holder(role)))
        time.sleep(0.01)


def _holder(role: str) -> tuple[int, int] | None:
    """Process and uid; None where it does not listen yet, or not any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(_NAME.format(role))
            return peer.process(probe), peer.uid(probe)
        except OSError:
            return None


def _words(role: str, holder: tuple[int, int] | None) -> str:
    pid, uid = holder or (0, 0)
    who = f"process {pid}" if pid else "a process of another PID namespace"
    if trust.is_trusted(uid):
        return f"another helper is running on this node in the role {role}: {who} (a second one would undo its work)"
    return f"{who} of uid {uid} holds the name @{_NAME[1:].format(role)}, which is the helper's: end it"
