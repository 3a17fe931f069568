"""How a page's layout tells what its numbers mean: for each signal the source, the series, and how they are combined.

All that depends on names and labels alone is worked out here, once for each layout; what is left is numbers. Where the
end of a page may be missing, what might have stood there is reckoned with: a part of a sum is no reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from agent.engines.recognition import advice, other
from agent.engines.table import Combine, Engine, Source
from agent.exposition.page import Layout, PageRefused, Series, is_metrics, number
from agent.signals import BLOCK_SIZE, BLOCKS, RUNNING, SIGNALS, Kind, Refusal, Value, admit

Made = Mapping[str, Value | Refusal]


class Single(NamedTuple):
    """A signal that is the value of one series, and its bounds."""

    signal: str
    place: int
    low: float
    high: float


class Several(NamedTuple):
    """Signals that are made of the values of several series."""

    places: tuple[int, ...]
    combine: Callable[[Sequence[float]], Made]


class _Chosen(NamedTuple):
    """The source that a signal has on this page, and its series: their places among the wanted ones."""

    source: Source
    places: tuple[int, ...]
    series: tuple[Series, ...]


class Learnt(NamedTuple):
    """All that a page's layout tells of its readings; the rest is numbers. `places` are those of each signal's series,
    where lines have time stamps."""

    singles: tuple[Single, ...]
    several: tuple[Several, ...]
    constant: Mapping[str, Value]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]
    places: Mapping[str, tuple[int, ...]] = {}


def learn(engine: Engine, page: bytes, layout: Layout, *, whole: bool) -> Learnt:
    """What pages of this layout tell; PageRefused when the page is not the engine's. `whole`: nothing is missing."""
    return _Learning(engine, page, layout, whole=whole).learnt()


class _Learning:
    """Works out, once for each layout, all that depends on names and labels alone."""

    def __init__(self, engine: Engine, page: bytes, layout: Layout, *, whole: bool) -> None:
        self._engine = engine
        self._layout = layout
        self._whole = whole
        self._singles: list[Single] = []
        self._several: list[Several] = []
        names = {*(series.name for series in layout.series), *(line.name for line in layout.bad)}
        stranger = next((owner for name, owner in engine.unlike.items() if name in names), "")
        if stranger or not any(name.startswith(engine.marks) for name in names):
            raise PageRefused(*_whose(page, engine, stranger))

    def learnt(self) -> Learnt:
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
            elif not self._whole and self._layout.last in found.source.samples:
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
                let_in(signal, self._told(signal, found, chosen), constant, refused)
            else:
                problem = self._rule(signal, found, chosen)
                if problem is not None:
                    refused.append(problem)
        rank = self._engine.rank
        self._several += [Several(places, _newest(told, rank)) for places, told in newest.items()]
        places = {signal: found.places for signal, found in chosen.items()} if self._layout.stamps else {}
        return Learnt(tuple(self._singles), tuple(self._several), constant, tuple(missing), tuple(refused), places)

    def _choose(self, signal: str, spoilt: Mapping[str, str]) -> _Chosen | Refusal | None:
        """The newest source of which the page has a series; a refusal where one of its lines cannot be read."""
        for source in self._engine.sources[signal]:
            places: list[int] = []
            for sample in source.samples:
                if sample in spoilt:
                    return Refusal(signal, "bad_line", spoilt[sample])
                found = [
                    place
                    for place, series in enumerate(self._layout.series)
                    if series.name == sample
                    and all(series.labels.get(label, "") == text for label, text in source.where.items())
                    and (source.label is None or source.label in series.labels)
                ]
                if not found and places and not self._whole:  # what is missing of the sum may have followed
                    return Refusal(signal, "cut_off", self._layout.series[places[-1]].text)
                if not found:
                    break
                places += _originals(found, self._layout.series, self._engine.copies)
            else:
                return _Chosen(source, tuple(places), tuple(self._layout.series[place] for place in places))
        return None

    def _told(self, signal: str, found: _Chosen, chosen: Mapping[str, _Chosen]) -> Value | Refusal:
        """The value that labels tell; told for each engine, it is multiplied by how many the page shows at work."""
        value = _from_labels(signal, found)
        if found.source.combine is not Combine.EACH or not isinstance(value, float):
            return value
        engines = chosen.get(RUNNING)
        if engines is None and not self._whole:
            return Refusal(signal, "cut_off", found.series[-1].text)
        return admit(signal, value * len(engines.places)) if engines else value

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
        if len(found.places) == 1 and scale == 1.0 and not found.source.one_minus:
            self._singles.append(Single(signal, found.places[0], row.low, row.high))
            return None
        weights: Sequence[float] | None = [1.0] * len(found.places)
        places = found.places
        if found.source.combine is Combine.MEAN_BY_BLOCKS and len(places) > 1:
            ranks = [_rank_of(series, self._engine.rank) for series in found.series]
            told, at = _by_rank(chosen.get(BLOCKS), self._engine.rank)
            if all(rank in told for rank in ranks):
                weights = [told[rank] for rank in ranks]
            elif all(rank in at for rank in ranks):
                weights, places = None, (*places, *(at[rank] for rank in ranks))
            elif not self._whole:  # the line that tells the blocks may have followed
                return Refusal(signal, "cut_off", found.series[-1].text)
        self._several.append(Several(places, _combination(signal, found.source, weights, scale)))
        return None


def _originals(places: Sequence[int], series: Sequence[Series], copies: Sequence[str]) -> list[int]:
    """The places without those of series that only tell again what the lowest of their copies tells."""
    if not copies:
        return list(places)

    def number_of(place: int) -> list[tuple[int, str]]:
        return [(len(text), text) for text in (series[place].labels.get(label, "") for label in copies)]

    groups: dict[frozenset[tuple[str, str]], list[int]] = {}
    for place in places:
        labels = series[place].labels.items()
        groups.setdefault(frozenset(pair for pair in labels if pair[0] not in copies), []).append(place)
    kept: list[int] = []
    for group in groups.values():
        low = min(map(number_of, group))
        kept += [place for place in group if number_of(place) == low]
    return sorted(kept)


def _rank_of(series: Series, rank: Sequence[str]) -> tuple[str, ...]:
    """Which engine of its server a series tells of."""
    return tuple(series.labels.get(label, "") for label in rank)


def let_in(signal: str, made: Value | Refusal, readings: dict[str, Value], refused: list[Refusal]) -> None:
    """Put down a value as a reading and a refusal as refused."""
    if isinstance(made, Refusal):
        refused.append(made)
    else:
        readings[signal] = made


def _doubled(series: Iterable[Series]) -> str:
    """The series that stands twice, as text; empty when none does."""
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for one in series:
        # A label without text is none: so Prometheus has it.
        identity = one.name, frozenset((label, text) for label, text in one.labels.items() if text)
        if identity in seen:
            return one.text
        seen.add(identity)
    return ""


def _scale(signal: str, words: str, block_size: Value | Refusal) -> float | Refusal:
    """By what a count of tokens or of blocks becomes tokens, given its HELP text."""
    if "block" in words:
        if isinstance(block_size, float):
            return block_size
        return Refusal(signal, "unknown_unit", "blocks of unknown size")
    return 1.0 if "token" in words else Refusal(signal, "unknown_unit", words or "no HELP text")


def _combination(
    signal: str, source: Source, weights: Sequence[float] | None, scale: float
) -> Callable[[Sequence[float]], Made]:
    """How the values of several series make one; a value that is not let in makes none.

    `weights` are those of a mean. None: they are values of the page too, and stand behind those that they weigh.
    """
    row, combine = SIGNALS[signal], source.combine

    def make(values: Sequence[float]) -> Made:
        parts = values if weights is not None else values[: len(values) // 2]
        for value in parts:
            if not row.low <= value <= row.high:
                return {signal: admit(signal, value)}
        if combine is Combine.MEAN_BY_BLOCKS:
            by = weights if weights is not None else _blocks_or_alike(values[len(parts) :])
            made = sum((weight * value for weight, value in zip(by, parts, strict=True)), 0.0) / sum(by, 0.0)
        elif combine is Combine.LATEST:
            made = max(parts)
        elif combine is Combine.LEAST:
            made = min(parts)
        elif combine is Combine.SAME:
            made = parts[0]
            if min(parts) != max(parts):
                return {signal: Refusal(signal, "disagreement", f"{min(parts):g} and {max(parts):g}")}
        else:
            made = sum(parts)
        return {signal: admit(signal, 1.0 - made if source.one_minus else made * scale)}

    return make


def _blocks_or_alike(values: Sequence[float]) -> Sequence[float]:
    """The values as counts of blocks, or equal weights where one of them cannot be such a count."""
    row = SIGNALS[BLOCKS]
    return values if all(row.low <= value <= row.high for value in values) else [1.0] * len(values)


def _newest(told: Mapping[str, _Chosen], rank: Sequence[str]) -> Callable[[Sequence[float]], Made]:
    """Of each engine's series the one with the largest value holds; what several engines tell is joined."""
    (series, *_) = (found.series for found in told.values())
    by_rank: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(series):
        by_rank.setdefault(_rank_of(one, rank), []).append(place)
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
    if found.source.combine in {Combine.SAME, Combine.EACH} and min(values) != max(values):
        return Refusal(signal, "disagreement", ", ".join(sorted(set(texts))))
    return admit(signal, sum(values)) if found.source.combine is Combine.SUM else max(values)


def _number_of(signal: str, text: str) -> float | Refusal:
    value = number(text.encode())
    return Refusal(signal, "not_a_number", text) if value is None else admit(signal, value, text)


def _by_rank(
    found: _Chosen | None, rank: Sequence[str]
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], int]]:
    """The blocks of each engine's cache, where labels tell them; else the places of the values that do."""
    if found is None or found.source.combine is Combine.EACH:
        return {}, {}
    ranks = [_rank_of(series, rank) for series in found.series]
    if found.source.label is None:
        return {}, dict(zip(ranks, found.places, strict=True))
    told = [_number_of(BLOCKS, series.labels[found.source.label]) for series in found.series]
    return {one: blocks for one, blocks in zip(ranks, told, strict=True) if isinstance(blocks, float)}, {}


def _whose(page: bytes, wanted: Engine, stranger: str) -> tuple[str, str]:
    """Reason and detail for a page that is not the wanted engine's: whose it looks to be, and what to do."""
    owner = stranger or other(page, wanted.name)
    if owner:
        return "wrong_engine", f"this is a page of {owner}, not of {wanted.name}: {advice(owner)}"
    if not is_metrics(page):
        return "not_metrics", "no line of the page is in the Prometheus text format: is this the path of the metrics?"
    hint = f": {wanted.hint}" if wanted.hint else ""
    return "wrong_engine", f"the page has no metrics of {wanted.name} ({', '.join(wanted.marks)}...){hint}"
