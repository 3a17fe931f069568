"""Histograms of a page, for those who ask for them: time to the first token, between tokens, of a whole request.

A histogram has some twenty lines where another signal has one, and nobody needs them for a pick. So they are read by a
scanner of their own, and only those that the configuration names. Several series of one server (its engines, its
models) are added up bucket by bucket, where their bounds agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Final, NamedTuple

from agent.engines.table import Engine
from agent.exposition.page import MAX_LAYOUTS, Layout, Layouts, Scanner, Series, number
from agent.signals import Histogram, Refusal

_INFINITE: Final = float("inf")
_PARTS: Final = ("_bucket", "_sum", "_count")


class Distributions(NamedTuple):
    """What a page says of the wanted histograms: None where it has none that can be read, and why it cannot."""

    found: Mapping[str, Histogram | None]
    refused: tuple[Refusal, ...]


class _Group(NamedTuple):
    """The series of one histogram: the places of its buckets in order of their bounds, of its sum and its count."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    sum: int
    total: int


Plan = Mapping[str, tuple[_Group, ...] | Refusal | None]


class HistogramReader:
    """Reads the `wanted` histograms of one endpoint's pages; ValueError for one that is none of `HISTOGRAMS`."""

    def __init__(self, engine: Engine, wanted: Iterable[str], layouts: Layouts | None = None) -> None:
        self._families = {signal: engine.histograms.get(signal, ()) for signal in wanted}
        names = [family + part for families in self._families.values() for family in families for part in _PARTS]
        self._scanner = Scanner(names, layouts=layouts)
        self._plans: dict[tuple[Layout, bool], Plan] = {}

    def read(self, page: bytes, *, whole: bool) -> Distributions:
        """The histograms of this page. `whole`: the transport has shown that nothing is missing at the end."""
        layout, values = self._scanner.read(page)
        plan = self._plans.get((layout, whole))
        if plan is None:
            if len(self._plans) >= MAX_LAYOUTS:
                self._plans.clear()
            plan = self._plans[layout, whole] = self._plan(layout, whole=whole)
        found: dict[str, Histogram | None] = {}
        refused: list[Refusal] = []
        for signal, groups in plan.items():
            made = groups if groups is None or isinstance(groups, Refusal) else _added(signal, groups, values)
            found[signal] = None if isinstance(made, Refusal) else made
            if isinstance(made, Refusal):
                refused.append(made)
        return Distributions(found, tuple(refused))

    def _plan(self, layout: Layout, *, whole: bool) -> Plan:
        """What names and labels alone tell, by signal: its groups, why it has none, or None where it is not there."""
        spoilt = {line.name: line.text for line in layout.bad}
        plan: dict[str, tuple[_Group, ...] | Refusal | None] = {}
        for signal, families in self._families.items():
            plan[signal] = None
            for family in families:
                names = [family + part for part in _PARTS]
                bad = next((spoilt[name] for name in names if name in spoilt), "")
                if bad:
                    plan[signal] = Refusal(signal, "bad_line", bad)
                    break
                if any(series.name in names for series in layout.series):
                    cut = not whole and layout.last in names
                    plan[signal] = Refusal(signal, "cut_off", layout.last) if cut else _groups(signal, family, layout)
                    break
        return plan


def _groups(signal: str, family: str, layout: Layout) -> tuple[_Group, ...] | Refusal:
    """The histograms of a family; a refusal where one of them lacks a part or the family has several bounds."""
    parts: dict[frozenset[tuple[str, str]], dict[str, int]] = {}
    for place, series in enumerate(layout.series):
        if not series.name.startswith(family) or series.name[len(family) :] not in _PARTS:
            continue
        key = "le " + series.labels.get("le", "") if series.name.endswith("_bucket") else series.name
        mine = parts.setdefault(_without_bound(series), {})
        if key in mine:
            return Refusal(signal, "duplicate_series", series.text)
        mine[key] = place
    groups = []
    for mine in parts.values():
        bounds = {place: number(key[3:].encode()) for key, place in mine.items() if key.startswith("le ")}
        order = sorted(bounds, key=lambda place: _bound(bounds[place]))
        edges = [_bound(bounds[place]) for place in order]
        whole = {f"{family}_sum", f"{family}_count"} <= mine.keys() and edges[-1:] == [_INFINITE]
        if not whole or None in bounds.values() or len(set(edges)) < len(edges):
            return Refusal(signal, "not_a_histogram", family)
        groups.append(_Group(tuple(edges[:-1]), tuple(order), mine[f"{family}_sum"], mine[f"{family}_count"]))
    if len({group.bounds for group in groups}) > 1:
        return Refusal(signal, "disagreement", f"the series of {family} have different buckets")
    return tuple(groups)


def _without_bound(series: Series) -> frozenset[tuple[str, str]]:
    return frozenset(pair for pair in series.labels.items() if pair[0] != "le")


def _bound(value: float | None) -> float:
    return _INFINITE if value is None or isnan(value) else value


def _added(signal: str, groups: Sequence[_Group], values: Sequence[float]) -> Histogram | Refusal:
    """All groups together; a refusal where one of them cannot be true: its counts must grow up to its count."""
    totals = [0.0] * len(groups[0].bounds)
    count = total = 0.0
    for group in groups:
        told = [values[place] for place in group.buckets]
        least = 0.0
        for value in told:
            if not least <= value < _INFINITE:
                return Refusal(signal, "not_a_histogram", f"a bucket of {value:g} behind one of {least:g}")
            least = value
        size, whole = values[group.total], values[group.sum]
        if told[-1] != size or not 0 <= whole < _INFINITE:
            return Refusal(signal, "not_a_histogram", f"{told[-1]:g} in all buckets, a count of {size:g}")
        totals = [before + value for before, value in zip(totals, told[:-1], strict=True)]
        count += size
        total += whole
    return Histogram(groups[0].bounds, tuple(totals), count, total)
