"""How pages of one layout are read: for each signal the source, its series, and their combination.

Everything that depends on names and labels alone is computed here, once per layout; reading another page with the same
layout only takes its numbers. Where the end of the page may be cut off, a signal that could have further series there
is refused: a partial sum is not a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum, isnan
from typing import Final, NamedTuple

from agent.engines.recognition import advice, no_engine, other
from agent.engines.table import PROCESS_LABELS, Engine, SeriesCombination, SignalSource
from agent.exposition.page import Layout, PageRefused, Series, parse_number
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    RUNNING,
    SIGNALS,
    TIME_MAX,
    TIME_MIN,
    RefusedValue,
    SignalKind,
    Value,
    admit,
)

CombinedValues = Mapping[str, Value | RefusedValue]
_UNSET: Final = "None"  # Python's text for a setting without a value, in a label


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


class _Part(NamedTuple):
    """Series of one part of a value, by their order in the source: one, or several that differ in a label that is
    neither of an engine nor of a part. `labels` are these labels; `processes`: all of them are of processes."""

    order: tuple[int, ...]
    labels: tuple[str, ...] = ()
    processes: bool = False


class _ChosenSource(NamedTuple):
    """The source of a signal on this page, its series, their places among the wanted series, and its parts.

    `only_if_zero`: the parts are not known to be of one sum, which is a value only where it is 0.
    """

    source: SignalSource
    places: tuple[int, ...]
    series: tuple[Series, ...]
    parts: tuple[_Part, ...]
    only_if_zero: bool = False

    @property
    def ambiguous(self) -> bool:
        """Whether more than the values of parts has to be known."""
        return self.only_if_zero or any(part.labels for part in self.parts)


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
        self._places: dict[str, list[int]] = {}  # by name
        for place, series in enumerate(layout.series):
            self._places.setdefault(series.name, []).append(place)
        names = {*self._places, *(line.name for line in layout.bad)}
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
            combine = found.source.combine
            if combine is SeriesCombination.NEWEST:
                newest.setdefault(found.places, {})[signal] = found
            elif found.source.label is not None:
                add_value(signal, self._label_value(signal, found, chosen), constant, refused)
            else:
                problem = self._add_rule(signal, found, chosen)
                if problem is not None:
                    refused.append(problem)
        for places_of_times, sources in newest.items():
            rank = self._engine.rank_labels
            unknown = any(self._of_unknown_engine(found.series) for found in sources.values())
            self._several.append(Several(places_of_times, _newest(sources, rank, of_unknown_engine=unknown)))
        places = {signal: found.places for signal, found in chosen.items()} if self._layout.stamps else {}
        return ReadingPlan(tuple(self._singles), tuple(self._several), constant, tuple(missing), tuple(refused), places)

    def _choose(self, signal: str, spoilt: Mapping[str, str]) -> _ChosenSource | RefusedValue | None:
        """The first source that the page has and that is not ambiguous, else the first one that it has; refused where
        one of its lines cannot be parsed."""
        first: _ChosenSource | None = None
        for source in self._engine.sources[signal]:
            found = self._find(signal, source, spoilt)
            if isinstance(found, RefusedValue):
                return first or found
            if found is not None and not found.ambiguous:
                return found
            first = first or found
        return first

    def _find(
        self, signal: str, source: SignalSource, spoilt: Mapping[str, str]
    ) -> _ChosenSource | RefusedValue | None:
        """The source on this page; None where the page lacks it, refused where one of its lines cannot be parsed."""
        places: list[int] = []
        alternatives = [*((sample,) for sample in (source.sample, *source.added)), *source.optional]
        needed = 1 + len(source.added)
        followed = any(name in self._places for name in source.followed_by)
        for number, names in enumerate(alternatives):
            found: list[int] = []
            for sample in names:
                if sample in spoilt:
                    return RefusedValue(signal, "bad_line", spoilt[sample])
                found = found or self._places_of(signal, source, sample)
            if not found and places and not self._whole and not followed:  # the missing part of the sum may be cut off
                return RefusedValue(signal, "cut_off", self._layout.series[places[-1]].text)
            if not found and number < needed:
                return None
            places += _without_copies(found, self._layout.series, self._engine.copy_labels)
        kept, certain = self._without_steps(source, places)
        series = tuple(self._layout.series[place] for place in kept)
        return _ChosenSource(source, tuple(kept), series, self._parts(signal, source, series), not certain)

    def _places_of(self, signal: str, source: SignalSource, sample: str) -> list[int]:
        """The places of this sample's series that the source is read from."""
        places, label, series = self._places.get(sample, []), source.label, self._layout.series
        for name, text in source.where.items():
            places = [place for place in places if series[place].labels.get(name, "") == text]
        if label is None:
            return places
        unset = "" if SIGNALS[signal].kind is SignalKind.NAMES else _UNSET
        return [
            place
            for place in places
            if label in series[place].labels and (not unset or series[place].labels[label] != unset)
        ]

    def _without_steps(self, source: SignalSource, places: list[int]) -> tuple[list[int], bool]:
        """The places of the models whose requests count; all of them, and False, where that is not known."""
        if source.steps is None:
            return places, True
        label = source.steps.label
        names = [self._layout.series[place].labels.get(label, "") for place in places]
        counted = source.steps.counted(names)
        kept = [place for place, name in zip(places, names, strict=True) if name in counted]
        return (kept, True) if kept else (places, False)

    def _parts(self, signal: str, source: SignalSource, series: Sequence[Series]) -> tuple[_Part, ...]:
        """The parts of the value. Series of a counter are parts whatever their labels: each counts its own events."""
        engine = self._engine
        if source.label is not None or SIGNALS[signal].kind is not SignalKind.GAUGE:
            return tuple(_Part((order,)) for order in range(len(series)))
        known = {*engine.rank_labels, *engine.part_labels, *engine.copy_labels}
        if len(series) == 1:
            return (_Part((0,)),)
        groups: dict[tuple[str, frozenset[tuple[str, str]]], list[int]] = {}
        for order, one in enumerate(series):
            identity = frozenset(
                (label, text)
                for label, text in one.labels.items()
                if text and (label in known or (source.any_part and label not in PROCESS_LABELS))
            )
            groups.setdefault((one.name, identity), []).append(order)
        return tuple(_part(group, series) for group in groups.values())

    def _of_unknown_engine(self, series: Sequence[Series]) -> bool:
        """Whether these series name no engine on a page of several engines."""
        labels = self._engine.rank_labels
        if not labels or any(any(_rank_of(one, labels)) for one in series):
            return False
        prefixes = self._engine.prefixes
        ranks = {_rank_of(one, labels) for one in self._layout.series if one.name.startswith(prefixes)}
        return len([rank for rank in ranks if any(rank)]) > 1

    def _label_value(
        self, signal: str, found: _ChosenSource, chosen: Mapping[str, _ChosenSource]
    ) -> Value | RefusedValue:
        """The value in labels; PER_ENGINE multiplies it by the number of engines on the page."""
        combine = found.source.combine
        if combine is SeriesCombination.SUM and self._of_unknown_engine(found.series):
            return RefusedValue(signal, "ambiguous", found.series[0].text)
        value = _from_labels(signal, found, self._engine.rank_labels)
        if combine is not SeriesCombination.PER_ENGINE or not isinstance(value, float):
            return value
        engines = chosen.get(RUNNING)
        if engines is None and not self._whole:
            return RefusedValue(signal, "cut_off", found.series[-1].text)
        return admit(signal, value * len(engines.parts)) if engines else value

    def _add_rule(self, signal: str, found: _ChosenSource, chosen: Mapping[str, _ChosenSource]) -> RefusedValue | None:
        """Add the rule that computes this signal from the values of its series; refused where there is none."""
        row = SIGNALS[signal]
        scale = 1.0
        if found.source.tokens_or_blocks:
            size = _from_labels(BLOCK_SIZE, chosen.get(BLOCK_SIZE), self._engine.rank_labels)
            unit = _scale(signal, self._layout.helps[found.source.sample], size)
            if isinstance(unit, RefusedValue):
                return unit
            scale = unit
        if len(found.places) == 1 and scale == 1.0 and not found.source.one_minus and not found.only_if_zero:
            self._singles.append(Single(signal, found.places[0], row.low, row.high))
            return None
        parts = found.parts
        weights: Sequence[float] | None = [1.0] * len(parts)
        places = found.places
        if found.source.combine is SeriesCombination.MEAN_BY_BLOCKS and len(parts) > 1:
            ranks = [_rank_of(found.series[part.order[0]], self._engine.rank_labels) for part in parts]
            blocks, places_of_blocks = _blocks_by_rank(chosen.get(BLOCKS), self._engine.rank_labels)
            if all(rank in blocks for rank in ranks):
                weights = [blocks[rank] for rank in ranks]
            elif all(rank in places_of_blocks for rank in ranks):
                weights, places = None, (*places, *(places_of_blocks[rank] for rank in ranks))
            elif not self._whole:  # the line with the number of blocks may be cut off
                return RefusedValue(signal, "cut_off", found.series[-1].text)
        self._several.append(Several(places, _combination(signal, found, weights, scale)))
        return None


def _part(group: Sequence[int], series: Sequence[Series]) -> _Part:
    """One part of a value, of these series."""
    if len(group) == 1:
        return _Part(tuple(group))
    labels = [frozenset((label, text) for label, text in series[order].labels.items() if text) for order in group]
    common = labels[0].intersection(*labels)
    different = {label for pairs in labels for label, _ in pairs - common}
    return _Part(tuple(group), tuple(sorted(different)), different <= PROCESS_LABELS)


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
    signal: str, found: _ChosenSource, weights: Sequence[float] | None, scale: float
) -> Callable[[Sequence[float]], CombinedValues]:
    """The function that combines the values of several series; it refuses all of them if one is out of range.

    `weights` are those of a mean, one for each part. None: the weights are values of the page too, and follow the
    values. Sums are exact, so that the order of the series has no influence.
    """
    row, source, combine, parts = SIGNALS[signal], found.source, found.source.combine, found.parts
    simple = all(len(part.order) == 1 for part in parts)
    count = len(found.places)

    def make(values: Sequence[float]) -> CombinedValues:
        own: Sequence[float] = values if weights is not None else values[:count]
        if not simple:
            merged = _merged(signal, combine, parts, own, [series.text for series in found.series])
            if isinstance(merged, RefusedValue):
                return {signal: merged}
            own = merged
        for value in own:
            if not row.low <= value <= row.high:
                return {signal: admit(signal, value)}
        if combine is SeriesCombination.MEAN_BY_BLOCKS:
            by = weights if weights is not None else _blocks_or_equal(values[count:])
            made = fsum(weight * value for weight, value in zip(by, own, strict=True)) / fsum(by)
        elif combine is SeriesCombination.MAX:
            made = max(own)
        elif combine is SeriesCombination.MIN:
            made = min(own)
        elif combine is SeriesCombination.SAME:
            made = own[0]
            if min(own) != max(own):
                return {signal: RefusedValue(signal, "disagreement", f"{min(own):g} and {max(own):g}")}
        else:
            made = fsum(own)
        if found.only_if_zero and made != 0.0:
            return {signal: RefusedValue(signal, "ambiguous", found.series[0].text)}
        return {signal: admit(signal, 1.0 - made if source.one_minus else made * scale)}

    return make


def _merged(
    signal: str, combine: SeriesCombination, parts: Sequence[_Part], values: Sequence[float], texts: Sequence[str]
) -> list[float] | RefusedValue:
    """The value of each part. Of the series of several processes the largest value: one process reports, and the others
    keep an older value or 0. Where it is not known what a label means, the value is refused, unless it would be the
    same for series of parts and for series of processes."""
    found: list[float] = []
    for part in parts:
        several = [values[order] for order in part.order]
        if any(map(isnan, several)):
            return RefusedValue(signal, "not_finite", "nan")
        low, largest = min(several), max(several)
        if low < min(SIGNALS[signal].low, 0.0):
            return RefusedValue(signal, "out_of_range", repr(low))
        if len(several) > 1 and not part.processes:
            agree = fsum(several) == largest if combine is SeriesCombination.SUM else low == largest
            if not agree:
                which = " and ".join(part.labels)
                return RefusedValue(signal, "ambiguous", f"{texts[part.order[0]]}: series that differ in {which}")
        found.append(largest)
    return found


def _blocks_or_equal(values: Sequence[float]) -> Sequence[float]:
    """The values as counts of blocks, or equal weights where one of them is out of range."""
    row = SIGNALS[BLOCKS]
    return values if all(row.low <= value <= row.high for value in values) else [1.0] * len(values)


def _newest(
    sources: Mapping[str, _ChosenSource], rank_labels: Sequence[str], *, of_unknown_engine: bool
) -> Callable[[Sequence[float]], CombinedValues]:
    """The function that takes, for each engine, the labels of the series with the largest value, and joins them.

    A value that is not a time dates nothing: processes of one server add up their times. `of_unknown_engine`: the
    series name no engine, and there are several. What is not known to be the newest is refused, but for a number that
    is the same in all series.
    """
    (series, *_) = (found.series for found in sources.values())
    by_rank: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(series):
        by_rank.setdefault(_rank_of(one, rank_labels), []).append(place)
    known: dict[tuple[int, ...], CombinedValues] = {}
    undated = _undated(sources, "not_a_time", "the value of no series is a time")
    unknown = _undated(sources, "ambiguous", series[0].text)
    # Of two series with one time the order on the page must not decide.
    names = [sorted(one.labels.items()) for one in series]

    def make(values: Sequence[float]) -> CombinedValues:
        if of_unknown_engine:
            return unknown
        current: list[int] = []
        for places in by_rank.values():
            dated = [place for place in places if TIME_MIN <= values[place] <= TIME_MAX]
            if not dated:
                return undated
            current.append(max(dated, key=lambda place: (values[place], names[place])))
        key = tuple(current)
        if key not in known:
            known[key] = {
                signal: _joined(signal, [series[place].labels[found.source.label or ""] for place in current])
                for signal, found in sources.items()
            }
        return known[key]

    return make


def _undated(sources: Mapping[str, _ChosenSource], reason: str, text: str) -> CombinedValues:
    """What holds without a time: numbers that are the same in all series."""
    made: dict[str, Value | RefusedValue] = {}
    for signal, found in sources.items():
        texts = {one.labels[found.source.label or ""] for one in found.series}
        number = SIGNALS[signal].kind is not SignalKind.NAMES and len(texts) == 1
        made[signal] = _joined(signal, list(texts)) if number else RefusedValue(signal, reason, text)
    return made


def _joined(signal: str, texts: Sequence[str]) -> Value | RefusedValue:
    """The union of the names in the texts, or the largest of their numbers."""
    if SIGNALS[signal].kind is SignalKind.NAMES:
        return frozenset(name.strip() for text in texts for name in text.split(",") if name.strip())
    numbers = [_number_of(signal, text) for text in texts]
    refused = next((value for value in numbers if isinstance(value, RefusedValue)), None)
    return max(value for value in numbers if isinstance(value, float)) if refused is None else refused


def _from_labels(signal: str, found: _ChosenSource | None, rank_labels: Sequence[str]) -> Value | RefusedValue:
    """The value in the labels of an info sample; of several series of one engine all have to have the same."""
    if found is None:
        return RefusedValue(signal, "not_a_number", "")
    label, combine = found.source.label or "", found.source.combine
    by_rank: dict[tuple[str, ...], float] = {}
    for series in found.series:
        number = _number_of(signal, series.labels[label])
        if isinstance(number, RefusedValue):
            return number
        rank = _rank_of(series, rank_labels) if combine is SeriesCombination.SUM else ()
        if by_rank.setdefault(rank, number) != number and combine is not SeriesCombination.MAX:
            texts = sorted({one.labels[label] for one in found.series})
            return RefusedValue(signal, "disagreement", ", ".join(texts))
        by_rank[rank] = max(by_rank[rank], number)
    return admit(signal, fsum(by_rank.values()))


def _number_of(signal: str, text: str) -> float | RefusedValue:
    value = parse_number(text.encode())
    return RefusedValue(signal, "not_a_number", text) if value is None else admit(signal, value, text)


def _blocks_by_rank(
    found: _ChosenSource | None, rank_labels: Sequence[str]
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], int]]:
    """By engine: the blocks of its cache, where these are in labels; else the places of the values with the blocks.
    Empty where an engine has several numbers of blocks."""
    if found is None or found.source.combine is SeriesCombination.PER_ENGINE or found.ambiguous:
        return {}, {}
    ranks = [_rank_of(series, rank_labels) for series in found.series]
    if found.source.label is None:
        return {}, dict(zip(ranks, found.places, strict=True)) if len(set(ranks)) == len(ranks) else {}
    numbers = [_number_of(BLOCKS, series.labels[found.source.label]) for series in found.series]
    blocks = {(rank, number) for rank, number in zip(ranks, numbers, strict=True) if isinstance(number, float)}
    return dict(blocks) if len(blocks) == len({rank for rank, _ in blocks}) else {}, {}


def _not_of_engine(page: bytes, wanted: Engine, foreign: str) -> tuple[str, str]:
    """Reason and detail for a page that is not the wanted engine's: which engine it is of, and what to do."""
    owner = foreign or other(page, wanted.name)
    if owner:
        return "wrong_engine", f"this is a page of {owner}, not of {wanted.name}: {advice(owner)}"
    without = no_engine(page, wanted.prefixes)
    if without is not None:
        return without
    hint = f": {wanted.hint}" if wanted.hint else ""
    return "wrong_engine", f"the page has no metrics of {wanted.name} ({', '.join(wanted.prefixes)}...){hint}"
