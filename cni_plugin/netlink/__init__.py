"""Netlink by hand: sockets, messages, attributes, dumps, and errors that name their object.

Written here and not taken from a library for two reasons: the plugin pays for every import at every pod's
start (pyroute2 costs twenty times the plugin's whole work), and the helper programs bucket tables in bulk,
where packing by hand with one acknowledgement per send is two orders of magnitude faster. What a message
looks like is documented in the kernel's `include/uapi/linux/{netlink,rtnetlink,netfilter/nf_tables}.h`;
numbers below are from there.
"""

from __future__ import annotations

import _socket
from _struct import Struct, unpack_from
from _struct import error as StructError  # type: ignore[attr-defined]
from sys import byteorder

from cni_plugin.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

REQUEST = 0x01
ACK = 0x04
DUMP = 0x300
REPLACE = 0x100
EXCL = 0x200
CREATE = 0x400

NESTED = 0x8000
_ATTRIBUTE_TYPE = 0x3FFF

_ERROR = 2
_DONE = 3
_DUMP_INTERRUPTED = 0x10
_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11
_ACK_TLVS = 0x200
_ERROR_TEXT = 1
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_RCVTIMEO = 20
_NO_ROOM = 105
"""ENOBUFS: some answers were more than the socket had room for; those before them are still there."""
_LOST = "reading the kernel's answers, of which some were lost"
_TIMED_OUT = 110
_LAST_SEQUENCE = 1 << 31

_header = Struct("=IHHII")
_attribute = Struct("=HH")
_u8 = Struct("=HHB3x")
_u32 = Struct("=HHI")
_timeval = Struct("@ll")
_PATIENCE = 10
"""Seconds to wait for an answer; the kernel answers within the send, so this only ends what cannot be."""
_SEND_BYTES = 32 * 1024
"""Bytes of one send: large enough to make system calls rare, small enough for the default send buffer."""
_RECEIVE_BYTES = 1 << 16
"""More than the kernel puts into one answer (32 KiB), and little enough to come from the heap, not from mmap."""
_ROOM = 1 << 20
"""Bytes, which the kernel doubles: a refusal takes about 1,300, and a send has up to 1,400 messages."""


class NetlinkError(OSError):
    """The kernel refused a request; the text names errno, the operation and its object."""

    def __init__(self, code: int, what: str, kernel_says: str = "") -> None:
        self.what = what
        self.kernel_says = kernel_says
        super().__init__(code, f"{errno_name(code)} {what}" + (f": {kernel_says}" if kernel_says else ""))

    def __str__(self) -> str:
        return str(self.strerror)


def errno_name(code: int) -> str:
    """`EEXIST` for 17; the number where it has no name."""
    import errno

    return errno.errorcode.get(code, f"errno {code}")


class Message(Record):
    """One request, without its header."""

    type: int
    flags: int
    body: bytes
    what: str
    """What the request does and to which object: `adding 192.0.2.1/32 to lo`."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _attribute.pack(length, kind) + payload + b"\0" * (-length & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    return _u8.pack(5, kind, value)


def u16(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(2, byteorder))


def u32(kind: int, value: int) -> bytes:
    return _u32.pack(8, kind, value)


def be16(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(2, "big"))


def be32(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


def be64(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(8, "big"))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(payload: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes of a payload by number, flags of the number removed; of equal ones the last."""
    found = {}
    end = len(payload)
    while start + 4 <= end:
        length, kind = _attribute.unpack_from(payload, start)
        if length < 4 or start + length > end:
            raise NetlinkError(74, "reading a netlink message", "an attribute is longer than its message")
        found[kind & _ATTRIBUTE_TYPE] = payload[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def attribute_list(payload: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes of a payload in order, for nests whose members share one number."""
    end = len(payload)
    while start + 4 <= end:
        length, kind = _attribute.unpack_from(payload, start)
        if length < 4 or start + length > end:
            raise NetlinkError(74, "reading a netlink message", "an attribute is longer than its message")
        yield kind & _ATTRIBUTE_TYPE, payload[start + 4 : start + length]
        start += (length + 3) & ~3


def number(payload: bytes) -> int:
    """A payload of 1, 2, 4 or 8 bytes in host order."""
    return int.from_bytes(payload, byteorder)


def string(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")


class Socket:
    """A netlink socket; it belongs to the network namespace in which its thread was when it was made."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._take_room()
            # The kernel's own timeout: Python's would cost a poll before each send and each read.
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_RCVTIMEO, _timeval.pack(_PATIENCE, 0))
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def _take_room(self) -> None:
        """Room for the answers to one send of which every message is refused: beyond the limit of the system."""
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        except OSError:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, _ROOM)  # without CAP_NET_ADMIN

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The number by which the kernel says whose request a change was (nlmsg_pid)."""
        return int(self._socket.getsockname()[0])

    def run(self, *messages: Message) -> None:
        """Requests in order; raises NetlinkError for the first that the kernel refuses."""
        failures = self.run_all(messages)
        if failures:
            raise failures[0][1]

    def run_all(self, messages: Sequence[Message]) -> list[tuple[int, NetlinkError]]:
        """Many requests in few system calls, in order; returns the refused ones by index.

        A refused request does not stop the later ones.
        """
        refused = self.send_packed((m.type, m.flags, m.body) for m in messages)
        return [(index, NetlinkError(code, messages[index].what, says)) for index, code, says in refused]

    def send_packed(self, packed: Iterable[tuple[int, int, bytes]]) -> list[tuple[int, int, str]]:
        """The bulk path: (type, flags, body) in, (index, errno, the kernel's words) of refused ones out.

        Only the last message of each send asks for an acknowledgement: the kernel handles the messages of
        one send in order and answers refused ones in any case, so the acknowledgement closes the send.
        """
        refused: list[tuple[int, int, str]] = []
        chunk: list[bytes] = []
        size = 0
        first = index = 0
        pack = _header.pack
        base = self._begin()
        try:
            for kind, flags, body in packed:
                length = 16 + len(body)
                if chunk and size + length > _SEND_BYTES:
                    self._exchange(chunk, base + first, first, refused)
                    chunk, size, first = [], 0, index
                chunk.append(pack(length, kind, flags | REQUEST, base + index, 0) + body + b"\0" * (-length & 3))
                size += (length + 3) & ~3
                index += 1
            if chunk:
                self._exchange(chunk, base + first, first, refused)
        finally:
            # Also after a failure: a late answer to one of these is not to be taken for one to the next.
            self._sequence = base + index
        return refused

    def send_alike(
        self, kind: int, flags: int, layout: str, bodies: Iterable[tuple[Any, ...]]
    ) -> list[tuple[int, int, str]]:
        """As `send_packed`, of messages whose bodies have one layout, in `struct`'s words: less to do for each."""
        from itertools import islice  # the helper's alone: no pod's start is to pay for it

        size = Struct(f"={layout}").size
        whole = Struct(f"=IHHII{layout}{-size & 3}x")
        length, flags, pack = 16 + size, flags | REQUEST, whole.pack
        refused: list[tuple[int, int, str]] = []
        base, first, rest = self._begin(), 0, iter(bodies)
        try:
            while chunk := [
                pack(length, kind, flags, sequence, 0, *body)
                for sequence, body in enumerate(islice(rest, _SEND_BYTES // whole.size), base + first)
            ]:
                self._sequence = base + first + len(chunk)
                self._exchange(chunk, base + first, first, refused)
                first += len(chunk)
        finally:
            self._sequence = max(self._sequence, base + first)
        return refused

    def _begin(self) -> int:
        """The first sequence number of a request; begins anew before the kernel's 32 bits are used up."""
        if self._sequence > _LAST_SEQUENCE:
            self._sequence = 0
        return self._sequence + 1

    def _put(self, request: bytes) -> None:
        """One send. The kernel takes all of it or, with an error, nothing; anything else is a fault that is told."""
        taken = self._socket.send(request)
        if taken != len(request):
            raise NetlinkError(5, "sending to the kernel", f"{taken} of {len(request)} bytes were taken")

    def _exchange(self, chunk: list[bytes], sequence: int, first: int, refused: list[tuple[int, int, str]]) -> None:
        last = bytearray(chunk[-1])
        flags = int.from_bytes(last[6:8], byteorder) | ACK
        last[6:8] = flags.to_bytes(2, byteorder)
        chunk[-1] = bytes(last)
        self._put(b"".join(chunk))
        final = sequence + len(chunk) - 1
        while True:
            try:
                answers = self._receive()
            except OSError as error:
                if error.errno == _NO_ROOM:
                    self._drain()
                    raise NetlinkError(_NO_ROOM, _LOST, f"nobody knows which of {len(chunk)} were refused") from None
                raise
            for kind, flags, seq, payload in answers:
                if kind != _ERROR or not sequence <= seq <= final:
                    continue
                code = -int.from_bytes(payload[:4], byteorder, signed=True)
                if code:
                    refused.append((first + seq - sequence, code, _words(flags, payload)))
                if seq == final:
                    return

    def transaction(self, messages: Sequence[Message], begin: bytes, end: bytes) -> None:
        """Messages that the kernel takes all or none (nf_tables batches); raises for the first refused one."""
        if not messages:
            return  # nothing would be answered
        base = self._begin()
        parts = [begin]
        for index, message in enumerate(messages):
            length = 16 + len(message.body)
            flags = message.flags | REQUEST | (ACK if index == len(messages) - 1 else 0)
            parts.append(_header.pack(length, message.type, flags, base + index, 0) + message.body)
            parts.append(b"\0" * (-length & 3))
        parts.append(end)
        self._sequence = base + len(messages)
        data = b"".join(parts)
        if len(data) > 200_000:
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
        self._put(data)
        final = base + len(messages) - 1
        refused: list[tuple[int, int, str]] = []
        answered = False
        while not answered:
            # A refused batch may answer without the last message's acknowledgement, but everything that
            # will be said has been said when send returns: what is queued is all there is.
            for kind, flags, seq, payload in self._receive(or_some=True):
                if kind != _ERROR:
                    continue
                code = -int.from_bytes(payload[:4], byteorder, signed=True)
                if code:
                    refused.append((seq - base, code, _words(flags, payload)))
                answered = answered or seq == final or bool(code)
        self._drain()
        if refused:
            index, code, says = min(refused)
            what = messages[index].what if 0 <= index < len(messages) else "an nf_tables transaction"
            raise NetlinkError(code, what, says)

    def dump(self, kind: int, body: bytes, what: str, flags: int = DUMP) -> list[bytes]:
        """Payloads of all answers to a dump, read again when it was interrupted by a change."""
        for _ in range(16):
            answers = self._dump_once(kind, body, what, flags)
            if answers is not None:
                return answers
        raise NetlinkError(4, what, "the state changed at every one of 16 attempts to read it")

    def get(self, kind: int, body: bytes, what: str) -> bytes:
        """The one answer to a question that is not a dump."""
        self._sequence = self._begin()
        length = 16 + len(body)
        self._put(_header.pack(length, kind, REQUEST, self._sequence, 0) + body)
        while True:
            for answer, flags, seq, payload in self._receive():
                if seq != self._sequence:
                    continue
                if answer == _ERROR:
                    raise NetlinkError(
                        -int.from_bytes(payload[:4], byteorder, signed=True), what, _words(flags, payload)
                    )
                return payload

    def _dump_once(self, kind: int, body: bytes, what: str, flags: int) -> list[bytes] | None:
        sequence = self._sequence = self._begin()
        length = 16 + len(body)
        self._put(_header.pack(length, kind, REQUEST | flags, sequence, 0) + body)
        answers: list[bytes] = []
        interrupted = False
        while True:
            try:
                received = self._receive()
            except OSError as error:
                if error.errno != _NO_ROOM:
                    raise
                interrupted = True  # some is lost, so all is read again
                continue
            for answer, answer_flags, seq, payload in received:
                if seq != sequence:
                    continue
                interrupted = interrupted or bool(answer_flags & _DUMP_INTERRUPTED)
                if answer == _DONE:
                    code = -int.from_bytes(payload[:4], byteorder, signed=True) if len(payload) >= 4 else 0
                    if code:
                        raise NetlinkError(code, what, "")
                    return None if interrupted else answers
                if answer == _ERROR:
                    raise NetlinkError(
                        -int.from_bytes(payload[:4], byteorder, signed=True), what, _words(answer_flags, payload)
                    )
                answers.append(payload)

    def _receive(self, flags: int = 0, or_some: bool = False) -> Iterator[tuple[int, int, int, bytes]]:
        """Messages of one read. `or_some`: go on where the kernel says that later ones were lost."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES, flags)
        except BlockingIOError:
            if flags:
                raise
            raise NetlinkError(_TIMED_OUT, f"waiting {_PATIENCE} s for the kernel's answer") from None
        except OSError as error:
            if not or_some or error.errno != _NO_ROOM:
                raise
            data = self._socket.recv(_RECEIVE_BYTES, flags)
        return self._parts(data)

    @staticmethod
    def _parts(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _header.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3

    def _drain(self) -> None:
        try:
            while True:
                for _ in self._receive(_socket.MSG_DONTWAIT, or_some=True):
                    pass
        except BlockingIOError:
            return


def _words(flags: int, payload: bytes) -> str:
    """The kernel's own sentence about a refusal (extended acknowledgement), where it gives one."""
    if not flags & _ACK_TLVS:
        return ""
    try:
        (echoed,) = unpack_from("=I", payload, 4)
        # With NETLINK_CAP_ACK only the request's header is echoed, flagged in the answer's flags (0x100).
        skip = 20 if flags & 0x100 else 4 + echoed
        return string(attributes(payload, skip).get(_ERROR_TEXT, b""))
    except (StructError, NetlinkError):
        return ""
