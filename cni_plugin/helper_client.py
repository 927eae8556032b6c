"""Asking the node helper which tunnels a new pod has, with patience for a helper that is being restarted.

Everything that can be wrong with the other side (no socket, nobody there, no answer yet, rubbish) counts
the same: try again until the time is used up, then say what the last trouble was. What follows from that
is the caller's decision.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket, timeout
from time import monotonic, sleep

from cni_plugin import peer, trust, tunnel, wire
from cni_plugin.record import Record
from cni_plugin.tunnel import PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
TUNNELS = "tunnels"
NONE = "none"
UNKNOWN = "unknown"

FIRST_PAUSE = 0.01
LAST_PAUSE = 0.25
"""Seconds between two attempts, growing from one to the other: a restart is over in tenths of a second."""
SHORTEST_ATTEMPT = 0.1
"""Seconds that even the last attempt gets."""


class Answer(Record):
    """What the helper knows of the pod."""

    kind: str
    """`tunnels`, `none` (it has none), or `unknown` (no helper, or one that does not know yet)."""
    pod: PodTunnels = PodTunnels()
    trouble: str = ""
    """For `unknown`: why, in words."""


class NotYet(Exception):
    """Not an error to the caller of `ask`: the attempt is repeated."""


def ask(socket_path: str, request: dict[str, Any], wait_seconds: float) -> Answer:
    """The helper's answer, at the latest `wait_seconds` from now (at least one attempt is made).

    `request` without its protocol version, which is added here. Raises WireError when the request itself
    cannot be sent over the wire; nothing else.
    """
    message = wire.frame({"v": PROTOCOL, **request})
    deadline = monotonic() + wait_seconds
    pause = FIRST_PAUSE
    while True:
        try:
            return _attempt(socket_path, message, max(deadline, monotonic() + SHORTEST_ATTEMPT))
        except NotYet as trouble:
            left = deadline - monotonic()
            if left <= 0:
                return Answer(UNKNOWN, trouble=str(trouble))
        sleep(min(pause, left))
        pause = min(2 * pause, LAST_PAUSE)


def _attempt(path: str, message: bytes, deadline: float) -> Answer:
    try:
        connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    except OSError as error:
        raise NotYet(f"no socket to ask the helper at {path}: {error.strerror or error}") from None
    try:
        connection.settimeout(max(deadline - monotonic(), SHORTEST_ATTEMPT))
        connection.connect(path)
        owner = peer.uid(connection)
        if not trust.is_trusted(owner):
            # Whoever could put a socket there must not decide which addresses pods get.
            raise NotYet(f"what listens on {path} belongs to uid {owner}, not to root: it is not asked")
        connection.sendall(message)

        def read(size: int) -> bytes:
            left = deadline - monotonic()
            if left <= 0:
                raise timeout
            connection.settimeout(left)
            return connection.recv(size)

        return answer_of(wire.receive(read))
    except timeout:  # TimeoutError's other name; before Python 3.10 an error of its own
        raise NotYet(f"the helper at {path} does not answer") from None
    except OSError as error:
        raise NotYet(f"no helper at {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise NotYet(f"the helper at {path} answers rubbish: {error}") from None
    finally:
        connection.close()


def answer_of(reply: Any) -> Answer:
    """What a reply says; raises ValueError for one of another form, NotYet for "unknown"."""
    if not isinstance(reply, dict) or reply.get("v") != PROTOCOL:
        raise ValueError(f"not an answer of protocol {PROTOCOL}")
    kind = reply.get("answer")
    if kind == TUNNELS:
        return Answer(TUNNELS, tunnel.from_plain(reply.get("pod")))
    if kind == NONE:
        return Answer(NONE)
    if kind == UNKNOWN:
        raise NotYet("the helper does not know the pod yet (it has not read all Services and pods)")
    raise ValueError(f"unknown answer {kind!r}")
