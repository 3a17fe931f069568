"""The served metrics are computed from what may be used now, and withheld otherwise."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators import table
from agent.accelerators.combine import Accelerators
from agent.engines.mapping import Extraction
from agent.scaling.metric_source import StoreMetrics
from agent.scaling.served_metrics import DEMAND_REPLICAS, SERVED, MetricKind, ServedValue, WithheldMetric
from agent.signals import GENERATION_TOKENS, KV_USAGE, RUNNING, WAITING, Reading, Value
from agent.state.counter_rates import COUNTERS, Counters
from agent.state.health import Health
from agent.state.identity import Identity
from agent.state.snapshot import Snapshot
from agent.state.source import SourceStatus
from agent.state.store import RoutingStore
from tests.fakes.views import STALE_AFTER, snapshot, view, views

QUEUE: dict[str, Value] = {WAITING: 3.0, RUNNING: 2.0, KV_USAGE: 0.5}
OF_PODS, OF_OBJECTS, EXTERNAL = (SERVED[kind] for kind in MetricKind)


def metrics(of: Snapshot) -> StoreMetrics:
    return StoreMetrics(lambda *_: of, 0.8)


@given(st.lists(views, max_size=4, unique_by=lambda each: each.address), st.floats(0, 10))
def test_every_served_metric_is_a_fresh_number_or_withheld_with_a_reason(found, now):
    source = metrics(snapshot(*found))
    answers = [value for metric in OF_PODS for value in source.pod_metrics("pool", metric, now).values()]
    answers += [source.pool_metric("pool", metric, now) for metric in OF_OBJECTS]
    answers += [source.external_metric("pool", metric, now) for metric in EXTERNAL]
    for answer in answers:
        if isinstance(answer, WithheldMetric):
            assert answer.reason
        else:
            assert now - answer.at <= STALE_AFTER


def test_a_pod_s_values_have_the_time_of_the_page():
    source = metrics(snapshot(view("a:1", QUEUE, at=-1.0), view("b:1", QUEUE, health=Health.DOWN)))
    found = source.pod_metrics("pool", "igw_endpoint_waiting_requests", 1.0)
    assert found["a:1"] == ServedValue(3.0, -1.0)
    assert isinstance(found["b:1"], WithheldMetric)
    assert found["b:1"].reason == "down"


def test_an_address_that_another_pod_has_by_now_gives_no_value_of_the_old_one():
    one = view("a:1", QUEUE, identity=Identity("llm/new", "", "u2"))
    source = StoreMetrics(lambda *_: snapshot(one), 0.8, pods_of=lambda _: {"a:1": "llm/old"})
    found = source.pod_metrics("pool", "igw_endpoint_waiting_requests", 0.0)["a:1"]
    assert isinstance(found, WithheldMetric)


def test_11_a_pod_that_is_made_again_under_its_name_has_no_value_of_the_old_one():
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    metric = "igw_endpoint_waiting_requests"
    source = StoreMetrics(lambda _, now: store.snapshot(now), 0.8)
    store.set_endpoints({"a:1": "vllm"}, 0.0, {"a:1": Identity("llm/chat-0", "", "u1")})
    store.observed("a:1", Extraction(QUEUE, (), ()), 0.0, 0.0, 100)
    assert source.pod_metrics("pool", metric, 0.5)["a:1"] == ServedValue(3.0, 0.0)
    store.set_endpoints({"a:1": "vllm"}, 0.6, {"a:1": Identity("llm/chat-0", "", "u2")})
    found = source.pod_metrics("pool", metric, 0.6)["a:1"]
    assert isinstance(found, WithheldMetric)
    assert found.reason == "never_scraped"


def snapshot_of(store: RoutingStore, _pool: str, now: float) -> Snapshot:
    return store.snapshot(now)


def test_21_two_replicas_that_read_the_same_page_serve_the_same_value():
    stores = [RoutingStore("pool", stale_after=STALE_AFTER) for _ in range(2)]
    for number, store in enumerate(stores):
        store.set_endpoints({"a:1": "vllm"}, 0.0)
        store.observed("a:1", Extraction(QUEUE, (), ()), 0.1 * number, 0.0, 100)
    sources = [StoreMetrics(partial(snapshot_of, store), 0.8) for store in stores]
    for metric in ("igw_endpoint_waiting_requests", "igw_endpoint_kv_usage_ratio"):
        read = [source.pod_metrics("pool", metric, 1.0)["a:1"] for source in sources]
        assert len({value.value for value in read if isinstance(value, ServedValue)}) == 1
    pools = [source.pool_metric("pool", "igw_pool_waiting_requests", 1.0) for source in sources]
    assert [value.value for value in pools if isinstance(value, ServedValue)] == [3.0, 3.0]


def test_a_rate_has_the_window_that_it_was_measured_over_and_one_page_has_no_rate():
    metric = "igw_endpoint_generation_tokens_per_second"
    values = tuple(100.0 if name == GENERATION_TOKENS else None for name in COUNTERS)
    one = view("a:1", {GENERATION_TOKENS: 500.0})
    two = one._replace(before=Counters(-20.0, values))
    assert metrics(snapshot(two)).pod_metrics("pool", metric, 0.0)["a:1"] == ServedValue(20.0, 0.0, 20.0)
    found = metrics(snapshot(one)).pod_metrics("pool", metric, 0.0)["a:1"]
    assert isinstance(found, WithheldMetric)
    assert found.reason == "too_few_pages"


def test_a_counter_that_went_back_has_no_rate():
    values = tuple(900.0 if name == GENERATION_TOKENS else None for name in COUNTERS)
    restarted = view("a:1", {GENERATION_TOKENS: 5.0})._replace(before=Counters(-20.0, values))
    found = metrics(snapshot(restarted)).pod_metrics("pool", "igw_endpoint_generation_tokens_per_second", 0.0)["a:1"]
    assert isinstance(found, WithheldMetric)


def test_a_ratio_without_traffic_is_unknown_and_not_zero():
    counters = dict.fromkeys(("prefix_query_tokens", "prefix_hit_tokens"), 100.0)
    values = tuple(counters.get(name) for name in COUNTERS)
    idle = view("a:1", counters)._replace(before=Counters(-20.0, values))
    found = metrics(snapshot(idle)).pod_metrics("pool", "igw_endpoint_prefix_hit_ratio", 0.0)["a:1"]
    assert isinstance(found, WithheldMetric)
    assert found.reason == "nothing_counted"


def test_the_utilisation_of_accelerators_is_that_of_the_busiest_source():
    def of(source: str, value: float) -> Accelerators:
        return Accelerators(source, "", (), {table.UTILIZATION: Reading(value, -1.0)}, {}, (), -1.0, 15.0)

    both = view("a:1", QUEUE)._replace(accelerators=(of("dcgm", 0.4), of("nvml", 0.9)))
    metric = "igw_endpoint_accelerator_utilization_ratio"
    found = metrics(snapshot(both, view("b:1"))).pod_metrics("pool", metric, 0.0)
    assert found["a:1"] == ServedValue(0.9, -1.0)
    assert isinstance(found["b:1"], WithheldMetric)
    assert found["b:1"].reason == "no_accelerator"


@pytest.mark.parametrize("metric", ["llm_d_epp_average_queue_size", "igw_pool_waiting_requests"])
def test_a_pool_s_number_is_withheld_below_the_coverage_floor(metric):
    seen, unseen = [view(f"a:{port}", QUEUE) for port in range(4)], view("b:1", QUEUE, health=Health.BLIND)
    found = metrics(snapshot(*seen, unseen)).pool_metric("pool", metric, 0.0)
    assert found == ServedValue(3.0 if "average" in metric else 15.0, 0.0)
    found = metrics(snapshot(*seen[:3], unseen)).pool_metric("pool", metric, 0.0)
    assert found == WithheldMetric("low_coverage", "3 of 4 endpoints have a fresh reading, below the coverage of 0.8")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(0, 6))
def test_no_endpoint_that_falls_silent_changes_what_an_equally_loaded_pool_sums_to_beyond_its_mean(loads, silent):
    seen = [view(f"a:{number}", QUEUE | {WAITING: load}) for number, load in enumerate(loads)]
    unseen = [view(f"b:{number}", QUEUE, health=Health.BLIND) for number in range(silent)]
    found = metrics(snapshot(*seen, *unseen)).external_metric("pool", "igw_pool_waiting_requests", 0.0)
    if len(seen) / (len(seen) + silent) < 0.8:
        assert isinstance(found, WithheldMetric)
    else:
        assert isinstance(found, ServedValue)
        assert found.value == pytest.approx(sum(loads) / len(loads) * (len(loads) + silent))
        assert found.value >= sum(loads) * (1 - 1e-9)


def test_saturation_is_not_clamped():
    full = view("a:1", {WAITING: 50.0, KV_USAGE: 0.5})
    found = metrics(snapshot(full)).pool_metric("pool", "llm_d_epp_flow_control_pool_saturation", 0.0)
    assert found == ServedValue(10.0, 0.0)


def test_the_ready_endpoints_of_an_empty_pool_are_zero_and_unknown_before_its_source_was_read():
    metric = "llm_d_epp_ready_endpoints"
    assert metrics(snapshot()).pool_metric("pool", metric, 0.0) == ServedValue(0.0, 0.0)
    unread = snapshot(source=SourceStatus("InferencePool llm/chat", current=False, known_at=None))
    assert isinstance(metrics(unread).pool_metric("pool", metric, 0.0), WithheldMetric)


def test_what_the_agent_itself_counts_comes_from_those_who_count_it():
    def held(pool: str, now: float) -> ServedValue:
        return ServedValue(7.0, now)

    def demand(pool: str, now: float) -> ServedValue:
        return ServedValue(2.0, now)

    source = StoreMetrics(lambda *_: snapshot(), 0.8, held, demand)
    assert source.external_metric("pool", "igw_flow_held_requests", 5.0) == ServedValue(7.0, 5.0)
    assert source.external_metric("pool", DEMAND_REPLICAS, 5.0) == ServedValue(2.0, 5.0)
    assert isinstance(metrics(snapshot()).external_metric("pool", DEMAND_REPLICAS, 5.0), WithheldMetric)
