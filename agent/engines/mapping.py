"""How the page of an engine becomes readings.

An Extractor reads the pages of one endpoint. What depends on names and labels alone is worked out once for each layout
of a page; a page that is laid out like the last one costs its numbers and nothing else. Extractors of one engine share
what they learn.

A page can end too early at the end of a line, and nothing on it tells. Where the transport has not shown that it is
whole, a sample whose group may go on behind the last line is refused as `cut_off`: a part of a sum is a wrong sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.engines.histograms import HistogramReader
from agent.engines.learning import Learnt, learn, let_in
from agent.engines.table import MARKS, REFUSALS, Combine, Engine, Source
from agent.exposition.page import MAX_LAYOUTS, Layout, Layouts, PageRefused, Scanner
from agent.signals import Histogram, Refusal, Value, admit

__all__ = ["MARKS", "REFUSALS", "Combine", "Engine", "Extraction", "Extractor", "Memory", "Source"]


NONE_ASKED: Final[Mapping[str, Histogram | None]] = {}
NO_STAMPS: Final[Mapping[str, tuple[bytes, ...]]] = {}


class Extraction(NamedTuple):
    """What one page says: readings by signal, signals that it lacks, and values that were not let in (`REFUSALS`).

    `histograms` are those that were asked for, None where the page has none that can be read. `stamps` are the time
    stamps of each signal's series, as text, on a page that has any: a series whose stamp is that of the page before was
    not measured since.
    """

    readings: dict[str, Value]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]
    histograms: Mapping[str, Histogram | None] = NONE_ASKED
    stamps: Mapping[str, tuple[bytes, ...]] = NO_STAMPS


class Memory:
    """What was learnt of one engine's pages, for its extractors to share."""

    def __init__(self, engine: Engine) -> None:
        self.layouts = Layouts()
        self.histogram_layouts = Layouts()
        self.engine = engine
        self._learnt: dict[tuple[Layout, bool], Learnt] = {}

    def learnt(self, page: bytes, layout: Layout, *, whole: bool) -> Learnt:
        """What this layout tells; PageRefused when it has none of the engine's names."""
        known = self._learnt.get((layout, whole))
        if known is None:
            if len(self._learnt) >= MAX_LAYOUTS:
                self._learnt.clear()
            known = self._learnt[layout, whole] = learn(self.engine, page, layout, whole=whole)
        return known


class Extractor:
    """Reads the pages of one endpoint. What it remembers, alone or with others, makes it faster.

    `histograms` names those of `agent.signals.HISTOGRAMS` to read beside the signals; none costs nothing.
    """

    __slots__ = ("_histograms", "_layout", "_learnt", "_memory", "_scanner", "_whole")

    def __init__(self, engine: Engine, memory: Memory | None = None, histograms: Sequence[str] = ()) -> None:
        self._memory = memory or Memory(engine)
        layouts = self._memory.histogram_layouts
        self._histograms = HistogramReader(engine, histograms, layouts) if histograms else None
        helps = {source.sample for sources in engine.sources.values() for source in sources if source.tokens_or_blocks}
        self._scanner = Scanner(engine.names(), helps, self._memory.layouts)
        self._layout: Layout | None = None
        self._whole = False
        self._learnt = Learnt((), (), {}, (), ())

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
        singles, several, constant, missing, refused_before, places_of = self._learnt
        readings = dict(constant)
        refused: list[Refusal] = []
        for signal, place, low, high in singles:
            value = values[place]
            if low <= value <= high:
                readings[signal] = value
            else:
                let_in(signal, admit(signal, value), readings, refused)
        for places, combine in several:
            for signal, made in combine([values[place] for place in places]).items():
                let_in(signal, made, readings, refused)
        all_refused = (*refused_before, *refused) if refused else refused_before
        stamps = _stamps(layout, places_of, readings) if layout.stamps else NO_STAMPS
        if self._histograms is None:
            return Extraction(readings, missing, all_refused, NONE_ASKED, stamps)
        told = self._histograms.read(page, whole=whole)
        return Extraction(readings, missing, (*all_refused, *told.refused), told.found, stamps)


def _stamps(
    layout: Layout, places_of: Mapping[str, Sequence[int]], readings: Mapping[str, Value]
) -> Mapping[str, tuple[bytes, ...]]:
    """The time stamps of the series of each signal that was read."""
    return {signal: tuple(layout.stamps[place] for place in places_of[signal]) for signal in readings}
