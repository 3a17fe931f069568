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

from agent.engines.cache_resets import CacheResetReader
from agent.engines.histograms import HistogramReader
from agent.engines.reading_plan import ReadingPlan, add_value, plan_readings
from agent.engines.spellings import spelling_of, spellings
from agent.engines.table import Engine
from agent.exposition.page import MAX_LAYOUTS, Layout, PageRefused, Scanner, SharedLayouts
from agent.signals import Histogram, RefusedValue, Value, admit

NO_HISTOGRAMS: Final[Mapping[str, Histogram | None]] = {}
# Reasons for which a page may have the engine's names in another spelling.
_OTHER_NAMES: Final = frozenset({"wrong_engine", "empty"})
NO_STAMPS: Final[Mapping[str, tuple[bytes, ...]]] = {}


class Extraction(NamedTuple):
    """The content of one page: readings by signal, the signals that are missing, and refused values (`REFUSALS`).

    `histograms` are the requested ones, None for one that is missing or refused. `stamps` are the timestamps of each
    signal's series as text, on a page that has any: a series with the same timestamp as on the page before was not
    measured since. `cache_resets`: the requests so far that left the server's prefix cache empty.
    """

    readings: dict[str, Value]
    missing: tuple[str, ...]
    refused: tuple[RefusedValue, ...]
    histograms: Mapping[str, Histogram | None] = NO_HISTOGRAMS
    stamps: Mapping[str, tuple[bytes, ...]] = NO_STAMPS
    cache_resets: float = 0.0


# The content of a page without a sample.
NOTHING_COUNTED: Final = Extraction({}, (), ())


class LayoutCache:
    """The known layouts and reading plans of one engine's pages, shared by its extractors."""

    def __init__(self, engine: Engine) -> None:
        self.layouts = SharedLayouts()
        self.histogram_layouts = SharedLayouts()
        self.engine = engine
        self._plans: dict[tuple[Layout, bool], ReadingPlan] = {}
        self._others: tuple[Engine, ...] | None = None
        self._spellings: dict[tuple[str, ...], LayoutCache] = {}

    def plan(self, page: bytes, layout: Layout, *, whole: bool) -> ReadingPlan:
        """How pages of this layout are read; PageRefused when the layout has none of the engine's names."""
        known = self._plans.get((layout, whole))
        if known is None:
            if len(self._plans) >= MAX_LAYOUTS:
                self._plans.clear()
            known = self._plans[layout, whole] = plan_readings(self.engine, page, layout, whole=whole)
        return known

    def spelling(self, page: bytes) -> LayoutCache | None:
        """The cache for pages with the engine's names in another known spelling; None where this page has none."""
        if self._others is None:
            self._others = spellings(self.engine)
        other = spelling_of(self._others, page)
        return None if other is None else self._spellings.setdefault(other.prefixes, LayoutCache(other))


class Extractor:
    """Reads the pages of one endpoint, and remembers their layout.

    `histograms`: those of `agent.signals.HISTOGRAMS` to read besides the signals; none by default, which costs nothing.
    """

    __slots__ = (
        "_cache", "_cache_resets", "_histograms", "_layout", "_other", "_plan", "_scanner", "_wanted", "_whole",
    )  # fmt: skip

    def __init__(self, engine: Engine, cache: LayoutCache | None = None, histograms: Sequence[str] = ()) -> None:
        self._wanted = histograms
        self._other: Extractor | None = None  # reads pages with another spelling of the engine's names
        self._cache = cache or LayoutCache(engine)
        layouts = self._cache.histogram_layouts
        self._histograms = HistogramReader(engine, histograms, layouts) if histograms else None
        self._cache_resets = CacheResetReader(engine.cache_resets) if engine.cache_resets else None
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
            return self._extract(page, whole=whole)
        except PageRefused as refused:
            if refused.reason == "empty":  # the server has counted nothing yet
                return self._nothing_counted()
            raise

    def _extract(self, page: bytes, *, whole: bool) -> Extraction:
        """As `extract`; PageRefused (`empty`) for a page on which nothing has been counted yet."""
        if self._other is not None:
            try:
                return self._other.read(page, whole=whole)
            except PageRefused as refused:
                if refused.reason not in _OTHER_NAMES:
                    raise
                self._other = None
        try:
            return self.read(page, whole=whole)
        except PageRefused as refused:
            cache = self._cache.spelling(page) if refused.reason in _OTHER_NAMES else None
            if cache is None:
                raise
            other = Extractor(cache.engine, cache, self._wanted)
            extraction = other.read(page, whole=whole)
            self._other = other
            return extraction

    def read(self, page: bytes, *, whole: bool) -> Extraction:
        """As `extract`, in the spelling of the table alone; PageRefused also for a page with nothing counted."""
        layout, values = self._scanner.read(page)
        if layout is not self._layout or whole is not self._whole:
            try:
                self._plan = self._cache.plan(page, layout, whole=whole)
            except PageRefused:
                # The layout only has names that every server has; the next page may have them beside this engine's.
                self._scanner.forget()
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
        resets = 0.0 if self._cache_resets is None else self._cache_resets.read(page)
        if self._histograms is None:
            return Extraction(readings, missing, all_refused, NO_HISTOGRAMS, stamps, resets)
        distributions = self._histograms.read(page, whole=whole)
        all_refused = (*all_refused, *distributions.refused)
        return Extraction(readings, missing, all_refused, distributions.found, stamps, resets)

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
