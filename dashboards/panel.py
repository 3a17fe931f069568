"""The types of the dashboard: rows, panels with the question that they answer, and queries with their truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

# Variables of a truth, written as `$name`, which the test fills in.
PLACEHOLDERS: Final[Mapping[str, str]] = {
    "window": "the rate window as a PromQL duration",
    "window_seconds": "the rate window in seconds",
    "interval_seconds": "the agent's scrape interval",
    "in_flight": "requests that clients have sent and that have not ended",
    "refused": "requests within the window that the agent rejected",
    "agent_cpu_ratio": "CPU seconds per second of the agent's process, from the operating system",
    "agent_resident_bytes": "resident memory of the agent's process, from the operating system",
}
PanelType = Literal["timeseries", "stat"]
Bound = Literal["equal", "at_most"]


class Query(NamedTuple):
    """One line of a panel.

    `truth` is PromQL over the servers' own pages. The query's result has to be `equal` to it with the relative
    tolerance `within`, or between 0 and it (`at_most`). Rates of two jobs that are scraped at different times differ by
    up to one scrape of the window, hence the larger tolerances.
    """

    expr: str
    legend: str
    truth: str
    within: float = 0.02
    bound: Bound = "equal"


class Panel(NamedTuple):
    """One panel; the question that it answers is its description in Grafana."""

    title: str
    question: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    type: PanelType = "timeseries"
    thresholds: tuple[float, ...] = ()


class DashboardRow(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]
