"""The matrix as a page: a map of what was lost, the longest waits as bars, and every cell's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

from tests.faults.cells import Cell

_TEXT = 'font-family="sans-serif" font-size="11" fill="#222"'
_GOOD, _EXPLAINED, _BAD, _ABSENT = "#cfe8cf", "#f3e3b3", "#e9a8a0", "#f4f4f4"
_LEFT, _TOP, _WIDE, _HIGH = 200, 22, 84, 20
_SHORTEST, _LONGEST = -3, 2
"""Powers of ten of seconds: the scale of the bars."""
_STYLE = (
    "body{font-family:sans-serif;font-size:13px;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}td.n{text-align:right}"
)


def html(cells: Sequence[Cell]) -> str:
    """A page of its own, without scripts and without anything from elsewhere."""
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>Fault matrix</title>",
        f"<style>{_STYLE}</style></head><body><h1>Fault matrix</h1>",
        "<p>Connections lost + requests lost; green: none, yellow: explained, red: not explained.</p>",
    ]
    for mode, family in dict.fromkeys((cell.mode, cell.family) for cell in cells):
        chosen = [cell for cell in cells if (cell.mode, cell.family) == (mode, family)]
        parts.append(f"<h2>{escape(mode)}, {escape(family)}</h2>{svg(chosen)}")
    parts.append(f"<h2>All cells</h2>{_table(cells)}</body></html>")
    return "\n".join(parts) + "\n"


def svg(cells: Sequence[Cell]) -> str:
    """Faults down, loads across; in each cell what was lost, and below it, as a bar, the longest wait (logarithmic)."""
    faults = list(dict.fromkeys(cell.fault for cell in cells))
    loads = list(dict.fromkeys(cell.load for cell in cells))
    by_place: Mapping[tuple[str, str], Cell] = {(cell.fault, cell.load): cell for cell in cells}
    width, height = _LEFT + _WIDE * len(loads) + 10, _TOP + _HIGH * len(faults) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ]
    parts += [
        f'<text x="{_LEFT + _WIDE * column + 4}" y="14" {_TEXT} font-weight="bold">{escape(load)}</text>'
        for column, load in enumerate(loads)
    ]
    for row, fault in enumerate(faults):
        y = _TOP + _HIGH * row
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 14}" text-anchor="end" {_TEXT}>{escape(fault)}</text>')
        parts += [_cell(by_place.get((fault, load)), _LEFT + _WIDE * column, y) for column, load in enumerate(loads)]
    note = "bars: longest wait for an answer, from 1 ms (nothing) to 100 s (full width)"
    parts.append(f'<text x="{_LEFT}" y="{height - 10}" {_TEXT}>{note}</text></svg>')
    return "".join(parts)


def _cell(cell: Cell | None, x: int, y: int) -> str:
    box = f'x="{x}" y="{y}" width="{_WIDE - 2}" height="{_HIGH - 2}"'
    if cell is None:
        return f'<rect {box} fill="{_ABSENT}"/>'
    lost = cell.lost + cell.requests_lost
    colour = _BAD if not cell.good else _EXPLAINED if lost else _GOOD
    bar = (_WIDE - 2) * bar_share(cell.longest)
    return (
        f'<g><title>{escape(_said(cell))}</title><rect {box} fill="{colour}"/>'
        f'<rect x="{x}" y="{y + _HIGH - 5}" width="{bar:.1f}" height="3" fill="#1f5fa8"/>'
        f'<text x="{x + 4}" y="{y + 12}" {_TEXT}>{f"{cell.lost} + {cell.requests_lost}" if lost else "0"}</text></g>'
    )


def bar_share(seconds: float) -> float:
    """Length of the bar for a wait: from 0 for a millisecond to 1 for a hundred seconds."""
    power = log10(max(seconds, 10.0**_SHORTEST))
    return min(1.0, (power - _SHORTEST) / (_LONGEST - _SHORTEST))


def _said(cell: Cell) -> str:
    reason = cell.explained or "; ".join(cell.examples)
    return f"{cell.open} open, {cell.requests} requests, longest wait {cell.longest:.2f} s. {reason}"


def _table(cells: Sequence[Cell]) -> str:
    names = ("fault", "load", "mode", "family", "open", "lost", "reset", "stalled", "requests lost", "why")
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for cell in cells:
        texts = "".join(f"<td>{escape(text)}</td>" for text in cell.key)
        counts = (cell.open, cell.lost, cell.reset, cell.stalled, cell.requests_lost)
        numbers = "".join(f'<td class="n">{number}</td>' for number in counts)
        why = cell.explained if cell.good else f"not explained: {'; '.join(cell.examples)}"
        rows.append(f"<tr>{texts}{numbers}<td>{escape(why)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
