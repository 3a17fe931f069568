"""An SVG plot of age over time: one panel for each fleet, with p50, p99 and largest age of each scraper. Pure.

Ages are multiples of the scrape interval on a logarithmic scale, so that fleets with different intervals compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from tests.bench.ages import AgeSpread

_LOW, _HIGH = 0.1, 100.0  # range of the scale; other values are drawn at its edge
_WIDE, _HIGH_PX, _LEFT, _TOP, _GAP, _LEGEND_ROW = 620, 190, 66, 34, 40, 18
_COLOURS: Final = ("#1769aa", "#c2571a", "#5b7f3a", "#7a4f9a")
_DASHES: Final = {"p50": "2 4", "p99": "none", "largest": "7 4"}


class ChartPanel(NamedTuple):
    """One fleet: its title, its interval and bar in seconds, and the ages of each scraper for each second."""

    title: str
    interval: float
    bar: float
    ages: Mapping[str, Sequence[tuple[float, AgeSpread]]]


def svg(panels: Sequence[ChartPanel]) -> str:
    """The SVG document."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.ages))
    legend = 26 + len(names) * _LEGEND_ROW
    height = legend + len(panels) * (_TOP + _HIGH_PX + _GAP)
    size = f'viewBox="0 0 {_LEFT + _WIDE + 64} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_legend(names),
    ]
    for number, panel in enumerate(panels):
        lines += _panel(panel, legend + number * (_TOP + _HIGH_PX + _GAP), names)
    return "\n".join([*lines, "</svg>", ""])


def _legend(names: Sequence[str]) -> list[str]:
    lines = ['<text x="10" y="20" font-weight="bold">Age of a reading when it is read, over the scrape interval</text>']
    for row, name in enumerate(names):
        y = 40 + row * _LEGEND_ROW
        for column, (statistic, dash) in enumerate(_DASHES.items()):
            x = _LEFT + 180 * column
            lines.append(_line(x, y - 4, x + 24, y - 4, _colour(name, names), dash, 2))
            lines.append(f'<text x="{x + 30}" y="{y}">{escape(name)}: {statistic}</text>')
    return lines


def _panel(panel: ChartPanel, top: int, names: Sequence[str]) -> list[str]:
    seconds = max((at for points in panel.ages.values() for at, _ in points), default=0.0)
    end = max(1, math.ceil(seconds))
    above = top + _TOP
    lines = [f'<text x="{_LEFT}" y="{top + 22}" font-weight="bold">{escape(panel.title)}</text>']
    for decade in range(round(math.log10(_LOW)), round(math.log10(_HIGH)) + 1):
        y = above + _y(10.0**decade)
        lines.append(_line(_LEFT, y, _LEFT + _WIDE, y, "#dddddd", "none", 1))
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    bar = panel.bar / panel.interval
    y = above + _y(bar)
    lines.append(_line(_LEFT, y, _LEFT + _WIDE, y, "#222222", "none", 1))
    lines.append(f'<text x="{_LEFT + _WIDE + 6}" y="{y + 4:.1f}">p99: {bar:g}</text>')
    for second in range(0, end + 1, max(1, math.ceil(end / 10))):
        x = _LEFT + _WIDE * second / end
        lines.append(f'<text x="{x:.1f}" y="{above + _HIGH_PX + 18}" text-anchor="middle">{second} s</text>')
    for name, points in panel.ages.items():
        for statistic, dash in _DASHES.items():
            field = {"p50": 0, "p99": 1, "largest": 2}[statistic]
            points_text = " ".join(
                f"{_LEFT + _WIDE * at / end:.1f},{above + _y(spread[field] / panel.interval):.1f}"
                for at, spread in points
            )
            lines.append(
                f'<polyline fill="none" stroke="{_colour(name, names)}" stroke-width="1.6" '
                f'stroke-dasharray="{dash}" points="{points_text}"/>'
            )
    return lines


def _y(ratio: float) -> float:
    """The y coordinate of an age within a panel."""
    shown = min(_HIGH, max(_LOW, ratio))
    return _HIGH_PX * (1 - math.log(shown / _LOW) / math.log(_HIGH / _LOW))


def _colour(name: str, names: Sequence[str]) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str, width: int) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}"/>'
    )
