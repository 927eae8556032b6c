"""Line charts side by side as one SVG, both axes logarithmic: what is a straight line there grows by a power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 300, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 34, 40
_COLOURS = ("#1f5fa8", "#b3541e", "#3a7d44", "#7a3e8e")
_TEXT = 'font-family="sans-serif" font-size="11" fill="#222"'


@dataclass(frozen=True)
class Panel:
    """One chart: lines that share an axis."""

    title: str
    across: str
    """What grows to the right."""
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Name, with its unit, to points; all numbers are above 0."""


def svg(panels: Sequence[Panel], note: str) -> str:
    """The panels from left to right with a note below; all have one scale upwards."""
    heights = [y for panel in panels for points in panel.lines.values() for _, y in points]
    low, high = floor(log10(min(heights))), ceil(log10(max(heights)))
    high = max(high, low + 1)
    width, height = WIDTH * len(panels), HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{"".join(_panel(panel, low, high))}</g>')
    parts.append(f'<text x="{_LEFT}" y="{HEIGHT + 12}" {_TEXT}>{escape(note)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, low: int, high: int) -> list[str]:
    places = sorted({x for points in panel.lines.values() for x, _ in points})
    first, last = log10(places[0]), log10(places[-1])
    span = last - first or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (log10(x) - first) / span * (WIDTH - _LEFT - _RIGHT)
        return right, HEIGHT - _BOTTOM - (log10(y) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="14" {_TEXT} font-weight="bold">{escape(panel.title)}</text>']
    for power in range(low, high + 1):
        _, y = at(places[0], 10.0**power)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{10.0**power:g}</text>')
    for x in places:
        right, _ = at(x, 10.0**low)
        parts.append(f'<text x="{right:.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle" {_TEXT}>{x:g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{HEIGHT - 10}" {_TEXT}>{escape(panel.across)}</text>')
    for index, (name, points) in enumerate(panel.lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        spots = [at(x, y) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(
            f'<text x="{_LEFT + 130 * index}" y="28" {_TEXT}><tspan fill="{colour}">■</tspan> {escape(name)}</text>'
        )
    return parts
