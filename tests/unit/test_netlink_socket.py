"""What our netlink socket makes of answers that a kernel gives rarely: interrupted dumps, lost and odd messages."""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import pack, unpack_from

import pytest

from cni_plugin import netlink
from cni_plugin.netlink import ACK, Message, NetlinkError, Socket, attribute, attributes, errno_name

ERROR, DONE, ROUTE = 2, 3, 24
MULTI, INTERRUPTED, CAPPED, WORDS = 0x2, 0x10, 0x100, 0x200


def answer(kind: int, sequence: int, payload: bytes = b"", flags: int = MULTI) -> bytes:
    return pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def verdict(sequence: int, code: int, words: str = "") -> bytes:
    told = attribute(1, words.encode() + b"\0") if words else b""
    flags = CAPPED | (WORDS if words else 0)
    return answer(ERROR, sequence, pack("=i", -code) + bytes(16) + told, flags)


class Kernel:
    """Plays the kernel: gives what is queued, one read after the other, and then has nothing more to say."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.queue: list[bytes | OSError] = []

    def send(self, message: bytes) -> int:
        self.sent.append(message)
        return len(message)

    def recv(self, _: int, __: int) -> bytes:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        item = self.queue.pop(0)
        if isinstance(item, OSError):
            raise item
        return item

    def setsockopt(self, *_: object) -> None:
        pass

    def bind(self, _: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr("_socket.socket", lambda *_: kernel)
    return kernel


def message(name: str) -> Message:
    return Message(ROUTE, 0, bytes(12), f"setting {name}")


def test_an_interrupted_dump_is_read_again(kernel: Kernel) -> None:
    kernel.queue = [
        answer(ROUTE, 1, b"torn") + answer(ROUTE, 1, b"read", MULTI | INTERRUPTED),
        answer(DONE, 1, bytes(4)),
        answer(ROUTE, 2, b"full"),
        answer(DONE, 2, bytes(4)),
    ]
    assert Socket().dump(26, b"", "listing routes") == [b"full"]
    assert len(kernel.sent) == 2


def test_a_dump_that_is_interrupted_every_time_is_given_up_with_words(kernel: Kernel) -> None:
    kernel.queue = [answer(DONE, number, bytes(4), MULTI | INTERRUPTED) for number in range(1, 100)]
    with pytest.raises(NetlinkError, match=r"^EINTR listing routes: the state changed at every one of 16 attempts"):
        Socket().dump(26, b"", "listing routes")


def test_answers_to_an_earlier_question_are_passed_over(kernel: Kernel) -> None:
    socket = Socket()
    kernel.queue = [verdict(1, 0)]
    socket.run(message("a"))
    (number,) = unpack_from("=I", kernel.sent[0], 8)
    late = [verdict(number, errno.EINVAL), answer(ROUTE, number, b"late"), answer(DONE, number)]
    kernel.queue = [*late, answer(ROUTE, number + 2, b"mine"), answer(DONE, number + 2)]
    assert socket.dump(26, b"", "listing routes") == [b"mine"]


@pytest.mark.parametrize("end", [verdict(1, errno.EOPNOTSUPP, "no such family"), answer(DONE, 1, pack("=i", -95))])
def test_a_refused_dump_names_what_was_asked(kernel: Kernel, end: bytes) -> None:
    kernel.queue = [end]
    with pytest.raises(NetlinkError, match=r"^(EOPNOTSUPP|ENOTSUP) listing routes"):
        Socket().dump(26, b"", "listing routes")


def test_only_the_last_message_of_a_send_asks_for_an_answer(kernel: Kernel) -> None:
    kernel.queue = [verdict(2, errno.EEXIST, "it exists") + verdict(3, 0)]
    refused = Socket().run_all([message("a"), message("b"), message("c")])
    assert [(index, str(error)) for index, error in refused] == [(1, "EEXIST setting b: it exists")]
    (sent,) = kernel.sent
    flags = [int.from_bytes(sent[start + 6 : start + 8], "little") for start in range(0, len(sent), 28)]
    assert [bool(value & ACK) for value in flags] == [False, False, True]


def test_a_large_batch_goes_in_several_sends_whose_refusals_keep_their_numbers(kernel: Kernel) -> None:
    big = Message(ROUTE, 0, bytes(netlink._SEND_BYTES // 2), "setting much")
    kernel.queue = [verdict(1, 0), verdict(2, errno.ENOENT), verdict(3, errno.ENOENT)]
    refused = Socket().run_all([big, big, big])
    assert [index for index, _ in refused] == [1, 2]
    assert len(kernel.sent) == 3


def test_no_message_is_no_send(kernel: Kernel) -> None:
    socket = Socket()
    assert socket.run_all([]) == []
    socket.transaction([], b"begin", b"end")
    assert kernel.sent == []


def test_a_refused_transaction_of_which_answers_were_lost_tells_the_first(kernel: Kernel) -> None:
    """The kernel says that its queue ran over before it hands out what is in the queue."""
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    kernel.queue = [lost, verdict(1, errno.ENOENT), verdict(2, errno.ENOENT)]
    with pytest.raises(NetlinkError, match=r"^ENOENT setting a$"):
        Socket().transaction([message("a"), message("b")], b"", b"")
    assert kernel.queue == [], "nothing is left for the next question to stumble over"


def test_a_transaction_without_rights_says_so(kernel: Kernel) -> None:
    kernel.queue = [verdict(0, errno.EPERM)]
    with pytest.raises(NetlinkError, match=r"^EPERM an nf_tables transaction$"):
        Socket().transaction([message("a")], b"", b"")


@pytest.mark.parametrize("payload", [b"\x03\0\1\0", b"\xff\0\1\0abcd"])
def test_an_attribute_that_does_not_fit_its_message_is_refused(payload: bytes) -> None:
    with pytest.raises(NetlinkError, match="longer than its message"):
        attributes(payload)


def test_a_kernel_that_does_not_answer_is_waited_for_no_longer(kernel: Kernel) -> None:
    with pytest.raises(NetlinkError, match=r"^ETIMEDOUT waiting 10 s for the kernel's answer$"):
        Socket().run(message("a"))


def test_words_that_cannot_be_read_leave_the_number(kernel: Kernel) -> None:
    rubbish = answer(ERROR, 1, pack("=i", -errno.EINVAL) + bytes(16) + b"\xff\0\1\0", CAPPED | WORDS)
    kernel.queue = [rubbish]
    with pytest.raises(NetlinkError, match=r"^EINVAL setting a$"):
        Socket().run(message("a"))


def test_an_error_without_a_name_keeps_its_number() -> None:
    assert errno_name(17) == "EEXIST"
    assert errno_name(524) == "errno 524"


def numbers_sent(kernel: Kernel, nth: int) -> list[int]:
    """The sequence numbers of the messages of one send; each has 28 bytes."""
    sent = kernel.sent[nth]
    return [unpack_from("=I", sent, start + 8)[0] for start in range(0, len(sent), 28)]


FAILURES: dict[str, list[bytes | OSError]] = {
    "lost answers": [OSError(errno.ENOBUFS, "No buffer space available")],
    "no answer": [],
    "a torn read": [OSError(errno.EIO, "Input/output error")],
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_late_answer_to_a_failed_send_is_not_taken_for_one_to_the_next(kernel: Kernel, failure: str) -> None:
    socket = Socket()
    kernel.queue = list(FAILURES[failure])
    with pytest.raises(OSError, match=r"."):
        socket.run_all([message("a"), message("b"), message("c")])
    late = numbers_sent(kernel, 0)
    kernel.queue = [*(verdict(number, errno.ENOENT) for number in late), verdict(late[-1] + 2, errno.EEXIST)]
    assert [str(error) for _, error in socket.run_all([message("d")])] == ["EEXIST setting d"]
    assert kernel.queue == []


def test_lost_answers_are_told_and_what_is_left_of_them_is_read_away(kernel: Kernel) -> None:
    """Which messages were refused nobody knows then; the next cycle looks at what is there."""
    kernel.queue = [verdict(1, errno.ENOENT), OSError(errno.ENOBUFS, "No buffer space available"), verdict(2, 0)]
    with pytest.raises(NetlinkError, match=r"^ENOBUFS reading the kernel's answers, .*: nobody knows which of 3"):
        Socket().run_all([message("a"), message("b"), message("c")])
    assert kernel.queue == []


def test_a_dump_of_which_parts_were_lost_is_read_again(kernel: Kernel) -> None:
    kernel.queue = [
        answer(ROUTE, 1, b"torn"),
        OSError(errno.ENOBUFS, "No buffer space available"),
        answer(DONE, 1, bytes(4)),
        answer(ROUTE, 2, b"some") + answer(ROUTE, 2, b"more") + answer(DONE, 2, bytes(4)),
    ]
    assert Socket().dump(26, b"", "listing routes") == [b"some", b"more"]


def test_a_send_of_which_only_a_part_was_taken_is_no_success(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "send", lambda request: len(request) - 1)
    sends: list[Callable[[Socket], object]] = [
        lambda socket: socket.run(message("a")),
        lambda socket: socket.transaction([message("a")], b"", b""),
        lambda socket: socket.dump(26, b"", "listing routes"),
        lambda socket: socket.get(26, b"", "looking up a route"),
    ]
    for send in sends:
        with pytest.raises(NetlinkError, match=r"^EIO sending to the kernel: \d+ of \d+ bytes were taken$"):
            send(Socket())


def test_sequence_numbers_begin_anew_before_they_no_longer_fit(kernel: Kernel) -> None:
    socket = Socket()
    socket._sequence = (1 << 31) + 1
    kernel.queue = [verdict(1, 0)]
    socket.run(message("a"))
    assert numbers_sent(kernel, 0) == [1]
