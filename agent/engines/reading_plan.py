"""How pages of one layout are read: for each signal the source, its series, and their combination.

Everything that depends on names and labels alone is computed here, once per layout; reading another page with the same
layout only takes its numbers. Where the end of the page may be cut off, a signal that could have further series there
is refused: a partial sum is not a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from agent.engines.recognition import advice, other
from agent.engines.table import Engine, SeriesCombination, SignalSource
from agent.exposition.page import Layout, PageRefused, Series, is_metrics, parse_number
from agent.signals import BLOCK_SIZE, BLOCKS, RUNNING, SIGNALS, RefusedValue, SignalKind, Value, admit

CombinedValues = Mapping[str, Value | RefusedValue]


class Single(NamedTuple):
    """A signal that is the value of one series, and its valid range."""

    signal: str
    place: int
    low: float
    high: float


class Several(NamedTuple):
    """Signals that are computed from the values of several series."""

    places: tuple[int, ...]
    combine: Callable[[Sequence[float]], CombinedValues]


class _ChosenSource(NamedTuple):
    """The source of a signal on this page, its series, and their places among the wanted series."""

    source: SignalSource
    places: tuple[int, ...]
    series: tuple[Series, ...]


class ReadingPlan(NamedTuple):
    """How the values of a page become readings.

    `singles` and `several` are computed for each page; `constant`, `missing` and `refused` only depend on the layout.
    `places` are the places of each signal's series, where lines have timestamps.
    """

    singles: tuple[Single, ...]
    several: tuple[Several, ...]
    constant: Mapping[str, Value]
    missing: tuple[str, ...]
    refused: tuple[RefusedValue, ...]
    places: Mapping[str, tuple[int, ...]] = {}


def plan_readings(engine: Engine, page: bytes, layout: Layout, *, whole: bool) -> ReadingPlan:
    """The plan for pages of this layout; PageRefused when the page is not the engine's. `whole`: it is not cut off."""
    return _Planner(engine, page, layout, whole=whole).plan()


class _Planner:
    """Makes the plan for one layout."""

    def __init__(self, engine: Engine, page: bytes, layout: Layout, *, whole: bool) -> None:
        self._engine = engine
        self._layout = layout
        self._whole = whole
        self._singles: list[Single] = []
        self._several: list[Several] = []
        names = {*(series.name for series in layout.series), *(line.name for line in layout.bad)}
        foreign = next((owner for name, owner in engine.foreign_samples.items() if name in names), "")
        if foreign or not any(name.startswith(engine.prefixes) for name in names):
            raise PageRefused(*_not_of_engine(page, engine, foreign))

    def plan(self) -> ReadingPlan:
        """The plan."""
        missing: list[str] = []
        refused: list[RefusedValue] = []
        constant: dict[str, Value] = {}
        chosen: dict[str, _ChosenSource] = {}
        spoilt = {line.name: line.text for line in self._layout.bad}
        for signal in self._engine.sources:
            found = self._choose(signal, spoilt)
            if found is None:
                missing.append(signal)
            elif isinstance(found, RefusedValue):
                refused.append(found)
            elif not self._whole and self._layout.last in found.source.samples:
                refused.append(RefusedValue(signal, "cut_off", found.series[-1].text))
            elif duplicate := _duplicate(found.series):
                refused.append(RefusedValue(signal, "duplicate_series", duplicate))
            else:
                chosen[signal] = found
        newest: dict[tuple[int, ...], dict[str, _ChosenSource]] = {}
        for signal, found in chosen.items():
            if found.source.combine is SeriesCombination.NEWEST:
                newest.setdefault(found.places, {})[signal] = found
            elif found.source.label is not None:
                add_value(signal, self._label_value(signal, found, chosen), constant, refused)
            else:
                problem = self._add_rule(signal, found, chosen)
                if problem is not None:
                    refused.append(problem)
        rank = self._engine.rank_labels
        self._several += [Several(places, _newest(sources, rank)) for places, sources in newest.items()]
        places = {signal: found.places for signal, found in chosen.items()} if self._layout.stamps else {}
        return ReadingPlan(tuple(self._singles), tuple(self._several), constant, tuple(missing), tuple(refused), places)

    def _choose(self, signal: str, spoilt: Mapping[str, str]) -> _ChosenSource | RefusedValue | None:
        """The first source that the page has; refused where one of its lines cannot be parsed."""
        for source in self._engine.sources[signal]:
            places: list[int] = []
            for sample in source.samples:
                if sample in spoilt:
                    return RefusedValue(signal, "bad_line", spoilt[sample])
                found = [
                    place
                    for place, series in enumerate(self._layout.series)
                    if series.name == sample
                    and all(series.labels.get(label, "") == text for label, text in source.where.items())
                    and (source.label is None or source.label in series.labels)
                ]
                if not found and places and not self._whole:  # the missing part of the sum may be cut off
                    return RefusedValue(signal, "cut_off", self._layout.series[places[-1]].text)
                if not found:
                    break
                places += _without_copies(found, self._layout.series, self._engine.copy_labels)
            else:
                return _ChosenSource(source, tuple(places), tuple(self._layout.series[place] for place in places))
        return None

    def _label_value(
        self, signal: str, found: _ChosenSource, chosen: Mapping[str, _ChosenSource]
    ) -> Value | RefusedValue:
        """The value in labels; PER_ENGINE multiplies it by the number of engines on the page."""
        value = _from_labels(signal, found)
        if found.source.combine is not SeriesCombination.PER_ENGINE or not isinstance(value, float):
            return value
        engines = chosen.get(RUNNING)
        if engines is None and not self._whole:
            return RefusedValue(signal, "cut_off", found.series[-1].text)
        return admit(signal, value * len(engines.places)) if engines else value

    def _add_rule(self, signal: str, found: _ChosenSource, chosen: Mapping[str, _ChosenSource]) -> RefusedValue | None:
        """Add the rule that computes this signal from the values of its series; refused where there is none."""
        row = SIGNALS[signal]
        scale = 1.0
        if found.source.tokens_or_blocks:
            size = _from_labels(BLOCK_SIZE, chosen.get(BLOCK_SIZE))
            unit = _scale(signal, self._layout.helps[found.source.sample], size)
            if isinstance(unit, RefusedValue):
                return unit
            scale = unit
        if len(found.places) == 1 and scale == 1.0 and not found.source.one_minus:
            self._singles.append(Single(signal, found.places[0], row.low, row.high))
            return None
        weights: Sequence[float] | None = [1.0] * len(found.places)
        places = found.places
        if found.source.combine is SeriesCombination.MEAN_BY_BLOCKS and len(places) > 1:
            ranks = [_rank_of(series, self._engine.rank_labels) for series in found.series]
            blocks, places_of_blocks = _blocks_by_rank(chosen.get(BLOCKS), self._engine.rank_labels)
            if all(rank in blocks for rank in ranks):
                weights = [blocks[rank] for rank in ranks]
            elif all(rank in places_of_blocks for rank in ranks):
                weights, places = None, (*places, *(places_of_blocks[rank] for rank in ranks))
            elif not self._whole:  # the line with the number of blocks may be cut off
                return RefusedValue(signal, "cut_off", found.series[-1].text)
        self._several.append(Several(places, _combination(signal, found.source, weights, scale)))
        return None


def _without_copies(places: Sequence[int], series: Sequence[Series], copy_labels: Sequence[str]) -> list[int]:
    """The places of the series that count: of several copies of one series, the one with the lowest copy labels."""
    if not copy_labels:
        return list(places)

    def copy_number(place: int) -> list[tuple[int, str]]:
        return [(len(text), text) for text in (series[place].labels.get(label, "") for label in copy_labels)]

    groups: dict[frozenset[tuple[str, str]], list[int]] = {}
    for place in places:
        labels = series[place].labels.items()
        groups.setdefault(frozenset(pair for pair in labels if pair[0] not in copy_labels), []).append(place)
    kept: list[int] = []
    for group in groups.values():
        low = min(map(copy_number, group))
        kept += [place for place in group if copy_number(place) == low]
    return sorted(kept)


def _rank_of(series: Series, rank_labels: Sequence[str]) -> tuple[str, ...]:
    """Which engine of its server a series belongs to."""
    return tuple(series.labels.get(label, "") for label in rank_labels)


def add_value(signal: str, made: Value | RefusedValue, readings: dict[str, Value], refused: list[RefusedValue]) -> None:
    """Add a value to the readings, or a refused one to the refused."""
    if isinstance(made, RefusedValue):
        refused.append(made)
    else:
        readings[signal] = made


def _duplicate(series: Iterable[Series]) -> str:
    """The text of a series that is on the page twice; empty when there is none."""
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for one in series:
        # Prometheus treats a label with an empty value as a missing label.
        identity = one.name, frozenset((label, text) for label, text in one.labels.items() if text)
        if identity in seen:
            return one.text
        seen.add(identity)
    return ""


def _scale(signal: str, help_text: str, block_size: Value | RefusedValue) -> float | RefusedValue:
    """The factor that converts a count of tokens or blocks to tokens, by its HELP text."""
    if "block" in help_text:
        if isinstance(block_size, float):
            return block_size
        return RefusedValue(signal, "unknown_unit", "blocks of unknown size")
    return 1.0 if "token" in help_text else RefusedValue(signal, "unknown_unit", help_text or "no HELP text")


def _combination(
    signal: str, source: SignalSource, weights: Sequence[float] | None, scale: float
) -> Callable[[Sequence[float]], CombinedValues]:
    """The function that combines the values of several series; it refuses all of them if one is out of range.

    `weights` are those of a mean. None: the weights are values of the page too, and follow the values.
    """
    row, combine = SIGNALS[signal], source.combine

    def make(values: Sequence[float]) -> CombinedValues:
        parts = values if weights is not None else values[: len(values) // 2]
        for value in parts:
            if not row.low <= value <= row.high:
                return {signal: admit(signal, value)}
        if combine is SeriesCombination.MEAN_BY_BLOCKS:
            by = weights if weights is not None else _blocks_or_equal(values[len(parts) :])
            made = sum((weight * value for weight, value in zip(by, parts, strict=True)), 0.0) / sum(by, 0.0)
        elif combine is SeriesCombination.MAX:
            made = max(parts)
        elif combine is SeriesCombination.MIN:
            made = min(parts)
        elif combine is SeriesCombination.SAME:
            made = parts[0]
            if min(parts) != max(parts):
                return {signal: RefusedValue(signal, "disagreement", f"{min(parts):g} and {max(parts):g}")}
        else:
            made = sum(parts)
        return {signal: admit(signal, 1.0 - made if source.one_minus else made * scale)}

    return make


def _blocks_or_equal(values: Sequence[float]) -> Sequence[float]:
    """The values as counts of blocks, or equal weights where one of them is out of range."""
    row = SIGNALS[BLOCKS]
    return values if all(row.low <= value <= row.high for value in values) else [1.0] * len(values)


def _newest(
    sources: Mapping[str, _ChosenSource], rank_labels: Sequence[str]
) -> Callable[[Sequence[float]], CombinedValues]:
    """The function that takes, for each engine, the labels of the series with the largest value, and joins them."""
    (series, *_) = (found.series for found in sources.values())
    by_rank: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(series):
        by_rank.setdefault(_rank_of(one, rank_labels), []).append(place)
    known: dict[tuple[int, ...], CombinedValues] = {}

    def make(values: Sequence[float]) -> CombinedValues:
        current: list[int] = []
        for places in by_rank.values():
            dated = [place for place in places if values[place] == values[place]]
            if not dated:
                return {
                    signal: RefusedValue(signal, "not_finite", "the time of every series is NaN") for signal in sources
                }
            current.append(max(dated, key=values.__getitem__))
        key = tuple(current)
        if key not in known:
            known[key] = {
                signal: _joined(signal, [series[place].labels[found.source.label or ""] for place in current])
                for signal, found in sources.items()
            }
        return known[key]

    return make


def _joined(signal: str, texts: Sequence[str]) -> Value | RefusedValue:
    """The union of the names in the texts, or the largest of their numbers."""
    if SIGNALS[signal].kind is SignalKind.NAMES:
        return frozenset(name.strip() for text in texts for name in text.split(",") if name.strip())
    numbers = [_number_of(signal, text) for text in texts]
    refused = next((value for value in numbers if isinstance(value, RefusedValue)), None)
    return max(value for value in numbers if isinstance(value, float)) if refused is None else refused


def _from_labels(signal: str, found: _ChosenSource | None) -> Value | RefusedValue:
    """The value in the labels of an info sample."""
    texts = [series.labels[found.source.label or ""] for series in found.series] if found else []
    numbers = [_number_of(signal, text) for text in texts]
    refused = next((value for value in numbers if isinstance(value, RefusedValue)), None)
    if refused is not None or found is None:
        return refused or RefusedValue(signal, "not_a_number", "")
    values = [value for value in numbers if isinstance(value, float)]
    combine = found.source.combine
    if combine in {SeriesCombination.SAME, SeriesCombination.PER_ENGINE} and min(values) != max(values):
        return RefusedValue(signal, "disagreement", ", ".join(sorted(set(texts))))
    return admit(signal, sum(values)) if combine is SeriesCombination.SUM else max(values)


def _number_of(signal: str, text: str) -> float | RefusedValue:
    value = parse_number(text.encode())
    return RefusedValue(signal, "not_a_number", text) if value is None else admit(signal, value, text)


def _blocks_by_rank(
    found: _ChosenSource | None, rank_labels: Sequence[str]
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], int]]:
    """By engine: the blocks of its cache, where these are in labels; else the places of the values with the blocks."""
    if found is None or found.source.combine is SeriesCombination.PER_ENGINE:
        return {}, {}
    ranks = [_rank_of(series, rank_labels) for series in found.series]
    if found.source.label is None:
        return {}, dict(zip(ranks, found.places, strict=True))
    numbers = [_number_of(BLOCKS, series.labels[found.source.label]) for series in found.series]
    return {one: blocks for one, blocks in zip(ranks, numbers, strict=True) if isinstance(blocks, float)}, {}


def _not_of_engine(page: bytes, wanted: Engine, foreign: str) -> tuple[str, str]:
    """Reason and detail for a page that is not the wanted engine's: which engine it is of, and what to do."""
    owner = foreign or other(page, wanted.name)
    if owner:
        return "wrong_engine", f"this is a page of {owner}, not of {wanted.name}: {advice(owner)}"
    if not is_metrics(page):
        return "not_metrics", "no line of the page is in the Prometheus text format: is this the path of the metrics?"
    hint = f": {wanted.hint}" if wanted.hint else ""
    return "wrong_engine", f"the page has no metrics of {wanted.name} ({', '.join(wanted.prefixes)}...){hint}"
