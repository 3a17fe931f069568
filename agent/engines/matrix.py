"""Signals reported by each engine, and their sources: the engines' tables as text, Markdown and JSON.

`igw signals` prints them; signals.md and engines.md of docs/reference contain them, which
`tests/contract/test_engines.py` checks. A cell of the matrix is a key of `LEGEND`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent.engines.spellings import spellings
from agent.engines.table import Engine, SeriesCombination, SignalSource
from agent.signals import HISTOGRAMS, MODELS, SIGNALS

YES: Final = "yes"
NAMED: Final = "named"
PATH: Final = "path"
NO: Final = "-"
LEGEND: Final[Mapping[str, str]] = {
    YES: "on the engine's page, in at least one release",
    NAMED: "on the page, read only if `scrape.histograms` names it",
    PATH: "not on the page; read from a path of its own",
    NO: "not reported; `igw signals --engine NAME` says why",
}
AMBIGUOUS: Final = (
    "Series of a gauge that differ in a label of processes (pid) are of one engine: the largest counts. Series that "
    "differ in another label are not combined: an older name without them is read, else the value is withheld."
)
WIDTH: Final = 100  # columns of a terminal
_GAP: Final = "  "
_HEAD: Final = "signal"


def rows() -> tuple[str, ...]:
    """The rows of the matrix: every signal and histogram."""
    return (*SIGNALS, *HISTOGRAMS)


def cell(table: Engine, signal: str) -> str:
    """Whether this engine reports the signal: a key of `LEGEND`."""
    if signal in table.sources:
        return YES
    if signal in table.histograms:
        return NAMED
    return PATH if signal == MODELS and table.models_path is not None else NO


def origin(table: Engine, signal: str, quote: str = "") -> str:
    """The sources of the signal, or `none` with the reason; `quote` surrounds names of samples and labels."""
    if why := table.why_silent(signal):
        return f"none: {why}"
    families = (f"{quote}{family}{quote}" for family in table.histograms.get(signal, ()))
    sources = (_written(source, quote) for source in table.sources.get(signal, ()))
    return ", else ".join((*sources, *families))


def combination(table: Engine, signal: str) -> str:
    """How the values of several engines behind one port are combined, in the order of the sources; or empty."""
    if signal in table.histograms:
        return "sum, bucket by bucket"
    return ", else ".join(dict.fromkeys(source.combine.value for source in table.sources.get(signal, ())))


def _written(source: SignalSource, quote: str) -> str:
    where = ",".join(f'{label}="{text}"' for label, text in source.where.items())
    labels = "{" + where + "}" if where else ""
    text = " + ".join(f"{quote}{sample}{labels}{quote}" for sample in (source.sample, *source.added))
    if source.optional:
        names = (" or ".join(f"{quote}{name}{labels}{quote}" for name in names) for names in source.optional)
        text += f" + where present {', '.join(names)}"
    if source.one_minus:
        text = f"1 - {text}"
    if source.steps is not None:
        text += f" of the {quote}{source.steps.label}{quote} that requests wait for, not of its steps"
    if source.label:
        text += f" label {quote}{source.label}{quote}"
    return text + (" in tokens or blocks, by its HELP" if source.tokens_or_blocks else "")


# -- Markdown --------------------------------------------------------------------------------------------------------


def matrix_markdown(tables: Sequence[Engine]) -> Iterator[str]:
    """The lines of the matrix: a row for each signal, a column for each engine."""
    yield "| signal | " + " | ".join(f"`{table.name}`" for table in tables) + " |"
    yield "|---" * (len(tables) + 1) + "|"
    for signal in rows():
        yield f"| `{signal}` | " + " | ".join(cell(table, signal) for table in tables) + " |"


def engine_markdown(table: Engine) -> Iterator[str]:
    """The lines of one engine's table: a row for each signal."""
    yield "| signal | source | several engines behind one port |"
    yield "|---|---|---|"
    for signal in rows():
        how = combination(table, signal)
        yield f"| `{signal}` | {origin(table, signal, '`')} | {how + ' ' if how else ''}|"


# -- text ------------------------------------------------------------------------------------------------------------


def matrix_text(tables: Sequence[Engine]) -> Iterator[str]:
    """The lines of the matrix for a terminal, in several blocks where the engines need more columns."""
    first = max(map(len, (*rows(), _HEAD)))
    for number, block in enumerate(_blocks(tables, WIDTH - first)):
        if number:
            yield ""
        headings = [_folded(table.name) for table in block]
        widths = [_width(table) for table in block]
        for line in range(max(map(len, headings))):
            words = [heading[line] if line < len(heading) else "" for heading in headings]
            yield _line(_HEAD if not line else "", first, words, widths)
        for signal in rows():
            yield _line(signal, first, [cell(table, signal) for table in block], widths)
    yield ""
    used = {cell(table, signal) for table in tables for signal in rows()}
    yield from (f"{key:<5}  {meaning}" for key, meaning in LEGEND.items() if key in used)


def engine_text(table: Engine) -> Iterator[str]:
    """The lines of one engine for a terminal: its paths, and each signal with its sources or the reason for none."""
    yield f"engine {table.name}"
    first = max(map(len, rows())) + len(_GAP)
    for what, text in (
        ("page", table.page_path + (f", port {table.ports.page}" if table.ports else "")),
        ("health", (table.health_path or "none") + (f", port {table.ports.health}" if table.ports else "")),
        ("models", table.models_path or "none"),
        ("prefixes of its names", ", ".join(table.prefixes)),
        ("also read as", ", ".join(prefix for spelt in spellings(table) for prefix in spelt.prefixes)),
        ("rank labels", ", ".join(table.rank_labels)),
        ("part labels", ", ".join(table.part_labels)),
        ("copy labels", ", ".join(table.copy_labels)),
        ("if its names are missing", table.hint),
    ):
        if text:
            yield from _wrapped(f"{_GAP + what:<{first}}{text}", first)
    yield ""
    for signal in rows():
        how = combination(table, signal)
        beside = "" if how in {"", SeriesCombination.SUM.value} else f" ({how})"
        text = f"{signal:<{first}}{origin(table, signal)}{beside}"
        yield from _wrapped(text, first)
    yield ""
    yield "The values of several engines behind one port are summed, except where noted in brackets."
    yield from textwrap.wrap(AMBIGUOUS, WIDTH)


def _wrapped(text: str, first: int) -> list[str]:
    """The text in lines, indented behind the first column; names are not broken."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * first, break_long_words=False, break_on_hyphens=False)


def _blocks(tables: Sequence[Engine], columns: int) -> Iterator[list[Engine]]:
    """The engines in groups that fit into the columns; an engine that is too wide is a group of its own."""
    block: list[Engine] = []
    left = columns
    for table in tables:
        needed = _width(table) + len(_GAP)
        if block and needed > left:
            yield block
            block, left = [], columns
        block.append(table)
        left -= needed
    if block:
        yield block


def _folded(name: str) -> list[str]:
    """The name in lines, broken behind its hyphens."""
    parts = name.split("-")
    return [f"{part}-" for part in parts[:-1]] + parts[-1:]


def _width(table: Engine) -> int:
    return max(*map(len, LEGEND), *map(len, _folded(table.name)))


def _line(name: str, first: int, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{_GAP}{text:<{width}}" for text, width in zip(cells, widths, strict=True))
    return f"{name:<{first}}{''.join(padded)}".rstrip()


# -- JSON ------------------------------------------------------------------------------------------------------------


def document(tables: Sequence[Engine]) -> dict[str, Any]:
    """The JSON document: by engine, its paths and its signals with their sources."""
    return {"engines": {table.name: _engine(table) for table in tables}}


def _engine(table: Engine) -> dict[str, Any]:
    return {
        "page_path": table.page_path,
        "health_path": table.health_path,
        "page_port": table.ports.page if table.ports else None,
        "health_port": table.ports.health if table.ports else None,
        "models_path": table.models_path,
        "prefixes": list(table.prefixes),
        "other_prefixes": [prefix for spelt in spellings(table) for prefix in spelt.prefixes],
        "rank_labels": list(table.rank_labels),
        "part_labels": list(table.part_labels),
        "copy_labels": list(table.copy_labels),
        "hint": table.hint,
        "signals": {
            name: {
                "availability": cell(table, name),
                "unit": row.unit,
                "kind": row.kind.value,
                "sources": [_source(source) for source in table.sources.get(name, ())],
                "silent": table.why_silent(name) or None,
            }
            for name, row in SIGNALS.items()
        },
        "histograms": {
            name: {
                "availability": cell(table, name),
                "unit": row.unit,
                "families": list(table.histograms.get(name, ())),
                "silent": table.why_silent(name) or None,
            }
            for name, row in HISTOGRAMS.items()
        },
    }


def _source(source: SignalSource) -> dict[str, Any]:
    return {
        "samples": list(source.samples),
        "optional": [list(names) for names in source.optional],
        "where": dict(source.where),
        "label": source.label,
        "one_minus": source.one_minus,
        "tokens_or_blocks": source.tokens_or_blocks,
        "combine": source.combine.name.lower(),
    }
