"""The picture of the agent and its neighbours is what its source draws, and readable."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree as ET

from docs.pictures import draw

WIDTHS = {"title": 9.2, "label": 7.4, "line": 7.4, "heading": 7.6}  # pixels per character, of a wide font


def test_the_picture_is_what_its_source_draws() -> None:
    drawn = draw.FILE.read_text(encoding="utf-8")
    assert drawn == draw.svg(), "run .venv/bin/python docs/pictures/draw.py"
    assert ET.fromstring(drawn).tag.endswith("svg")


def extent(text: draw.Text) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text."""
    width = WIDTHS[text.style] * len(text.text)
    left = text.x - {"start": 0.0, "middle": width / 2, "end": width}[text.anchor]
    return left, text.y - 11.0, left + width, text.y + 3.0


def test_no_two_texts_overlap_and_all_are_inside() -> None:
    places = {text: extent(text) for text in draw.texts()}
    for left, top, right, bottom in places.values():
        assert left > 0
        assert top > 0
        assert right < draw.WIDTH
        assert bottom < draw.HEIGHT
    for (one, here), (other, there) in combinations(places.items(), 2):
        apart = here[2] <= there[0] or there[2] <= here[0] or here[3] <= there[1] or there[3] <= here[1]
        assert apart, f"{one.text!r} and {other.text!r} overlap"


def test_both_colour_schemes_set_the_same_colours() -> None:
    def coloured(style: str) -> set[str]:
        rules = re.findall(r"([^{}]+)\{([^}]*(?:fill|stroke): #[^}]*)\}", style)
        return {name.strip() for names, _ in rules for name in names.split(",")}

    assert coloured(draw.STYLE) == coloured(draw.DARK)
