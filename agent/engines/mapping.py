"""What an engine is, and how its page becomes readings.

An engine is a table: for each signal the sources it may come from, the newest name first, or the reason why it has
none. A source names a sample, the labels that a series must carry, the label whose text is the value (when it is not
the sample's), and how several series of one server are combined: a data-parallel server shows one per engine.

Reading a page twice a second from a thousand servers, the layout of a server's page hardly ever changes: only numbers
do. So an Extractor, one per endpoint, remembers where each wanted line stood and what stood before its value, looks
there first, and only compares. It trusts what it remembers as long as the page has as many lines as before and every
remembered line is still there, near its place; else, and every `FULL_SCAN_PAGES` pages in any case, it scans anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

from agent.scrape.page import BadLine, PageRefused, Sample, check, number, scan, straighten
from agent.signals import SIGNALS, Kind, Refusal, Value, admit

# A series that comes as many lines go goes unnoticed at first: after so many pages at the latest it is seen.
FULL_SCAN_PAGES: Final = 64
# Bytes by which a line may have moved: the numbers before it have other lengths now.
_SLACK: Final = 512
_DIGITS: Final = b"0123456789.eE+-"

# Who writes which beginnings of names: to say what a page of another engine is.
MARKS: Final[Mapping[str, str]] = {
    "vllm:": "vllm",
    "sglang:": "sglang",
    "sglang_": "sglang",
    "llamacpp:": "llamacpp",
    "trtllm_": "trtllm",
    "nv_": "triton",
    "tgi_": "tgi",
    "jetstream_": "jetstream",
    "DCGM_": "an exporter of NVIDIA's GPUs",
    "node_": "the node exporter of Prometheus",
    "igw_": "the inference gateway agent itself",
}


class Combine(Enum):
    """How several series of one server make one value."""

    SUM = "sum"
    MEAN_BY_BLOCKS = "mean weighted by the blocks of each engine's cache, plain where these are not known"
    SAME = "the value that all of them have"
    LATEST = "the largest"
    NEWEST = "the series with the largest value, which is a time; of each engine, and their names together"


@dataclass(frozen=True, slots=True)
class Source:
    """One sample that a signal can come from. `label`: the value is this label's text, and not the sample's value."""

    sample: str
    combine: Combine = Combine.SUM
    where: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of model server.

    `marks` begin every name that only this engine has; `silent` says of each signal without a source why it has none;
    `health_path` and `models_path` are asked beside the page (None: it has no such path); `hint` is what to check when
    the page lacks all of the engine's names.
    """

    name: str
    marks: tuple[str, ...]
    sources: Mapping[str, tuple[Source, ...]]
    silent: Mapping[str, str]
    health_path: str | None
    models_path: str | None
    hint: str = ""

    def names(self) -> list[str]:
        """Every sample name that a source of this engine names, once each."""
        return list(dict.fromkeys(source.sample for sources in self.sources.values() for source in sources))


class Extraction(NamedTuple):
    """What one page says: readings by signal, signals that it lacks, and values that were not let in."""

    readings: dict[str, Value]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


class _Single(NamedTuple):
    """A signal that is the value of one remembered line, and its bounds."""

    signal: str
    line: int
    low: float
    high: float


class _Several(NamedTuple):
    """Signals that are made of the values of several remembered lines."""

    lines: tuple[int, ...]
    combine: Callable[[Sequence[float]], Mapping[str, Value | Refusal]]


class Extractor:
    """Reads the pages of one endpoint. What it remembers makes it faster and changes no reading."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = engine.names()
        self._keys: list[tuple[int, bytes, int]] = []
        self._singles: list[_Single] = []
        self._several: list[_Several] = []
        self._constant: dict[str, Value] = {}
        self._missing: tuple[str, ...] = ()
        self._refused: tuple[Refusal, ...] = ()
        self._lines = -1
        self._pages = 0

    def extract(self, page: bytes) -> Extraction:
        """The page's readings; PageRefused when it cannot be a page of this engine."""
        if page.endswith(b"\n") and self._lines == _line_ends(page) and self._pages < FULL_SCAN_PAGES:
            values = self._look_again(page)
            if values is not None:
                self._pages += 1
                return self._read(values)
        return self._read(self._scan(page))

    def _look_again(self, page: bytes) -> list[float] | None:
        """The value of each remembered line, or None when one is not where it was or cannot be read."""
        texts: list[bytes] = []
        moved = 0
        find, starts = page.find, page.startswith
        for start, key, length in self._keys:
            at = start + moved
            if not starts(key, at):
                at = find(key, max(0, at - _SLACK), at + length + _SLACK)
                if at < 0:
                    return None
                moved = at - start
            begin = at + length
            texts.append(page[begin : find(b"\n", begin)])
        if b"".join(texts).translate(None, _DIGITS):  # NaN, a time stamp, or what float() takes and Prometheus does not
            return None
        try:
            return list(map(float, texts))
        except ValueError:
            return None

    def _scan(self, page: bytes) -> list[float]:
        """Read the page as one never seen, and remember its layout."""
        check(page)
        self._lines = -1
        samples, bad = scan(straighten(page), self._names)
        if not any(sample.name.startswith(self._engine.marks) for sample in samples):
            raise PageRefused("wrong_engine", _whose(page, self._engine))
        samples.sort(key=lambda sample: sample.start)
        self._learn(samples, bad)
        # What stands at the very beginning has no line end in front, and an indented page was straightened: such pages
        # are scanned each time. So is a page in which a wanted line could not be read, or carries more than its value.
        plain = page.startswith(b"#") and not bad and b"\n " not in page and b"\n\t" not in page
        self._keys = [(sample.start - 1, sample.key, len(sample.key)) for sample in samples]
        if plain and all(_alone(page, start + length) for start, _, length in self._keys):
            self._lines, self._pages = _line_ends(page), 0
        return [sample.value for sample in samples]

    def _learn(self, samples: Sequence[Sample], bad: Sequence[BadLine]) -> None:
        """From the samples to rules by which values become readings."""
        by_name: dict[str, list[tuple[int, Sample]]] = {}
        for place, sample in enumerate(samples):
            by_name.setdefault(sample.name, []).append((place, sample))
        spoilt = {line.name: line.text for line in bad}
        self._singles = []
        self._several = []
        self._constant = {}
        newest: dict[tuple[int, ...], tuple[dict[str, Source], Sequence[Sample]]] = {}
        missing: list[str] = []
        refused: list[Refusal] = []
        for signal, sources in self._engine.sources.items():
            for source in sources:
                if source.sample in spoilt:
                    # One bad series spoils the sum of all: a part of a queue is a wrong queue.
                    refused.append(Refusal(signal, "bad_line", spoilt[source.sample]))
                    break
                series = [
                    (place, sample)
                    for place, sample in by_name.get(source.sample, ())
                    if all(sample.labels.get(label) == text for label, text in source.where.items())
                    and (source.label is None or source.label in sample.labels)
                ]
                if series:
                    if source.combine is Combine.NEWEST:
                        rows = tuple(place for place, _ in series)
                        newest.setdefault(rows, ({}, [sample for _, sample in series]))[0][signal] = source
                    else:
                        self._rule(signal, source, series, samples, refused)
                    break
            else:
                missing.append(signal)
        self._several += [_Several(rows, _newest(told, series)) for rows, (told, series) in newest.items()]
        self._missing = tuple(missing)
        self._refused = tuple(refused)

    def _rule(
        self,
        signal: str,
        source: Source,
        series: Sequence[tuple[int, Sample]],
        samples: Sequence[Sample],
        refused: list[Refusal],
    ) -> None:
        row = SIGNALS[signal]
        told = [sample for _, sample in series]
        doubled = _doubled(told)
        if doubled:
            refused.append(Refusal(signal, "duplicate_series", doubled))
        elif source.label is not None:
            value = _from_labels(signal, source, told)
            if isinstance(value, Refusal):
                refused.append(value)
            else:
                self._constant[signal] = value
        elif len(series) == 1:
            self._singles.append(_Single(signal, series[0][0], row.low, row.high))
        else:
            weights = _blocks_by_engine(samples) if source.combine is Combine.MEAN_BY_BLOCKS else {}
            self._several.append(
                _Several(tuple(place for place, _ in series), _combination(signal, source, told, weights))
            )

    def _read(self, values: Sequence[float]) -> Extraction:
        readings = dict(self._constant)
        refused: list[Refusal] = []
        for signal, line, low, high in self._singles:
            value = values[line]
            if low <= value <= high:
                readings[signal] = value
            else:
                admitted = admit(signal, value)
                if isinstance(admitted, Refusal):
                    refused.append(admitted)
        for lines, combine in self._several:
            for signal, made in combine([values[line] for line in lines]).items():
                if isinstance(made, Refusal):
                    refused.append(made)
                else:
                    readings[signal] = made
        return Extraction(readings, self._missing, (*self._refused, *refused) if refused else self._refused)


def _line_ends(page: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(page, np.uint8) == 10))


def _alone(page: bytes, begin: int) -> bool:
    """True when nothing but the number stands from here to the line's end."""
    return number(page[begin : page.find(b"\n", begin)]) is not None


def _doubled(samples: Sequence[Sample]) -> str:
    """The series that stands twice, as text; empty when none does."""
    seen: set[frozenset[tuple[str, str]]] = set()
    for sample in samples:
        series = frozenset(sample.labels.items())
        if series in seen:
            return sample.key.decode("utf-8", "replace").strip()[:80]
        seen.add(series)
    return ""


def _combination(
    signal: str, source: Source, samples: Sequence[Sample], blocks: Mapping[str, float]
) -> Callable[[Sequence[float]], Mapping[str, Value | Refusal]]:
    """How the values of several series make one; a value that is not let in makes none."""
    row = SIGNALS[signal]
    weights = [blocks.get(sample.labels.get("engine", ""), 0.0) for sample in samples]
    if not all(weights):
        weights = [1.0] * len(samples)
    whole = sum(weights)

    def combine(values: Sequence[float]) -> Mapping[str, Value | Refusal]:
        for value in values:
            if not row.low <= value <= row.high:
                return {signal: admit(signal, value)}
        if source.combine is Combine.MEAN_BY_BLOCKS:
            made = sum(weight * value for weight, value in zip(weights, values, strict=True)) / whole
        elif source.combine is Combine.LATEST:
            made = max(values)
        elif source.combine is Combine.SAME:
            if min(values) != max(values):
                return {signal: Refusal(signal, "disagreement", f"{min(values):g} and {max(values):g}")}
            made = values[0]
        else:
            made = sum(values)
        return {signal: admit(signal, made)}

    return combine


def _newest(
    sources: Mapping[str, Source], samples: Sequence[Sample]
) -> Callable[[Sequence[float]], Mapping[str, Value | Refusal]]:
    """Of the series that differ only in what they tell, the one with the largest value holds; several engines join."""
    telling = {source.label for source in sources.values()}
    groups: dict[frozenset[tuple[str, str]], list[int]] = {}
    for place, sample in enumerate(samples):
        same = frozenset((label, text) for label, text in sample.labels.items() if label not in telling)
        groups.setdefault(same, []).append(place)
    known: dict[tuple[int, ...], Mapping[str, Value | Refusal]] = {}

    def combine(values: Sequence[float]) -> Mapping[str, Value | Refusal]:
        holding: list[int] = []
        for places in groups.values():
            dated = [place for place in places if values[place] == values[place]]
            if not dated:
                return {signal: Refusal(signal, "not_finite", "the time of every series is NaN") for signal in sources}
            holding.append(max(dated, key=values.__getitem__))
        key = tuple(holding)
        if key not in known:
            known[key] = {
                signal: _told(signal, [samples[place].labels[source.label or ""] for place in holding])
                for signal, source in sources.items()
            }
        return known[key]

    return combine


def _told(signal: str, texts: Sequence[str]) -> Value | Refusal:
    """What the labels of the series that hold tell: their names together, or the largest number."""
    if SIGNALS[signal].kind is Kind.NAMES:
        return frozenset(name for text in texts for name in text.split(",") if name)
    numbers: list[float] = []
    for text in texts:
        value = _number_of(signal, text)
        if isinstance(value, Refusal):
            return value
        numbers.append(value)
    return max(numbers)


def _from_labels(signal: str, source: Source, samples: Sequence[Sample]) -> Value | Refusal:
    """The value that the labels of an info sample tell."""
    texts = [sample.labels[source.label or ""] for sample in samples]
    parsed: list[float] = []
    for text in texts:
        value = _number_of(signal, text)
        if isinstance(value, Refusal):
            return value
        parsed.append(value)
    if source.combine is Combine.SAME and min(parsed) != max(parsed):
        return Refusal(signal, "disagreement", ", ".join(sorted(set(texts))))
    return admit(signal, sum(parsed)) if source.combine is Combine.SUM else parsed[0]


def _number_of(signal: str, text: str) -> float | Refusal:
    value = number(text.encode())
    return Refusal(signal, "not_a_number", text) if value is None else admit(signal, value, text)


def _blocks_by_engine(samples: Sequence[Sample]) -> dict[str, float]:
    """The blocks of each engine's cache, where a cache's configuration is on the page."""
    blocks: dict[str, float] = {}
    for sample in samples:
        text = sample.labels.get("num_gpu_blocks")
        value = number(text.encode()) if text is not None else None
        if value is not None and 0 < value < float("inf"):
            blocks[sample.labels.get("engine", "")] = value
    return blocks


def _whose(page: bytes, wanted: Engine) -> str:
    """A sentence on a page without any of the wanted engine's names: whose it looks to be, and what to do."""
    for mark, owner in MARKS.items():
        if owner != wanted.name and (b"\n" + mark.encode() in page or page.startswith(mark.encode())):
            return f"this is a page of {owner}, not of {wanted.name}: set the endpoint's engine to what runs there"
    hint = f": {wanted.hint}" if wanted.hint else ""
    return f"the page has no metrics of {wanted.name} ({', '.join(wanted.marks)}...){hint}"
