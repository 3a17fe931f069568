"""What is published of a snapshot: numbers with the time of their oldest reading, or a reason instead."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.pool_endpoints import SOURCE_REASONS, ObjectProblem
from agent.scaling.gauges import BY_HISTOGRAM, BY_RATE, BY_SIGNAL, gauge_set
from agent.signals import (
    HISTOGRAMS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    PREFIX_HITS,
    RUNNING,
    SIGNALS,
    WAITING,
    Histogram,
    SignalKind,
)
from agent.state.counter_rates import RATES
from agent.state.health import Health
from agent.state.identity import Identity
from agent.state.snapshot import EndpointView, Prefix
from agent.state.source import SourceStatus
from exporters.catalog import CATALOG, accelerators, discovery, endpoints, pools
from exporters.catalog.withheld import WITHHELD
from exporters.gauge import REASONS, Distribution, Gauge, GaugeSet, NotFinite
from tests.fakes.autoscalers import autoscaler_report
from tests.fakes.demands import demand_report
from tests.fakes.flows import band, caller, flow_report
from tests.fakes.views import STALE_AFTER, snapshot, view
from tests.fakes.views import views as plain_views

POOL_GAUGES = (
    pools.AVERAGE_KV,
    pools.AVERAGE_QUEUE,
    pools.AVERAGE_RUNNING,
    pools.DEVIATION_KV,
    pools.DEVIATION_QUEUE,
    pools.DEVIATION_RUNNING,
    pools.SATURATION,
    pools.RUNNING,
    pools.WAITING,
)


OF_ACCELERATORS = {row.name for row in accelerators.ROWS}  # absent where a pool has none


def values(found: GaugeSet, metric) -> dict[tuple[str, ...], float]:
    return {gauge.labels: gauge.value for gauge in found.gauges if gauge.metric is metric}


def reasons(found: GaugeSet, metric) -> dict[tuple[str, ...], str]:
    return {row.labels: row.reason for row in found.withheld if row.metric is metric}


histograms = st.fixed_dictionaries(
    dict.fromkeys(HISTOGRAMS, st.none() | st.just(Histogram((0.1, 1.0), (1.0, 2.0), 3.0, 4.5)))
)
views = st.builds(
    lambda each, found: each._replace(histograms=found, identity=Identity("llm/chat-0", "n1")), plain_views, histograms
)


@given(st.lists(views, max_size=5, unique_by=lambda each: each.address), st.floats(0, 10))
def test_every_number_is_finite_and_every_series_is_either_published_or_withheld_with_a_reason(found, now):
    source = SourceStatus("InferencePool llm/chat", current=False, known_at=None)
    held = flow_report(
        band(-1, caller("a"), max_requests=10)._replace(max_bytes=10.0), drain=None, max_requests=10, max_bytes=10
    )
    made = gauge_set(
        [snapshot(*found, source=source)],
        now,
        flows=[held],
        demands=[demand_report(at=min(now, 0.0))],
        scalers=[autoscaler_report()],
    )
    rows: list[Gauge | Distribution] = [*made.gauges, *made.distributions]
    published = [(row.metric.name, row.labels) for row in rows]
    withheld = [(row.metric.name, row.labels) for row in made.withheld]
    assert all(math.isfinite(gauge.value) for gauge in made.gauges)
    assert len(set(published)) == len(published)
    assert not set(published) & set(withheld)
    assert {row.reason for row in made.withheld} <= REASONS.keys()
    assert all(row.at <= now for row in rows)
    names = {name for name, _ in published} | {name for name, _ in withheld}
    expected = {row.name for row in CATALOG.values() if row.origin == "state"} - OF_ACCELERATORS
    if found:
        assert names | {WITHHELD.name} == expected


def test_the_pod_and_the_node_of_an_endpoint_are_labels_of_one_gauge_and_absent_where_unknown():
    found = snapshot(
        view("a:1", identity=Identity("llm/chat-0", "n1", "uid")), view("b:1"), view("c:1", identity=Identity("", "n2"))
    )
    made = values(gauge_set([found], 0.0), endpoints.INFO)
    assert made == {("pool", "a:1", "llm", "chat-0", "n1"): 1.0, ("pool", "c:1", "", "", "n2"): 1.0}


def test_the_age_of_a_source_grows_while_it_is_not_current_and_is_withheld_before_it_was():
    def age_at(now: float, source: SourceStatus | None) -> GaugeSet:
        return gauge_set([snapshot(view("a:1"), source=source)], now)

    current = SourceStatus("s", current=True, known_at=None)
    assert values(age_at(9.0, current), discovery.AGE) == {("pool",): 0.0}
    lost = SourceStatus("s", current=False, known_at=2.0, problems=(ObjectProblem("ApiUnavailable", "it is away"),))
    assert values(age_at(9.0, lost), discovery.AGE) == {("pool",): 7.0}
    counts = values(age_at(9.0, lost), discovery.PROBLEMS)
    assert {labels: count for labels, count in counts.items() if count} == {("pool", "ApiUnavailable"): 1.0}
    assert {reason for _, reason in counts} == set(SOURCE_REASONS)
    never = SourceStatus("s", current=False, known_at=None)
    assert reasons(age_at(9.0, never), discovery.AGE) == {("pool",): "never_known"}
    assert values(age_at(9.0, None), discovery.PROBLEMS) == {}


@given(st.lists(views, max_size=5, unique_by=lambda each: each.address))
def test_the_count_of_withheld_gauges_is_the_number_of_withheld_gauges(found):
    made = gauge_set([snapshot(*found)], 0.0)
    assert sum(values(made, WITHHELD).values()) == len(made.withheld)


@pytest.mark.parametrize("metric", POOL_GAUGES, ids=lambda metric: metric.name)
def test_a_pool_gauge_is_withheld_when_no_endpoint_is_fresh_never_zero_and_never_the_last_value(metric):
    fleet = snapshot(view("a:1", at=0.0), view("b:1", at=0.0))
    assert values(gauge_set([fleet], 1.0), metric)
    later = gauge_set([fleet], STALE_AFTER)
    assert values(later, metric) == {}
    assert set(reasons(later, metric).values()) == {"none_fresh"}


@pytest.mark.parametrize("metric", POOL_GAUGES, ids=lambda metric: metric.name)
def test_a_pool_gauge_of_an_empty_pool_is_withheld(metric):
    assert set(reasons(gauge_set([snapshot()], 0.0), metric).values()) == {"no_endpoints"}


def test_no_ready_endpoint_is_a_true_zero():
    made = gauge_set([snapshot(view("a:1", health=Health.DOWN))], 0.0)
    assert values(made, pools.READY_ENDPOINTS) == {("pool",): 0}
    assert values(gauge_set([snapshot()], 0.0), pools.READY_ENDPOINTS) == {("pool",): 0}


def test_a_mean_is_over_the_endpoints_with_a_value_and_the_coverage_is_their_share():
    made = gauge_set(
        [snapshot(view("a:1", {WAITING: 8.0}, at=0.0), view("b:1", {WAITING: 99.0}, at=-STALE_AFTER), view("c:1", {}))],
        0.0,
    )
    assert values(made, pools.AVERAGE_QUEUE) == {("pool",): 8.0}
    assert values(made, pools.COVERAGE)["pool", WAITING] == pytest.approx(1 / 3)
    assert values(made, pools.COVERAGE)["pool", RUNNING] == 0.0


def test_a_blind_endpoint_is_ready_and_lowers_the_coverage_and_its_old_readings_are_withheld():
    busy, blind = view("a:1", {WAITING: 8.0}), view("b:1", {WAITING: 99.0}, health=Health.BLIND, requests=5)
    made = gauge_set([snapshot(busy, blind, view("c:1", health=Health.DOWN))], 0.0)
    assert values(made, pools.READY_ENDPOINTS) == {("pool",): 2}
    assert values(made, pools.BY_HEALTH)["pool", "blind"] == 1
    assert values(made, pools.BLIND) == {("pool",): pytest.approx(1 / 3)}
    assert values(made, pools.AVERAGE_QUEUE) == {("pool",): 8.0}
    assert values(made, pools.COVERAGE)["pool", WAITING] == pytest.approx(1 / 3)
    assert reasons(made, endpoints.WAITING) == {("pool", "b:1"): "blind", ("pool", "c:1"): "down"}
    assert values(made, endpoints.IN_FLIGHT)["pool", "b:1"] == 5


def test_the_gauges_of_an_all_blind_pool_are_withheld_and_none_is_zero():
    made = gauge_set([snapshot(*(view(f"{name}:1", health=Health.BLIND) for name in "ab"))], 0.0)
    assert values(made, pools.BLIND) == {("pool",): 1.0}
    assert values(made, pools.READY_ENDPOINTS) == {("pool",): 2}
    for metric in (pools.AVERAGE_QUEUE, pools.WAITING, pools.AVERAGE_KV, pools.SATURATION):
        assert values(made, metric) == {}
        assert set(reasons(made, metric).values()) == {"none_fresh"}


def test_numbers_are_not_rounded():
    third = 1 / 3
    made = gauge_set([snapshot(view("a:1", {KV_USAGE: third}))], 0.0)
    assert values(made, pools.AVERAGE_KV) == {("pool",): third}
    assert values(made, endpoints.KV) == {("pool", "a:1"): third}


def test_a_mean_is_as_old_as_the_oldest_reading_in_it():
    made = gauge_set([snapshot(view("a:1", at=-1.0), view("b:1", at=-2.0))], 0.5)
    (mean,) = (gauge for gauge in made.gauges if gauge.metric is pools.AVERAGE_QUEUE)
    assert mean.at == -2.0
    assert {gauge.at for gauge in made.gauges if gauge.metric is endpoints.WAITING} == {-1.0, -2.0}


def test_the_age_of_a_stale_reading_is_still_published_because_that_is_when_it_matters():
    made = gauge_set([snapshot(view("a:1", at=0.0))], 100.0)
    assert values(made, endpoints.WAITING) == {}
    assert values(made, endpoints.SIGNAL_AGE)["pool", "a:1", WAITING] == 100.0
    assert values(made, endpoints.PAGE_AGE) == {("pool", "a:1"): 100.0}


def test_exactly_one_state_of_health_is_one():
    made = gauge_set([snapshot(view("a:1", health=Health.STALE))], 0.0)
    assert {labels[2]: value for labels, value in values(made, endpoints.HEALTH).items()} == {
        "unknown": 0.0,
        "healthy": 0.0,
        "blind": 0.0,
        "stale": 1.0,
        "down": 0.0,
        "failing": 0.0,
    }
    assert values(made, endpoints.HEALTH_INFO) == {("pool", "a:1", "vllm", "stale", "made_so"): 1.0}


def test_the_prefill_backlog_shrinks_with_time_without_any_change_of_state():
    fleet = snapshot(view("a:1", backlog_seconds=2.0, rate=1000.0))
    assert values(gauge_set([fleet], 0.5), endpoints.BACKLOG_SECONDS) == {("pool", "a:1"): 1.5}
    assert values(gauge_set([fleet], 0.5), endpoints.BACKLOG_TOKENS) == {("pool", "a:1"): 1500.0}
    assert values(gauge_set([fleet], 9.0), endpoints.BACKLOG_SECONDS) == {("pool", "a:1"): 0.0}


def test_adapters_are_counted():
    made = gauge_set([snapshot(view("a:1", {LORA_RUNNING: frozenset({"x", "y"}), LORA_MAX: 4.0}))], 0.0)
    assert values(made, endpoints.LORA_RUNNING) == {("pool", "a:1"): 2.0}
    assert values(made, endpoints.LORA_MAX) == {("pool", "a:1"): 4.0}


# Why a signal has no metric of its own.
ELSEWHERE = {
    "prefill_seconds": "it is in the prefill rate",
    "prefilled_requests": "it is in the prefill rate",
    "prefilled_tokens": "it is in the prefill rate",
    "first_tokens": "it is in the prefill rate, and in the histogram of the time to the first token",
    "first_token_wait_seconds": "as first_tokens",
    "start_time_seconds": "restarts are counted",
    "served_models": "names are in /v1/state",
}


def test_every_signal_rate_and_histogram_is_published_or_there_is_a_reason():
    assert {signal for signal, _ in BY_SIGNAL} == SIGNALS.keys() - ELSEWHERE.keys()
    assert BY_RATE.keys() == RATES.keys()
    assert BY_HISTOGRAM.keys() == HISTOGRAMS.keys()


@pytest.mark.parametrize(("signal", "metrics"), BY_SIGNAL, ids=lambda value: value if isinstance(value, str) else "")
def test_a_signal_is_published_under_its_own_name_with_its_value(signal, metrics):
    names = SIGNALS[signal].kind is SignalKind.NAMES
    made = gauge_set([snapshot(view("a:1", {signal: frozenset({"x", "y"}) if names else 1.0}))], 0.0)
    for metric in metrics:
        assert values(made, metric) == {("pool", "a:1"): 2.0 if names else 1.0}
        assert metric.type == ("counter" if SIGNALS[signal].kind is SignalKind.COUNTER else "gauge")
    assert {f"igw_endpoint_{signal}", f"igw_endpoint_{signal}_total"} & {metric.name for metric in metrics}


def with_prefix(each: EndpointView, predicted: float, measured: float | None) -> EndpointView:
    return each._replace(prefix=Prefix(predicted, measured))


def test_the_gap_between_predicted_and_measured_hits_is_their_difference():
    made = gauge_set([snapshot(with_prefix(view("a:1", {PREFIX_HITS: 900.0}), 640.0, 512.0))], 0.0)
    assert values(made, endpoints.PREDICTED_HITS) == {("pool", "a:1"): 640.0}
    assert values(made, endpoints.MEASURED_HITS) == {("pool", "a:1"): 512.0}
    assert values(made, endpoints.HIT_GAP) == {("pool", "a:1"): 128.0}


@pytest.mark.parametrize("now", [0.0, STALE_AFTER])
def test_the_gap_is_withheld_when_the_server_s_count_is_unknown_or_stale(now):
    known = {PREFIX_HITS: 900.0} if now else {}
    made = gauge_set([snapshot(with_prefix(view("a:1", known, at=0.0), 640.0, 512.0 if now else None))], now)
    assert values(made, endpoints.HIT_GAP) == {}
    assert reasons(made, endpoints.HIT_GAP) == {("pool", "a:1"): "stale" if now else "not_reported"}


def test_pools_are_published_side_by_side():
    made = gauge_set(
        [snapshot(view("a:1", {WAITING: 1.0}), pool="x"), snapshot(view("a:1", {WAITING: 2.0}), pool="y")], 0.0
    )
    assert values(made, pools.AVERAGE_QUEUE) == {("x",): 1.0, ("y",): 2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gauge_that_is_not_finite_is_refused(value):
    with pytest.raises(NotFinite, match="llm_d_epp_average_queue_size"):
        Gauge(pools.AVERAGE_QUEUE, ("pool",), value, 0.0)


def test_a_gauge_has_the_labels_of_its_metric():
    with pytest.raises(ValueError, match="labels"):
        Gauge(pools.AVERAGE_QUEUE, ("pool", "more"), 1.0, 0.0)
