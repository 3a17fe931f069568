"""The picture of the agent and its neighbours, as SVG: boxes, arrows and texts from the lists below.

    .venv/bin/python docs/pictures/draw.py

writes `docs/where-the-agent-stands.svg`. To change the picture, change a list and run it; a test compares the file with
the output. The picture has a background of its own and follows the colour scheme of the browser, so that it is readable
on light and dark pages.
"""

# ruff: noqa: INP001 - a script beside the documents, not a package

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple
from xml.sax.saxutils import escape

FILE: Final = Path(__file__).resolve().parent.parent / "where-the-agent-stands.svg"
WIDTH: Final = 920
HEIGHT: Final = 530

Anchor = Literal["start", "middle", "end"]
Flow = Literal["request", "observe", "control"]


class Box(NamedTuple):
    """A rectangle with a title and smaller lines below it; `style` is a CSS class."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    style: str = "box"


class Arrow(NamedTuple):
    """A line through `points` with a head at its end, and one at its start if `both`; the flow sets its colour."""

    points: tuple[tuple[int, int], ...]
    flow: Flow
    both: bool = False


class Text(NamedTuple):
    """A line of text; `y` is its baseline."""

    x: int
    y: int
    text: str
    style: str = "label"
    anchor: Anchor = "middle"


BOXES: Final = (
    Box(660, 32, 228, 270, "", style="group"),
    Box(32, 64, 144, 72, "Clients", ("OpenAI API",)),
    Box(310, 64, 176, 72, "Envoy", ("the gateway",)),
    Box(678, 66, 192, 48, "model server", ("accelerators",), "server"),
    Box(678, 126, 192, 48, "model server", ("accelerators",), "server"),
    Box(678, 186, 192, 48, "model server", ("accelerators",), "server"),
    Box(678, 246, 192, 40, "accelerator exporter", style="server"),
    Box(310, 222, 176, 104, "igw agent", ("scrape, state store,", "picker, gauges"), "agent"),
    Box(32, 232, 144, 84, "Other gateway", ("picks a server", "by itself")),
    Box(310, 408, 176, 92, "Prometheus", ("alert rules",)),
    Box(32, 408, 144, 40, "Grafana"),
    Box(32, 460, 144, 40, "Alertmanager"),
    Box(678, 408, 192, 92, "HPA", ("by prometheus-adapter", "or KEDA")),
)

ARROWS: Final = (
    Arrow(((176, 100), (310, 100)), "request", both=True),
    Arrow(((486, 100), (660, 100)), "request", both=True),
    Arrow(((370, 136), (370, 222)), "request"),
    Arrow(((426, 222), (426, 136)), "request"),
    Arrow(((486, 266), (660, 266)), "observe"),
    Arrow(((176, 274), (310, 274)), "observe"),
    Arrow(((398, 408), (398, 326)), "observe"),
    Arrow(((310, 428), (176, 428)), "control"),
    Arrow(((310, 480), (176, 480)), "control"),
    Arrow(((486, 454), (678, 454)), "control"),
    Arrow(((774, 408), (774, 302)), "control"),
)

TEXTS: Final = (
    Text(774, 54, "one pool", "heading"),
    Text(243, 90, "request"),
    Text(243, 118, "streamed tokens"),
    Text(573, 90, "request to the pick"),
    Text(573, 118, "streamed tokens"),
    Text(360, 176, "ext_proc:", anchor="end"),
    Text(360, 192, "headers, body", anchor="end"),
    Text(436, 176, "ip:port,", anchor="start"),
    Text(436, 192, "or a rejection", anchor="start"),
    Text(573, 240, "GET /metrics, /health,"),
    Text(573, 256, "/v1/models"),
    Text(573, 284, "once a second"),
    Text(243, 248, "GET /v1/state,"),
    Text(243, 264, "/v1/state/watch"),
    Text(408, 364, "GET /metrics:", anchor="start"),
    Text(408, 380, "gauges with fresh data", anchor="start"),
    Text(243, 420, "dashboard"),
    Text(243, 472, "alerts"),
    Text(582, 444, "queries on gauges"),
    Text(784, 360, "replicas", anchor="start"),
)

LEGEND: Final[tuple[tuple[Flow, str], ...]] = (
    ("request", "request path"),
    ("observe", "scrape or read"),
    ("control", "query, alert, scale"),
)

STYLE: Final = """
  .back { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f6f8fa; stroke: #8c959f }
  .server { fill: #ffffff; stroke: #8c959f }
  .group { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 5 4 }
  .agent { fill: #ddf4ff; stroke: #0969da; stroke-width: 2 }
  text { font-family: -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .line, .label { font-size: 12.5px }
  .line, .heading { fill: #59636e }
  .heading { font-size: 13px }
  .arrow { fill: none; stroke-width: 2 }
  .request { stroke: #0969da } .request-head { fill: #0969da }
  .observe { stroke: #1a7f37; stroke-dasharray: 6 4 } .observe-head { fill: #1a7f37 }
  .control { stroke: #9a6700 } .control-head { fill: #9a6700 }
"""
DARK: Final = """
  .back { fill: #0d1117; stroke: #3d444d }
  .box, .group { fill: #151b23; stroke: #656c76 }
  .server { fill: #0d1117; stroke: #656c76 }
  .agent { fill: #0c2d6b; stroke: #4493f8 }
  text { fill: #f0f6fc }
  .line, .heading { fill: #9198a1 }
  .request { stroke: #4493f8 } .request-head { fill: #4493f8 }
  .observe { stroke: #3fb950 } .observe-head { fill: #3fb950 }
  .control { stroke: #d29922 } .control-head { fill: #d29922 }
"""
DESCRIPTION: Final = (
    "Clients send requests to Envoy. Envoy gets a server for each from the agent over ext_proc, sends the request to "
    "it and streams the tokens back. The agent scrapes the model servers and the accelerator exporter. Another "
    "gateway may read the state of the agent. Prometheus scrapes the agent; Grafana, Alertmanager and the HPA use it."
)


def svg() -> str:
    """The picture."""
    dark = "\n  ".join(DARK.strip().splitlines())
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            "<title>Where the agent stands</title>",
            f"<desc>{escape(DESCRIPTION)}</desc>",
            f"<style>{STYLE}  @media (prefers-color-scheme: dark) {{\n    {dark}\n  }}\n</style>",
            *_heads(),
            f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
            *(line for box in BOXES for line in _box(box)),
            *map(_arrow, ARROWS),
            *map(_text, TEXTS),
            *_legend(),
            "</svg>",
            "",
        ]
    )


def texts() -> Iterator[Text]:
    """Every text of the picture with its place."""
    yield from TEXTS
    for box in BOXES:
        yield from _inside(box)


def _inside(box: Box) -> Iterator[Text]:
    if not box.title:
        return
    middle, rows = box.x + box.width // 2, len(box.lines)
    first = box.y + box.height // 2 + 5 - 8 * rows
    yield Text(middle, first, box.title, "title")
    for row, line in enumerate(box.lines, 1):
        yield Text(middle, first + 2 + 16 * row, line, "line")


def _box(box: Box) -> Iterator[str]:
    place = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
    yield f'<rect class="{box.style}" {place} rx="6"/>'
    yield from map(_text, _inside(box))


def _arrow(arrow: Arrow) -> str:
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    start = f' marker-start="url(#{arrow.flow})"' if arrow.both else ""
    return f'<polyline class="arrow {arrow.flow}" points="{points}"{start} marker-end="url(#{arrow.flow})"/>'


def _text(text: Text) -> str:
    place = f'x="{text.x}" y="{text.y}" text-anchor="{text.anchor}"'
    return f'<text class="{text.style}" {place}>{escape(text.text)}</text>'


def _heads() -> Iterator[str]:
    for flow, _ in LEGEND:
        size = 'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse"'
        yield f'<marker id="{flow}" {size} orient="auto-start-reverse">'
        yield f'<path class="{flow}-head" d="M0,0 L10,5 L0,10 z"/></marker>'


def _legend() -> Iterator[str]:
    for number, (flow, words) in enumerate(LEGEND):
        x = 32 + 150 * number
        yield f'<polyline class="arrow {flow}" points="{x},24 {x + 28},24"/>'
        yield _text(Text(x + 36, 28, words, "line", "start"))


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
