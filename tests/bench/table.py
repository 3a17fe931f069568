"""Tables of the benches: a row is printed as soon as it is known, so the widths are given beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """`title`, `width` in characters, and how a number is written (a format such as `.3f`). Text stands to the left."""

    title: str
    width: int
    form: str = ""


class Table:
    """Prints its head at once and each row when it is given."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        print("  ".join(self._placed(column, column.title) for column in columns).rstrip())
        print("  ".join("-" * column.width for column in columns))

    def row(self, *values: str | float | None) -> None:
        """Print one row; None is a dash: not known or not asked."""
        pairs = zip(self._columns, values, strict=True)
        print("  ".join(self._placed(column, _written(column, value)) for column, value in pairs).rstrip(), flush=True)

    @staticmethod
    def _placed(column: Column, text: str) -> str:
        return f"{text:>{column.width}}" if column.form else f"{text:<{column.width}}"


def _written(column: Column, value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, column.form)


def bar(claim: str, value: float, limit: float, *, most: bool = True, form: str = ".4f") -> str:
    """One line: the claim, the value, its bar (the most or the least that it may be), and whether it was met."""
    met = value <= limit if most else value >= limit
    sign = "<=" if most else ">="
    return f"{claim:<58} {value:{form}} {sign} {limit:{form}}  {'met' if met else 'MISSED'}"
