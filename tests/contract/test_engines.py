"""The contract of every registered engine; a new engine is checked without a new test."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from agent.__main__ import main
from agent.engine_specs import EngineSpec, MetricSpec
from agent.engines import ENGINES, engine, matrix
from agent.engines.custom import custom
from agent.engines.mapping import Extractor
from agent.engines.recognition import name_prefixes, recognise
from agent.engines.report import REASONS as REPORT_REASONS
from agent.engines.spellings import spellings
from agent.engines.table import REFUSALS, SeriesCombination, SignalSource
from agent.exposition.page import PageRefused
from agent.scrape.reasons import REASONS
from agent.signals import HISTOGRAMS, SIGNALS, Signal, SignalKind

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
EVERY_ENGINE = pytest.mark.parametrize("name", sorted(ENGINES))


@EVERY_ENGINE
def test_every_signal_has_a_source_or_a_reason_why_it_has_none(name: str) -> None:
    table = engine(name)
    assert table.name == name
    assert table.sources.keys() <= SIGNALS.keys()
    assert table.histograms.keys() <= HISTOGRAMS.keys()
    assert table.silent.keys() <= SIGNALS.keys() | HISTOGRAMS.keys()
    assert not table.silent.keys() & (table.sources.keys() | table.histograms.keys())
    assert all(table.sources.values())
    assert all(table.histograms.values())
    for signal in (*SIGNALS, *HISTOGRAMS):
        reported = signal in table.sources or signal in table.histograms
        assert reported or len(table.why_silent(signal)) > 10, signal
        assert not (reported and table.why_silent(signal)), signal


NEW_SIGNAL = Signal("queue_age_seconds", "seconds", SignalKind.GAUGE, 0, 1e6, "age of the oldest waiting request")


@EVERY_ENGINE
def test_a_new_signal_is_one_row_and_every_engine_without_it_is_silent_with_a_reason(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cast(dict[str, Signal], SIGNALS), NEW_SIGNAL.name, NEW_SIGNAL)
    table = engine(name)
    assert table.why_silent(NEW_SIGNAL.name) == f"{name} does not report it"
    assert matrix.cell(table, NEW_SIGNAL.name) == "-"
    for page in golden_pages(name).values():
        assert NEW_SIGNAL.name not in Extractor(table).extract(page, whole=True).readings
    assert main(["signals", "--engine", name]) == 0
    assert f"none: {name} does not report it" in capsys.readouterr().out
    own = custom(EngineSpec(name, (MetricSpec(NEW_SIGNAL.name, "my_queue_age"),)))
    assert Extractor(own).extract(b"my_queue_age 3\n", whole=True).readings == {NEW_SIGNAL.name: 3}


@EVERY_ENGINE
def test_a_load_report_only_has_gauges_that_are_on_the_page_too(name: str) -> None:
    table = engine(name)
    assert set(table.reports.values()) <= table.sources.keys()
    assert all(SIGNALS[signal].kind is SignalKind.GAUGE for signal in table.reports.values())


@EVERY_ENGINE
def test_every_source_suits_its_signal(name: str) -> None:
    for signal, sources in engine(name).sources.items():
        for source in sources:
            names = SIGNALS[signal].kind is SignalKind.NAMES
            assert not names or (source.label is not None and source.combine is SeriesCombination.NEWEST), signal
            assert (
                source.combine not in {SeriesCombination.NEWEST, SeriesCombination.PER_ENGINE}
                or source.label is not None
            ), signal
            assert not source.added or source.combine is SeriesCombination.SUM, signal
            assert not (source.label and source.one_minus), signal


@EVERY_ENGINE
def test_the_prefixes_of_an_engine_identify_it(name: str) -> None:
    table = engine(name)
    assert table.prefixes
    assert all(name_prefixes().get(prefix) == name for prefix in table.prefixes)


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
def test_the_paths_of_an_engine_are_valid(name: str) -> None:
    table = engine(name)
    for path in (table.page_path, table.health_path, table.models_path):
        assert path is None or re.fullmatch(r"(?:/[a-z0-9._-]+)+", path)


TIME = "1795344332.5"  # seconds since 1970


def series_of(source: SignalSource, value: str) -> str:
    """Lines of a page with one value of this source, as an untyped sample."""
    labels_of = {
        **{label: text for label, text in source.where.items() if text},
        **({source.label: value} if source.label else {}),
    }
    labels = ",".join(f'{label}="{text}"' for label, text in labels_of.items())
    stated = TIME if source.combine is SeriesCombination.NEWEST else "1" if source.label else value
    first = f"{source.sample}{'{' + labels + '}' if labels else ''} {stated}\n"
    return first + "".join(f"{sample} 0\n" for sample in source.added)


@pytest.mark.parametrize(
    ("name", "signal"), [(name, signal) for name in sorted(ENGINES) for signal in engine(name).sources]
)
def test_each_name_of_a_signal_is_read_alone_and_the_newest_of_several_is_used(name: str, signal: str) -> None:
    table = engine(name)
    own = next(name for name in table.names() if name.startswith(table.prefixes))
    foreign = not table.sources[signal][0].sample.startswith(table.prefixes)
    own_line = f"{own} 1\n" if foreign else ""
    sources = [source for source in table.sources[signal] if not source.tokens_or_blocks]
    wanted = {True: "0", False: "1"}
    names = SIGNALS[signal].kind is SignalKind.NAMES

    def reading(*parts: str) -> object:
        return Extractor(table).extract("".join((own_line, *parts)).encode(), whole=True).readings.get(signal)

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
    """Offsets all over the page, and many in and around the wanted lines; half of them after a line end."""
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
    """A cut after a line end cannot be detected, so a possibly partial sum must not be a reading."""
    table = engine(name)
    for file, page in golden_pages(name).items():
        true = Extractor(table).extract(page, whole=True).readings
        read = 0
        names = [name for spelt in (table, *spellings(table)) for name in spelt.names()]
        for cut in cuts(page, names):
            try:
                readings = Extractor(table).extract(page[:cut]).readings
            except PageRefused:
                continue
            read += 1
            wrong = {signal: value for signal, value in readings.items() if value != true.get(signal)}
            assert not wrong, f"{file} cut at {cut}"
        assert read > 1


@EVERY_ENGINE
def test_the_pages_read_before_change_no_reading(name: str) -> None:
    table = engine(name)
    remembering = Extractor(table)
    for page in [page for pages in itertools.permutations(golden_pages(name).values(), 2) for page in pages]:
        found, fresh = (each.extract(page, whole=True) for each in (remembering, Extractor(table)))
        # The counter of resets is searched on every 32nd page only, where the page before had none.
        assert found._replace(cache_resets=0.0) == fresh._replace(cache_resets=0.0)


# -- the documents ---------------------------------------------------------------------------------------------------


def signal_rows() -> list[str]:
    return [
        f"| `{row.name}` | {row.unit} | {row.kind.value} | "
        + ("any" if row.kind is SignalKind.NAMES else f"{row.low:g} to {row.high:g}")
        + f" | {row.help} |"
        for row in SIGNALS.values()
    ]


def histogram_rows() -> list[str]:
    return [f"| `{row.name}` | {row.unit} | {row.help} |" for row in HISTOGRAMS.values()]


def meaning_rows(meanings: Mapping[str, str]) -> list[str]:
    return [f"| `{word}` | {meaning} |" for word, meaning in meanings.items()]


def report_rows() -> list[str]:
    return [
        f"| `{name}` | `{metric}` | `{signal}` |"
        for name in sorted(ENGINES)
        for metric, signal in engine(name).reports.items()
    ]


@pytest.mark.parametrize(
    ("section", "rows"),
    [
        ("The signals", signal_rows()),
        ("Why a value is refused", meaning_rows(REFUSALS)),
        ("Why a scrape fails", meaning_rows(REASONS)),
        (r"Load reports between two scrapes \(ORCA\)", [*report_rows(), *meaning_rows(REPORT_REASONS)]),
        ("Optional histograms", histogram_rows()),
        ("Signals reported by each engine", [*matrix.matrix_markdown([engine(name) for name in sorted(ENGINES)])][2:]),
        *((f"Engine {name}", [*matrix.engine_markdown(engine(name))][2:]) for name in sorted(ENGINES)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_documents_of_signals_and_engines_have_the_content_of_the_tables(section: str, rows: list[str]) -> None:
    file = "engines.md" if section.startswith("Engine ") else "signals.md"
    text = (DOCS / file).read_text(encoding="utf-8")
    found = re.search(rf"^## {section}$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{file} has no section '## {section}'"
    assert re.findall(r"^\| `.*\|$", found[1], re.MULTILINE) == rows, "its rows should be:\n" + "\n".join(rows)


def test_the_document_of_engines_has_exactly_the_registered_engines() -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Engine (.*)$", text, re.MULTILINE) == sorted(ENGINES)


@EVERY_ENGINE
def test_the_document_of_engines_has_the_paths_of_each(name: str) -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    path = r"\| (?:`([^`|]+)`[^|]*)?"
    row = re.search(rf"^\| `{name}` \| [^|]+ \| [^|]+ {path * 3}\|$", text, re.MULTILINE)
    assert row, f"docs/reference/engines.md has no row for {name}"
    table = engine(name)
    assert row.groups() == (table.page_path, table.health_path, table.models_path)
