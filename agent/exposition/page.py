"""Samples of wanted names from a page: the body of a /metrics response in the Prometheus text format.

A sample is one line: a name, labels in braces, a value, an optional timestamp. A page is not parsed whole: a model
server's page has about 700 samples, of which some 25 are wanted. Wanted names are matched as bytes at the beginning of
a line, and only matching lines are parsed.

From one scrape to the next only numbers change. So a Scanner (one per endpoint) remembers the layout: the bytes around
each wanted value, and its distance from the value before it. It reads the next page by comparing: each remembered line
must be near its place, adjacent wanted lines must still be adjacent, and the bytes before and after each group of them
must be the same. Any difference causes a full scan. The comparison cannot see a change outside every group on a page
whose distances stayed the same: a new wanted line, or a label value that contains line ends. A check for these runs
every `FULL_SCAN_PAGES` pages.

The page as a whole is checked first: not empty, in the text format, and ended by a line end. A page that was cut
anywhere else is refused: a value of `17` may have been `1734`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

# Reading more wanted series than this would delay all other scrapes by more than 50 ms; no server has that many.
MAX_SERIES: Final = 10_000
_EXCERPT_BYTES: Final = 80  # of a bad page or line, in a message

_BLANK: Final = re.compile(rb"[ \t]*")
_LABEL: Final = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\\n]*(?:\\.[^"\\\n]*)*)"[ \t]*(,|\})'
)  # fmt: skip
_CLOSED: Final = re.compile(rb"[ \t]*\}")
# After the value: nothing, or a timestamp in milliseconds; OpenMetrics has seconds, and an exemplar after `# `.
_VALUE: Final = re.compile(rb"[ \t]*([^ \t\r\n]++)(?:[ \t]+(-?[0-9]+(?:\.[0-9]+)?))?[ \t]*(?:# \{[^\n]*|\r?)(?=\n)")
# A name at the beginning of a line, followed by braces or a blank.
_NAME: Final = re.compile(rb"[ \t]*([^ \t{]+)(?=[ \t{])")
# Go's ParseFloat without the forms that Prometheus excludes (hexadecimal, underscores). Go allows no sign before NaN.
_NUMBER: Final = re.compile(
    rb"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|inf|infinity)|nan", re.IGNORECASE
)
_ESCAPES: Final = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE: Final = re.compile(rb'\\[\\"n]')


class PageRefused(Exception):
    """A page that is not read at all: `reason` is one of REASONS, `detail` a sentence with the cause."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Series(NamedTuple):
    """A wanted series: name and labels; `text` is the beginning of its line on the page, for messages."""

    name: str
    labels: Mapping[str, str]
    text: str


class BadLine(NamedTuple):
    """A line of a wanted name that cannot be parsed: the name, and the (shortened) line."""

    name: str
    text: str


class SampleLine(NamedTuple):
    """A parsed line of a wanted name.

    `start` is the offset of the line end before it (-1: none), `value_at` of its value, `end` of its own line end.
    `plain`: the line is not indented and has nothing after the value. `stamp`: its timestamp as text, or empty.
    """

    start: int
    value_at: int
    end: int
    plain: bool
    value: float
    series: Series
    stamp: bytes


class NameMatch(NamedTuple):
    """A line that begins with a wanted name: offsets of the line end before it (-1: none), of the end of the name, and
    of its own line end."""

    name: str
    start: int
    at: int
    end: int


def match_lines(page: bytes, names: Iterable[str]) -> list[NameMatch]:
    """Every line of these names, in the order of the page; PageRefused for more than MAX_SERIES."""
    found: list[NameMatch] = []
    wanted = {name.encode(): name for name in names}
    beginnings = (*wanted, b" ", b"\t")
    start = -1
    # One pass over the lines: a search for each name reads the whole page once per name.
    for line in page.split(b"\n"):
        end = start + 1 + len(line)
        if line.startswith(beginnings):
            token = _NAME.match(line)
            name = wanted.get(token[1]) if token else None
            if token and name is not None:
                found.append(NameMatch(name, start, start + 1 + token.end(), end))
                if len(found) > MAX_SERIES:
                    raise PageRefused("too_large", f"the page has over {MAX_SERIES} series of {name} and other names")
        start = end
    return found


def find_samples(page: bytes, names: Iterable[str]) -> tuple[list[SampleLine], list[BadLine]]:
    """Every sample of these names in the order of the page, and the lines of these names that cannot be parsed."""
    found: list[SampleLine] = []
    bad: list[BadLine] = []
    for line in match_lines(page, names):
        sample = _parse(page, line.name, line.start, line.at)
        if sample is None:
            bad.append(BadLine(line.name, excerpt(page[line.start + 1 : line.end])))
        else:
            found.append(sample)
    return found, bad


def parse_number(text: bytes) -> float | None:
    """The value that Prometheus would read here, or None where Prometheus would refuse the page."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _parse(page: bytes, name: str, start: int, at: int) -> SampleLine | None:
    """The line after the line end at `start`, whose name ends at `at`; None where it is not a sample."""
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
    parsed = parse_number(value[1]) if value else None
    if value is None or parsed is None:
        return None
    series = Series(name, labels, page[name_at : min(at, name_at + _EXCERPT_BYTES)].decode("utf-8", "replace"))
    plain = value.end(1) == value.end() and name_at == start + 1
    return SampleLine(start, value.start(1), value.end(), plain, parsed, series, value[2] or b"")


def excerpt(text: bytes) -> str:
    """The beginning of the text, quoted, for a message."""
    shown = text[:_EXCERPT_BYTES].decode("utf-8", "replace")
    return repr(shown + "..." if len(text) > _EXCERPT_BYTES else shown)


FULL_SCAN_PAGES: Final = 128
_STRIDE: Final = 79  # odd, so that successive scanners get distinct and distant offsets
MAX_LAYOUTS: Final = 256
_BEFORE: Final = 16  # bytes of a comment before a group that are remembered

# A label value that contains a line end: not allowed by the format, yet Prometheus's scraper accepts it, and lines
# inside it are not samples. The first pattern finds pages that may have one, the second the comments and label values
# there.
_OPEN_TEXT: Final = re.compile(rb'=[ \t]*+"(?:[^"\\\n]++|\\.)*+\\?\n')
_COMMENT_OR_TEXT: Final = re.compile(
    rb'^[ \t]*+#[^\n]*+|=[ \t]*+"(?:[^"\\]++|\\.)*+"(?=[ \t]*+[,}a-zA-Z_])', re.DOTALL | re.MULTILINE
)
_DIGITS: Final = b"0123456789.eE+-"
# The constant beginning of the line after a group: a comment's mark, or a name with the character after it.
_NEXT: Final = re.compile(rb"\n(?:#|[^ \t{\n]*[ \t{\n])")
_SAMPLE: Final = rb"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^\n]*\})?[ \t]+[+-]?(?:[0-9.]|(?i:inf|nan))"
_SAMPLE_LINE: Final = re.compile(rb"^[ \t]*" + _SAMPLE, re.MULTILINE)
_ANY_LINE: Final = re.compile(rb"^[ \t]*(?:# (?:HELP|TYPE|UNIT) [a-zA-Z_:]|# EOF$|" + _SAMPLE + rb")", re.MULTILINE)
# Details of the reason `empty`.
EMPTY: Final = "the page has no line: the server has counted nothing yet, or this is not the path of the metrics"
NO_SAMPLES: Final = "the page only has comments (HELP, TYPE) and no sample: the server has counted nothing yet"


class Layout:
    """The result of a full scan without the values; pages with the same layout share one object.

    `last` is the wanted name on the very last line of the page, or empty; `helps` are the requested HELP texts by name.
    `stamps` are the timestamps as text, one for each series (empty for a line without one); () where no line has one.
    """

    __slots__ = ("bad", "helps", "last", "series", "stamps")

    def __init__(
        self,
        series: tuple[Series, ...],
        bad: tuple[BadLine, ...],
        last: str,
        helps: Mapping[str, str],
        stamps: tuple[bytes, ...] = (),
    ) -> None:
        self.series = series
        self.bad = bad
        self.last = last
        self.helps = helps
        self.stamps = stamps


class _KnownLayout(NamedTuple):
    """A layout and how to recognize it, for each remembered line in the order of the page: the bytes before its value
    (`keys`), whether it follows the line before (`adjacent`), the bytes after its group (`tails`). `at_end`: the last
    of them ends the page."""

    layout: Layout
    keys: tuple[bytes, ...]
    adjacent: tuple[bool, ...]
    tails: tuple[bytes, ...]
    at_end: bool


class SharedLayouts:
    """Known layouts, shared by the endpoints of one engine: most pages of a fleet have the same layout.

    Comparing a page with bytes that were just compared with another page is twice as fast as with a private copy.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], _KnownLayout] = {}
        self._scanners = 0

    def next_offset(self) -> int:
        """Where in the cycle of `FULL_SCAN_PAGES` pages the next scanner begins: it spreads their full scans."""
        self._scanners += 1
        return (self._scanners - 1) * _STRIDE % FULL_SCAN_PAGES

    def shared(self, known: _KnownLayout) -> _KnownLayout:
        """The stored layout equal to this one; this one is stored where there is none."""
        if len(self._known) >= MAX_LAYOUTS:
            self._known.clear()
        return self._known.setdefault(self._key(known), known)

    def has(self, known: _KnownLayout) -> bool:
        """Whether an equal layout is stored."""
        return self._key(known) in self._known

    @staticmethod
    def _key(known: _KnownLayout) -> tuple[object, ...]:
        return *known[1:], known.layout.last, *sorted(known.layout.helps.items())


class Scanner:
    """Reads the samples of `names` from the pages of one endpoint; it remembers the layout of the last page.

    `helps`: the names whose HELP text is wanted too, where the page has a sample of them.
    """

    __slots__ = ("_gaps", "_helps", "_known", "_layouts", "_names", "_offset", "_pages", "_slack")

    def __init__(self, names: Iterable[str], helps: Iterable[str] = (), layouts: SharedLayouts | None = None) -> None:
        self._names = tuple(names)
        self._helps = frozenset(helps)
        self._layouts = layouts or SharedLayouts()
        # A gap that moved by less than the shortest wanted line (name, blank, digit) cannot hide a whole line.
        self._slack = min((len(name) for name in self._names), default=0) + 2
        self._known: _KnownLayout | None = None
        self._gaps: list[int] = []
        self._offset = self._layouts.next_offset()
        self._pages = 0

    def read(self, page: bytes) -> tuple[Layout, Sequence[float]]:
        """The page's layout and the value of each of its series; PageRefused for a page that cannot be read."""
        check_page(page)
        known = self._known
        if known is not None:
            values = self._compare(page, known)
            helps = known.layout.helps  # outside the compared bytes, and a text of the same length may replace another
            if values is not None and (not helps or all(help_of(page, name) == text for name, text in helps.items())):
                self._pages += 1
                if self._pages <= FULL_SCAN_PAGES:
                    return known.layout, values
                if len(match_lines(page, self._names)) == len(values) and not _OPEN_TEXT.search(page):
                    self._pages = 0
                    return known.layout, values
        return self._scan(page)

    def forget(self) -> None:
        """Do a full scan of the next page."""
        self._known = None

    def _compare(self, page: bytes, known: _KnownLayout) -> list[float] | None:
        """The values by the known layout, or None where the page differs from it."""
        texts: list[bytes] = []
        gaps, slack, adjacent, tails = self._gaps, self._slack, known.adjacent, known.tails
        end = 0
        for place, key in enumerate(known.keys):
            at = end if adjacent[place] else end + gaps[place]
            if page[at : at + len(key)] != key:
                if adjacent[place]:
                    return None
                at = page.find(key, max(end, at - slack), at + len(key) + slack)
                if at < 0:
                    return None
                gaps[place] = at - end
            at += len(key)
            end = page.find(b"\n", at)
            texts.append(page[at:end])
            tail = tails[place]
            if tail and page[end : end + len(tail)] != tail:
                return None
        rest = len(page) - end
        if rest != gaps[-1]:
            if known.at_end or abs(rest - gaps[-1]) > slack:
                return None
            gaps[-1] = rest
        if b"".join(texts).translate(None, _DIGITS):  # NaN, a timestamp, or a text that only float() accepts
            return None
        try:
            return list(map(float, texts))
        except ValueError:
            return None

    def _scan(self, page: bytes) -> tuple[Layout, Sequence[float]]:
        """Full scan: find every wanted line, and remember the layout."""
        due = self._known is not None and self._pages > FULL_SCAN_PAGES
        self._known = None
        found, bad = find_samples(page, self._names)
        layout, known = self._lay_out(page, found, bad)
        # This check takes half as long as a scan; a layout that is stored was checked when it was stored.
        if found and (due or known is None or not self._layouts.has(known)):
            within = _within_texts(page, found)
            if within:
                found = [line for line in found if line not in within]
                bad += [BadLine(line.series.name, excerpt(page[line.start + 1 : line.end])) for line in within]
                layout, known = self._lay_out(page, found, bad)
        if known is not None:
            self._known = self._layouts.shared(known)
            self._pages = 0 if due else self._offset
            layout = self._known.layout
        return layout, [line.value for line in found]

    def _lay_out(
        self, page: bytes, found: Sequence[SampleLine], bad: Sequence[BadLine]
    ) -> tuple[Layout, _KnownLayout | None]:
        """The page's layout, and how to recognize it. The latter is None for a page with bad or indented lines, or with
        more than a value on a line: such a page gets a full scan each time."""
        last = next((line.series.name for line in found if line.end + 1 == len(page)), "")
        helps = {name: help_of(page, name) for name in self._helps & {line.series.name for line in found}}
        stamps = tuple(line.stamp for line in found) if any(line.stamp for line in found) else ()
        layout = Layout(tuple(line.series for line in found), tuple(bad), last, helps, stamps)
        plain = found and found[0].start >= 0 and not bad and all(line.plain for line in found)
        return layout, self._remember(page, found, layout) if plain else None

    def _remember(self, page: bytes, found: Sequence[SampleLine], layout: Layout) -> _KnownLayout:
        keys: list[bytes] = []
        adjacents: list[bool] = []
        tails: list[bytes] = []
        self._gaps = []
        before = 0
        for line, following in zip(found, [*found[1:], None], strict=True):
            start = line.start
            adjacent = bool(keys) and start == before
            if not adjacent:
                comment = page.rfind(b"\n", 0, start)
                if page.startswith(b"#", comment + 1):
                    start = max(comment + 1, start - _BEFORE)
            group_ends = following is None or following.start != line.end
            behind = _NEXT.match(page, line.end) if group_ends else None
            keys.append(page[start : line.value_at])
            adjacents.append(adjacent)
            tails.append(behind[0] if behind else b"")
            self._gaps.append(start - before)
            before = line.end
        self._gaps.append(len(page) - before)
        return _KnownLayout(layout, tuple(keys), tuple(adjacents), tuple(tails), before + 1 == len(page))


def check_page(page: bytes) -> None:
    """PageRefused for a body that cannot be a whole page of the text format, of whatever engine."""
    first = page[:1]
    if not first or first.isspace():
        first = page.lstrip()[:1]
        if not first:
            raise PageRefused("empty", EMPTY)
    if not (first.isalpha() or first in b"#_:"):
        raise PageRefused("not_metrics", f"the page begins with {excerpt(page)}: is this the path of the metrics?")
    if b"\0" in page:
        raise PageRefused("not_metrics", "the page contains zero bytes: it is not text")
    if not page.endswith(b"\n") and not page.endswith(b"\n# EOF"):
        last = page[page.rfind(b"\n") + 1 :]
        raise PageRefused("truncated", f"the last line has no end: {excerpt(last)}")


def is_metrics(page: bytes) -> bool:
    """Whether at least one line of the page is in the text format."""
    return _ANY_LINE.search(page) is not None


def has_samples(page: bytes) -> bool:
    """Whether at least one line of the page is a sample in the text format."""
    return _SAMPLE_LINE.search(page) is not None


def describes(page: bytes, prefixes: Iterable[str]) -> bool:
    """Whether the page has a TYPE line of a name that begins with one of these prefixes."""
    marks = [f"# TYPE {prefix}".encode() for prefix in prefixes]
    return any(page.startswith(mark) or b"\n" + mark in page for mark in marks)


def help_of(page: bytes, name: str) -> str:
    """The HELP text of a sample's family, or empty."""
    mark = f"# HELP {name} ".encode()
    at = page.find(b"\n" + mark) + 1
    if not at and not page.startswith(mark):
        return ""
    at += len(mark)
    return page[at : page.find(b"\n", at)].decode("utf-8", "replace")


def _within_texts(page: bytes, found: Sequence[SampleLine]) -> list[SampleLine]:
    """Those of the lines that are inside a label value."""
    if not _OPEN_TEXT.search(page):
        return []
    texts = [text.span() for text in _COMMENT_OR_TEXT.finditer(page) if b"\n" in text[0]]
    return [line for line in found if any(start <= line.start < end for start, end in texts)]
