"""The contract that every registered engine keeps, checked without anyone writing a test for a new one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.engines import ENGINES, engine, matrix
from agent.engines.mapping import MARKS, REFUSALS, Combine, Extractor, Source
from agent.engines.recognition import recognise
from agent.engines.report import REASONS as REPORT_REASONS
from agent.exposition.page import PageRefused
from agent.scrape.reasons import REASONS
from agent.signals import HISTOGRAMS, SIGNALS, Kind

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"
DOCS = Path(__file__).resolve().parents[2] / "docs"
EVERY_ENGINE = pytest.mark.parametrize("name", sorted(ENGINES))


@EVERY_ENGINE
def test_every_signal_has_a_source_or_a_reason_why_it_has_none(name: str) -> None:
    table = engine(name)
    assert table.name == name
    assert not table.sources.keys() & table.silent.keys()
    assert table.sources.keys() | table.silent.keys() | table.histograms.keys() == SIGNALS.keys() | HISTOGRAMS.keys()
    assert table.histograms.keys() <= HISTOGRAMS.keys()
    assert not table.histograms.keys() & table.silent.keys()
    assert all(table.sources.values())
    assert all(len(reason) > 10 for reason in table.silent.values())


@EVERY_ENGINE
def test_a_load_report_tells_numbers_that_the_page_tells_too(name: str) -> None:
    table = engine(name)
    assert set(table.reports.values()) <= table.sources.keys()
    assert all(SIGNALS[signal].kind is Kind.GAUGE for signal in table.reports.values())


@EVERY_ENGINE
def test_every_source_suits_its_signal(name: str) -> None:
    for signal, sources in engine(name).sources.items():
        for source in sources:
            names = SIGNALS[signal].kind is Kind.NAMES
            assert not names or (source.label is not None and source.combine is Combine.NEWEST), signal
            assert source.combine not in {Combine.NEWEST, Combine.EACH} or source.label is not None, signal
            assert not source.added or source.combine is Combine.SUM, signal
            assert not (source.label and source.one_minus), signal


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
        extraction = Extractor(engine(name)).extract(page.read_bytes(), whole=True)
        expected = json.loads(page.with_suffix(".json").read_text())
        readings = {
            key: sorted(value) if isinstance(value, frozenset) else value for key, value in extraction.readings.items()
        }
        assert readings == expected["readings"], page.name
        assert list(extraction.missing) == expected["missing"], page.name
        assert [list(refusal) for refusal in extraction.refused] == expected["refused"], page.name
        seen |= readings.keys()
    assert seen == engine(name).sources.keys(), "a source that no golden page exercises"


@pytest.mark.parametrize(("name", "owner"), list(itertools.permutations(sorted(ENGINES), 2)))
def test_a_page_of_another_engine_is_refused_by_name(name: str, owner: str) -> None:
    extractor = Extractor(engine(name))
    for page in golden_pages(owner).values():
        with pytest.raises(PageRefused) as refused:
            extractor.extract(page, whole=True)
        assert refused.value.reason == "wrong_engine"
        assert f"this is a page of {owner}, not of {name}: write `engine: {owner}`" in refused.value.detail


@EVERY_ENGINE
def test_an_engine_is_recognised_by_each_of_its_golden_pages(name: str) -> None:
    for file, page in golden_pages(name).items():
        assert recognise(page) == name, file


@EVERY_ENGINE
def test_an_engine_has_paths_that_can_be_asked(name: str) -> None:
    table = engine(name)
    for path in (table.page_path, table.health_path, table.models_path):
        assert path is None or re.fullmatch(r"(?:/[a-z0-9._-]+)+", path)


def series_of(source: Source, value: str) -> str:
    """Lines of a page that give this source one value, as an untyped sample."""
    told = {
        **{label: text for label, text in source.where.items() if text},
        **({source.label: value} if source.label else {}),
    }
    labels = ",".join(f'{label}="{text}"' for label, text in told.items())
    first = f"{source.sample}{'{' + labels + '}' if labels else ''} {'1' if source.label else value}\n"
    return first + "".join(f"{sample} 0\n" for sample in source.added)


@pytest.mark.parametrize(
    ("name", "signal"), [(name, signal) for name in sorted(ENGINES) for signal in engine(name).sources]
)
def test_each_name_of_a_signal_is_read_alone_and_the_newest_of_several_counts(name: str, signal: str) -> None:
    table = engine(name)
    own = next(name for name in table.names() if name.startswith(table.marks))
    foreign = not table.sources[signal][0].sample.startswith(table.marks)
    mark = f"{own} 1\n" if foreign else ""
    sources = [source for source in table.sources[signal] if not source.tokens_or_blocks]
    wanted = {True: "0", False: "1"}
    names = SIGNALS[signal].kind is Kind.NAMES

    def reading(*parts: str) -> object:
        return Extractor(table).extract("".join((mark, *parts)).encode(), whole=True).readings.get(signal)

    for source in sources:
        value = reading(series_of(source, "1"))
        assert value == (frozenset({"1"}) if names else float(wanted[source.one_minus])), source
    for newer, older in itertools.pairwise(sources):
        if newer.sample != older.sample and newer.one_minus == older.one_minus:
            assert reading(series_of(older, "3"), series_of(newer, "1")) == reading(series_of(newer, "1"))


@EVERY_ENGINE
def test_a_golden_page_cut_within_a_line_is_never_read(name: str) -> None:
    for path in sorted((PAGES / name).glob("*.prom")):
        page = path.read_bytes()
        for cut in range(1, len(page), 1499):
            if page[cut - 1] != 10:
                with pytest.raises(PageRefused):
                    Extractor(engine(name)).extract(page[:cut])


def golden_pages(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((PAGES / name).glob("*.prom"))}


def cuts(page: bytes, names: list[str]) -> list[int]:
    """Places all over the page, and many in and around the wanted lines; half of them behind a line end."""
    wanted = re.compile(rb"^(?:" + b"|".join(re.escape(name.encode()) for name in names) + rb")[{ ]", re.MULTILINE)
    near: set[int] = set()
    for found in wanted.finditer(page):
        line_end = page.index(b"\n", found.start())
        near |= {
            found.start(),
            line_end + 1,
            page.find(b"\n", line_end + 1) + 1,
            found.start() + 60,
            line_end,
            line_end - 1,
        }
    anywhere = range(1, len(page), 1009)
    return sorted({*near, *anywhere, *(page.rfind(b"\n", 0, cut) + 1 for cut in anywhere)} - {0, len(page)})


@EVERY_ENGINE
def test_a_golden_page_cut_at_any_byte_never_gives_a_wrong_reading(name: str) -> None:
    """Behind a line end nothing tells that a page was cut, so what may be a part of a sum must not be a reading."""
    table = engine(name)
    for file, page in golden_pages(name).items():
        true = Extractor(table).extract(page, whole=True).readings
        read = 0
        for cut in cuts(page, table.names()):
            try:
                readings = Extractor(table).extract(page[:cut]).readings
            except PageRefused:
                continue
            read += 1
            wrong = {signal: value for signal, value in readings.items() if value != true.get(signal)}
            assert not wrong, f"{file} cut at {cut}"
        assert read > 1


@EVERY_ENGINE
def test_what_an_extractor_remembers_changes_no_reading(name: str) -> None:
    table = engine(name)
    remembering = Extractor(table)
    for page in [page for pages in itertools.permutations(golden_pages(name).values(), 2) for page in pages]:
        assert remembering.extract(page, whole=True) == Extractor(table).extract(page, whole=True)


# -- the documents ---------------------------------------------------------------------------------------------------


def signal_rows() -> list[str]:
    return [
        f"| `{row.name}` | {row.unit} | {row.kind.value} | "
        + ("any" if row.kind is Kind.NAMES else f"{row.low:g} to {row.high:g}")
        + f" | {row.help} |"
        for row in SIGNALS.values()
    ]


def histogram_rows() -> list[str]:
    return [f"| `{row.name}` | {row.unit} | {row.help} |" for row in HISTOGRAMS.values()]


def word_rows(words: Mapping[str, str]) -> list[str]:
    return [f"| `{word}` | {meaning} |" for word, meaning in words.items()]


def report_rows() -> list[str]:
    return [
        f"| `{name}` | `{metric}` | `{signal}` |"
        for name in sorted(ENGINES)
        for metric, signal in engine(name).reports.items()
    ]


@pytest.mark.parametrize(
    ("section", "rows"),
    [
        ("What the agent understands", signal_rows()),
        ("Why a signal is not read", word_rows(REFUSALS)),
        ("Why a scrape fails", word_rows(REASONS)),
        (r"Load reports between two pages \(ORCA\)", [*report_rows(), *word_rows(REPORT_REASONS)]),
        ("Histograms, where they are asked for", histogram_rows()),
        ("Which engine tells which signal", [*matrix.matrix_markdown([engine(name) for name in sorted(ENGINES)])][2:]),
        *((f"Engine {name}", [*matrix.engine_markdown(engine(name))][2:]) for name in sorted(ENGINES)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_documents_of_signals_and_engines_say_what_the_tables_say(section: str, rows: list[str]) -> None:
    file = "engines.md" if section.startswith("Engine ") else "signals.md"
    text = (DOCS / file).read_text(encoding="utf-8")
    found = re.search(rf"^## {section}$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{file} has no section '## {section}'"
    assert re.findall(r"^\| `.*\|$", found[1], re.MULTILINE) == rows, "it should say:\n" + "\n".join(rows)


def test_the_document_of_engines_has_no_engine_that_is_not_there() -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Engine (.*)$", text, re.MULTILINE) == sorted(ENGINES)


@EVERY_ENGINE
def test_the_document_of_engines_says_what_is_asked_of_it(name: str) -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    path = r"\| (?:`([^`|]+)`[^|]*)?"
    row = re.search(rf"^\| `{name}` \| [^|]+ \| [^|]+ {path * 3}\|$", text, re.MULTILINE)
    assert row, f"docs/engines.md has no row for {name}"
    table = engine(name)
    assert row.groups() == (table.page_path, table.health_path, table.models_path)
