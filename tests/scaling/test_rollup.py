"""A pool's load is made of what is known, and says how much of the pool that is."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.rollup import Current, NoSpread, Sample, Spread, Unknown, current, number, rollup, saturation, spread
from agent.signals import KV_USAGE, LORA_RUNNING, MODELS, RUNNING, WAITING
from agent.state.health import Health
from tests.fakes.views import STALE_AFTER, snapshot, view

UNKNOWN = Unknown("stale")
samples = st.lists(
    st.one_of(
        st.just(UNKNOWN),
        st.builds(Sample, st.floats(-1e9, 1e9), st.floats(0, 1e6)),
    ),
    max_size=40,
)


@given(samples)
def test_a_spread_is_that_of_the_known_samples_and_counts_the_others(found):
    result = spread(found)
    known = [each.value for each in found if isinstance(each, Sample)]
    assert result.total == len(found)
    if not known:
        assert result == NoSpread("none_fresh" if found else "no_endpoints", len(found))
        return
    assert isinstance(result, Spread)
    assert result.known == len(known)
    assert result.mean == pytest.approx(statistics.fmean(known), abs=1e-6)
    assert result.deviation == pytest.approx(statistics.stdev(known) if len(known) > 1 else 0.0, rel=1e-6, abs=1e-3)
    assert result.at == min(each.at for each in found if isinstance(each, Sample))
    assert all(map(math.isfinite, (result.sum, result.mean, result.deviation, result.coverage)))


@given(st.floats(0, 100), st.sampled_from(list(Health)), st.floats(0, 2 * STALE_AFTER))
def test_a_reading_is_current_exactly_while_its_endpoint_is_healthy_and_it_is_not_stale(value, health, old):
    found = current(view("a:1", {WAITING: value}, at=0.0, health=health), WAITING, old)
    if health is Health.HEALTHY and old < STALE_AFTER:
        assert found == Current(value, 0.0)
    else:
        assert isinstance(found, Unknown)


@pytest.mark.parametrize(
    ("health", "reason"), [(Health.DOWN, "down"), (Health.STALE, "stale"), (Health.UNKNOWN, "never_scraped")]
)
def test_the_reason_for_having_no_value_is_the_endpoint_s_when_it_is_not_healthy(health, reason):
    assert current(view("a:1", health=health), RUNNING, 0.0) == Unknown(reason)


def test_the_reason_is_the_signal_s_own_when_the_endpoint_is_healthy():
    healthy = view("a:1", {WAITING: 1.0}, at=0.0)
    assert current(healthy, RUNNING, 0.0) == Unknown("not_reported")
    assert current(healthy, WAITING, STALE_AFTER) == Unknown("stale")


def test_the_list_of_models_holds_as_long_as_its_endpoint_is_healthy_because_it_is_asked_for_more_rarely():
    served = view("a:1", {MODELS: frozenset({"m"})}, at=0.0)
    assert current(served, MODELS, 10 * STALE_AFTER) == Current(frozenset({"m"}), 0.0)


def test_saturation_is_the_worse_of_queue_and_cache_and_is_not_clamped():
    assert saturation(view("a:1", {WAITING: 50.0, KV_USAGE: 0.4}), 0.0) == Sample(10.0, 0.0)
    assert saturation(view("a:1", {WAITING: 0.0, KV_USAGE: 1.0}), 0.0) == Sample(1.25, 0.0)


@pytest.mark.parametrize("known", [WAITING, KV_USAGE])
def test_saturation_is_unknown_when_half_of_it_is(known):
    assert saturation(view("a:1", {known: 0.5}), 0.0) == Unknown("not_reported")


def test_an_endpoint_that_does_not_know_is_left_out_of_the_mean_and_lowers_the_coverage():
    load = rollup(snapshot(view("a:1", {WAITING: 4.0}), view("b:1", {}), view("c:1", {WAITING: 2.0})), 0.0)
    waiting = load.signals[WAITING]
    assert isinstance(waiting, Spread)
    assert (waiting.mean, waiting.sum, waiting.known, waiting.total) == (3.0, 6.0, 2, 3)
    assert waiting.coverage == pytest.approx(2 / 3)


def test_the_agent_s_own_work_is_summed_over_all_endpoints_because_it_is_always_known():
    load = rollup(
        snapshot(
            view("a:1", backlog_seconds=2.0, rate=1000.0, requests=3),
            view("b:1", backlog_seconds=1.0, rate=500.0, requests=1, health=Health.DOWN),
        ),
        0.5,
    )
    assert (load.in_flight, load.backlog_seconds, load.backlog_tokens) == (4, 2.0, 1750.0)


def test_a_set_of_names_counts_as_its_size():
    assert number(view("a:1", {LORA_RUNNING: frozenset({"x", "y"})}), LORA_RUNNING, 0.0) == Sample(2.0, 0.0)
