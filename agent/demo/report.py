"""What was measured while a workload ran, and the table that says it. A number that nobody knows is a dash, never 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

UNKNOWN: Final = "–"


class Figures(NamedTuple):
    """One run of the workload. None: not known, or not to be known with this way to pick.

    Tokens, requests and hits are what the servers counted, but `predicted_tokens`, which the index expected at its
    picks, and `sent`, which the client did. `ages_seconds` are those of the pages that the agent picked by;
    `late_seconds` is how far behind its schedule the client was at worst; `busy_ratios` are the utilizations of the
    accelerators, as often as they were looked at.
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
        """Part of the prompt tokens that the servers found in their caches."""
        if self.hit_tokens is None or not self.query_tokens:
            return None
        return self.hit_tokens / self.query_tokens

    @property
    def failed(self) -> int:
        """Requests that got no whole answer."""
        return sum(self.errors.values())


class Row(NamedTuple):
    """One line of the table: what it is, and a cell for each run."""

    label: str
    cells: tuple[str, ...]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The least of `values` that so many per cent of them do not exceed (nearest rank); None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table(runs: Sequence[Figures]) -> list[Row]:
    """The rows, from what a user feels to what it costs."""
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
    rows += [Row(f"requests at {server}", tuple(_count(run.served.get(server)) for run in runs)) for server in servers]
    rows += [
        _row("accelerators busy, mean", runs, lambda run: _ratio(_mean(run.busy_ratios))),
        _row("errors", runs, lambda run: f"{run.failed}"),
        _row("agent CPU per request", runs, _cpu),
        _row("age of the signals, p50", runs, lambda run: _seconds(percentile(run.ages_seconds, 50))),
        _row("age of the signals, p99", runs, lambda run: _seconds(percentile(run.ages_seconds, 99))),
    ]
    return rows


def notes(runs: Sequence[Figures], best_hit_ratio: float) -> list[str]:
    """What to know beside the table, one sentence each; the first run is what the others are held against."""
    said = [f"A cache that has seen everything and forgets nothing would have {_ratio(best_hit_ratio)} prefix hits."]
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = percentile(run.ttft_seconds, 90), percentile(first.ttft_seconds, 90)
        if ours and theirs:
            said.append(f"{run.name}: p90 of the time to first token is {ours / theirs:.2f} of that of {first.name}.")
    late = max(run.late_seconds for run in runs)
    if late >= 0.25:
        said.append(
            f"This machine was busy: some requests were sent {_seconds(late)} late, and all times are longer for it."
        )
    for run in runs:
        for error, count in sorted(run.errors.items(), key=lambda item: -item[1])[:5]:
            said.append(f"{run.name}: {count} x {error}")
    return said


class Gauge(NamedTuple):
    """A gauge as `/v1/gauges` has it: value and age, or why it is withheld."""

    name: str
    labels: Mapping[str, str]
    value: float | None
    age_seconds: float | None
    withheld: str
    aliases: tuple[str, ...] = ()


# What people scale a pool on: the number of waiting and running requests, the cache, and saturation.
FOR_AN_AUTOSCALER: Final = (
    "llm_d_epp_average_queue_size",
    "llm_d_epp_average_running_requests",
    "llm_d_epp_average_kv_cache_utilization",
    "llm_d_epp_flow_control_pool_saturation",
    "igw_pool_in_flight_requests",
    "igw_pool_prefill_backlog_seconds",
    "llm_d_epp_ready_endpoints",
)


def gauges(document: Mapping[str, Any]) -> list[Gauge]:
    """The gauges of a `/v1/gauges` document."""
    return [
        Gauge(
            row["name"],
            row["labels"],
            row["value"],
            row.get("age_seconds"),
            row.get("withheld", ""),
            tuple(row["aliases"]),
        )
        for row in document["gauges"]
    ]


def pool_gauges(now: Sequence[Gauge], peaks: Mapping[str, float]) -> list[Row]:
    """The gauges that an autoscaler would read: the highest value seen, the value now, its age or why there is none."""
    rows = []
    for name in FOR_AN_AUTOSCALER:
        for gauge in now:
            if gauge.name == name:
                value = UNKNOWN if gauge.value is None else f"{gauge.value:.4g}"
                age = f"withheld: {gauge.withheld}" if gauge.value is None else _seconds(gauge.age_seconds)
                peak = f"{peaks[name]:.4g}" if name in peaks else UNKNOWN
                rows.append(Row(name, (peak, value, age)))
    return rows


def withheld(now: Sequence[Gauge]) -> str:
    """One line on the gauges that are absent, and why."""
    absent = Counter((gauge.name, gauge.withheld) for gauge in now if gauge.value is None)
    if not absent:
        return "No gauge is withheld."
    named = ", ".join(f"{name} ({count}, {reason})" for (name, reason), count in sorted(absent.items()))
    return f"Withheld, because nobody knows the value: {named}."


def _row(label: str, runs: Sequence[Figures], cell: Callable[[Figures], str]) -> Row:
    return Row(label, tuple(cell(run) for run in runs))


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.2f} s"


def _ratio(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value * 100:.1f} %"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _gap(run: Figures) -> str:
    if run.predicted_tokens is None or not run.hit_tokens:
        return UNKNOWN
    return f"{(run.predicted_tokens / run.hit_tokens - 1) * 100:+.1f} %"


def _left(run: Figures) -> str:
    return _count(run.left_warmest)


def _cpu(run: Figures) -> str:
    if run.agent_cpu_seconds is None or not run.sent:
        return UNKNOWN
    return f"{run.agent_cpu_seconds / run.sent * 1e6:,.0f} us"
