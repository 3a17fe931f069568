"""The contract that every registered engine keeps, checked without anyone writing a test for a new one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.engines import ENGINES, engine
from agent.engines.mapping import MARKS, Combine, Extractor
from agent.scrape.page import PageRefused
from agent.signals import SIGNALS, Kind

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"
EVERY_ENGINE = pytest.mark.parametrize("name", sorted(ENGINES))


@EVERY_ENGINE
def test_every_signal_has_a_source_or_a_reason_why_it_has_none(name: str) -> None:
    table = engine(name)
    assert table.name == name
    assert not table.sources.keys() & table.silent.keys()
    assert table.sources.keys() | table.silent.keys() == SIGNALS.keys()
    assert all(table.sources.values())
    assert all(len(reason) > 10 for reason in table.silent.values())


@EVERY_ENGINE
def test_every_source_suits_its_signal(name: str) -> None:
    for signal, sources in engine(name).sources.items():
        for source in sources:
            names = SIGNALS[signal].kind is Kind.NAMES
            assert not names or (source.label is not None and source.combine is Combine.NEWEST), signal
            assert source.combine is not Combine.NEWEST or source.label is not None, signal


@EVERY_ENGINE
def test_an_engine_is_recognised_by_its_marks(name: str) -> None:
    table = engine(name)
    assert table.marks
    assert all(MARKS.get(mark) == name for mark in table.marks)


@EVERY_ENGINE
def test_an_engine_has_golden_pages_and_reads_them_as_written(name: str) -> None:
    pages = sorted((PAGES / name).glob("*.prom"))
    assert pages
    seen: set[str] = set()
    for page in pages:
        extraction = Extractor(engine(name)).extract(page.read_bytes())
        expected = json.loads(page.with_suffix(".json").read_text())
        readings = {
            key: sorted(value) if isinstance(value, frozenset) else value for key, value in extraction.readings.items()
        }
        assert readings == expected["readings"], page.name
        seen |= readings.keys()
    assert seen == engine(name).sources.keys(), "a source that no golden page exercises"


@EVERY_ENGINE
def test_a_page_of_another_engine_is_refused_by_name(name: str) -> None:
    for mark, owner in MARKS.items():
        if owner != name:
            with pytest.raises(PageRefused) as refused:
                Extractor(engine(name)).extract(f"{mark}something 1\n".encode())
            assert refused.value.reason == "wrong_engine"
            assert owner in refused.value.detail


@EVERY_ENGINE
def test_a_golden_page_cut_within_a_line_is_never_read(name: str) -> None:
    for path in sorted((PAGES / name).glob("*.prom")):
        page = path.read_bytes()
        for cut in range(1, len(page), 1499):
            if page[cut - 1] != 10:
                with pytest.raises(PageRefused):
                    Extractor(engine(name)).extract(page[:cut])
