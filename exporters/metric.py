"""What a row of the catalogue says of a metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Type = Literal["gauge", "counter", "histogram"]
Origin = Literal["state", "events", "process"]


class Alias(NamedTuple):
    """Another name of a metric. `labels` maps its labels to the metric's; labels left out are summed over."""

    name: str
    labels: Mapping[str, str]


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
    """Rows of the catalogue, in the order in which they were written down."""

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
        """One more row; `labels` are words."""
        row = Metric(name, type, unit, tuple(labels.split()), origin, help, aliases, buckets)
        self._rows.append(row)
        return row

    def gauge(self, name: str, unit: str, labels: str, help: str, *aliases: Alias) -> Metric:
        """A number of the state."""
        return self.add(name, "gauge", unit, labels, "state", help, aliases)

    def count(self, name: str, unit: str, labels: str, help: str, *aliases: Alias) -> Metric:
        """How often something happened."""
        return self.add(name, "counter", unit, labels, "events", help, aliases)
