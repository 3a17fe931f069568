"""A picture has every peak, every name, and gaps where nothing is known."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.picture import WIDTH, Curve, Diagram, draw

values = st.lists(st.none() | st.floats(0, 1e9), max_size=3000)


def paths(picture: str) -> list[str]:
    """The lines of the curves."""
    return re.findall(r'<path d="([^"]*)" fill="none"', picture)


@given(st.lists(values, max_size=3), st.text(max_size=20).filter(str.isprintable))
def test_a_picture_is_xml_and_bounded_by_its_width(curves, name):
    picture = draw(name, "then", "now", [Diagram(name, [Curve(name, each) for each in curves])])
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    for path in paths(picture):
        assert len(re.findall("[ML]", path)) <= 2 * WIDTH


def test_a_single_peak_among_many_points_is_drawn():
    flat = [1.0] * 50_000
    peak = [*flat[:25_000], 4.0, *flat[25_001:]]
    heights = [set(re.findall(r"[ML][\d.]+ ([\d.]+)", paths(draw("", "", "", [Diagram("", [Curve("", each)])]))[0]))
               for each in ([*flat, 4.0], peak)]  # fmt: skip
    assert heights[0] == heights[1]


def test_an_unknown_value_interrupts_its_line():
    picture = draw("", "", "", [Diagram("", [Curve("a", [1.0, None, 2.0])])])
    assert paths(picture)[0].count("M") == 2
