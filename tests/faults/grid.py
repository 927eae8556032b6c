"""The matrix as a grid in Markdown, a line for each fault: what a page of documentation has room for."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.cells import Cell


def grid(cells: Sequence[Cell]) -> str:
    """One grid for each mode; families together.

    `3 of 400` are connections lost, or flows; `7 r` requests lost where no connection was; `!` not explained.
    """
    parts = []
    for mode in dict.fromkeys(cell.mode for cell in cells):
        chosen = [cell for cell in cells if cell.mode == mode]
        loads = list(dict.fromkeys(cell.load for cell in chosen))
        rows = [[mode, *loads], ["---"] * (len(loads) + 1)]
        rows += [
            [fault, *(_of([c for c in chosen if (c.fault, c.load) == (fault, load)]) for load in loads)]
            for fault in dict.fromkeys(cell.fault for cell in chosen)
        ]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def _of(cells: Sequence[Cell]) -> str:
    """What a fault cost a load."""
    if not cells:
        return "–"
    lost, requests = sum(cell.lost for cell in cells), sum(cell.requests_lost for cell in cells)
    stalled = sum(cell.stalled for cell in cells)
    text = f"{lost} of {sum(cell.open for cell in cells)}" if lost else f"{requests} r" if requests else "0"
    if stalled and not lost:
        text += f", {stalled} late"
    return text + ("" if all(cell.good for cell in cells) else " !")
