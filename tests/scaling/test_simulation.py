"""A simulation computes what can be computed by hand, and the same each time."""

from __future__ import annotations

import math

import pytest

from agent.scaling.demand import DemandSettings
from agent.scaling.hpa import HpaSettings
from agent.scaling.simulated_pool import PoolModel, SimulatedPool
from agent.scaling.simulated_signals import DemandSignal, Forecast, KvSignal, QueueSignal, SignalChoice, choices
from agent.scaling.simulation import arrivals_of, by_target, cheapest, simulate, static_peak
from agent.scaling.trace import RateTrace

MODEL = PoolModel(capacity=10.0, startup_seconds=60.0)
HPA = HpaSettings(1, 100)


def run(rates, choice=None, *, model=MODEL, hpa=HPA, replicas=None, target=0.8):
    trace = RateTrace("", tuple(rates))
    arrivals = arrivals_of(trace, 0.0, 1)
    settings = DemandSettings(target=target, startup_seconds=model.startup_seconds, drain_seconds=60.0)
    forecast = Forecast(arrivals, settings.lead_seconds)
    chosen = choice or SignalChoice("demand", lambda: DemandSignal(settings, forecast))
    return simulate(trace, arrivals, model, chosen, hpa, replicas)


def test_a_pool_serves_its_capacity_and_the_rest_waits():
    pool = SimulatedPool(MODEL, 2, 0.0)
    pool.step(500.0)  # two replicas serve 300 in 15 s
    assert (pool.queue, pool.used) == (200.0, 1.0)
    pool.step(0.0)
    assert pool.queue == 0.0
    assert pool.used == pytest.approx(200 / 300)


def test_a_replica_serves_after_its_start_and_is_paid_for_from_its_request():
    pool = SimulatedPool(MODEL, 1, 0.0)
    pool.scale(3)
    for _ in range(3):
        pool.step(0.0)
    assert (pool.ready, pool.replicas, pool.loading_seconds) == (1, 3, 90.0)
    pool.step(0.0)
    assert (pool.ready, pool.replicas) == (3, 3)


def test_a_scale_down_removes_the_youngest_loading_replicas_first():
    pool = SimulatedPool(MODEL, 2, 0.0)
    pool.scale(4)
    pool.step(0.0)
    pool.scale(5)
    pool.scale(3)
    assert (pool.ready, pool.replicas, pool.loading_seconds) == (2, 3, 15.0)
    pool.scale(1)
    assert (pool.ready, pool.replicas) == (1, 1)


def test_a_constant_rate_keeps_its_replicas_and_overflows_nothing():
    found = run([16.0] * 100, replicas=2)
    assert set(found.replicas) == {2}
    assert (found.overflow, found.changes, found.flaps, found.longest_wait) == (0.0, 0, 0, 0.0)
    assert found.pod_hours == pytest.approx(2 * 100 * 15 / 3600)
    assert found.static_ratio == 1.0  # 16 requests/s need two replicas at the peak as well


def test_overflow_is_the_part_of_the_rate_above_the_ready_capacity():
    found = run([20.0] * 4, hpa=HpaSettings(1, 1), replicas=1)
    assert found.overflow == pytest.approx(0.5)
    assert found.longest_wait == pytest.approx(60.0)  # 600 requests over 10 a second


def test_a_scale_up_soon_after_a_scale_down_is_a_flap():
    rates = [36.0] * 20 + [4.0] * 24 + [36.0] * 20
    found = run(rates, replicas=5)
    assert found.flaps == 1


@pytest.mark.parametrize("startup", [60.0, 240.0])
@pytest.mark.parametrize("after", [31.0, 35.0])
def test_a_step_of_two_replicas_overshoots_by_at_most_one(startup, after):
    """Two replicas more at a target of 0.9, with a cold start."""
    model = PoolModel(10.0, startup)
    ideal = math.ceil(after / 10.0 / 0.9)
    settings = DemandSettings(target=0.9, startup_seconds=startup, drain_seconds=startup)
    rates = [after - 20.0] * 80 + [after] * 240
    trace = RateTrace("", tuple(rates))
    arrivals = arrivals_of(trace, 1.0, 3)
    forecast = Forecast(arrivals, settings.lead_seconds)
    choice = SignalChoice("look-ahead", lambda: DemandSignal(settings, forecast), (0.05, 0.05))
    found = simulate(trace, arrivals, model, choice, HPA)
    assert max(found.replicas) <= ideal + 1
    requested = next(step for step, count in enumerate(found.replicas) if count >= ideal)
    assert requested - 80 <= 4  # the minute of the mean: nothing else delays it


def test_a_queue_above_five_for_each_pod_scales_up_at_once_and_an_empty_one_down_to_the_minimum():
    found = run([12.0] * 3, SignalChoice("queue", QueueSignal), replicas=1)
    assert found.replicas[1] > 1
    assert run([5.0] * 40, SignalChoice("queue", QueueSignal), replicas=3).replicas[-1] == 1


def test_a_full_cache_grows_a_pool_by_a_bounded_factor():
    found = run([100.0] * 2, SignalChoice("kv", KvSignal), replicas=4)
    assert found.replicas == [4, 5]  # 0.9 over 0.8 of four


def test_the_same_seed_gives_the_same_outcome_and_another_one_another():
    trace = RateTrace("", tuple(50.0 + step for step in range(100)))
    assert arrivals_of(trace, 1.0, 1) == arrivals_of(trace, 1.0, 1) != arrivals_of(trace, 1.0, 2)
    assert run(trace.rates) == run(trace.rates)


@pytest.mark.parametrize("mean", [0.2, 3.0, 400.0])
def test_poisson_arrivals_have_their_mean_and_variance(mean):
    trace = RateTrace("", (mean / 15.0,) * 20_000)
    found = arrivals_of(trace, 1.0, 1)
    average = sum(found) / len(found)
    assert average == pytest.approx(mean, rel=0.05)
    assert sum((each - average) ** 2 for each in found) / len(found) == pytest.approx(mean, rel=0.1)


def test_a_growing_rate_overflows_less_with_look_ahead():
    trace = RateTrace("", tuple([50.0] * 60 + [50.0 + 2.0 * step for step in range(100)]))
    arrivals = arrivals_of(trace, 0.0, 1)
    settings = DemandSettings(target=0.9, startup_seconds=300.0)
    forecast = Forecast(arrivals, settings.lead_seconds)
    with_and_without = choices(settings, (0.05, 0.05), forecast)[-1:-3:-1]
    look_ahead, without = (simulate(trace, arrivals, PoolModel(10.0), each, HPA) for each in with_and_without)
    assert without.overflow > 0.03
    assert look_ahead.overflow < 0.5 * without.overflow


def test_the_cheapest_target_that_holds_an_slo_is_chosen():
    trace = RateTrace("", tuple(100.0 + 50.0 * math.sin(step / 100) for step in range(1200)))
    arrivals = arrivals_of(trace, 1.0, 1)
    rows = by_target(trace, arrivals, PoolModel(10.0), DemandSettings(), HPA, (0.05, 0.05), 0.0001)
    best = cheapest(rows)
    assert best is not None
    assert best.holds
    assert all(row.outcome.pod_hours >= best.outcome.pod_hours for row in rows if row.holds)
    assert {row.holds for row in rows} == {True, False}
    assert cheapest([row for row in rows if not row.holds]) is None


def test_the_static_peak_serves_the_highest_rate():
    assert static_peak(RateTrace("", (1.0, 30.0)), MODEL) == 3
    assert static_peak(RateTrace("", (30.1,)), MODEL) == 4
    assert static_peak(RateTrace("", (0.0,)), MODEL) == 1
