"""Starting a plugin as libcni does, and the time from there to its end.

By posix_spawn, which borrows the memory of the process that starts another instead of copying its page tables: what
is measured does not depend on how large this process is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class CallFailed(Exception):
    """A program ended otherwise than with 0: what it would have taken says nothing."""


@dataclass(frozen=True)
class Call:
    """One call of a program."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    stdin: bytes = b""
    """At most what a pipe holds, 64 KiB."""
    files: tuple[str, ...] = ()
    """What is read from disk at its start, for a cold page cache."""
    undo: Call | None = None
    """Called afterwards, outside of the timing, so that the next call finds what this one found."""


@dataclass(frozen=True)
class Running:
    """A call that was started."""

    call: Call
    process: int
    output: int
    began: float


def start(call: Call) -> Running:
    """Starts a program with its standard input in a pipe and its output going into another."""
    given, giving = os.pipe()
    taking, taken = os.pipe()
    try:
        os.write(giving, call.stdin)
        os.close(giving)
        streams = [
            (os.POSIX_SPAWN_DUP2, given, 0),
            (os.POSIX_SPAWN_DUP2, taken, 1),
            (os.POSIX_SPAWN_DUP2, taken, 2),
        ]
        began = time.perf_counter()
        process = os.posix_spawn(call.arguments[0], call.arguments, call.environment, file_actions=streams)
    finally:
        os.close(given)
        os.close(taken)
    return Running(call, process, taking, began)


def finish(running: Running) -> float:
    """Waits for the end of a program; seconds since its start. Raises CallFailed with its output."""
    try:
        _, status = os.waitpid(running.process, 0)
        seconds = time.perf_counter() - running.began
        if status:
            output = os.read(running.output, 1 << 16).decode(errors="replace")
            raise CallFailed(f"{' '.join(running.call.arguments)} ended with wait status {status}: {output}")
    finally:
        os.close(running.output)
    return seconds


def seconds_of(call: Call) -> float:
    """Runs a program to its end and returns how long that took; then undoes what it did."""
    seconds = finish(start(call))
    undo([call])
    return seconds


def run(calls: Sequence[Call]) -> None:
    """One after the other; nothing is undone."""
    for call in calls:
        finish(start(call))


def undo(calls: Sequence[Call]) -> None:
    """Undoes calls that have something to be undone."""
    run([call.undo for call in calls if call.undo is not None])
