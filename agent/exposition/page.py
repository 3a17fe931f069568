"""The body of one /metrics answer, scanned for the samples that somebody asked for and never parsed whole.

The text format puts one sample on a line: a name, labels in braces, a value, perhaps a time stamp. A wanted name is
searched for as bytes at the beginning of a line, and only the lines found are read: a page of a model server has some
700 samples, of which we want 25.

Even these searches cost more than the reading, and from one scrape to the next only numbers change. So a Scanner, one
per endpoint, remembers the layout: the bytes around each wanted value, and how far it lies behind the one before. The
next page is read by comparing: every remembered line must stand near its place, wanted lines that followed each other
must still do so, and what stood right before and behind a group of them must still stand there. Any difference means a
full scan. What this cannot see stands outside every group on a page that otherwise kept its measures: a first wanted
line, or the beginning of a label's text that goes on over lines; every `FULL_SCAN_PAGES` pages these are looked for.

What a page must be as a whole is checked first: not empty, text of this format and not a web page, and ended by a line
end, for a page that was cut anywhere else must not be read (a value of `17` may have been `1734`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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


__all__ = ["MAX_LAYOUTS", "MAX_SERIES", "BadLine", "Layout", "Layouts", "PageRefused", "Scanner", "Series", "number"]

FULL_SCAN_PAGES: Final = 128
_STRIDE: Final = 79  # odd, so that all of them get their turn, and far from the turn before
MAX_LAYOUTS: Final = 256
_BEFORE: Final = 16  # bytes of a comment in front of a group that are remembered

# A label's text that goes over a line end: not in the format, yet Prometheus's scraper takes it, and what looks like a
# line in it is none. The first finds the pages that may have one, the second the comments and texts of such a page.
_OPEN_TEXT: Final = re.compile(rb'=[ \t]*+"(?:[^"\\\n]++|\\.)*+\\?\n')
_COMMENT_OR_TEXT: Final = re.compile(
    rb'^[ \t]*+#[^\n]*+|=[ \t]*+"(?:[^"\\]++|\\.)*+"(?=[ \t]*+[,}a-zA-Z_])', re.DOTALL | re.MULTILINE
)
_DIGITS: Final = b"0123456789.eE+-"
# The line behind a group, as far as it stays the same: a comment's mark, or a name and what ends it.
_NEXT: Final = re.compile(rb"\n(?:#|[^ \t{\n]*[ \t{\n])")
_ANY_LINE: Final = re.compile(
    rb"^[ \t]*(?:# (?:HELP|TYPE|UNIT) [a-zA-Z_:]|# EOF$|"
    rb"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^\n]*\})?[ \t]+[+-]?(?:[0-9.]|(?i:inf|nan)))",
    re.MULTILINE,
)


class Layout:
    """What a full scan found, but for the values; the same object for all pages that are laid out alike.

    `last` is the wanted name on the page's very last line, if any; `helps` are HELP texts that were asked for, by name.
    `stamps` are the time stamps behind the values, as text, where any line has one: empty for a line without.
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


class _Known(NamedTuple):
    """A layout with what tells it: of each remembered line the bytes before its value (`keys`), whether it follows the
    one before (`adjacent`) and the bytes behind its group (`tails`), in the order of the page; and whether the last
    line of them ends the page."""

    layout: Layout
    keys: tuple[bytes, ...]
    adjacent: tuple[bool, ...]
    tails: tuple[bytes, ...]
    at_end: bool


class Layouts:
    """Layouts that were learnt, for the endpoints of one engine to share: most of a fleet's pages are laid out alike.

    Comparing a page with bytes that were just compared with another is twice as fast as with bytes of its own.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], _Known] = {}
        self._scanners = 0

    def turn(self) -> int:
        """At which of the `FULL_SCAN_PAGES` pages the next endpoint begins: those that start together take turns."""
        self._scanners += 1
        return (self._scanners - 1) * _STRIDE % FULL_SCAN_PAGES

    def shared(self, known: _Known) -> _Known:
        """The one that is equal to this, or else this."""
        if len(self._known) >= MAX_LAYOUTS:
            self._known.clear()
        return self._known.setdefault(self._key(known), known)

    def has(self, known: _Known) -> bool:
        """Whether there is one that is equal to this."""
        return self._key(known) in self._known

    @staticmethod
    def _key(known: _Known) -> tuple[object, ...]:
        return *known[1:], known.layout.last, *sorted(known.layout.helps.items())


class Scanner:
    """Reads the pages of one endpoint for the samples of `names`. What it remembers makes it faster.

    `helps`: the names whose HELP text is wanted too, where the page has a sample of them.
    """

    __slots__ = ("_first", "_gaps", "_helps", "_known", "_layouts", "_names", "_pages", "_slack")

    def __init__(self, names: Iterable[str], helps: Iterable[str] = (), layouts: Layouts | None = None) -> None:
        self._names = tuple(names)
        self._helps = frozenset(helps)
        self._layouts = layouts or Layouts()
        # Half a line may hide in a gap that moved by less than the shortest line that is wanted: name, blank, digit.
        self._slack = min((len(name) for name in self._names), default=0) + 2
        self._known: _Known | None = None
        self._gaps: list[int] = []
        self._first = self._layouts.turn()
        self._pages = 0

    def read(self, page: bytes) -> tuple[Layout, Sequence[float]]:
        """The layout of the page and the value of each of its series; PageRefused when it cannot be a page."""
        check(page)
        known = self._known
        if known is not None:
            values = self._compare(page, known)
            helps = known.layout.helps  # far from what is compared, and words of one length may replace each other
            if values is not None and (not helps or all(help_of(page, name) == text for name, text in helps.items())):
                self._pages += 1
                if self._pages <= FULL_SCAN_PAGES:
                    return known.layout, values
                if len(lines(page, self._names)) == len(values) and not _OPEN_TEXT.search(page):
                    self._pages = 0
                    return known.layout, values
        return self._scan(page)

    def forget(self) -> None:
        """Scan the next page whatever it looks like."""
        self._known = None

    def _compare(self, page: bytes, known: _Known) -> list[float] | None:
        """The values where they stood before, or None when anything is not as it was."""
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
        if b"".join(texts).translate(None, _DIGITS):  # NaN, a time stamp, or what float() takes and Prometheus does not
            return None
        try:
            return list(map(float, texts))
        except ValueError:
            return None

    def _scan(self, page: bytes) -> tuple[Layout, Sequence[float]]:
        """Find every wanted line, whatever was remembered."""
        due = self._known is not None and self._pages > FULL_SCAN_PAGES
        self._known = None
        found, bad = find(page, self._names)
        layout, learnt = self._laid_out(page, found, bad)
        # It takes as long as half a scan, and a layout that is known was looked at when it came.
        if found and (due or learnt is None or not self._layouts.has(learnt)):
            within = _within_texts(page, found)
            if within:
                found = [line for line in found if line not in within]
                bad += [BadLine(line.series.name, show(page[line.start + 1 : line.end])) for line in within]
                layout, learnt = self._laid_out(page, found, bad)
        if learnt is not None:
            self._known = self._layouts.shared(learnt)
            self._pages = 0 if due else self._first
            layout = self._known.layout
        return layout, [line.value for line in found]

    def _laid_out(self, page: bytes, found: Sequence[Found], bad: Sequence[BadLine]) -> tuple[Layout, _Known | None]:
        """The page's layout, and what tells it: None where lines carry more than a value or are indented, for such a
        page is scanned each time."""
        last = next((line.series.name for line in found if line.end + 1 == len(page)), "")
        helps = {name: help_of(page, name) for name in self._helps & {line.series.name for line in found}}
        stamps = tuple(line.stamp for line in found) if any(line.stamp for line in found) else ()
        layout = Layout(tuple(line.series for line in found), tuple(bad), last, helps, stamps)
        plain = found and found[0].start >= 0 and not bad and all(line.plain for line in found)
        return layout, self._learn(page, found, layout) if plain else None

    def _learn(self, page: bytes, found: Sequence[Found], layout: Layout) -> _Known:
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
        return _Known(layout, tuple(keys), tuple(adjacents), tuple(tails), before + 1 == len(page))


def check(page: bytes) -> None:
    """Raise PageRefused when the page cannot be one, whatever the engine."""
    if not page:
        raise PageRefused("empty", "the answer has no body: is this the path of the metrics?")
    first = page[:1]
    if first.isspace():
        first = page.lstrip()[:1]
    if first and not (first.isalpha() or first in b"#_:"):
        raise PageRefused("not_metrics", f"the page begins with {show(page)}: is this the path of the metrics?")
    if b"\0" in page:
        raise PageRefused("not_metrics", "the page holds zero bytes: it is no text")
    if not page.endswith(b"\n") and not page.endswith(b"\n# EOF"):
        last = page[page.rfind(b"\n") + 1 :]
        raise PageRefused("truncated", f"the last line has no end: {show(last)}")


def is_metrics(page: bytes) -> bool:
    """Whether any line of the page is one of this format."""
    return _ANY_LINE.search(page) is not None


def help_of(page: bytes, name: str) -> str:
    """The HELP text of a sample's family, empty where the page has none."""
    mark = f"# HELP {name} ".encode()
    at = page.find(b"\n" + mark) + 1
    if not at and not page.startswith(mark):
        return ""
    at += len(mark)
    return page[at : page.find(b"\n", at)].decode("utf-8", "replace")


def _within_texts(page: bytes, found: Sequence[Found]) -> list[Found]:
    """Those of the lines that stand in the text of a label."""
    if not _OPEN_TEXT.search(page):
        return []
    texts = [text.span() for text in _COMMENT_OR_TEXT.finditer(page) if b"\n" in text[0]]
    return [line for line in found if any(start <= line.start < end for start, end in texts)]
