"""What an exit may say of a bad endpoint: each expectation has the words that stand in the table, and checks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import NamedTuple

from agent.scaling.gauges import BY_SIGNAL
from agent.signals import GENERATION_TOKENS, KV_USAGE, RUNNING, WAITING
from tests.spec.scene import STALE_AFTER
from tests.spec.story import PICKS, POOL, TURN, Seen

# What the page of every endpoint says while nothing is wrong (`tests.spec.story.PAGE`).
TOLD: Mapping[str, float] = {RUNNING: 4.0, WAITING: 2.0, KV_USAGE: 0.797979797979798, GENERATION_TOKENS: 2580.0}
GAUGES: Mapping[str, tuple[str, ...]] = {
    signal: tuple(metric.name for metric in metrics if metric.name.startswith("igw_")) for signal, metrics in BY_SIGNAL
}
REFUSED = "503"


class Told(NamedTuple):
    """What was seen: before the fault, when it had come, and when all that it changes had changed."""

    bad: str
    good: Sequence[str]
    before: Seen
    early: Seen
    seen: Seen


class Expected(NamedTuple):
    """The words of a cell, and what they mean; the check fails with an AssertionError."""

    words: str
    check: Callable[[Told], None]


# -- the picker ------------------------------------------------------------------------------------------------------


def _left_out(told: Told) -> None:
    assert sum(told.seen.picks.get(address, 0) for address in told.good) == PICKS, told.seen.picks


def _picked(told: Told) -> None:
    assert told.seen.picks.keys() == {told.bad, *told.good}, told.seen.picks
    assert min(told.seen.picks.values()) >= PICKS / len(told.seen.picks) / 2, told.seen.picks


def _all_refused(told: Told) -> None:
    assert told.seen.picks == {REFUSED: PICKS}


LEFT_OUT = Expected("gets no request", _left_out)
PICKED = Expected("is picked as the others are", _picked)
ALL_REFUSED = Expected("refuses every request, 503, `none_healthy`", _all_refused)


# -- /v1/state -------------------------------------------------------------------------------------------------------


def unhealthy(health: str, reason: str) -> Expected:
    """Health and its reason; no value is told any more."""

    def check(told: Told) -> None:
        found = told.seen.state[told.bad]
        assert (found["health"], found["reason"]) == (health, reason)
        told_by = {(said["value"], said["fresh"], said["reason"]) for said in found["signals"].values()}
        assert told_by == {(None, False, health)}

    return Expected(f"`{health}`, `{reason}`; every value null, `{health}`", check)


def _as_before(told: Told) -> None:
    values(told.seen, told.bad, TOLD)
    assert told.seen.state[told.bad]["page_age_seconds"] < TURN


def values(seen: Seen, address: str, wanted: Mapping[str, float]) -> None:
    """The endpoint is healthy, and these are its values."""
    found = seen.state[address]
    assert (found["health"], found["reason"], found["failures"]) == ("healthy", "", 0), found
    assert {signal: found["signals"][signal]["value"] for signal in wanted} == dict(wanted)
    assert all(found["signals"][signal]["fresh"] for signal in wanted)


HEALTHY = Expected("`healthy`; every value as the server says", _as_before)


def without(*signals: str) -> Expected:
    """Healthy; some signals grow old and are then null."""

    def check(told: Told) -> None:
        early, late = told.early.state[told.bad], told.seen.state[told.bad]
        rest = {signal: value for signal, value in TOLD.items() if signal not in signals}
        for seen in (told.early, told.seen):
            values(seen, told.bad, rest)
        for signal in signals:
            known = told.before.state[told.bad]["signals"][signal]
            one = early["signals"][signal]
            assert (one["value"], one["fresh"]) == (known["value"], True), signal
            passed = told.early.header["uptime_seconds"] - told.before.header["uptime_seconds"]
            assert isclose(one["age_seconds"], known["age_seconds"] + passed), signal
            gone = late["signals"][signal]
            assert (gone["value"], gone["fresh"], gone["reason"]) == (None, False, "stale"), signal
            assert gone["age_seconds"] >= STALE_AFTER

    named = ", ".join(f"`{signal}`" for signal in signals)
    return Expected(
        f"`healthy`; {named} as last known until it is stale, then null, `stale`; the rest as it says", check
    )


def new_server(wanted: Mapping[str, float], lacks: Sequence[str] = ()) -> Expected:
    """Healthy, and nothing of the old server is left."""

    def check(told: Told) -> None:
        values(told.seen, told.bad, wanted)
        for signal in lacks:
            found = told.seen.state[told.bad]["signals"][signal]
            assert (found["value"], found["age_seconds"], found["reason"]) == (None, None, "not_reported")

    named = ", ".join(f"`{signal}`" for signal in lacks)
    also = f"; {named}, which it does not tell, null, `not_reported`" if lacks else ""
    return Expected(f"`healthy`; the new server's values{also}", check)


def wall_clock(seconds: float) -> Expected:
    """Only what labels a document with a date has moved."""

    def check(told: Told) -> None:
        _as_before(told)
        before, after = told.before.header, told.seen.header
        assert 0 < after["uptime_seconds"] - before["uptime_seconds"] < 2 * TURN
        assert (after["as_of"] > before["as_of"]) == (seconds > 0)

    return Expected("`healthy`; every value and every age as it would be; `as_of` shows the new time", check)


# -- /v1/gauges ------------------------------------------------------------------------------------------------------


def withheld(reason: str, *signals: str) -> Expected:
    """Gauges of these signals (of all, where none is named) are null with the reason, the others are published."""

    def check(told: Told) -> None:
        for signal, names in GAUGES.items():
            for name in names:
                rows = told.seen.gauge(name, told.bad)
                if not signals or signal in signals:
                    assert [(row["value"], row["withheld"]) for row in rows] == [(None, reason)] * len(rows), name
                elif signal in TOLD:
                    assert all(row["value"] == TOLD[signal] for row in rows), name

    which = (
        "every gauge of its signals" if not signals else ", ".join(f"`{name}`" for s in signals for name in GAUGES[s])
    )
    return Expected(f"{which} withheld, `{reason}`" + ("; the rest as it says" if signals else ""), check)


def published(wanted: Mapping[str, float]) -> Expected:
    """Every gauge of these signals has its value."""

    def check(told: Told) -> None:
        for signal, value in wanted.items():
            for name in GAUGES[signal]:
                assert all(row["value"] == value for row in told.seen.gauge(name, told.bad)), name

    return Expected("every gauge as the server says" if wanted is TOLD else "the new server's values", check)


def _no_pool(told: Told) -> None:
    rows = told.seen.gauge("igw_pool_waiting_requests", POOL)
    assert [(row["value"], row["withheld"]) for row in rows] == [(None, "none_fresh")]
    withheld("down").check(told)


NO_POOL = Expected("every gauge of its signals withheld, `down`; the pool's, `none_fresh`", _no_pool)


# -- /metrics --------------------------------------------------------------------------------------------------------


def absent(health: str, coverage: float) -> Expected:
    """No sample of what it reported, its health, and how much of the pool is known."""

    def check(told: Told) -> None:
        page = told.seen.page
        for names in GAUGES.values():
            for name in names:
                assert told.bad not in page.by("server", name), name
        assert page.by("state", "igw_endpoint_health", server=told.bad) == {health: 1.0}
        assert page.of("igw_pool_coverage_ratio", signal=RUNNING) == coverage
        assert page.of("igw_pool_running_requests") == TOLD[RUNNING] * len(told.good)

    words = f'no sample of its signals; `igw_endpoint_health{{state="{health}"}}` 1'
    return Expected(f"{words}; `igw_pool_coverage_ratio` {coverage:g}", check)


def lacking(*signals: str) -> Expected:
    """No sample of these signals, all others."""

    def check(told: Told) -> None:
        page = told.seen.page
        for signal, value in TOLD.items():
            for name in GAUGES[signal]:
                found = page.by("server", name).get(told.bad)
                assert found == (None if signal in signals else value), name
        assert page.by("state", "igw_endpoint_health", server=told.bad) == {"healthy": 1.0}

    return Expected("no sample of it; the rest as it says", check)


def samples(wanted: Mapping[str, float]) -> Expected:
    """A sample of each of these signals."""

    def check(told: Told) -> None:
        for signal, value in wanted.items():
            for name in GAUGES[signal]:
                found = told.seen.page.of(name, server=told.bad)
                assert found == value, name
        assert told.seen.page.by("state", "igw_endpoint_health", server=told.bad) == {"healthy": 1.0}

    return Expected("every sample as the server says" if wanted is TOLD else "the new server's values", check)


# -- what is counted -------------------------------------------------------------------------------------------------

Counted = tuple[str, frozenset[tuple[str, str]]]


def counted(name: str, **labels: str) -> Counted:
    """A series that must have grown."""
    return name, frozenset(labels.items())


def failed(reason: str) -> Counted:
    return counted("igw_scrapes_total", result="failed", reason=reason)


def refused(signal: str, reason: str) -> Counted:
    return counted("igw_scrape_refused_values_total", signal=signal, reason=reason)


def missing(signal: str) -> Counted:
    return counted("igw_scrape_missing_signals_total", signal=signal)


def unwell(reason: str) -> Counted:
    return counted("igw_health_path_failures_total", reason=reason)


DOWN = counted("igw_health_changes_total", state="down")
# Whatever counts something that is wrong; a fault counts in those that its row names and in no other.
COUNTERS = (
    "igw_scrapes_total",
    "igw_scrape_refused_values_total",
    "igw_scrape_missing_signals_total",
    "igw_health_changes_total",
    "igw_health_path_failures_total",
    "igw_server_restarts_total",
    "igw_requests_rejected_total",
    "igw_stream_errors_total",
    "igw_watchers_dropped_total",
    "igw_requests_abandoned_total",
    "igw_accelerator_scrapes_total",
    "igw_accelerator_refused_values_total",
    "igw_accelerator_health_changes_total",
)


def grown(before: Seen, after: Seen) -> set[Counted]:
    """The series of these counters that have grown, without the pool's name; good scrapes are nothing wrong."""
    found = set()
    known = before.page.series(*COUNTERS)
    for (name, labels), value in after.page.series(*COUNTERS).items():
        told = frozenset((label, text) for label, text in labels if label != "pool")
        usual = name == "igw_scrape_missing_signals_total" and (name, labels) in known
        if value > known.get((name, labels), 0.0) and not usual and ("result", "ok") not in told:
            found.add((name, told))
    return found


def spelt(series: Counted) -> str:
    """`name{label="value"}`."""
    name, labels = series
    told = ",".join(f'{label}="{text}"' for label, text in sorted(labels))
    return f"`{name}{{{told}}}`"
