"""The expected outputs for an endpoint with a fault: each has the text of the table's cell, and a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import NamedTuple

from agent.scaling.gauges import BY_SIGNAL
from agent.signals import GENERATION_TOKENS, KV_USAGE, MODELS, RUNNING, WAITING
from tests.spec.environment import STALE_AFTER
from tests.spec.scenario import PICKS, POOL, ROUND_SECONDS, Outputs

# The values of the page of every endpoint without a fault (`tests.spec.scenario.PAGE`).
PAGE_VALUES: Mapping[str, float] = {RUNNING: 4.0, WAITING: 2.0, KV_USAGE: 0.797979797979798, GENERATION_TOKENS: 2580.0}
GAUGES: Mapping[str, tuple[str, ...]] = {
    signal: tuple(metric.name for metric in metrics if metric.name.startswith("igw_")) for signal, metrics in BY_SIGNAL
}
REFUSED = "503"


class Observations(NamedTuple):
    """The outputs before the fault, before its full effect, and after it; `bad` is the server with the fault."""

    bad: str
    good: Sequence[str]
    before: Outputs
    early: Outputs
    after: Outputs


class Expected(NamedTuple):
    """The text of a cell, and a check that raises AssertionError."""

    text: str
    check: Callable[[Observations], None]


# -- the picker ------------------------------------------------------------------------------------------------------


def _left_out(observed: Observations) -> None:
    assert sum(observed.after.picks.get(address, 0) for address in observed.good) == PICKS, observed.after.picks


def _picked(observed: Observations) -> None:
    assert observed.after.picks.keys() == {observed.bad, *observed.good}, observed.after.picks
    assert min(observed.after.picks.values()) >= PICKS / len(observed.after.picks) / 2, observed.after.picks


def _all_refused(observed: Observations) -> None:
    assert observed.after.picks == {REFUSED: PICKS}


def _served(observed: Observations) -> None:
    picks = observed.after.picks
    assert picks.keys() == observed.after.state.keys(), picks
    assert min(picks.values()) >= PICKS / len(picks) / 2, picks


LEFT_OUT = Expected("gets no requests", _left_out)
PICKED = Expected("is picked like the others", _picked)
SERVED = Expected("every request is served; requests in flight decide", _served)
ALL_REFUSED = Expected("rejects every request: 503, `none_healthy`", _all_refused)


# -- /v1/state -------------------------------------------------------------------------------------------------------


def unhealthy(health: str, reason: str) -> Expected:
    """Health and its reason; every value is null."""

    def check(observed: Observations) -> None:
        found = observed.after.state[observed.bad]
        assert (found["health"], found["reason"]) == (health, reason)
        values_now = {(s["value"], s["fresh"], s["reason"]) for s in found["signals"].values()}
        assert values_now == {(None, False, health)}

    return Expected(f"`{health}`, `{reason}`; every value null, `{health}`", check)


def blind(reason: str) -> Expected:
    """Blind for this reason; every value of the page is null."""

    def check(observed: Observations) -> None:
        found = observed.after.state[observed.bad]
        assert (found["health"], found["reason"]) == ("blind", reason)
        signals = dict(found["signals"])
        assert signals.pop(MODELS)["fresh"]
        assert {(s["value"], s["fresh"], s["reason"]) for s in signals.values()} == {(None, False, "blind")}

    return Expected(f"`blind`, `{reason}`; every value of the page null, `blind`", check)


def _as_before(observed: Observations) -> None:
    values(observed.after, observed.bad, PAGE_VALUES)
    assert observed.after.state[observed.bad]["page_age_seconds"] < ROUND_SECONDS


def values(outputs: Outputs, address: str, wanted: Mapping[str, float]) -> None:
    """Check that the endpoint is healthy with these values."""
    found = outputs.state[address]
    assert (found["health"], found["reason"], found["failures"]) == ("healthy", "", 0), found
    assert {signal: found["signals"][signal]["value"] for signal in wanted} == dict(wanted)
    assert all(found["signals"][signal]["fresh"] for signal in wanted)


HEALTHY = Expected("`healthy`; every value as reported", _as_before)


def loaded_by_others(wanted: Mapping[str, float], requests: float) -> Expected:
    """Healthy, with these values; so many requests there are not the agent's."""

    def check(observed: Observations) -> None:
        values(observed.after, observed.bad, wanted)
        assert observed.after.state[observed.bad]["work"]["foreign_requests"] == requests
        assert observed.after.state[observed.bad]["work"]["queue_seconds"] > 0

    return Expected(f"`healthy`; every value as reported; `foreign_requests` {requests:g}", check)


def without(*signals: str) -> Expected:
    """Healthy; these signals become stale and are then null."""

    def check(observed: Observations) -> None:
        early, late = observed.early.state[observed.bad], observed.after.state[observed.bad]
        rest = {signal: value for signal, value in PAGE_VALUES.items() if signal not in signals}
        for outputs in (observed.early, observed.after):
            values(outputs, observed.bad, rest)
        for signal in signals:
            known = observed.before.state[observed.bad]["signals"][signal]
            aging = early["signals"][signal]
            assert (aging["value"], aging["fresh"]) == (known["value"], True), signal
            passed = observed.early.header["uptime_seconds"] - observed.before.header["uptime_seconds"]
            assert isclose(aging["age_seconds"], known["age_seconds"] + passed), signal
            stale = late["signals"][signal]
            assert (stale["value"], stale["fresh"], stale["reason"]) == (None, False, "stale"), signal
            assert stale["age_seconds"] >= STALE_AFTER

    named = ", ".join(f"`{signal}`" for signal in signals)
    return Expected(
        f"`healthy`; {named} as last reported until it is stale, then null, `stale`; the rest as reported", check
    )


def new_server(wanted: Mapping[str, float], lacks: Sequence[str] = ()) -> Expected:
    """Healthy, with values of the new server only."""

    def check(observed: Observations) -> None:
        values(observed.after, observed.bad, wanted)
        for signal in lacks:
            found = observed.after.state[observed.bad]["signals"][signal]
            assert (found["value"], found["age_seconds"], found["reason"]) == (None, None, "not_reported")

    named = ", ".join(f"`{signal}`" for signal in lacks)
    also = f"; {named}, which it does not report, null, `not_reported`" if lacks else ""
    return Expected(f"`healthy`; the values of the new server{also}", check)


def wall_clock(seconds: float) -> Expected:
    """Only the date of the documents has changed."""

    def check(observed: Observations) -> None:
        _as_before(observed)
        before, after = observed.before.header, observed.after.header
        assert 0 < after["uptime_seconds"] - before["uptime_seconds"] < 2 * ROUND_SECONDS
        assert (after["as_of"] > before["as_of"]) == (seconds > 0)

    return Expected("`healthy`; values and ages unchanged; `as_of` has the new time", check)


# -- /v1/gauges ------------------------------------------------------------------------------------------------------


def withheld(reason: str, *signals: str) -> Expected:
    """Gauges of these signals (without any: of all) are null with the reason; the others are published."""

    def check(observed: Observations) -> None:
        for signal, names in GAUGES.items():
            for name in names:
                rows = observed.after.gauge(name, observed.bad)
                if not signals or signal in signals:
                    assert [(row["value"], row["withheld"]) for row in rows] == [(None, reason)] * len(rows), name
                elif signal in PAGE_VALUES:
                    assert all(row["value"] == PAGE_VALUES[signal] for row in rows), name

    names_text = (
        "every gauge of its signals" if not signals else ", ".join(f"`{name}`" for s in signals for name in GAUGES[s])
    )
    return Expected(f"{names_text} withheld, `{reason}`" + ("; the rest as reported" if signals else ""), check)


def published(wanted: Mapping[str, float], text: str = "the values of the new server") -> Expected:
    """Every gauge of these signals has this value."""

    def check(observed: Observations) -> None:
        for signal, value in wanted.items():
            for name in GAUGES[signal]:
                assert all(row["value"] == value for row in observed.after.gauge(name, observed.bad)), name

    return Expected("every gauge as reported" if wanted is PAGE_VALUES else text, check)


def no_pool(health: str) -> Expected:
    """Neither the endpoint's gauges nor the pool's are published."""

    def check(observed: Observations) -> None:
        rows = observed.after.gauge("igw_pool_waiting_requests", POOL)
        assert [(row["value"], row["withheld"]) for row in rows] == [(None, "none_fresh")]
        withheld(health).check(observed)

    return Expected(f"every gauge of its signals withheld, `{health}`; the pool's, `none_fresh`", check)


# -- /metrics --------------------------------------------------------------------------------------------------------


def absent(health: str, coverage: float) -> Expected:
    """No sample of its signals, its health, and the pool's coverage."""

    def check(observed: Observations) -> None:
        page = observed.after.page
        for names in GAUGES.values():
            for name in names:
                assert observed.bad not in page.by("server", name), name
        assert page.by("state", "igw_endpoint_health", server=observed.bad) == {health: 1.0}
        assert page.of("igw_pool_coverage_ratio", signal=RUNNING) == coverage
        assert page.of("igw_pool_running_requests") == PAGE_VALUES[RUNNING] * len(observed.good)
        assert page.of("igw_pool_blind_ratio") == (1 - coverage if health == "blind" else 0.0)

    text = f'no sample of its signals; `igw_endpoint_health{{state="{health}"}}` 1'
    return Expected(f"{text}; `igw_pool_coverage_ratio` {coverage:g}", check)


def lacking(*signals: str) -> Expected:
    """Samples of all signals but these."""

    def check(observed: Observations) -> None:
        page = observed.after.page
        for signal, value in PAGE_VALUES.items():
            for name in GAUGES[signal]:
                found = page.by("server", name).get(observed.bad)
                assert found == (None if signal in signals else value), name
        assert page.by("state", "igw_endpoint_health", server=observed.bad) == {"healthy": 1.0}

    return Expected("no sample of it; the rest as reported", check)


def samples(wanted: Mapping[str, float], text: str = "the values of the new server") -> Expected:
    """A sample of each of these signals."""

    def check(observed: Observations) -> None:
        for signal, value in wanted.items():
            for name in GAUGES[signal]:
                found = observed.after.page.of(name, server=observed.bad)
                assert found == value, name
        assert observed.after.page.by("state", "igw_endpoint_health", server=observed.bad) == {"healthy": 1.0}

    return Expected("every sample as reported" if wanted is PAGE_VALUES else text, check)


# -- what is counted -------------------------------------------------------------------------------------------------

CountedSeries = tuple[str, frozenset[tuple[str, str]]]


def counted(name: str, **labels: str) -> CountedSeries:
    """A series that has to increase."""
    return name, frozenset(labels.items())


def failed(reason: str) -> CountedSeries:
    return counted("igw_scrapes_total", result="failed", reason=reason)


def refused(signal: str, reason: str) -> CountedSeries:
    return counted("igw_scrape_refused_values_total", signal=signal, reason=reason)


def missing(signal: str) -> CountedSeries:
    return counted("igw_scrape_missing_signals_total", signal=signal)


def health_failed(reason: str) -> CountedSeries:
    return counted("igw_health_path_failures_total", reason=reason)


BLIND = counted("igw_health_changes_total", state="blind")
DOWN = counted("igw_health_changes_total", state="down")
# All counters of failures; a fault increases those of its row and no other.
COUNTERS = (
    "igw_scrapes_total",
    "igw_scrape_refused_values_total",
    "igw_scrape_missing_signals_total",
    "igw_health_changes_total",
    "igw_health_path_failures_total",
    "igw_server_restarts_total",
    "igw_prefix_caches_emptied_total",
    "igw_requests_rejected_total",
    "igw_stream_errors_total",
    "igw_watchers_dropped_total",
    "igw_requests_abandoned_total",
    "igw_accelerator_scrapes_total",
    "igw_accelerator_refused_values_total",
    "igw_accelerator_health_changes_total",
    "igw_accelerators_lost_total",
)


def grown(before: Outputs, after: Outputs) -> set[CountedSeries]:
    """The series of these counters that have increased, without the label `pool` and without good scrapes."""
    found = set()
    known = before.page.series(*COUNTERS)
    for (name, labels), value in after.page.series(*COUNTERS).items():
        without_pool = frozenset((label, text) for label, text in labels if label != "pool")
        usual = name == "igw_scrape_missing_signals_total" and (name, labels) in known
        if value > known.get((name, labels), 0.0) and not usual and ("result", "ok") not in without_pool:
            found.add((name, without_pool))
    return found


def series_text(series: CountedSeries) -> str:
    """`name{label="value"}`."""
    name, labels = series
    text = ",".join(f'{label}="{value}"' for label, value in sorted(labels))
    return f"`{name}{{{text}}}`"
