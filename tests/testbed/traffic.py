"""What a client does to a VIP, and what comes of it.

Functions for `Place.call`: they use the network namespace that they are called in, and nothing else of
the testbed. The other side is `server`, whose answers say which pod took the flow and whom it saw.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cni import Pod
from tests.testbed.namespaces import TestbedError
from tests.testbed.server import SO_RCVBUFFORCE, pattern

Flow = tuple[str, int]
"""Source address and source port."""

IP_PKTINFO = 8  # socket has no name for it before Python 3.14
WINDOW = 64
"""Datagrams under way at once: fewer than the kernel queues for a neighbour that it has to resolve."""


class NoAnswer(TestbedError):
    """Nothing came back in time."""


class WrongAnswer(TestbedError):
    """An answer came back that cannot be right; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What a pod's server says of a request."""

    name: str
    """The pod."""
    client: str
    """The address that the pod sees as the client's."""
    client_port: int
    size: int
    """Bytes that the pod got."""
    checksum: int = 0
    """CRC-32 of what was sent to `sink`."""


def serve(
    pod: Pod, *ports: int, bind: Sequence[str] = (), name: str = "", dual_stack: bool = False
) -> subprocess.Popen[str]:
    """Start the server in a pod, on 0.0.0.0 and :: or on the addresses of `bind`, and wait until it listens.

    With `dual_stack` one socket on :: serves both IP versions. It says that it is the pod unless it is given a `name`.
    """
    program = str(Path(__file__).with_name("server.py"))
    options = [f"--port={port}" for port in ports or (8080,)] + [f"--bind={address}" for address in bind]
    options += ["--dual-stack"] * dual_stack
    command = (sys.executable, "-ISE", program, f"--name={name or pod.name}", *options)
    # Not our own standard error: who reads that to its end would wait for the server of a kept pod.
    process = pod.place.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    if (said := process.stdout.readline()) != "ready\n":
        raise TestbedError(f"the server in pod {pod.name} does not start: {said}{process.stdout.read()}")
    return process


def parse(text: bytes) -> Answer:
    words = text.decode().split()
    if len(words) not in (4, 5):
        raise WrongAnswer(f"not an answer of the server: {text!r}")
    return Answer(words[0], words[1], int(words[2]), int(words[3]), int(words[4]) if len(words) == 5 else 0)


def connect(
    vip: str, port: int, *, source: str | None = None, source_port: int = 0, timeout: float = 5.0
) -> socket.socket:
    """A TCP connection; raises NoAnswer, or ConnectionError when it is refused."""
    stream = _socket(vip, socket.SOCK_STREAM, source, source_port)
    stream.settimeout(timeout)
    try:
        stream.connect((vip, port))
    except TimeoutError:
        stream.close()
        raise NoAnswer(f"no TCP connection to {vip} port {port} in {timeout} s") from None
    except OSError:
        stream.close()
        raise
    return stream


def ask_tcp(
    vip: str,
    port: int,
    *,
    source: str | None = None,
    source_port: int = 0,
    text: str = "hello",
    timeout: float = 5.0,
) -> Answer:
    """One line over a new TCP connection; raises NoAnswer, or ConnectionError."""
    with connect(vip, port, source=source, source_port=source_port, timeout=timeout) as stream:
        return ask_over(stream, text)


def ask_over(stream: socket.socket, text: str = "hello") -> Answer:
    """One line over an open TCP connection; raises NoAnswer, or ConnectionError."""
    stream.sendall(text.encode() + b"\n")
    return parse(_line(stream))


def ask_udp(
    vip: str,
    port: int,
    *,
    source: str | None = None,
    source_port: int = 0,
    payload: bytes = b"hello",
    connected: bool = True,
    timeout: float = 5.0,
) -> Answer:
    """One datagram; raises NoAnswer.

    A connected socket hears answers from the VIP only; one that is not raises WrongAnswer when an answer
    comes from elsewhere.
    """
    with _socket(vip, socket.SOCK_DGRAM, source, source_port) as datagrams:
        datagrams.settimeout(timeout)
        if connected:
            datagrams.connect((vip, port))
            datagrams.send(payload)
        else:
            datagrams.sendto(payload, (vip, port))
        return hear_udp(datagrams, vip, port)


def hear_udp(datagrams: socket.socket, vip: str, port: int) -> Answer:
    """The answer of a VIP on a socket; raises NoAnswer, or WrongAnswer when it comes from elsewhere."""
    try:
        answer, sender = datagrams.recvfrom(1 << 16)
    except TimeoutError:
        raise NoAnswer(f"no UDP answer from {vip} port {port} in {datagrams.gettimeout()} s") from None
    if sender[:2] != (vip, port):
        raise WrongAnswer(f"asked {vip} port {port} by UDP, {sender[0]} port {sender[1]} answers")
    return parse(answer)


def udp_flows(vip: str, port: int, flows: Sequence[Flow], *, tries: int = 2, timeout: float = 2.0) -> dict[Flow, str]:
    """Which pod each of many flows reaches, by one datagram each; flows without an answer are left out.

    The sources must be the client's addresses (`Cluster.client_flows`). Flows unanswered after `timeout`
    seconds are tried again, `tries` times in all. Raises WrongAnswer when a pod sees another client than
    the flow's, or an answer comes from elsewhere than the VIP.
    """
    # A socket for every port, not for every flow: the source address is chosen for each datagram.
    sockets = {source_port: _any_source(vip, source_port) for source_port in {flow[1] for flow in flows}}
    by_descriptor = {found.fileno(): found for found in sockets.values()}
    found: dict[Flow, str] = {}
    poll = select.epoll()
    try:
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        for _ in range(tries):
            # Taken from the end, so in the order of `flows`.
            left = [flow for flow in reversed(flows) if flow not in found]
            waiting: set[Flow] = set()
            while left or waiting:
                while left and len(waiting) < WINDOW:
                    flow = left.pop()
                    _send_from(sockets[flow[1]], flow[0], vip, port)
                    waiting.add(flow)
                ready = poll.poll(timeout)
                if not ready:
                    waiting.clear()  # these are lost, or tried again in the next round
                for descriptor, _ in ready:
                    for flow, name in _hear_flows(by_descriptor[descriptor], vip, port):
                        found[flow] = name
                        waiting.discard(flow)
    finally:
        poll.close()
        for each in sockets.values():
            each.close()
    return {flow: found[flow] for flow in flows if flow in found}


def _any_source(vip: str, source_port: int) -> socket.socket:
    datagrams = _socket(vip, socket.SOCK_DGRAM, "::" if ":" in vip else "0.0.0.0", source_port)
    datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    if ":" in vip:
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        datagrams.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    datagrams.setblocking(False)
    return datagrams


def _send_from(datagrams: socket.socket, source: str, vip: str, port: int) -> None:
    if ":" in vip:
        level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        info = struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, source), 0)
    else:
        level, kind = socket.IPPROTO_IP, IP_PKTINFO
        info = struct.pack("=I4s4s", 0, socket.inet_aton(source), bytes(4))
    datagrams.sendmsg([b"hello"], [(level, kind, info)], 0, (vip, port))


def _hear_flows(datagrams: socket.socket, vip: str, port: int) -> list[tuple[Flow, str]]:
    heard: list[tuple[Flow, str]] = []
    own_port = datagrams.getsockname()[1]
    while True:
        try:
            text, ancillary, _, sender = datagrams.recvmsg(1 << 12, 256)
        except BlockingIOError:
            return heard
        except ConnectionRefusedError:
            continue  # the answer to an earlier datagram; its flow stays without a pod
        info = ancillary[0][2]
        source = (
            socket.inet_ntop(socket.AF_INET6, info[:16]) if ":" in vip else socket.inet_ntop(socket.AF_INET, info[8:12])
        )
        answer = parse(text)
        if sender[:2] != (vip, port):
            raise WrongAnswer(f"asked {vip} port {port} by UDP, {sender[0]} port {sender[1]} answers")
        if (answer.client, answer.client_port) != (source, own_port):
            seen = f"{answer.client} port {answer.client_port}"
            raise WrongAnswer(f"{answer.name} sees {seen} as the client, but that is {source} port {own_port}")
        heard.append(((source, own_port), answer.name))


def tcp_flows(vip: str, port: int, flows: Sequence[Flow], *, timeout: float = 5.0) -> dict[Flow, str]:
    """Which pod each flow reaches, by a TCP connection each, one after the other; raises as `ask_tcp`."""
    found = {}
    for flow in flows:
        answer = ask_tcp(vip, port, source=flow[0], source_port=flow[1], timeout=timeout)
        if (answer.client, answer.client_port) != flow:
            raise WrongAnswer(f"{answer.name} sees {answer.client} port {answer.client_port}, but that is {flow}")
        found[flow] = answer.name
    return found


def download(vip: str, port: int, size: int, *, source: str | None = None, timeout: float = 30.0) -> float:
    """`size` bytes from the pod by TCP, checked; returns seconds. Raises NoAnswer when it does not end in time."""
    began = time.monotonic()
    with connect(vip, port, source=source, timeout=timeout) as stream:
        stream.sendall(b"big %d\n" % size)
        got = bytearray()
        while len(got) < size:
            part = _receive(stream, began + timeout, f"{len(got)} of {size} bytes from {vip} in {timeout} s")
            if not part:
                raise WrongAnswer(f"{vip} ended the connection after {len(got)} of {size} bytes")
            got += part
    if got != pattern(size):
        raise WrongAnswer(f"{size} bytes came from {vip}, but not those that were sent")
    return time.monotonic() - began


def upload(vip: str, port: int, size: int, *, source: str | None = None, timeout: float = 30.0) -> float:
    """`size` bytes to the pod by TCP, checked by its sum; returns seconds. Raises NoAnswer."""
    began = time.monotonic()
    content = pattern(size)
    with connect(vip, port, source=source, timeout=timeout) as stream:
        try:
            stream.sendall(b"sink %d\n" % size + content)
        except TimeoutError:
            raise NoAnswer(f"{vip} does not take {size} bytes in {timeout} s") from None
        answer = parse(_line(stream))
    if (answer.size, answer.checksum) != (size, zlib.crc32(content)):
        raise WrongAnswer(f"{answer.name} got {answer.size} bytes, not the {size} that were sent to {vip}")
    return time.monotonic() - began


def ping(vip: str, *, source: str | None = None, size: int = 56, timeout: float = 5.0) -> float:
    """ICMP echo with `size` bytes; returns seconds. Raises NoAnswer. Answers from elsewhere do not count."""
    v6 = ":" in vip
    request, reply = (128, 129) if v6 else (8, 0)
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    identifier = os.getpid() & 0xFFFF
    body = pattern(size)
    header = struct.pack("!BBHHH", request, 0, 0, identifier, 1)
    # The kernel computes the checksum of ICMPv6, and only of that.
    checksum = 0 if v6 else internet_checksum(header + body)
    began = time.monotonic()
    with _socket(vip, socket.SOCK_RAW, source, 0, protocol) as raw:
        raw.sendto(struct.pack("!BBHHH", request, 0, checksum, identifier, 1) + body, (vip, 0))
        while True:
            raw.settimeout(max(0.001, began + timeout - time.monotonic()))
            try:
                packet, sender = raw.recvfrom(1 << 16)
            except TimeoutError:
                raise NoAnswer(f"no echo from {vip} in {timeout} s") from None
            message = packet if v6 else packet[(packet[0] & 15) * 4 :]
            kind, _, _, answered = struct.unpack_from("!BBHH", message)
            if (sender[0], kind, answered) == (vip, reply, identifier) and message[8:] == body:
                return time.monotonic() - began


def internet_checksum(content: bytes) -> int:
    """RFC 1071."""
    if len(content) % 2:
        content += b"\0"
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _socket(vip: str, kind: int, source: str | None, source_port: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    found = socket.socket(family, kind, protocol)
    if source is not None or source_port:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((source or ("::" if family == socket.AF_INET6 else "0.0.0.0"), source_port))
    return found


def _line(stream: socket.socket) -> bytes:
    deadline = time.monotonic() + (stream.gettimeout() or 60.0)
    line = b""
    while not line.endswith(b"\n"):
        part = _receive(stream, deadline, "no answer over TCP")
        if not part:
            raise ConnectionResetError("the connection was ended instead of answered")
        line += part
    return line


def _receive(stream: socket.socket, deadline: float, complaint: str) -> bytes:
    stream.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        return stream.recv(1 << 18)
    except TimeoutError:
        raise NoAnswer(complaint) from None
