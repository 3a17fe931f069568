"""What a dashboard is made of: rows of panels, each with the question that it answers, and queries with their truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

# What a truth may hold that no server knows: `$` and one of these names, filled in by the test.
PLACEHOLDERS: Final[Mapping[str, str]] = {
    "window": "the rate window, as PromQL writes it",
    "window_seconds": "the same as a number",
    "interval_seconds": "the agent's scrape interval",
    "refused": "bodies within the window that the agent refused",
    "agent_cpu_ratio": "CPU seconds per second of the agent's process, by the operating system",
    "agent_resident_bytes": "memory of the agent's process, by the operating system",
}
Kind = Literal["timeseries", "stat"]
Bound = Literal["equal", "at_most"]


class Query(NamedTuple):
    """One line of a panel.

    `truth` is PromQL over the servers' own pages. The query is to be `equal` to it, within the part `within` of its
    size, or `at_most` as large and not below 0. Rates of two jobs that are scraped at different instants differ by up
    to one scrape of the window, hence the parts of a tenth.
    """

    expr: str
    legend: str
    truth: str
    within: float = 0.02
    bound: Bound = "equal"


class Panel(NamedTuple):
    """One panel: the question that it answers stands in Grafana as its description."""

    title: str
    question: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: Kind = "timeseries"
    thresholds: tuple[float, ...] = ()


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]
