"""Serves the helper's Unix socket: the plugin's asks, and `status` and `trace` for the operator.

One frame in, one frame out, of length-prefixed msgpack (`cni_plugin.wire`). Root may ask, and who runs this
helper, nobody else. A peer that sends rubbish, or nothing, or does not take its answer, loses its connection
and costs nobody else anything: questions have a length, both directions a time, and connections a number.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import structlog

from cni_plugin import peer, trust, wire
from cni_plugin.helper_client import PROTOCOL
from node_helper.private_folder import make_private

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_PATIENCE = 5.0
"""Seconds for a peer to send its question, and again to take its answer."""
_QUESTION_LIMIT = 64 << 10
"""Bytes of a question; a pod with a thousand addresses needs half of it."""
ANSWER_LIMIT = 256 << 20
"""Bytes of a long answer. The limit of messages is for what may come from anyone; the operator's command has looked
who its helper is. 2,000 Services with 5 endpoints each take two megabytes."""
_CONNECTIONS = 256
"""At once. One more, and the one that has been silent for longest goes: a thousand pods may start together, and
the plugin tries again, but the limit on open files (often 1024) is what else the helper works with."""
_log = structlog.get_logger()


class SocketTaken(Exception):
    """Another helper answers on this socket."""


class AskServer:
    """Answers questions by a table of handlers; root may ask, nobody else."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], long: Collection[str] = ()) -> None:
        """`long`: questions whose answers may be of any length; those are packed beside the event loop."""
        self._path = path
        self._handlers = handlers
        self._long = frozenset(long)
        self._server: asyncio.Server | None = None
        self._silent: dict[asyncio.StreamWriter, None] = {}
        """Connections that have not asked yet, oldest first."""
        self._open = 0

    async def start(self) -> None:
        """Raises SocketTaken, OSError."""
        make_private(self._path.parent)
        if answers(self._path):
            raise SocketTaken(f"another helper is running: it answers on {self._path} (see `status`)")
        # Bound beside and renamed over, so that there is no moment without a socket at the path.
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)  # 0600 from the first moment; nothing else makes files meanwhile
        try:
            listener.bind(str(fresh))
        finally:
            os.umask(before)
        fresh.rename(self._path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, backlog=_CONNECTIONS)

    async def stop(self) -> None:
        """The socket's file stays: the next helper puts its own over it."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._silent):
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._is_welcome(writer):
                self._silent[writer] = None
                async with asyncio.timeout(_PATIENCE):
                    asked = await self._asked(reader)
                self._silent.pop(writer, None)
                writer.write(await self._framed(asked, await self._answer(asked)))
                async with asyncio.timeout(_PATIENCE):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (wire.WireError, TimeoutError, EOFError, OSError) as error:
            _log.debug("a question on the socket was not one", error=repr(error))
        finally:
            self._open -= 1
            self._silent.pop(writer, None)
            # Closing would wait, for ever perhaps, until the peer has taken what was written.
            writer.transport.abort()

    def _is_welcome(self, writer: asyncio.StreamWriter) -> bool:
        """Whether this peer may ask now; makes room where there is none."""
        owner = peer.uid(writer.get_extra_info("socket"))
        if not trust.is_trusted(owner):
            _log.warning("refused a question on the socket: only root may ask", uid=owner)
            return False
        if self._open > _CONNECTIONS:
            oldest = next(iter(self._silent), None)
            if oldest is None:
                return False  # all are waiting for us: this one is to come again
            del self._silent[oldest]
            oldest.transport.abort()
        return True

    async def _asked(self, reader: asyncio.StreamReader) -> object:
        length = wire.body_length(await reader.readexactly(wire.LENGTH_BYTES), _QUESTION_LIMIT)
        return wire.unpack(await reader.readexactly(length))

    async def _answer(self, question: object) -> dict[str, Any]:
        if not isinstance(question, dict) or question.get("v") != PROTOCOL:
            return {"error": f"this helper speaks protocol {PROTOCOL}"}
        handler = self._handlers.get(str(question.get("op")))
        if handler is None:
            return {"error": f"unknown question {question.get('op')!r}"}
        try:
            return await handler(question)
        except (LookupError, ValueError) as error:
            return {"error": str(error.args[0] if error.args else error)}
        except Exception as error:
            # One question must not cost the others anything; this one is a fault of ours and is told as such.
            _log.exception("a question on the socket failed", op=question.get("op"))
            return {"error": f"the helper failed on this question: {error!r} (see its log)"}

    async def _framed(self, asked: object, answer: dict[str, Any]) -> bytes:
        if isinstance(asked, dict) and str(asked.get("op")) in self._long:
            return await asyncio.to_thread(_framed, answer, ANSWER_LIMIT)
        return _framed(answer)


def _framed(answer: dict[str, Any], limit: int = wire.MESSAGE_LIMIT) -> bytes:
    try:
        return wire.frame({"v": PROTOCOL, **answer}, limit)
    except wire.WireError as error:
        # A fault of ours.
        _log.error("an answer could not be sent", error=str(error))
        return wire.frame({"v": PROTOCOL, "error": f"the helper failed on this question: {error}"})


def answers(path: Path) -> bool:
    """Whether a helper listens on a socket, in whatever state it is; what others put there is none."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            return trust.is_trusted(peer.uid(probe))
        except OSError:
            return False


def question(path: Path, op: str, **fields: Any) -> dict[str, Any]:
    """Asks a running helper; raises ConnectionError in words for the operator."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30.0)
        try:
            connection.connect(str(path))
            owner = peer.uid(connection)
            if not trust.is_trusted(owner):
                raise PermissionError(errno.EPERM, f"what listens there belongs to uid {owner}, not to root")
            connection.sendall(wire.frame({"v": PROTOCOL, "op": op, **fields}))
            reply = wire.receive(connection.recv, ANSWER_LIMIT)
        except (OSError, wire.WireError) as error:
            raise ConnectionError(
                f"no helper answers on {path}: {error} (is `run` running? another --socket?)"
            ) from None
    if not isinstance(reply, dict):
        raise ConnectionError(f"the helper on {path} answers in a form that is not known here")
    if "error" in reply:
        raise LookupError(str(reply["error"]))
    return reply
