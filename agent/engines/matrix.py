"""Which engine tells which signal, and where from: the engines' tables in words for people and for programs.

`igw signals` prints these, docs/signals.md and docs/engines.md carry them, and `tests/contract/test_engines.py` holds
the documents to them. A cell of the matrix is one of `LEGEND`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent.engines.table import Combine, Engine, Source
from agent.signals import HISTOGRAMS, MODELS, SIGNALS

YES: Final = "yes"
NAMED: Final = "named"
ASKED: Final = "asked"
NO: Final = "-"
LEGEND: Final[Mapping[str, str]] = {
    YES: "on the engine's page, in one release of it at least",
    NAMED: "on the page, and read only where `scrape.histograms` names it",
    ASKED: "not on the page; asked for at a path of its own",
    NO: "not told; `igw signals --engine NAME` says why",
}
WIDTH: Final = 100  # columns of the terminal that texts are laid out for
# Every row of the matrix.
ROWS: Final = (*SIGNALS, *HISTOGRAMS)
_GAP: Final = "  "
_HEAD: Final = "signal"


def cell(table: Engine, signal: str) -> str:
    """Whether this engine tells the signal, as a word of `LEGEND`."""
    if signal in table.sources:
        return YES
    if signal in table.histograms:
        return NAMED
    return ASKED if signal == MODELS and table.models_path is not None else NO


def origin(table: Engine, signal: str, quote: str = "") -> str:
    """Where the signal comes from, or `none` with the reason; `quote` is put around names of samples and labels."""
    if signal in table.silent:
        return f"none: {table.silent[signal]}"
    families = (f"{quote}{family}{quote}" for family in table.histograms.get(signal, ()))
    sources = (_written(source, quote) for source in table.sources.get(signal, ()))
    return ", else ".join((*sources, *families))


def combination(table: Engine, signal: str) -> str:
    """How several engines behind one port make one value, in the order of the sources; empty where there is none."""
    if signal in table.histograms:
        return "sum, bucket by bucket"
    return ", else ".join(dict.fromkeys(source.combine.value for source in table.sources.get(signal, ())))


def _written(source: Source, quote: str) -> str:
    where = ",".join(f'{label}="{text}"' for label, text in source.where.items())
    labels = "{" + where + "}" if where else ""
    text = " + ".join(f"{quote}{sample}{labels}{quote}" for sample in source.samples)
    if source.one_minus:
        text = f"1 - {text}"
    if source.label:
        text += f" label {quote}{source.label}{quote}"
    return text + (" in tokens or blocks, as its HELP says" if source.tokens_or_blocks else "")


# -- Markdown --------------------------------------------------------------------------------------------------------


def matrix_markdown(tables: Sequence[Engine]) -> Iterator[str]:
    """The matrix, line by line: a row for each signal, a column for each engine."""
    yield "| signal | " + " | ".join(f"`{table.name}`" for table in tables) + " |"
    yield "|---" * (len(tables) + 1) + "|"
    for signal in ROWS:
        yield f"| `{signal}` | " + " | ".join(cell(table, signal) for table in tables) + " |"


def engine_markdown(table: Engine) -> Iterator[str]:
    """One engine, line by line: a row for each signal."""
    yield "| signal | where it comes from | several engines behind one port |"
    yield "|---|---|---|"
    for signal in ROWS:
        how = combination(table, signal)
        yield f"| `{signal}` | {origin(table, signal, '`')} | {how + ' ' if how else ''}|"


# -- text ------------------------------------------------------------------------------------------------------------


def matrix_text(tables: Sequence[Engine]) -> Iterator[str]:
    """The matrix for a terminal, in several blocks where the engines do not fit beside each other."""
    first = max(map(len, (*ROWS, _HEAD)))
    for number, block in enumerate(_blocks(tables, WIDTH - first)):
        if number:
            yield ""
        headings = [_folded(table.name) for table in block]
        widths = [_width(table) for table in block]
        for line in range(max(map(len, headings))):
            words = [heading[line] if line < len(heading) else "" for heading in headings]
            yield _line(_HEAD if not line else "", first, words, widths)
        for signal in ROWS:
            yield _line(signal, first, [cell(table, signal) for table in block], widths)
    yield ""
    used = {cell(table, signal) for table in tables for signal in ROWS}
    yield from (f"{mark:<5}  {meaning}" for mark, meaning in LEGEND.items() if mark in used)


def engine_text(table: Engine) -> Iterator[str]:
    """One engine for a terminal: its paths, and each signal with its sources or the reason why it has none."""
    yield f"engine {table.name}"
    first = max(map(len, ROWS)) + len(_GAP)
    for what, text in (
        ("page", table.page_path + (f", port {table.ports.page}" if table.ports else "")),
        ("health", (table.health_path or "none") + (f", port {table.ports.health}" if table.ports else "")),
        ("models", table.models_path or "none"),
        ("its names begin with", ", ".join(table.marks)),
        ("labels of its engines", ", ".join(table.rank)),
        ("labels of their copies", ", ".join(table.copies)),
        ("where its names are missing", table.hint),
    ):
        if text:
            yield from _wrapped(f"{_GAP + what:<{first}}{text}", first)
    yield ""
    for signal in ROWS:
        how = combination(table, signal)
        beside = "" if how in {"", Combine.SUM.value} else f" ({how})"
        text = f"{signal:<{first}}{origin(table, signal)}{beside}"
        yield from _wrapped(text, first)
    yield ""
    yield "Several engines behind one port are summed where nothing in brackets says otherwise."


def _wrapped(text: str, first: int) -> list[str]:
    """What goes on below itself, behind the first column; names are never broken."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * first, break_long_words=False, break_on_hyphens=False)


def _blocks(tables: Sequence[Engine], room: int) -> Iterator[list[Engine]]:
    """The engines in groups that fit into so many columns; one that is too wide stands alone."""
    block: list[Engine] = []
    left = room
    for table in tables:
        needed = _width(table) + len(_GAP)
        if block and needed > left:
            yield block
            block, left = [], room
        block.append(table)
        left -= needed
    if block:
        yield block


def _folded(name: str) -> list[str]:
    """A long name in lines that break behind its hyphens."""
    parts = name.split("-")
    return [f"{part}-" for part in parts[:-1]] + parts[-1:]


def _width(table: Engine) -> int:
    return max(*map(len, LEGEND), *map(len, _folded(table.name)))


def _line(name: str, first: int, words: Sequence[str], widths: Sequence[int]) -> str:
    cells = (f"{_GAP}{word:<{width}}" for word, width in zip(words, widths, strict=True))
    return f"{name:<{first}}{''.join(cells)}".rstrip()


# -- JSON ------------------------------------------------------------------------------------------------------------


def document(tables: Sequence[Engine]) -> dict[str, Any]:
    """The same for programs: by engine, its paths and its signals with all of their sources."""
    return {"engines": {table.name: _engine(table) for table in tables}}


def _engine(table: Engine) -> dict[str, Any]:
    return {
        "page_path": table.page_path,
        "health_path": table.health_path,
        "page_port": table.ports.page if table.ports else None,
        "health_port": table.ports.health if table.ports else None,
        "models_path": table.models_path,
        "marks": list(table.marks),
        "rank_labels": list(table.rank),
        "copy_labels": list(table.copies),
        "hint": table.hint,
        "signals": {
            name: {
                "told": cell(table, name),
                "unit": row.unit,
                "kind": row.kind.value,
                "sources": [_source(source) for source in table.sources.get(name, ())],
                "silent": table.silent.get(name),
            }
            for name, row in SIGNALS.items()
        },
        "histograms": {
            name: {
                "told": cell(table, name),
                "unit": row.unit,
                "families": list(table.histograms.get(name, ())),
                "silent": table.silent.get(name),
            }
            for name, row in HISTOGRAMS.items()
        },
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "samples": list(source.samples),
        "where": dict(source.where),
        "label": source.label,
        "one_minus": source.one_minus,
        "tokens_or_blocks": source.tokens_or_blocks,
        "combine": source.combine.name.lower(),
    }
