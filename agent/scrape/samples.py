"""The wanted lines of a page, and what one of them says.

Numbers are read as Prometheus reads them: what `float()` takes beyond that (underscores, surrounding white space) is a
bad line here too. A bad line that is wanted is told of and costs its sample; others are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

# More wanted series than this are no server's: reading them would hold up the scrapes of all others for 50 ms.
MAX_SERIES: Final = 10_000
_SHOWN: Final = 80  # characters of a bad page or line that a message shows

_BLANK: Final = re.compile(rb"[ \t]*")
_LABEL: Final = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\\n]*(?:\\.[^"\\\n]*)*)"[ \t]*(,|\})'
)  # fmt: skip
_CLOSED: Final = re.compile(rb"[ \t]*\}")
# After the value: nothing, or a time stamp in milliseconds; OpenMetrics has seconds there, and an exemplar behind `# `.
_VALUE: Final = re.compile(rb"[ \t]*([^ \t\r\n]++)(?:[ \t]+(-?[0-9]+(?:\.[0-9]+)?))?[ \t]*(?:# \{[^\n]*|\r?)(?=\n)")
# A name at the beginning of a line, with what ends it: braces, a blank.
_NAME: Final = re.compile(rb"[ \t]*([^ \t{]+)(?=[ \t{])")
# Go's ParseFloat without the forms that Prometheus excludes (hexadecimal, underscores); Go takes no sign before NaN.
_NUMBER: Final = re.compile(
    rb"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|inf|infinity)|nan", re.IGNORECASE
)
_ESCAPES: Final = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE: Final = re.compile(rb'\\[\\"n]')


class PageRefused(Exception):
    """A page that is not read at all: `reason` is one of REASONS, `detail` a sentence that says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Series(NamedTuple):
    """One wanted line without its value; `text` is its beginning as it stands on the page, for messages."""

    name: str
    labels: Mapping[str, str]
    text: str


class BadLine(NamedTuple):
    """A wanted line that cannot be read: the name that was wanted, and the line (its beginning, if it is long)."""

    name: str
    text: str


class Found(NamedTuple):
    """A wanted line: the line end in front of it (-1: none), its value, its own end; `plain`: nothing beside these;
    `stamp`: its time stamp as text, empty where it has none."""

    start: int
    value_at: int
    end: int
    plain: bool
    value: float
    series: Series
    stamp: bytes


class Wanted(NamedTuple):
    """A line that begins with a wanted name: where the line end in front of it stands (-1: none), where the name ends,
    and the line's own end."""

    name: str
    start: int
    at: int
    end: int


def lines(page: bytes, names: Iterable[str]) -> list[Wanted]:
    """Every line of these names, in the order of the page."""
    found: list[Wanted] = []
    wanted = {name.encode(): name for name in names}
    beginnings = (*wanted, b" ", b"\t")
    start = -1
    # One pass: to search for each name by itself reads the whole page as often as there are names.
    for line in page.split(b"\n"):
        end = start + 1 + len(line)
        if line.startswith(beginnings):
            token = _NAME.match(line)
            name = wanted.get(token[1]) if token else None
            if token and name is not None:
                found.append(Wanted(name, start, start + 1 + token.end(), end))
                if len(found) > MAX_SERIES:
                    raise PageRefused("too_large", f"the page has over {MAX_SERIES} series of {name} and its like")
        start = end
    return found


def find(page: bytes, names: Iterable[str]) -> tuple[list[Found], list[BadLine]]:
    """Every line of these names in the order of the page, and those among them that cannot be read."""
    found: list[Found] = []
    bad: list[BadLine] = []
    for line in lines(page, names):
        sample = _read(page, line.name, line.start, line.at)
        if sample is None:
            bad.append(BadLine(line.name, show(page[line.start + 1 : line.end])))
        else:
            found.append(sample)
    return found, bad


def number(text: bytes) -> float | None:
    """The value that Prometheus would read here, or None where it would refuse the page."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _read(page: bytes, name: str, start: int, at: int) -> Found | None:
    """The line behind the line end at `start` whose name ends at `at`, or None where it is no sample."""
    labels: dict[str, str] = {}
    name_at = at - len(name)
    blank = _BLANK.match(page, at)
    at = blank.end() if blank else at
    if page.startswith(b"{", at):
        at += 1
        while True:
            closed = _CLOSED.match(page, at)
            if closed:
                at = closed.end()
                break
            label = _LABEL.match(page, at)
            if label is None:
                return None
            key, text = label[1].decode(), label[2]
            if key in labels:
                return None
            if b"\\" in text:
                text = _ESCAPE.sub(lambda found: _ESCAPES[found[0]], text)
            labels[key] = text.decode("utf-8", "replace")
            at = label.end()
            if label[3] == b"}":
                break
    value = _VALUE.match(page, at)
    read = number(value[1]) if value else None
    if value is None or read is None:
        return None
    series = Series(name, labels, page[name_at : min(at, name_at + _SHOWN)].decode("utf-8", "replace"))
    plain = value.end(1) == value.end() and name_at == start + 1
    return Found(start, value.start(1), value.end(), plain, read, series, value[2] or b"")


def show(text: bytes) -> str:
    """The beginning of what was found, for a message."""
    shown = text[:_SHOWN].decode("utf-8", "replace")
    return repr(shown + "..." if len(text) > _SHOWN else shown)
