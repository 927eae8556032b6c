"""What the demo prints: progress with the time, findings as they come, and all of them as a table at the end."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100
_COLUMNS = (("shown", 36), ("expected", 28), ("seen", 25), ("", 3))
"""Headings and widths; with two blanks between columns and two at the left they make WIDTH."""
_INDENT = " " * 10


@dataclass(frozen=True)
class Finding:
    """One thing that was shown, and whether it was as it should be."""

    act: str
    what: str
    expected: str
    seen: str
    good: bool


class Teller:
    """Prints, and remembers what is for the table."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._act = ""
        self.findings: list[Finding] = []

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._began

    def plain(self, text: str = "") -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # Nobody reads any more (`| head`): the same as a terminal that hangs up, and nothing more to write to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            signal.raise_signal(signal.SIGHUP)

    def act(self, title: str) -> None:
        self._act = title
        self.plain(f"\n{title}")

    def step(self, text: str) -> None:
        """What is being done now."""
        first, *more = textwrap.wrap(text, WIDTH - len(_INDENT), break_on_hyphens=False)
        self.plain(f"{self.seconds:6.1f} s  {first}")
        for line in more:
            self.plain(_INDENT + line)

    def note(self, text: str) -> None:
        """Something that explains what was just said; lines stay as they are."""
        self.plain(textwrap.indent(text, _INDENT))

    def finding(self, what: str, expected: str, seen: str, good: bool) -> None:
        self.findings.append(Finding(self._act, what, expected, seen, good))
        lines = textwrap.wrap(f"{what}: {seen}" + ("" if good else f" (expected: {expected})"), WIDTH - 16)
        self.plain(f"{_INDENT}{'ok' if good else 'NOT':<6}{lines[0]}")
        for line in lines[1:]:
            self.plain(f"{_INDENT}      {line}")


def table(findings: Sequence[Finding]) -> str:
    """All findings, act by act, no line longer than WIDTH."""
    lines = [_row([heading for heading, _ in _COLUMNS]), _row(["-" * width for _, width in _COLUMNS])]
    act = ""
    for finding in findings:
        if finding.act != act:
            act = finding.act
            lines.append(act)
        cells = (finding.what, finding.expected, finding.seen, "ok" if finding.good else "NOT")
        columns = [
            textwrap.wrap(cell, width, break_on_hyphens=False) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
        ]
        height = max(len(column) for column in columns)
        lines += [_row([column[i] if i < len(column) else "" for column in columns]) for i in range(height)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)]
    return ("  " + "  ".join(padded)).rstrip()


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names or ("nothing",)
    return f"{', '.join(most)} and {last}" if most else last
