"""A cell of the matrix: its counts, and what of them had to be so.

A fault says what it excuses: which losses, of which pods, in which time, and why. What is not excused is a finding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

Key = tuple[str, str, str, str]
"""Fault, load, mode, family."""
LOST, REQUEST, STALL = "lost", "request", "stall"
"""Kinds of losses: of a connection, of a request, of time."""
EVERYTHING = frozenset((LOST, REQUEST, STALL))
LATE = frozenset((REQUEST, STALL))
"""What a packet lost on its way costs: TCP sends it again, UDP does not."""
BUSY = "the machine gave the client itself no processor for a while"


@dataclass(frozen=True)
class Excuse:
    """Losses that a fault brings with it, whoever forwards."""

    why: str
    since: float
    until: float = float("inf")
    """Seconds of the monotonic clock."""
    pods: frozenset[str] = frozenset()
    """Only flows that one of these had answered, or that nobody had answered yet; empty: all flows."""
    unanswered: bool = True
    """Also flows that nobody had answered yet."""
    kinds: frozenset[str] = EVERYTHING

    def covers(self, loss: Loss) -> bool:
        named = not self.pods or loss.pod in self.pods or (self.unanswered and not loss.pod)
        return loss.kind in self.kinds and named and loss.since <= self.until and loss.until >= self.since


@dataclass(frozen=True)
class Loss:
    """One connection or request that did not go as it should."""

    kind: str
    how: str
    pod: str
    """Who had answered before; empty: nobody."""
    since: float
    """When the request was sent."""
    until: float
    """When it was given up, or answered."""


@dataclass(frozen=True)
class Outcome:
    """What a load has seen from its beginning to its end."""

    open: int
    """Connections, or flows of UDP."""
    requests: int
    moved: int
    """Answers by another pod than the one before: must be 0 with TCP."""
    longest: float
    """Seconds, the longest wait for an answer."""
    losses: Sequence[Loss]
    pauses: Sequence[tuple[float, float]] = ()
    """When the client's program itself had no processor."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Outcome:
        """From what the client's program tells."""
        losses = [Loss(LOST, *fields) for fields in told["lost"]]
        losses += [Loss(REQUEST, "silent", *fields) for fields in told["lost_requests"]]
        losses += [Loss(STALL, "late", *fields) for fields in told["stalls"]]
        pauses = [(since, until) for since, until in told["pauses"]]
        return cls(told["open"], told["requests"], told["moved"], told["longest"], losses, pauses)


@dataclass(frozen=True)
class Cell:
    """A cell, as it is written to build/faults.json."""

    fault: str
    load: str
    mode: str
    family: str
    open: int
    """Connections, or flows of UDP, that were open, or were opened meanwhile."""
    lost: int
    """Of them: ended before their time, or silent at the end."""
    reset: int
    """Of those: by a reset, or refused."""
    stalled: int
    """Connections that waited for an answer for more than a second."""
    requests_lost: int
    """Requests that were never answered; UDP: not within a second."""
    explained: str
    """Why, where anything is not 0 and all of it had to be so; else empty."""
    requests: int = 0
    moved: int = 0
    longest: float = 0.0
    unexplained: int = 0
    """Losses and stalls that nothing excuses."""
    examples: tuple[str, ...] = ()
    """A few of those."""
    seconds: float = 0.0
    """For which the load ran."""

    @property
    def key(self) -> Key:
        return self.fault, self.load, self.mode, self.family

    @property
    def good(self) -> bool:
        return not self.unexplained


def judge(key: Key, outcome: Outcome, excuses: Sequence[Excuse], seconds: float, *, tcp: bool) -> Cell:
    """The cell of what was seen. A TCP connection answered by two pods is a loss without an excuse."""
    reasons: dict[str, None] = {}
    bad = []
    own = [Excuse(BUSY, since, until, kinds=LATE) for since, until in outcome.pauses]
    for loss in outcome.losses:
        excuse = next((excuse for excuse in (*excuses, *own) if excuse.covers(loss)), None)
        if excuse is None:
            bad.append(f"{loss.kind} ({loss.how}) of {loss.pod or 'nobody'} after {loss.until - loss.since:.2f} s")
        else:
            reasons[excuse.why] = None
    if tcp and outcome.moved:
        bad.append(f"{outcome.moved} connections answered by two pods")
    kinds = [loss.kind for loss in outcome.losses]
    return Cell(
        *key,
        open=outcome.open,
        lost=kinds.count(LOST),
        reset=sum(loss.kind == LOST and loss.how == "reset" for loss in outcome.losses),
        stalled=kinds.count(STALL),
        requests_lost=kinds.count(REQUEST),
        explained="" if bad else "; ".join(reasons),
        requests=outcome.requests,
        moved=outcome.moved,
        longest=round(outcome.longest, 3),
        unexplained=len(bad),
        examples=tuple(bad[:5]),
        seconds=round(seconds, 1),
    )


def save(cells: Iterable[Cell], file: Path) -> None:
    """Replaces the file as a whole, so an interrupted run leaves what it had."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    fresh.replace(file)


def load(file: Path) -> list[Cell]:
    """The cells of an earlier run; none where there is no file. Raises ValueError where it is something else."""
    if not file.exists():
        return []
    names = {field.name for field in fields(Cell)}
    found = []
    for entry in json.loads(file.read_text()):
        if not isinstance(entry, dict) or set(entry) != names:
            raise ValueError(f"{file} has other fields than this program writes: take it away, or run without --resume")
        found.append(Cell(**{**entry, "examples": tuple(entry["examples"])}))
    return found


_HEADINGS = ("fault", "load", "mode", "family", "open", "lost", "reset", "stalled", "requests lost", "longest", "")


def table(cells: Sequence[Cell]) -> str:
    """All cells, a line each, and the reasons below, each once."""
    reasons = {cell.explained: "" for cell in cells if cell.explained}
    marks = {reason: f"({number})" for number, reason in enumerate(reasons, 1)}
    rows = [_HEADINGS, *(_row(cell, marks) for cell in cells)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            text.rjust(width) if 4 <= column <= 9 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *(f"{mark} {reason}" for reason, mark in marks.items())])


def _row(cell: Cell, marks: Mapping[str, str]) -> tuple[str, ...]:
    counts = (cell.open, cell.lost, cell.reset, cell.stalled, cell.requests_lost)
    verdict = marks.get(cell.explained, "") if cell.good else f"NOT EXPLAINED: {cell.unexplained}"
    return (*cell.key, *map(str, counts), f"{cell.longest:.2f} s", verdict)


def line(cell: Cell) -> str:
    """One cell in a line, for a run's progress."""
    counts = (
        f"{cell.lost} of {cell.open} lost, {cell.requests_lost} of {cell.requests} requests, {cell.stalled} stalled"
    )
    verdict = "NOT EXPLAINED" if not cell.good else "explained" if cell.explained else "good"
    return f"{' '.join(cell.key)}: {counts}, longest {cell.longest:.2f} s: {verdict}"
