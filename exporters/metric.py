"""What a row of the catalogue says of a metric."""

from __future__ import annotations

from collections.abc import Mapping
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
