"""What the kernel tells of changes in a namespace while something else goes on, by `ip monitor` and `nft monitor`.

Rules of iptables are nf_tables' here, so the second tells of them, too, also when they are replaced by the same ones.
Members of ipsets are told by nobody: compare pictures of them.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.testbed.namespaces import Place, TestbedError

_OBJECTS = ("link", "address", "route", "rule", "nexthop", "netconf")
_ADDRESS = "192.0.2.255"
_TABLE = "watching_mark"
_PATIENCE = 60.0


@dataclass(frozen=True)
class _Kind:
    """A program that watches, and how to make it say something of no meaning."""

    command: tuple[str, ...]
    mark: tuple[tuple[str, ...], ...]
    seen: str
    """Pattern of the last line that the mark makes."""
    ignored: str
    """Pattern of lines that come of the marks, or that the kernel writes by itself a while after something was made."""


_KINDS = (
    _Kind(
        ("ip", "-o", "monitor", *_OBJECTS),
        tuple(("ip", "route", change, "blackhole", _ADDRESS, "table", "4242") for change in ("add", "del")),
        rf"Deleted blackhole {re.escape(_ADDRESS)} ",
        # Its own link-local addresses are there once they have passed duplicate address detection.
        rf"{re.escape(_ADDRESS)}|fe80::(?!74:)[0-9a-f:]+.*(scope link|table local proto kernel)",
    ),
    _Kind(
        ("nft", "monitor"),
        tuple(("nft", change, "table", "ip", _TABLE) for change in ("add", "delete")),
        rf"delete table ip {_TABLE}",
        rf"{_TABLE}|^# new generation \d+ by process \d+ \(nft\)$",
    ),
)


class _Program:
    """One that watches one place."""

    def __init__(self, place: Place, kind: _Kind) -> None:
        self.place = place
        self.kind = kind
        self.process = place.popen("stdbuf", "-oL", *kind.command, stdout=subprocess.PIPE)
        self._text = ""

    def mark(self) -> None:
        for command in self.kind.mark:
            self.place.run(*command)

    def read(self, seconds: float) -> bool:
        """Takes what it says within a time; whether the mark is among it."""
        assert self.process.stdout is not None
        before = len(self._text)
        while select.select([self.process.stdout], [], [], seconds)[0]:
            piece = os.read(self.process.stdout.fileno(), 1 << 16).decode()
            if not piece:
                raise TestbedError(f"`{' '.join(self.kind.command)}` on {self.place.name} has ended")
            self._text += piece
            seconds = 0
        return re.search(self.kind.seen, self._text[before:]) is not None

    def changes(self) -> list[str]:
        lines = [line.strip() for line in self._text.splitlines()]
        return [f"{self.place.name}: {line}" for line in lines if line and not re.search(self.kind.ignored, line)]


class Watch:
    """Watches places from the beginning to the end of `with`."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.changes: list[str] = []
        """What was changed, in the programs' words, with the place's name before; complete after the end of `with`."""
        self._places = places
        self._programs: list[_Program] = []

    def __enter__(self) -> Watch:
        try:
            self._programs = [_Program(place, kind) for place in self._places for kind in _KINDS]
            self._mark()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # What the kernel has told before the mark has been read when the mark has.
            self._mark()
        finally:
            self._end()
        self.changes = [change for program in self._programs for change in program.changes()]

    def _mark(self) -> None:
        """Changes what has no meaning until it is seen: so the watching has begun, and is up to date."""
        deadline = time.monotonic() + _PATIENCE
        waiting = self._programs
        while waiting:
            if time.monotonic() > deadline:
                names = ", ".join(f"`{' '.join(each.kind.command)}` on {each.place.name}" for each in waiting)
                raise TestbedError(f"nothing is told within {_PATIENCE:.0f} s by {names}")
            for program in waiting:
                program.mark()
            waiting = [program for program in waiting if not program.read(0.1)]

    def _end(self) -> None:
        for program in self._programs:
            program.process.terminate()
        for program in self._programs:
            program.process.wait(20)
