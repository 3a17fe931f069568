"""Pages of an endpoint of which nobody said what runs there: the first tells, and so does each of another engine."""

from __future__ import annotations

from collections.abc import Callable

from agent.engines.mapping import Extraction, Extractor
from agent.engines.recognition import recognise
from agent.exposition.page import PageRefused


class Recogniser:
    """Reads the pages of one endpoint; `made` gives a reader of an engine, `told` hears which engine it is."""

    __slots__ = ("_made", "_name", "_reader", "_told")

    def __init__(self, made: Callable[[str], Extractor], told: Callable[[str], None]) -> None:
        self._made = made
        self._told = told
        self._name = ""
        self._reader: Extractor | None = None

    def extract(self, page: bytes, *, whole: bool = False) -> Extraction:
        """The page's readings; PageRefused where the page is of no engine, or of more than one."""
        if self._reader is not None:
            try:
                return self._reader.extract(page, whole=whole)
            except PageRefused as refused:
                if refused.reason != "wrong_engine":
                    raise
        name = recognise(page)
        reader = self._made(name)
        extraction = reader.extract(page, whole=whole)
        if name != self._name:
            self._told(name)
        self._name, self._reader = name, reader
        return extraction
