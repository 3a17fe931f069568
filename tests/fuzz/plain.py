"""A slow and simple reader of a page, as the reference for `agent.exposition.page`: line by line, without memory.

It is written from Prometheus's description of its text format and from what its scraper accepts
(`tests/spec/test_prometheus_agrees.py`), not from the scanner: two independent programs are unlikely to have the same
defect.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

BLANKS = b" \t"
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
DIGITS = b"0123456789"


class Sample(NamedTuple):
    """A parsed line; `line` is its number on the page, from 0."""

    line: int
    name: str
    labels: dict[str, str]
    value: float


class Spoilt(NamedTuple):
    """A line of a wanted name that cannot be parsed; `within`: it is inside a label value, and this is its content."""

    line: int
    name: str
    within: Sample | None = None


class NotRead(Exception):
    """The line is not in the format."""


class Cursor:
    """A text and the offset of the next unread byte."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> bytes:
        return self.text[self.at : self.at + 1]

    def take(self, allowed: bytes) -> bytes:
        """The following bytes that are among those allowed."""
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in allowed:
            self.at += 1
        return self.text[start : self.at]

    def until(self, ends: bytes) -> bytes:
        """The following bytes up to one of these."""
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at]

    def expect(self, byte: bytes) -> None:
        if self.peek() != byte:
            raise NotRead
        self.at += 1


def read(page: bytes, names: Collection[str]) -> list[Sample | Spoilt]:
    """Every line of these names, in the order of the page, which ends with a line end or with `# EOF`."""
    found: list[Sample | Spoilt] = []
    within = _within_texts(page)
    for number, text in enumerate(page.split(b"\n")[:-1]):
        line = Cursor(text)
        line.take(BLANKS)
        name = line.until(b"{ \t").decode("latin-1")
        if name in names and line.peek():
            try:
                sample = Sample(number, name, _labels(line), _value(line))
                found.append(Spoilt(number, name, sample) if number in within else sample)
            except NotRead:
                found.append(Spoilt(number, name))
    return found


def _within_texts(page: bytes) -> set[int]:
    """The lines that begin inside a label value: Prometheus's scraper accepts line ends in values."""
    within: set[int] = set()
    at, number, begins = 0, 0, True
    while at < len(page):
        rest = Cursor(page)
        rest.at = at
        if begins:
            rest.take(BLANKS)
            if rest.peek() == b"#":
                rest.until(b"\n")
                at, begins = rest.at, False
                continue
            rest.at = at
        begins = page[at] == 10
        number += begins
        at += 1
        if rest.peek() == b"=":
            end = _end_of_text(page, at)
            within |= {number + ends + 1 for ends in range(page.count(b"\n", at, end))}
            number += page.count(b"\n", at, end)
            at = max(at, end)
    return within


def _end_of_text(page: bytes, at: int) -> int:
    """Where the quoted text after an equals sign ends, or 0 where there is no text that a label could have."""
    text = Cursor(page)
    text.at = at
    text.take(BLANKS)
    if text.peek() != b'"':
        return 0
    text.at += 1
    while text.peek() != b'"':
        if not text.peek():
            return 0
        text.at += 2 if text.peek() == b"\\" else 1
    text.at += 1
    end = text.at
    text.take(BLANKS)
    return end if text.peek() and text.peek() in b",}" + LETTERS else 0


def _labels(line: Cursor) -> dict[str, str]:
    labels: dict[str, str] = {}
    line.take(BLANKS)
    if line.peek() != b"{":
        return labels
    line.at += 1
    while True:
        line.take(BLANKS)
        if line.peek() == b"}":
            line.at += 1
            return labels
        first = line.peek()
        if not first or first not in LETTERS:
            raise NotRead
        label = line.take(LETTERS + DIGITS).decode()
        line.take(BLANKS)
        line.expect(b"=")
        line.take(BLANKS)
        line.expect(b'"')
        if label in labels:
            raise NotRead
        labels[label] = _quoted(line)
        line.take(BLANKS)
        if line.peek() == b",":
            line.at += 1
        elif line.peek() != b"}":
            raise NotRead


def _quoted(line: Cursor) -> str:
    text = b""
    while line.peek() != b'"':
        if not line.peek():
            raise NotRead
        if line.peek() == b"\\":
            line.at += 1
            escaped = line.peek()
            if not escaped:
                raise NotRead
            text += {b"n": b"\n", b"\\": b"\\", b'"': b'"'}.get(escaped, b"\\" + escaped)
        else:
            text += line.peek()
        line.at += 1
    line.at += 1
    return text.decode("utf-8", "replace")


def _value(line: Cursor) -> float:
    line.take(BLANKS)
    value = number(line.until(b" \t\r"))
    blank = line.take(BLANKS)
    if line.peek() in (b"-", *(bytes([digit]) for digit in DIGITS)) and line.peek():
        if not blank:
            raise NotRead
        if line.peek() == b"-":
            line.at += 1
        if not line.take(DIGITS):
            raise NotRead
        if line.peek() == b".":
            line.at += 1
            if not line.take(DIGITS):
                raise NotRead
        line.take(BLANKS)
    rest = line.text[line.at :]
    if rest not in (b"", b"\r") and not rest.startswith(b"# {"):
        raise NotRead
    return value


def number(text: bytes) -> float:
    """The value by Go's ParseFloat without hexadecimal and underscores, which Prometheus excludes."""
    if text.lower() == b"nan":
        return float("nan")
    digits = text[1:] if text[:1] in (b"+", b"-") and text else text
    if digits.lower() not in (b"inf", b"infinity"):
        mantissa, marked, exponent = digits.lower().partition(b"e")
        whole, _, part = mantissa.partition(b".")
        if not whole + part or (whole + part).strip(DIGITS):
            raise NotRead
        power = exponent[1:] if exponent[:1] in (b"+", b"-") else exponent
        if (marked and not power) or power.strip(DIGITS):
            raise NotRead
    return float(text)
