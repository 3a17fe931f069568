"""The type of the catalogue's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Type = Literal["gauge", "counter", "histogram"]
# Where a metric's numbers come from: a snapshot of the state at read time, events as they happen, or the operating
# system's view of the process.
Origin = Literal["state", "events", "process"]


class Alias(NamedTuple):
    """Another name of a metric. `labels` maps its labels to the metric's; the metric's other labels are summed over."""

    name: str
    labels: Mapping[str, str]


def same_labels(name: str, *labels: str) -> Alias:
    """An alias with these labels of the metric, under the same names."""
    return Alias(name, {label: label for label in labels})


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One row. `buckets` are the upper bounds of a histogram, without the infinite one."""

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    origin: Origin
    help: str
    aliases: tuple[Alias, ...] = ()
    buckets: tuple[float, ...] = ()


class Rows:
    """The rows of one family, in the order in which they were added."""

    def __init__(self) -> None:
        self._rows: list[Metric] = []

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._rows)

    def add(
        self,
        name: str,
        type: Type,
        unit: str,
        labels: str,
        origin: Origin,
        help: str,
        aliases: tuple[Alias, ...] = (),
        buckets: tuple[float, ...] = (),
    ) -> Metric:
        """Add a row and return it; `labels` are separated by spaces."""
        row = Metric(name, type, unit, tuple(labels.split()), origin, help, aliases, buckets)
        self._rows.append(row)
        return row

    def gauge(self, name: str, unit: str, labels: str, help: str, *aliases: Alias) -> Metric:
        """Add a gauge that is computed from the state."""
        return self.add(name, "gauge", unit, labels, "state", help, aliases)

    def counter(self, name: str, unit: str, labels: str, help: str, *aliases: Alias) -> Metric:
        """Add a counter of events."""
        return self.add(name, "counter", unit, labels, "events", help, aliases)
