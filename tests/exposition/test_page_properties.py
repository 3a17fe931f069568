"""Properties of reading, for every recorded and golden page of every engine.

A truncated page is never misread, and the layout cache does not change what is read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agent.engines import ENGINES, engine
from agent.engines.mapping import Extractor
from agent.engines.spellings import spellings
from agent.exposition.page import PageRefused
from tests.exposition.odd_pages import VALUES
from tests.fuzz.pages import Readers

RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "pages"
PAGES = {f"{path.parent.name}/{path.stem}": path for path in sorted(RECORDED.glob("*/*.prom"))}
# Maximum number of lines that the state machine edits; more would only be slower.
MAX_LINES = 60


def engine_of(page: str) -> str:
    return page.partition("/")[0]


def is_refused(extractor: Extractor, page: bytes, *, whole: bool = False) -> bool:
    try:
        extractor.extract(page, whole=whole)
    except PageRefused:
        return True
    return False


@pytest.mark.parametrize("name", PAGES)
def test_a_page_cut_at_any_byte_is_never_misread_with_or_without_a_cached_layout(name: str) -> None:
    """A cut after a line end, or before the first byte, is not visible unless the transport reports it."""
    page, table = PAGES[name].read_bytes(), engine(engine_of(name))
    true = Extractor(table).extract(page, whole=True).readings
    caching = Extractor(table)
    caching.extract(page)
    ends = {0, *(place + 1 for place, byte in enumerate(page) if byte == 10)} - {len(page)}
    for cut in range(len(page)):
        if cut not in ends:
            assert is_refused(caching, page[:cut]), f"cut at {cut}"
            continue
        for extractor in (caching, Extractor(table)):
            try:
                readings = extractor.extract(page[:cut]).readings
            except PageRefused:
                continue
            wrong = {signal: value for signal, value in readings.items() if value != true.get(signal)}
            assert not wrong, f"cut at {cut}"
        assert caching.extract(page, whole=True).readings == true


@pytest.mark.parametrize("name", PAGES)
def test_a_complete_response_cut_within_a_line_is_refused(name: str) -> None:
    page, table = PAGES[name].read_bytes(), engine(engine_of(name))
    caching = Extractor(table)
    caching.extract(page, whole=True)
    for cut in range(1, len(page), 7):
        assert page[cut - 1] == 10 or is_refused(caching, page[:cut], whole=True), f"cut at {cut}"


class Edits(RuleBasedStateMachine):
    """A page that changes from scrape to scrape."""

    readers: Readers
    lines: list[bytes]

    @initialize(
        name=st.sampled_from(sorted(PAGES)), whole=st.booleans(), first=st.integers(0, 10_000), crowd=st.booleans()
    )
    def begin(self, name: str, whole: bool, first: int, crowd: bool) -> None:
        table = engine(engine_of(name))
        names = tuple(sample.encode() for spelt in (table, *spellings(table)) for sample in spelt.names())
        lines = PAGES[name].read_bytes().splitlines()
        wanted = [place for place, line in enumerate(lines) if line.startswith(names)]
        assume(wanted)  # a page with another spelling of the names has none
        at = wanted[first % len(wanted)]
        self.lines = [lines[place] for place in wanted] if crowd else lines[max(0, at - MAX_LINES // 2) :]
        self.lines = self.lines[:MAX_LINES]
        self.before = list(self.lines)
        self.other = lines
        self.readers = Readers(engine_of(name), whole=whole)
        self.scrape()

    @rule()
    def scrape(self) -> None:
        self.readers.read(b"".join(line + b"\n" for line in self.lines))

    @rule(at=st.integers(0, 10_000), value=st.sampled_from(VALUES))
    def value(self, at: int, value: str) -> None:
        at %= len(self.lines)
        name, blank, _ = self.lines[at].rpartition(b" ")
        self.lines[at] = name + blank + value.encode()
        self.scrape()

    @rule(at=st.integers(0, 10_000))
    def gone(self, at: int) -> None:
        if len(self.lines) > 1:
            del self.lines[at % len(self.lines)]
        self.scrape()

    @rule(at=st.integers(0, 10_000), other=st.integers(0, 10_000))
    def comes(self, at: int, other: int) -> None:
        self.lines.insert(at % (len(self.lines) + 1), self.other[other % len(self.other)])
        self.scrape()

    @rule(at=st.integers(0, 10_000))
    def twice(self, at: int) -> None:
        at %= len(self.lines)
        self.lines.insert(at, self.lines[at])
        self.scrape()

    @rule(at=st.integers(0, 10_000), to=st.integers(0, 10_000))
    def moves(self, at: int, to: int) -> None:
        line = self.lines.pop(at % len(self.lines))
        self.lines.insert(to % (len(self.lines) + 1), line)
        self.scrape()

    @rule(at=st.integers(0, 10_000), by=st.integers(0, 200), data=st.binary(max_size=3))
    def overwritten(self, at: int, by: int, data: bytes) -> None:
        at %= len(self.lines)
        line = self.lines[at]
        self.lines[at] = (line[:by] + data + line[by + 1 :]).replace(b"\n", b"\\n")
        self.scrape()

    @rule(cut=st.integers(1, 10_000))
    def cut(self, cut: int) -> None:
        page = b"".join(line + b"\n" for line in self.lines)
        self.readers.read(page[: 1 + cut % len(page)])

    @precondition(lambda self: self.lines != self.before)
    @rule()
    def as_before(self) -> None:
        self.lines = list(self.before)
        self.scrape()

    @rule(page=st.sampled_from([b"", b"<html>\n", b"\n", b"node_load1 0.5\n", b"# EOF\n"]))
    def another(self, page: bytes) -> None:
        self.readers.read(page)


Edits.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestChangesOfAPageAreNeverMisreadWithACachedLayout = Edits.TestCase


def test_every_engine_has_pages() -> None:
    assert {engine_of(name) for name in PAGES} == set(ENGINES)
