"""Readings from the pages of one endpoint, by the table of its engine.

An Extractor reads the pages of one endpoint. Everything that depends on names and labels alone is computed once per
layout of a page (a `ReadingPlan`); another page with the same layout only costs its numbers. Extractors of one engine
share their plans.

A page can be cut off at a line end, which the page itself does not show. Unless the transport showed that the page is
complete, a signal whose series could continue after the last line is refused as `cut_off`: a partial sum is wrong.

A page without a sample (blank, or HELP and TYPE lines only) is read and reports nothing. Some servers write a metric
with its first event, so before their first request they have such a page (text-generation-inference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.engines.histograms import HistogramReader
from agent.engines.reading_plan import ReadingPlan, add_value, plan_readings
from agent.engines.table import Engine
from agent.exposition.page import MAX_LAYOUTS, Layout, PageRefused, Scanner, SharedLayouts, has_no_samples
from agent.signals import Histogram, RefusedValue, Value, admit

NO_HISTOGRAMS: Final[Mapping[str, Histogram | None]] = {}
NO_STAMPS: Final[Mapping[str, tuple[bytes, ...]]] = {}


class Extraction(NamedTuple):
    """The content of one page: readings by signal, the signals that are missing, and refused values (`REFUSALS`).

    `histograms` are the requested ones, None for one that is missing or refused. `stamps` are the timestamps of each
    signal's series as text, on a page that has any: a series with the same timestamp as on the page before was not
    measured since.
    """

    readings: dict[str, Value]
    missing: tuple[str, ...]
    refused: tuple[RefusedValue, ...]
    histograms: Mapping[str, Histogram | None] = NO_HISTOGRAMS
    stamps: Mapping[str, tuple[bytes, ...]] = NO_STAMPS


# The content of a page without a sample.
NOTHING_COUNTED: Final = Extraction({}, (), ())


class LayoutCache:
    """The known layouts and reading plans of one engine's pages, shared by its extractors."""

    def __init__(self, engine: Engine) -> None:
        self.layouts = SharedLayouts()
        self.histogram_layouts = SharedLayouts()
        self.engine = engine
        self._plans: dict[tuple[Layout, bool], ReadingPlan] = {}

    def plan(self, page: bytes, layout: Layout, *, whole: bool) -> ReadingPlan:
        """How pages of this layout are read; PageRefused when the layout has none of the engine's names."""
        known = self._plans.get((layout, whole))
        if known is None:
            if len(self._plans) >= MAX_LAYOUTS:
                self._plans.clear()
            known = self._plans[layout, whole] = plan_readings(self.engine, page, layout, whole=whole)
        return known


class Extractor:
    """Reads the pages of one endpoint, and remembers their layout.

    `histograms`: those of `agent.signals.HISTOGRAMS` to read besides the signals; none by default, which costs nothing.
    """

    __slots__ = ("_cache", "_histograms", "_layout", "_plan", "_scanner", "_whole")

    def __init__(self, engine: Engine, cache: LayoutCache | None = None, histograms: Sequence[str] = ()) -> None:
        self._cache = cache or LayoutCache(engine)
        layouts = self._cache.histogram_layouts
        self._histograms = HistogramReader(engine, histograms, layouts) if histograms else None
        helps = {source.sample for sources in engine.sources.values() for source in sources if source.tokens_or_blocks}
        self._scanner = Scanner(engine.names(), helps, self._cache.layouts)
        self._layout: Layout | None = None
        self._whole = False
        self._plan = ReadingPlan((), (), {}, (), ())

    def extract(self, page: bytes, *, whole: bool = False) -> Extraction:
        """The page's readings; PageRefused when it is not a page of this engine.

        `whole`: the transport showed that the page is complete (a content length, or a last chunk).
        """
        try:
            layout, values = self._scanner.read(page)
        except PageRefused as problem:
            if problem.reason == "empty":
                return self._nothing_counted()
            raise
        if layout is not self._layout or whole is not self._whole:
            try:
                self._plan = self._cache.plan(page, layout, whole=whole)
            except PageRefused as problem:
                # The layout only has names that every server has; the next page may have them beside this engine's.
                self._scanner.forget()
                if problem.reason == "empty" or has_no_samples(page):
                    return self._nothing_counted()
                raise
            self._layout, self._whole = layout, whole
        singles, several, constant, missing, refused_before, places_of = self._plan
        readings = dict(constant)
        refused: list[RefusedValue] = []
        for signal, place, low, high in singles:
            value = values[place]
            if low <= value <= high:
                readings[signal] = value
            else:
                add_value(signal, admit(signal, value), readings, refused)
        for places, combine in several:
            for signal, made in combine([values[place] for place in places]).items():
                add_value(signal, made, readings, refused)
        all_refused = (*refused_before, *refused) if refused else refused_before
        stamps = _stamps(layout, places_of, readings) if layout.stamps else NO_STAMPS
        if self._histograms is None:
            return Extraction(readings, missing, all_refused, NO_HISTOGRAMS, stamps)
        distributions = self._histograms.read(page, whole=whole)
        return Extraction(readings, missing, (*all_refused, *distributions.refused), distributions.found, stamps)

    def _nothing_counted(self) -> Extraction:
        """The content of a page without a sample."""
        if self._histograms is None:
            return NOTHING_COUNTED
        return NOTHING_COUNTED._replace(histograms=dict.fromkeys(self._histograms.wanted))


def _stamps(
    layout: Layout, places_of: Mapping[str, Sequence[int]], readings: Mapping[str, Value]
) -> Mapping[str, tuple[bytes, ...]]:
    """The timestamps of the series of each signal that has a reading."""
    return {signal: tuple(layout.stamps[place] for place in places_of[signal]) for signal in readings}
