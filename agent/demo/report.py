"""The measurements of each run of the workload, as a table. An unknown number is a dash, never 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

UNKNOWN: Final = "–"


class RunResult(NamedTuple):
    """The measurements of one run. None: not known, or not defined for this way to pick.

    `served` maps the name of each server to the requests that it finished. `query_tokens` and `hit_tokens` are the
    servers' counters; `predicted_tokens` is what the agent's prefix index predicted at its picks. `ages_seconds` are
    samples of the age of the agent's pages, `busy_ratios` of the accelerators' utilization. `late_seconds` is the
    largest delay of the client behind its schedule.
    """

    name: str
    sent: int
    ttft_seconds: Sequence[float]
    errors: Mapping[str, int]
    served: Mapping[str, float | None]
    query_tokens: float | None
    hit_tokens: float | None
    predicted_tokens: float | None
    left_warmest: float | None
    agent_cpu_seconds: float | None
    ages_seconds: Sequence[float]
    late_seconds: float
    busy_ratios: Sequence[float] = ()

    @property
    def hit_ratio(self) -> float | None:
        """Ratio of the prompt tokens that the servers found in their caches."""
        if self.hit_tokens is None or not self.query_tokens:
            return None
        return self.hit_tokens / self.query_tokens

    @property
    def failed(self) -> int:
        """Requests without a complete answer."""
        return sum(self.errors.values())


class TableRow(NamedTuple):
    """One row of the table: its label, and a cell for each run."""

    label: str
    cells: tuple[str, ...]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile by the nearest-rank method; None if there are no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table(runs: Sequence[RunResult]) -> list[TableRow]:
    """The rows: latency first, then cache hits, load, errors and cost."""
    rows = [
        _row("time to first token, p50", runs, lambda run: _seconds(percentile(run.ttft_seconds, 50))),
        _row("time to first token, p90", runs, lambda run: _seconds(percentile(run.ttft_seconds, 90))),
        _row("prefix hits, counted by servers", runs, lambda run: _ratio(run.hit_ratio)),
        _row("  hit tokens the index predicted", runs, lambda run: _count(run.predicted_tokens)),
        _row("  hit tokens the servers counted", runs, lambda run: _count(run.hit_tokens)),
        _row("  gap of the two", runs, _gap),
        _row("left the warmest server", runs, _left),
    ]
    servers = dict.fromkeys(server for run in runs for server in run.served)
    rows += [
        TableRow(f"requests at {server}", tuple(_count(run.served.get(server)) for run in runs)) for server in servers
    ]
    rows += [
        _row("accelerators busy, mean", runs, lambda run: _ratio(_mean(run.busy_ratios))),
        _row("errors", runs, lambda run: f"{run.failed}"),
        _row("agent CPU per request", runs, _cpu),
        _row("age of the signals, p50", runs, lambda run: _seconds(percentile(run.ages_seconds, 50))),
        _row("age of the signals, p99", runs, lambda run: _seconds(percentile(run.ages_seconds, 99))),
    ]
    return rows


def notes(runs: Sequence[RunResult], best_hit_ratio: float) -> list[str]:
    """Notes on the table, one sentence each; the first run is the baseline of the others."""
    lines = [f"One unlimited cache shared by all servers would have {_ratio(best_hit_ratio)} prefix hits."]
    baseline = runs[0]
    for run in runs[1:]:
        p90, baseline_p90 = percentile(run.ttft_seconds, 90), percentile(baseline.ttft_seconds, 90)
        if p90 and baseline_p90:
            lines.append(
                f"{run.name}: p90 of the time to first token is {p90 / baseline_p90:.2f} of that of {baseline.name}."
            )
    late = max(run.late_seconds for run in runs)
    if late >= 0.25:
        lines.append(
            f"This machine was overloaded: requests were sent up to {_seconds(late)} late, so all times are too long."
        )
    for run in runs:
        for error, count in sorted(run.errors.items(), key=lambda item: -item[1])[:5]:
            lines.append(f"{run.name}: {count} x {error}")
    return lines


class GaugeReading(NamedTuple):
    """A gauge of `/v1/gauges`: value and age, or the reason why it is withheld."""

    name: str
    labels: Mapping[str, str]
    value: float | None
    age_seconds: float | None
    withheld: str
    aliases: tuple[str, ...] = ()


# The gauges on which a pool is usually scaled.
AUTOSCALER_GAUGES: Final = (
    "llm_d_epp_average_queue_size",
    "llm_d_epp_average_running_requests",
    "llm_d_epp_average_kv_cache_utilization",
    "llm_d_epp_flow_control_pool_saturation",
    "igw_pool_in_flight_requests",
    "igw_pool_prefill_backlog_seconds",
    "llm_d_epp_ready_endpoints",
)


def read_gauges(document: Mapping[str, Any]) -> list[GaugeReading]:
    """The readings in a `/v1/gauges` document."""
    return [
        GaugeReading(
            row["name"],
            row["labels"],
            row["value"],
            row.get("age_seconds"),
            row.get("withheld", ""),
            tuple(row["aliases"]),
        )
        for row in document["gauges"]
    ]


def pool_gauges(now: Sequence[GaugeReading], peaks: Mapping[str, float]) -> list[TableRow]:
    """A row for each gauge of AUTOSCALER_GAUGES: its highest value, its value now, its age or why it is withheld."""
    rows = []
    for name in AUTOSCALER_GAUGES:
        for gauge in now:
            if gauge.name == name:
                value = UNKNOWN if gauge.value is None else f"{gauge.value:.4g}"
                age = f"withheld: {gauge.withheld}" if gauge.value is None else _seconds(gauge.age_seconds)
                peak = f"{peaks[name]:.4g}" if name in peaks else UNKNOWN
                rows.append(TableRow(name, (peak, value, age)))
    return rows


def withheld(now: Sequence[GaugeReading]) -> str:
    """One line that lists the withheld gauges and the reasons."""
    absent = Counter((gauge.name, gauge.withheld) for gauge in now if gauge.value is None)
    if not absent:
        return "No gauge is withheld."
    named = ", ".join(f"{name} ({count}, {reason})" for (name, reason), count in sorted(absent.items()))
    return f"Withheld because the value is unknown: {named}."


def _row(label: str, runs: Sequence[RunResult], cell: Callable[[RunResult], str]) -> TableRow:
    return TableRow(label, tuple(cell(run) for run in runs))


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.2f} s"


def _ratio(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value * 100:.1f} %"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _gap(run: RunResult) -> str:
    if run.predicted_tokens is None or not run.hit_tokens:
        return UNKNOWN
    return f"{(run.predicted_tokens / run.hit_tokens - 1) * 100:+.1f} %"


def _left(run: RunResult) -> str:
    return _count(run.left_warmest)


def _cpu(run: RunResult) -> str:
    if run.agent_cpu_seconds is None or not run.sent:
        return UNKNOWN
    return f"{run.agent_cpu_seconds / run.sent * 1e6:,.0f} us"
