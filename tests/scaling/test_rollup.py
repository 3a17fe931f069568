"""The load of a pool is computed from known values, and has the coverage of the pool."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.rollup import (
    Current,
    DatedValue,
    NoSpread,
    Spread,
    Unknown,
    current,
    number,
    rollup,
    saturation,
    spread,
)
from agent.signals import KV_USAGE, LORA_RUNNING, MODELS, RUNNING, WAITING
from agent.state.health import Health
from tests.fakes.views import STALE_AFTER, snapshot, view

UNKNOWN = Unknown("stale")
dated_values = st.lists(
    st.one_of(
        st.just(UNKNOWN),
        st.builds(DatedValue, st.floats(-1e9, 1e9), st.floats(0, 1e6)),
    ),
    max_size=40,
)


@given(dated_values)
def test_a_spread_is_over_the_known_values_and_counts_the_unknown_ones(found):
    result = spread(found)
    known = [each.value for each in found if isinstance(each, DatedValue)]
    assert result.total == len(found)
    if not known:
        assert result == NoSpread("none_fresh" if found else "no_endpoints", len(found))
        return
    assert isinstance(result, Spread)
    assert result.known == len(known)
    assert result.mean == pytest.approx(statistics.fmean(known), abs=1e-6)
    assert result.deviation == pytest.approx(statistics.stdev(known) if len(known) > 1 else 0.0, rel=1e-6, abs=1e-3)
    assert result.at == min(each.at for each in found if isinstance(each, DatedValue))
    assert all(map(math.isfinite, (result.sum, result.mean, result.deviation, result.coverage)))


@given(st.floats(0, 100), st.sampled_from(list(Health)), st.floats(0, 2 * STALE_AFTER))
def test_a_reading_is_current_exactly_while_its_endpoint_is_healthy_and_it_is_not_stale(value, health, old):
    found = current(view("a:1", {WAITING: value}, at=0.0, health=health), WAITING, old)
    if health is Health.HEALTHY and old < STALE_AFTER:
        assert found == Current(value, 0.0)
    else:
        assert isinstance(found, Unknown)


@pytest.mark.parametrize(
    ("health", "reason"),
    [(Health.BLIND, "blind"), (Health.DOWN, "down"), (Health.STALE, "stale"), (Health.UNKNOWN, "never_scraped")],
)
def test_an_unhealthy_endpoint_s_health_is_the_reason_for_having_no_value(health, reason):
    assert current(view("a:1", health=health), RUNNING, 0.0) == Unknown(reason)


def test_a_healthy_endpoint_s_signal_has_a_reason_of_its_own():
    healthy = view("a:1", {WAITING: 1.0}, at=0.0)
    assert current(healthy, RUNNING, 0.0) == Unknown("not_reported")
    assert current(healthy, WAITING, STALE_AFTER) == Unknown("stale")


@pytest.mark.parametrize("health", Health)
def test_the_list_of_models_is_current_while_its_endpoint_is_picked_because_it_has_a_request_of_its_own(health):
    served = view("a:1", {MODELS: frozenset({"m"})}, at=0.0, health=health)
    found = current(served, MODELS, 10 * STALE_AFTER)
    assert (found == Current(frozenset({"m"}), 0.0)) is health.picked


def test_saturation_is_the_worse_of_queue_and_cache_and_is_not_clamped():
    assert saturation(view("a:1", {WAITING: 50.0, KV_USAGE: 0.4}), 0.0) == DatedValue(10.0, 0.0)
    assert saturation(view("a:1", {WAITING: 0.0, KV_USAGE: 1.0}), 0.0) == DatedValue(1.25, 0.0)


@pytest.mark.parametrize("known", [WAITING, KV_USAGE])
def test_saturation_is_unknown_when_either_part_is(known):
    assert saturation(view("a:1", {known: 0.5}), 0.0) == Unknown("not_reported")


def test_an_endpoint_without_a_value_is_left_out_of_the_mean_and_lowers_the_coverage():
    load = rollup(snapshot(view("a:1", {WAITING: 4.0}), view("b:1", {}), view("c:1", {WAITING: 2.0})), 0.0)
    waiting = load.signals[WAITING]
    assert isinstance(waiting, Spread)
    assert (waiting.mean, waiting.sum, waiting.known, waiting.total) == (3.0, 6.0, 2, 3)
    assert waiting.coverage == pytest.approx(2 / 3)


def test_the_agent_s_own_requests_are_summed_over_all_endpoints_because_it_is_always_known():
    load = rollup(
        snapshot(
            view("a:1", backlog_seconds=2.0, rate=1000.0, requests=3),
            view("b:1", backlog_seconds=1.0, rate=500.0, requests=1, health=Health.DOWN),
        ),
        0.5,
    )
    assert (load.in_flight, load.backlog_seconds, load.backlog_tokens) == (4, 2.0, 1750.0)


def test_a_set_of_names_gives_its_size():
    assert number(view("a:1", {LORA_RUNNING: frozenset({"x", "y"})}), LORA_RUNNING, 0.0) == DatedValue(2.0, 0.0)
