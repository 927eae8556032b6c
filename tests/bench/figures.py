"""What a measurement comes to: pure arithmetic from samples to a figure, and figures as table and JSON.

Machines differ, and so does one machine from minute to minute; so what is measured is measured in pairs with a peer,
one right after the other, and the ratio of each pair counts. Medians and quartiles, because a busy machine makes
outliers in one direction only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

DIGITS = 4
"""Significant ones; what is measured is not known better."""


@dataclass(frozen=True)
class Figure:
    """One line of the table, and one object of build/bench.json."""

    name: str
    value: float
    """The median of our samples, in `unit`."""
    unit: str
    peer: str
    """What it was measured against in the same run; empty where there is nothing to compare with."""
    ratio: float | None
    """The median of the pairs' ratios, ours to the peer's; None without a peer."""
    low: float
    """The first quartile of the ratios; without a peer that of our samples."""
    high: float
    """The third quartile of the same."""
    runs: int
    """How many pairs, or samples, it comes from."""


def paired(name: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Figure:
    """The figure of pairs: `ours[n]` and `theirs[n]` were measured one after the other. At least two of them."""
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    low, middle, high = _quartiles(ratios)
    return Figure(name, _rounded(median(ours)), unit, peer, middle, low, high, len(ratios))


def alone(name: str, unit: str, ours: Sequence[float]) -> Figure:
    """The figure of samples that have no peer. At least two of them."""
    low, middle, high = _quartiles(ours)
    return Figure(name, middle, unit, "", None, low, high, len(ours))


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return _rounded(low), _rounded(middle), _rounded(high)


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def as_json(figures: Sequence[Figure]) -> str:
    """The list of objects that build/bench.json holds."""
    return json.dumps([asdict(figure) for figure in figures], indent=1) + "\n"


_HEADINGS = ("name", "median", "", "ratio", "quartiles", "to", "runs")


def as_table(figures: Sequence[Figure]) -> str:
    """The figures for a person, one in a line."""
    rows = [_HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            # Names and units to the left, numbers to the right.
            cell.ljust(width) if column in (0, 2, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    spread = f"{figure.low:.2f} – {figure.high:.2f}"
    return figure.name, f"{figure.value:.2f}", figure.unit, ratio, spread, figure.peer or "–", str(figure.runs)
