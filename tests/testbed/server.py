"""The program in the pods: answers TCP and UDP with who it is and whom it sees.

Every line over TCP and every datagram is answered by `<name> <client address> <client port> <bytes got>`.
Over TCP `big N` is answered by N bytes of `pattern`, and `sink N` takes N bytes in and then answers by
`<name> <client address> <client port> <N> <crc32 of the bytes>`. The answer to a datagram `big N` has N
bytes, the last of them blanks. It listens on IPv4 and IPv6 by sockets of
their own, on 0.0.0.0 and :: unless told an address, like programs that know nothing of VIPs; or by one
socket on :: for both, for which an IPv4 client's address is ::ffff:ADDRESS.

One process for all clients, built from the standard library only: it starts fast also in a virtual
machine. Prints `ready` when it listens.
"""

from __future__ import annotations

import argparse
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

BLOCK = bytes(range(256)) * 256
SO_RCVBUFFORCE = 33


def pattern(size: int) -> bytes:
    """The bytes that `big` sends: 0, 1, … 255, over and over."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


class Connection:
    """One TCP client: lines in, answers out, never blocking."""

    def __init__(self, name: str, stream: socket.socket, client: tuple[str, int], events: DefaultSelector) -> None:
        self._name = f"{name} {client[0]} {client[1]}"
        self._stream = stream
        self._events = events
        self._waits_for = EVENT_READ
        self._received = bytearray()
        self._sink = 0
        """Bytes that `sink` was told of; 0 when no sink is under way."""
        self._sunk = 0
        self._checksum = 0
        self._answer = b""
        self._pattern = memoryview(b"")
        """What is still to be sent of an answer to `big`, up to a block; `_blocks_left` bytes follow."""
        self._blocks_left = 0
        events.register(stream, EVENT_READ, self.serve)

    def serve(self, ready: int) -> None:
        """Go on as far as the client lets us."""
        try:
            if ready & EVENT_READ:
                received = self._stream.recv(1 << 18)
                if not received:
                    self._end()
                    return
                self._received += received
            # No further line is looked at while an answer is not out: memory stays bounded.
            while self._flush() and self._step():
                pass
        except OSError:
            self._end()

    def _step(self) -> bool:
        """Take one command, or a part of a sink, from what was received; False when more must come first."""
        if self._sink:
            part = self._received[: self._sink - self._sunk]
            del self._received[: len(part)]
            self._checksum = zlib.crc32(part, self._checksum)
            self._sunk += len(part)
            if self._sunk < self._sink:
                return False
            self._answer = f"{self._name} {self._sink} {self._checksum}\n".encode()
            self._sink = 0
            return True
        end = self._received.find(b"\n")
        if end < 0:
            return False
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        word, _, number = line.partition(b" ")
        if word == b"big" and number.isdigit():
            self._blocks_left = int(number)
        elif word == b"sink" and number.isdigit():
            self._sink, self._sunk, self._checksum = int(number), 0, 0
        else:
            self._answer = f"{self._name} {len(line)}\n".encode()
        return True

    def _flush(self) -> bool:
        """Send what is to be sent; False when the client must take something first."""
        try:
            while self._answer:
                self._answer = self._answer[self._stream.send(self._answer) :]
            while self._pattern or self._blocks_left:
                if not self._pattern:
                    self._pattern = memoryview(BLOCK)[: self._blocks_left]
                    self._blocks_left -= len(self._pattern)
                self._pattern = self._pattern[self._stream.send(self._pattern) :]
        except BlockingIOError:
            self._wait_for(EVENT_WRITE)
            return False
        self._wait_for(EVENT_READ)
        return True

    def _wait_for(self, events: int) -> None:
        if events != self._waits_for:
            self._waits_for = events
            self._events.modify(self._stream, events, self.serve)

    def _end(self) -> None:
        self._events.unregister(self._stream)
        self._stream.close()


def listener(kind: int, address: str, port: int, dual_stack: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, kind)
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((address, port))
    found.setblocking(False)
    return found


def accepting(name: str, streams: socket.socket, events: DefaultSelector) -> Callable[[int], None]:
    """What to do when clients connect."""

    def accept(_: int) -> None:
        try:
            while True:
                stream, client = streams.accept()
                stream.setblocking(False)
                Connection(name, stream, client[:2], events)
        except OSError:
            return  # all are accepted, or one has given up already

    return accept


def answering(name: str, datagrams: socket.socket) -> Callable[[int], None]:
    """What to do when datagrams come."""

    def answer(_: int) -> None:
        while True:
            try:
                datagram, client = datagrams.recvfrom(1 << 16)
                text = f"{name} {client[0]} {client[1]} {len(datagram)}"
                if datagram.startswith(b"big "):
                    text = text.ljust(int(datagram[4:]))
                datagrams.sendto(text.encode(), client)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about a client before, or no way to this one

    return answer


def serve(name: str, addresses: list[str], ports: list[int], dual_stack: bool = False) -> None:
    """Answer forever; with `dual_stack` sockets on :: take IPv4, too."""
    events = DefaultSelector()
    for address in addresses:
        for port in ports:
            streams = listener(socket.SOCK_STREAM, address, port, dual_stack)
            streams.listen(4096)
            events.register(streams, EVENT_READ, accepting(name, streams, events))
            datagrams = listener(socket.SOCK_DGRAM, address, port, dual_stack)
            with suppress(PermissionError):  # in a container without rights the usual buffer has to do
                datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
            events.register(datagrams, EVENT_READ, answering(name, datagrams))
    print("ready", flush=True)
    while True:
        for key, ready in events.select():
            key.data(ready)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="who it says it is")
    parser.add_argument("--port", type=int, action="append", required=True, help="TCP and UDP; repeatable")
    parser.add_argument("--bind", action="append", help="address, repeatable; default 0.0.0.0 and ::")
    parser.add_argument("--dual-stack", action="store_true", help="one socket on :: for both IP versions")
    asked = parser.parse_args()
    usual = ["::"] if asked.dual_stack else ["0.0.0.0", "::"]
    serve(asked.name, asked.bind or usual, asked.port, asked.dual_stack)


if __name__ == "__main__":
    main()
