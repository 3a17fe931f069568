"""The engine `auto`: it is recognised from an endpoint's first page, and again when a page is of another engine."""

from __future__ import annotations

from collections.abc import Callable

from agent.engines.mapping import NOTHING_COUNTED, Extraction, Extractor
from agent.engines.recognition import recognise
from agent.exposition.page import PageRefused


class EngineRecogniser:
    """Reads the pages of one endpoint of unknown engine.

    `make_extractor` gives an extractor for an engine's name; `on_recognised` is called with the name of a new engine.
    """

    __slots__ = ("_extractor", "_make_extractor", "_name", "_on_recognised")

    def __init__(self, make_extractor: Callable[[str], Extractor], on_recognised: Callable[[str], None]) -> None:
        self._make_extractor = make_extractor
        self._on_recognised = on_recognised
        self._name = ""
        self._extractor: Extractor | None = None

    def extract(self, page: bytes, *, whole: bool = False) -> Extraction:
        """The page's readings, none while a page without a sample names no engine; PageRefused where the page is of no
        engine, or of more than one."""
        if self._extractor is not None:
            try:
                return self._extractor.extract(page, whole=whole)
            except PageRefused as refused:
                if refused.reason != "wrong_engine":
                    raise
        try:
            name = recognise(page)
        except PageRefused as refused:
            if refused.reason == "empty":
                return NOTHING_COUNTED
            raise
        extractor = self._make_extractor(name)
        extraction = extractor.extract(page, whole=whole)
        if name != self._name:
            self._on_recognised(name)
        self._name, self._extractor = name, extractor
        return extraction
