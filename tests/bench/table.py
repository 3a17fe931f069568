"""Tables of the benches. A row is printed as soon as it is measured, so column widths are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """`title`, `width` in characters, and the format of a number, such as `.3f`; without one, left-aligned text."""

    title: str
    width: int
    format: str = ""


class Table:
    """Prints its header at once and each row when it is added."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        print("  ".join(self._aligned(column, column.title) for column in columns).rstrip())
        print("  ".join("-" * column.width for column in columns))

    def row(self, *values: str | float | None) -> None:
        """Print one row; None is a dash."""
        pairs = zip(self._columns, values, strict=True)
        print("  ".join(self._aligned(column, _text(column, value)) for column, value in pairs).rstrip(), flush=True)

    @staticmethod
    def _aligned(column: Column, text: str) -> str:
        return f"{text:>{column.width}}" if column.format else f"{text:<{column.width}}"


def _text(column: Column, value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, column.format)


def bar(claim: str, value: float, limit: float, *, maximum: bool = True, format: str = ".4f") -> str:
    """One line: the claim, the value, its bar (the maximum, or the minimum), and whether it is met."""
    met = value <= limit if maximum else value >= limit
    sign = "<=" if maximum else ">="
    return f"{claim:<58} {value:{format}} {sign} {limit:{format}}  {'met' if met else 'MISSED'}"
