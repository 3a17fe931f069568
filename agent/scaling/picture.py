"""Lines over time as an SVG picture: panels below each other, each with an axis, its lines and their names.

A picture needs no font, no script and no network. A line with more points than it has pixels is reduced to the lowest
and the highest value in each pixel, so that no peak is lost. A gap (None) interrupts its line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 960
_LEFT: Final = 64
_RIGHT: Final = 16
_PANEL: Final = 220
_TITLE: Final = 22
_TICKS: Final = 4
_FONT: Final = 'font-family="sans-serif" font-size="12"'
# Colours that colour-blind people tell apart (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Curve(NamedTuple):
    """One line: its name and a value for each point of time, None where there is none."""

    name: str
    values: Sequence[float | None]


class Diagram(NamedTuple):
    """One diagram: its title with the unit, and its lines, which have the points of time of the picture."""

    title: str
    curves: Sequence[Curve]


def draw(title: str, begin: str, end: str, panels: Sequence[Diagram]) -> str:
    """The picture. `begin` and `end` are written below the time axis."""
    height = 40 + len(panels) * (_PANEL + _TITLE) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    top = 40
    for panel in panels:
        parts.extend(_panel(panel, top + _TITLE))
        top += _PANEL + _TITLE
    parts.append(f'<text x="{_LEFT}" y="{top + 16}">{escape(begin)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{top + 16}" text-anchor="end">{escape(end)}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _panel(panel: Diagram, top: int) -> Iterator[str]:
    known = [value for curve in panel.curves for value in curve.values if value is not None]
    step = _nice(max(known, default=1.0) / _TICKS)
    highest, height = step * _TICKS, _PANEL - 24
    yield f'<text x="{_LEFT}" y="{top - 8}">{escape(panel.title)}</text>'
    for tick in range(_TICKS + 1):
        y = top + height - height * tick / _TICKS
        yield f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{step * tick:g}</text>'
    x = _LEFT
    for place, curve in enumerate(panel.curves):
        colour = COLOURS[place % len(COLOURS)]
        path = "".join(_path(curve.values, top, height, highest))
        if path:
            yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        yield f'<path d="M{x} {top + height + 13}h14" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{x + 18}" y="{top + height + 17}">{escape(curve.name)}</text>'
        x += 40 + 7 * len(curve.name)


def _path(values: Sequence[float | None], top: float, height: float, highest: float) -> Iterator[str]:
    pixels = WIDTH - _LEFT - _RIGHT
    per_pixel = max(1, math.ceil(len(values) / pixels))
    groups = math.ceil(len(values) / per_pixel)
    drawn = False
    for group in range(groups):
        found = [value for value in values[group * per_pixel : (group + 1) * per_pixel] if value is not None]
        if not found:
            drawn = False
            continue
        x = _LEFT + pixels * group / max(1, groups - 1)
        ends = (found[0],) if len(found) == 1 else (min(found), max(found))
        for value in ends:
            yield f"{'L' if drawn else 'M'}{x:.1f} {top + height - height * value / highest:.1f}"
            drawn = True


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
