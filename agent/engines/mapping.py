"""How the page of an engine becomes readings.

An Extractor reads the pages of one endpoint. What depends on names and labels alone is worked out once for each layout
of a page; a page that is laid out like the last one costs its numbers and nothing else. Extractors of one engine share
what they learn.

A page can end too early at the end of a line, and nothing on it tells. Where the transport has not shown that it is
whole, a sample whose group may go on behind the last line is refused as `cut_off`: a part of a sum is a wrong sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from agent.engines.table import MARKS, REFUSALS, Combine, Engine, Source
from agent.scrape.page import MAX_LAYOUTS, Layout, Layouts, PageRefused, Scanner, Series, is_metrics, number
from agent.signals import BLOCK_SIZE, BLOCKS, SIGNALS, Kind, Refusal, Value, admit

__all__ = ["MARKS", "REFUSALS", "Combine", "Engine", "Extraction", "Extractor", "Memory", "Source"]


class Extraction(NamedTuple):
    """What one page says: readings by signal, signals that it lacks, and values that were not let in (`REFUSALS`)."""

    readings: dict[str, Value]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


Made = Mapping[str, Value | Refusal]


class _Single(NamedTuple):
    """A signal that is the value of one series, and its bounds."""

    signal: str
    place: int
    low: float
    high: float


class _Several(NamedTuple):
    """Signals that are made of the values of several series."""

    places: tuple[int, ...]
    combine: Callable[[Sequence[float]], Made]


class _Chosen(NamedTuple):
    """The source that a signal has on this page, and its series: their places among the wanted ones."""

    source: Source
    places: tuple[int, ...]
    series: tuple[Series, ...]


class _Learnt(NamedTuple):
    """All that a page's layout tells of its readings; the rest is numbers."""

    singles: tuple[_Single, ...]
    several: tuple[_Several, ...]
    constant: Mapping[str, Value]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


class Memory:
    """What was learnt of one engine's pages, for its extractors to share."""

    def __init__(self, engine: Engine) -> None:
        self.layouts = Layouts()
        self._engine = engine
        self._learnt: dict[tuple[Layout, bool], _Learnt] = {}

    def learnt(self, page: bytes, layout: Layout, *, whole: bool) -> _Learnt:
        """What this layout tells; PageRefused when it has none of the engine's names."""
        known = self._learnt.get((layout, whole))
        if known is None:
            if len(self._learnt) >= MAX_LAYOUTS:
                self._learnt.clear()
            known = self._learnt[layout, whole] = _Learning(self._engine, page, layout, whole=whole).learnt()
        return known


class Extractor:
    """Reads the pages of one endpoint. What it remembers, alone or with others, makes it faster."""

    __slots__ = ("_layout", "_learnt", "_memory", "_scanner", "_whole")

    def __init__(self, engine: Engine, memory: Memory | None = None) -> None:
        self._memory = memory or Memory(engine)
        helps = {source.sample for sources in engine.sources.values() for source in sources if source.tokens_or_blocks}
        self._scanner = Scanner(engine.names(), helps, self._memory.layouts)
        self._layout: Layout | None = None
        self._whole = False
        self._learnt = _Learnt((), (), {}, (), ())

    def extract(self, page: bytes, *, whole: bool = False) -> Extraction:
        """The page's readings; PageRefused when it cannot be a page of this engine.

        `whole`: the transport has shown that nothing is missing at the end (a length, or a last chunk).
        """
        layout, values = self._scanner.read(page)
        if layout is not self._layout or whole is not self._whole:
            try:
                self._learnt = self._memory.learnt(page, layout, whole=whole)
            except PageRefused:
                # Names that every server has stood where they may stand on the next page too, beside this engine's.
                self._scanner.forget()
                raise
            self._layout, self._whole = layout, whole
        singles, several, constant, missing, refused_before = self._learnt
        readings = dict(constant)
        refused: list[Refusal] = []
        for signal, place, low, high in singles:
            value = values[place]
            if low <= value <= high:
                readings[signal] = value
            else:
                _let_in(signal, admit(signal, value), readings, refused)
        for places, combine in several:
            for signal, made in combine([values[place] for place in places]).items():
                _let_in(signal, made, readings, refused)
        return Extraction(readings, missing, (*refused_before, *refused) if refused else refused_before)


class _Learning:
    """Works out, once for each layout, all that depends on names and labels alone."""

    def __init__(self, engine: Engine, page: bytes, layout: Layout, *, whole: bool) -> None:
        self._engine = engine
        self._layout = layout
        self._whole = whole
        self._singles: list[_Single] = []
        self._several: list[_Several] = []
        names = [*(series.name for series in layout.series), *(line.name for line in layout.bad)]
        if not any(name.startswith(engine.marks) for name in names):
            raise PageRefused(*_whose(page, engine))

    def learnt(self) -> _Learnt:
        """The whole of it."""
        missing: list[str] = []
        refused: list[Refusal] = []
        constant: dict[str, Value] = {}
        chosen: dict[str, _Chosen] = {}
        spoilt = {line.name: line.text for line in self._layout.bad}
        for signal in self._engine.sources:
            found = self._choose(signal, spoilt)
            if found is None:
                missing.append(signal)
            elif isinstance(found, Refusal):
                refused.append(found)
            elif not self._whole and found.source.sample == self._layout.last:
                refused.append(Refusal(signal, "cut_off", found.series[-1].text))
            elif doubled := _doubled(found.series):
                refused.append(Refusal(signal, "duplicate_series", doubled))
            else:
                chosen[signal] = found
        newest: dict[tuple[int, ...], dict[str, _Chosen]] = {}
        for signal, found in chosen.items():
            if found.source.combine is Combine.NEWEST:
                newest.setdefault(found.places, {})[signal] = found
            elif found.source.label is not None:
                _let_in(signal, _from_labels(signal, found), constant, refused)
            else:
                problem = self._rule(signal, found, chosen)
                if problem is not None:
                    refused.append(problem)
        rank = self._engine.rank
        self._several += [_Several(places, _newest(told, rank)) for places, told in newest.items()]
        return _Learnt(tuple(self._singles), tuple(self._several), constant, tuple(missing), tuple(refused))

    def _choose(self, signal: str, spoilt: Mapping[str, str]) -> _Chosen | Refusal | None:
        """The newest source of which the page has a series; a refusal where one of its lines cannot be read."""
        for source in self._engine.sources[signal]:
            if source.sample in spoilt:
                return Refusal(signal, "bad_line", spoilt[source.sample])
            places = tuple(
                place
                for place, series in enumerate(self._layout.series)
                if series.name == source.sample
                and all(series.labels.get(label) == text for label, text in source.where.items())
                and (source.label is None or source.label in series.labels)
            )
            if places:
                return _Chosen(source, places, tuple(self._layout.series[place] for place in places))
        return None

    def _rule(self, signal: str, found: _Chosen, chosen: Mapping[str, _Chosen]) -> Refusal | None:
        """Take down how the value of this signal is made of those of its series; a refusal where it cannot be."""
        row = SIGNALS[signal]
        scale = 1.0
        if found.source.tokens_or_blocks:
            size = _from_labels(BLOCK_SIZE, chosen.get(BLOCK_SIZE))
            unit = _scale(signal, self._layout.helps[found.source.sample], size)
            if isinstance(unit, Refusal):
                return unit
            scale = unit
        if len(found.places) == 1 and scale == 1.0:
            self._singles.append(_Single(signal, found.places[0], row.low, row.high))
            return None
        weights = [1.0] * len(found.places)
        if found.source.combine is Combine.MEAN_BY_BLOCKS:
            blocks = _by_rank(chosen.get(BLOCKS), self._engine.rank)
            known = [blocks.get(series.labels.get(self._engine.rank, ""), 0.0) for series in found.series]
            if all(known):
                weights = known
            elif not self._whole:  # the line that tells the blocks may have followed
                return Refusal(signal, "cut_off", found.series[-1].text)
        self._several.append(_Several(found.places, _combination(signal, found.source.combine, weights, scale)))
        return None


def _let_in(signal: str, made: Value | Refusal, readings: dict[str, Value], refused: list[Refusal]) -> None:
    if isinstance(made, Refusal):
        refused.append(made)
    else:
        readings[signal] = made


def _doubled(series: Iterable[Series]) -> str:
    """The series that stands twice, as text; empty when none does."""
    seen: set[frozenset[tuple[str, str]]] = set()
    for one in series:
        labels = frozenset(one.labels.items())
        if labels in seen:
            return one.text
        seen.add(labels)
    return ""


def _scale(signal: str, words: str, block_size: Value | Refusal) -> float | Refusal:
    """By what a count of tokens or of blocks becomes tokens, given its HELP text."""
    if "block" in words:
        if isinstance(block_size, float):
            return block_size
        return Refusal(signal, "unknown_unit", "blocks of unknown size")
    return 1.0 if "token" in words else Refusal(signal, "unknown_unit", words or "no HELP text")


def _combination(
    signal: str, combine: Combine, weights: Sequence[float], scale: float
) -> Callable[[Sequence[float]], Made]:
    """How the values of several series make one; a value that is not let in makes none."""
    row = SIGNALS[signal]
    total = sum(weights)

    def make(values: Sequence[float]) -> Made:
        for value in values:
            if not row.low <= value <= row.high:
                return {signal: admit(signal, value)}
        if combine is Combine.MEAN_BY_BLOCKS:
            made = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
        elif combine is Combine.LATEST:
            made = max(values)
        elif combine is Combine.SAME:
            made = values[0]
            if min(values) != max(values):
                return {signal: Refusal(signal, "disagreement", f"{min(values):g} and {max(values):g}")}
        else:
            made = sum(values)
        return {signal: admit(signal, made * scale)}

    return make


def _newest(told: Mapping[str, _Chosen], rank: str) -> Callable[[Sequence[float]], Made]:
    """Of each engine's series the one with the largest value holds; what several engines tell is joined."""
    (series, *_) = (found.series for found in told.values())
    by_rank: dict[str, list[int]] = {}
    for place, one in enumerate(series):
        by_rank.setdefault(one.labels.get(rank, ""), []).append(place)
    known: dict[tuple[int, ...], Made] = {}

    def make(values: Sequence[float]) -> Made:
        holding: list[int] = []
        for places in by_rank.values():
            dated = [place for place in places if values[place] == values[place]]
            if not dated:
                return {signal: Refusal(signal, "not_finite", "the time of every series is NaN") for signal in told}
            holding.append(max(dated, key=values.__getitem__))
        key = tuple(holding)
        if key not in known:
            known[key] = {
                signal: _joined(signal, [series[place].labels[found.source.label or ""] for place in holding])
                for signal, found in told.items()
            }
        return known[key]

    return make


def _joined(signal: str, texts: Sequence[str]) -> Value | Refusal:
    """What the labels of the series that hold tell: their names together, or the largest number."""
    if SIGNALS[signal].kind is Kind.NAMES:
        return frozenset(name.strip() for text in texts for name in text.split(",") if name.strip())
    numbers = [_number_of(signal, text) for text in texts]
    refused = next((value for value in numbers if isinstance(value, Refusal)), None)
    return max(value for value in numbers if isinstance(value, float)) if refused is None else refused


def _from_labels(signal: str, found: _Chosen | None) -> Value | Refusal:
    """The value that the labels of an info sample tell."""
    texts = [series.labels[found.source.label or ""] for series in found.series] if found else []
    numbers = [_number_of(signal, text) for text in texts]
    refused = next((value for value in numbers if isinstance(value, Refusal)), None)
    if refused is not None or found is None:
        return refused or Refusal(signal, "not_a_number", "")
    values = [value for value in numbers if isinstance(value, float)]
    if found.source.combine is Combine.SAME and min(values) != max(values):
        return Refusal(signal, "disagreement", ", ".join(sorted(set(texts))))
    return admit(signal, sum(values)) if found.source.combine is Combine.SUM else max(values)


def _number_of(signal: str, text: str) -> float | Refusal:
    value = number(text.encode())
    return Refusal(signal, "not_a_number", text) if value is None else admit(signal, value, text)


def _by_rank(found: _Chosen | None, rank: str) -> dict[str, float]:
    """The blocks of each engine's cache, where labels tell them."""
    if found is None or found.source.label is None:
        return {}
    blocks: dict[str, float] = {}
    for series in found.series:
        told = _number_of(BLOCKS, series.labels[found.source.label])
        if isinstance(told, float):
            blocks[series.labels.get(rank, "")] = told
    return blocks


def _whose(page: bytes, wanted: Engine) -> tuple[str, str]:
    """Reason and detail for a page without any of the wanted engine's names: whose it looks to be, and what to do."""
    for mark, owner in MARKS.items():
        if owner != wanted.name and (b"\n" + mark.encode() in page or page.startswith(mark.encode())):
            return "wrong_engine", f"this is a page of {owner}, not of {wanted.name}: set the endpoint's engine to that"
    if not is_metrics(page):
        return "not_metrics", "no line of the page is in the Prometheus text format: is this the path of the metrics?"
    hint = f": {wanted.hint}" if wanted.hint else ""
    return "wrong_engine", f"the page has no metrics of {wanted.name} ({', '.join(wanted.marks)}...){hint}"
