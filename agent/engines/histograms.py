"""Optional histograms of a page: time to first token, inter-token latency, request latency, queue time.

A histogram has some twenty lines where another signal has one, and picking does not use it. So histograms have a
scanner of their own, which only reads those that the configuration names. Several histograms of one server (one per
engine or model) are added up bucket by bucket if their bounds are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Final, NamedTuple

from agent.engines.table import Engine
from agent.exposition.page import MAX_LAYOUTS, Layout, Scanner, Series, SharedLayouts, parse_number
from agent.signals import Histogram, RefusedValue

_INFINITE: Final = float("inf")
_PARTS: Final = ("_bucket", "_sum", "_count")


class Distributions(NamedTuple):
    """The wanted histograms of a page: None for one that is missing or refused, and why it is refused."""

    found: Mapping[str, Histogram | None]
    refused: tuple[RefusedValue, ...]


class _HistogramSeries(NamedTuple):
    """The places of one histogram's series: its buckets in the order of their bounds, its sum and its count."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    sum: int
    total: int


Plan = Mapping[str, tuple[_HistogramSeries, ...] | RefusedValue | None]


class HistogramReader:
    """Reads the `wanted` histograms of one endpoint's pages. Histograms that the engine lacks are None."""

    def __init__(self, engine: Engine, wanted: Iterable[str], layouts: SharedLayouts | None = None) -> None:
        self._families = {signal: engine.histograms.get(signal, ()) for signal in wanted}
        names = [family + part for families in self._families.values() for family in families for part in _PARTS]
        self._scanner = Scanner(names, layouts=layouts)
        self._plans: dict[tuple[Layout, bool], Plan] = {}

    @property
    def wanted(self) -> Iterable[str]:
        """The signals of the histograms."""
        return self._families

    def read(self, page: bytes, *, whole: bool) -> Distributions:
        """The histograms of this page. `whole`: the transport showed that the page is complete."""
        layout, values = self._scanner.read(page)
        plan = self._plans.get((layout, whole))
        if plan is None:
            if len(self._plans) >= MAX_LAYOUTS:
                self._plans.clear()
            plan = self._plans[layout, whole] = self._plan(layout, whole=whole)
        found: dict[str, Histogram | None] = {}
        refused: list[RefusedValue] = []
        for signal, groups in plan.items():
            made = groups if groups is None or isinstance(groups, RefusedValue) else _added(signal, groups, values)
            found[signal] = None if isinstance(made, RefusedValue) else made
            if isinstance(made, RefusedValue):
                refused.append(made)
        return Distributions(found, tuple(refused))

    def _plan(self, layout: Layout, *, whole: bool) -> Plan:
        """By signal: its histograms on pages of this layout, why it is refused, or None where it is missing."""
        spoilt = {line.name: line.text for line in layout.bad}
        plan: dict[str, tuple[_HistogramSeries, ...] | RefusedValue | None] = {}
        for signal, families in self._families.items():
            plan[signal] = None
            for family in families:
                names = [family + part for part in _PARTS]
                bad = next((spoilt[name] for name in names if name in spoilt), "")
                if bad:
                    plan[signal] = RefusedValue(signal, "bad_line", bad)
                    break
                if any(series.name in names for series in layout.series):
                    cut = not whole and layout.last in names
                    plan[signal] = (
                        RefusedValue(signal, "cut_off", layout.last) if cut else _histograms(signal, family, layout)
                    )
                    break
        return plan


def _histograms(signal: str, family: str, layout: Layout) -> tuple[_HistogramSeries, ...] | RefusedValue:
    """The histograms of a metric family; refused where a part is missing or their bounds differ."""
    parts: dict[frozenset[tuple[str, str]], dict[str, int]] = {}
    for place, series in enumerate(layout.series):
        if not series.name.startswith(family) or series.name[len(family) :] not in _PARTS:
            continue
        key = "le " + series.labels.get("le", "") if series.name.endswith("_bucket") else series.name
        places = parts.setdefault(_without_bound(series), {})
        if key in places:
            return RefusedValue(signal, "duplicate_series", series.text)
        places[key] = place
    groups = []
    for places in parts.values():
        bounds = {place: parse_number(key[3:].encode()) for key, place in places.items() if key.startswith("le ")}
        order = sorted(bounds, key=lambda place: _bound(bounds[place]))
        edges = [_bound(bounds[place]) for place in order]
        complete = {f"{family}_sum", f"{family}_count"} <= places.keys() and edges[-1:] == [_INFINITE]
        if not complete or None in bounds.values() or len(set(edges)) < len(edges):
            return RefusedValue(signal, "not_a_histogram", family)
        groups.append(
            _HistogramSeries(tuple(edges[:-1]), tuple(order), places[f"{family}_sum"], places[f"{family}_count"])
        )
    if len({group.bounds for group in groups}) > 1:
        return RefusedValue(signal, "disagreement", f"the series of {family} have different buckets")
    return tuple(groups)


def _without_bound(series: Series) -> frozenset[tuple[str, str]]:
    return frozenset(pair for pair in series.labels.items() if pair[0] != "le")


def _bound(value: float | None) -> float:
    return _INFINITE if value is None or isnan(value) else value


def _added(signal: str, groups: Sequence[_HistogramSeries], values: Sequence[float]) -> Histogram | RefusedValue:
    """The sum of all histograms; refused where the buckets of one of them do not increase up to its count."""
    totals = [0.0] * len(groups[0].bounds)
    count = total = 0.0
    for group in groups:
        buckets = [values[place] for place in group.buckets]
        before = 0.0
        for value in buckets:
            if not before <= value < _INFINITE:
                return RefusedValue(signal, "not_a_histogram", f"a bucket of {value:g} after one of {before:g}")
            before = value
        size, sum_ = values[group.total], values[group.sum]
        if buckets[-1] != size or not 0 <= sum_ < _INFINITE:
            return RefusedValue(signal, "not_a_histogram", f"{buckets[-1]:g} in all buckets, a count of {size:g}")
        totals = [known + value for known, value in zip(totals, buckets[:-1], strict=True)]
        count += size
        total += sum_
    return Histogram(groups[0].bounds, tuple(totals), count, total)
