"""Who is at the other end of a Unix socket, by the kernel's word (SO_PEERCRED).

The socket's file is for root alone, but a file's mode is what somebody set it to and a path is what somebody
put there. Both sides therefore look at the peer itself: the plugin before it says or believes anything, the
helper before it reads anything. The kernel translates the peer's uid into the reader's user namespace, so
"root" of another user namespace is not uid 0 here; whom it cannot translate is `trust.OVERFLOW`.
"""

from __future__ import annotations

from _socket import SO_PEERCRED, SOL_SOCKET
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Connection(Protocol):
        """What of a socket is used here; asyncio's has no more."""

        def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


_UCRED = Struct("=iII")  # struct ucred: pid, uid, gid


def uid(connection: Connection) -> int:
    """The peer's effective uid when it connected, or when it began to listen; raises OSError."""
    return _credentials(connection)[1]


def process(connection: Connection) -> int:
    """The peer's process id at the same moment, 0 where it is of a PID namespace that is not seen from here."""
    return _credentials(connection)[0]


def _credentials(connection: Connection) -> tuple[int, int, int]:
    found: tuple[int, int, int] = _UCRED.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
    return found
