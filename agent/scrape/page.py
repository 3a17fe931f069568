"""The body of one /metrics answer, scanned for the samples that somebody asked for and never parsed whole.

The text format puts one sample on a line: a name, labels in braces, a value, perhaps a time stamp. A wanted name is
searched for as bytes at the beginning of a line, and only the lines found are read. A page of a model server has some
700 samples of which we want 25, so this costs a fiftieth of parsing it.

What a page must be as a whole is checked first: not empty, text of this format and not a web page, and ended by a line
end, for a page that was cut anywhere else must not be read (a value of `17` may have been `1734`).

Numbers are read as Prometheus reads them: what `float()` takes beyond that (underscores, surrounding white space) is a
bad line here too. A bad line that is wanted is told of and costs its sample; others are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

# Why a scrape can fail, one word each: they are the values of a label, so the list is closed.
REASONS: Final[Mapping[str, str]] = {
    "refused": "nobody listens at the address",
    "unreachable": "there is no way to the address",
    "timeout": "no whole answer within the time-out",
    "reset": "the connection broke before the answer was whole",
    "bad_http": "the answer is not HTTP",
    "status": "the answer's status is not 200",
    "too_large": "the page is over the size limit",
    "truncated": "the page ends in the middle of a line",
    "empty": "the page has no bytes",
    "encoding": "the page is compressed, which was not asked for",
    "not_metrics": "the page is not in the Prometheus text format",
    "wrong_engine": "the page is of another engine, or has none of this engine's metrics",
}


class PageRefused(Exception):
    """A page that is not read at all: `reason` is one of REASONS, `detail` a sentence that says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Sample(NamedTuple):
    """One line: `key` is all of it before the value, line end in front, as it stands at `start` in the page."""

    name: str
    labels: Mapping[str, str]
    value: float
    key: bytes
    start: int


class BadLine(NamedTuple):
    """A wanted line that cannot be read: the name that was wanted, and the line (its beginning, if it is long)."""

    name: str
    text: str


_SHOWN: Final = 80  # characters of a bad page or line that a message shows
_LABEL: Final = re.compile(rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\[\\"n])*)"[ \t]*(,|\})')
_CLOSED: Final = re.compile(rb"[ \t]*\}")
# After the value: nothing, or a time stamp in milliseconds; OpenMetrics puts seconds there, and an exemplar after a
# hash.
_VALUE: Final = re.compile(rb"[ \t]*([^ \t\n]+)(?:[ \t]+-?[0-9]+(?:\.[0-9]+)?)?[ \t]*(?:#[^\n]*)?(?=\n)")
_INDENT: Final = re.compile(rb"\n[ \t]+")
_NUMBER: Final = re.compile(
    rb"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE
)
_ESCAPES: Final = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE: Final = re.compile(rb'\\[\\"n]')


def check(page: bytes) -> None:
    """Raise PageRefused when the page cannot be one, whatever the engine."""
    if not page:
        raise PageRefused("empty", "the answer has no body: is this the path of the metrics?")
    if not page.endswith(b"\n") and not page.endswith(b"\n# EOF"):
        beginning = page[:64].lstrip().lower()
        if beginning.startswith((b"<!doctype", b"<html", b"{", b"[")):
            raise PageRefused("not_metrics", f"the page begins with {_show(page)}: is this the path of the metrics?")
        last = page[page.rfind(b"\n") + 1 :]
        raise PageRefused("truncated", f"the last line has no end: {_show(last)}")
    first = page.lstrip()[:1]
    if first and not (first.isalpha() or first in b"#_:"):
        raise PageRefused("not_metrics", f"the page begins with {_show(page)}: is this the path of the metrics?")
    if b"\0" in page:
        raise PageRefused("not_metrics", "the page holds zero bytes: it is no text")


def straighten(page: bytes) -> bytes:
    """The page with a line end in front and no white space at the beginning of a line, as `scan` wants it."""
    page = b"\n" + page
    if not page.endswith(b"\n"):
        page += b"\n"
    if b"\n " in page or b"\n\t" in page:
        page = _INDENT.sub(b"\n", page)
    return page


def scan(page: bytes, names: Iterable[str]) -> tuple[list[Sample], list[BadLine]]:
    """Every sample of these names in a straightened page, and the wanted lines that cannot be read."""
    samples: list[Sample] = []
    bad: list[BadLine] = []
    for name in names:
        needle = b"\n" + name.encode()
        start = page.find(needle)
        while start >= 0:
            after = start + len(needle)
            follows = page[after : after + 1]
            if follows in (b"{", b" ", b"\t"):
                sample = _read(page, name, start, after)
                if sample is None:
                    end = page.find(b"\n", start + 1)
                    bad.append(BadLine(name, _show(page[start + 1 : end])))
                else:
                    samples.append(sample)
            start = page.find(needle, after)
    return samples, bad


def number(text: bytes) -> float | None:
    """The value that Prometheus would read here, or None where it would refuse the page."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _read(page: bytes, name: str, start: int, after: int) -> Sample | None:
    """The sample whose name ends at `after`."""
    labels: dict[str, str] = {}
    at = after
    blank = re.compile(rb"[ \t]*").match(page, at)
    at = blank.end() if blank else at
    if page[at : at + 1] == b"{":
        at += 1
        while True:
            closed = _CLOSED.match(page, at)
            if closed:
                at = closed.end()
                break
            label = _LABEL.match(page, at)
            if label is None:
                return None
            key = label[1].decode()
            if key in labels:
                return None
            labels[key] = _ESCAPE.sub(lambda found: _ESCAPES[found[0]], label[2]).decode("utf-8", "replace")
            at = label.end()
            if label[3] == b"}":
                break
    value = _VALUE.match(page, at)
    if value is None:
        return None
    read = number(value[1])
    if read is None:
        return None
    return Sample(name, labels, read, page[start : value.start(1)], start)


def _show(text: bytes) -> str:
    shown = text[:_SHOWN].decode("utf-8", "replace")
    return repr(shown + "..." if len(text) > _SHOWN else shown)
