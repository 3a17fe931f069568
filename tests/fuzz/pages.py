"""Fuzz target: consecutive pages of one endpoint, as the scanner and the extractor read them.

An input is text: a first line with the name of an engine and optionally `whole`, then pages separated by `PAGE_BREAK`.
Each page is read by an extractor that has read the pages before it, by a new one, and by `tests.fuzz.plain`; any
difference is a defect.
"""

from __future__ import annotations

from agent.engines import ENGINES, engine
from agent.engines.mapping import Extraction, Extractor
from agent.exposition.page import PageRefused, Scanner, SharedLayouts
from agent.scrape.reasons import REASONS
from agent.signals import SIGNALS
from tests.fuzz.plain import Sample, Spoilt, read

PAGE_BREAK = b"\n\x1c\n"
MAX_PAGES = 6

Line = tuple[str, frozenset[tuple[str, str]], str]


class Readers:
    """An extractor and a scanner with memory, new ones, and the plain reader: all have to agree."""

    def __init__(self, name: str, *, whole: bool) -> None:
        self._table = table = engine(name)
        self._names = table.names()
        self._whole = whole
        helps = {source.sample for sources in table.sources.values() for source in sources if source.tokens_or_blocks}
        self._remembering, self._scanner = Extractor(table), Scanner(self._names, helps)

    def read(self, page: bytes) -> Extraction | str:
        """What a new extractor reads, or why the page is refused; fails where a reader misreads it."""
        names = self._names
        fresh = extracted(Extractor(self._table), page, whole=self._whole)
        warm = extracted(self._remembering, page, whole=self._whole)
        cold = scanned(Scanner(names, layouts=SharedLayouts()), page)
        known = scanned(self._scanner, page)
        if cold is None:
            assert known is None, "a refused page was read"
            if isinstance(fresh, Extraction):  # a page without a sample is read, and reports nothing
                assert not page.strip()
                assert fresh.readings == {}
                assert fresh == warm
                return fresh
            assert isinstance(fresh, str)
            assert isinstance(warm, str)
            return fresh
        assert cold == plainly(page, names), "the scanner and the plain reader differ"
        assert known is not None
        if isinstance(warm, str):  # as the extractor's own scanner does
            self._scanner.forget()
        if known == cold:
            assert same(warm, fresh), f"remembered {warm}, fresh {fresh}"
        else:
            assert only_far_lines_are_missing(known, page, names), f"remembered {known}, fresh {cold}"
        if isinstance(fresh, Extraction):
            sound(fresh)
        return fresh


def one_input(data: bytes) -> None:
    """Fails where a page is misread."""
    head, _, text = data.partition(b"\n")
    words = head.split()
    name = words[0].decode("latin-1") if words else ""
    readers = Readers(name if name in ENGINES else "vllm", whole=b"whole" in words)
    for page in text.split(PAGE_BREAK)[:MAX_PAGES]:
        readers.read(page)


def extracted(extractor: Extractor, page: bytes, *, whole: bool) -> Extraction | str:
    """The content of the page, or the reason for which it is refused."""
    try:
        return extractor.extract(page, whole=whole)
    except PageRefused as page_refused:
        refused = page_refused
    assert refused.reason in REASONS
    assert refused.detail
    return refused.reason


def scanned(scanner: Scanner, page: bytes) -> list[Line] | None:
    """Every wanted line in the order of the page, then the bad lines; None for a refused page."""
    try:
        layout, values = scanner.read(page)
    except PageRefused:
        return None
    found = [
        (series.name, frozenset(series.labels.items()), repr(value))
        for series, value in zip(layout.series, values, strict=True)
    ]
    return found + sorted((line.name, frozenset(), "bad") for line in layout.bad)


def plainly(page: bytes, names: list[str]) -> list[Line]:
    """The same by the plain reader."""
    lines = read(page, names)
    found = [as_line(line) for line in lines if isinstance(line, Sample)]
    return found + sorted(as_line(line) for line in lines if isinstance(line, Spoilt))


def same(one: Extraction | str, other: Extraction | str) -> bool:
    """Equal except for the order of the refused values."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return (one.readings, one.stamps, set(one.missing), sorted(one.refused)) == (
        other.readings,
        other.stamps,
        set(other.missing),
        sorted(other.refused),
    )


def only_far_lines_are_missing(known: list[Line], page: bytes, names: list[str]) -> bool:
    """Whether the difference is one that the scanner does not see at once: a new line outside every group of known
    lines, or a label value that contains line ends and begins outside.

    All other lines must be right, and a line directly after a known one must be present.
    """
    unseen: list[int] = []
    seen: set[int] = set()
    rest = list(known)
    for line in read(page, names):
        expected = as_line(line)
        if isinstance(line, Spoilt) and line.within and expected not in rest:
            expected = as_line(line.within)
        if expected in rest:
            rest.remove(expected)
            seen.add(line.line)
        else:
            unseen.append(line.line)
    return not rest and not any(line - 1 in seen for line in unseen)


def as_line(line: Sample | Spoilt) -> Line:
    if isinstance(line, Spoilt):
        return line.name, frozenset(), "bad"
    return line.name, frozenset(line.labels.items()), repr(line.value)


def sound(extraction: Extraction) -> None:
    """Every reading is in its valid range, and every signal has at most one result."""
    for signal, value in extraction.readings.items():
        row = SIGNALS[signal]
        if isinstance(value, float):
            assert row.low <= value <= row.high, signal
        else:
            assert isinstance(value, frozenset), signal
    results = [*extraction.readings, *extraction.missing, *(refusal.signal for refusal in extraction.refused)]
    assert len(results) == len(set(results)), results
