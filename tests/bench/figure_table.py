"""A table of figures, each with its bar."""

from __future__ import annotations

from typing import Any

from tests.bench.table import Column, Table


class FigureTable:
    """The table, printed row by row, or kept for JSON."""

    def __init__(self, *, quiet: bool) -> None:
        self.figures: list[dict[str, Any]] = []
        self._table = (
            None if quiet else Table([Column("", 66), Column("figure", 9, ".4g"), Column("bar", 6, "g"), Column("", 6)])
        )

    def row(self, what: str, figure: float, maximum: float | None = None) -> None:
        """One figure."""
        verdict = "" if maximum is None else "met" if figure <= maximum else "MISSED"
        self.figures.append({"what": what, "figure": figure, "bar": maximum, "verdict": verdict})
        if self._table is not None:
            self._table.row(what, figure, maximum, verdict)
