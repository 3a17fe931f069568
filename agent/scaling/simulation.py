"""A simulation of a pool under an HPA: pod-hours, overflow and flaps for one signal over one trace.

Each step of 15 s is one sync of the HPA. Requests arrive by the trace, with noise where that is wanted; the pool
serves; the signal recommends replicas from what was seen up to the end of the step; the HPA's formula scales. The
same trace, model and seed give the same result.

*Overflow* is the part of the trace's rate that exceeds the capacity of the ready replicas. *Static peak* is the
number of replicas that serves the highest rate of the trace, for its whole length: nothing ever waits there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Final, NamedTuple

from agent.scaling.arrivals import STEP_SECONDS
from agent.scaling.demand import DemandSettings
from agent.scaling.hpa import Hpa, HpaSettings
from agent.scaling.simulated_pool import PoolModel, SimulatedPool
from agent.scaling.simulated_signals import DemandSignal, Forecast, ScalingSignal, SignalChoice
from agent.scaling.trace import RateTrace

# A scale-up within this time after a scale-down is a flap: the replica that was removed had to be started again.
FLAP_SECONDS: Final = 600.0
# Below this mean a normal distribution is no Poisson distribution.
_NORMAL_FROM: Final = 50.0
# The targets that are compared for an SLO.
TARGETS: Final = (0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)


class Outcome(NamedTuple):
    """What one signal did: shares of the static peak's pod-hours and of the requests, changes of the replicas, flaps,
    the longest wait in the queue in seconds, and the replicas of each step."""

    name: str
    pod_hours: float
    static_ratio: float
    overflow: float
    changes: int
    flaps: int
    longest_wait: float
    least: int
    largest: int
    replicas: Sequence[int]


class SloRow(NamedTuple):
    """One target, what it costs, and whether it holds the SLO."""

    target: float
    outcome: Outcome
    holds: bool


def static_peak(trace: RateTrace, model: PoolModel) -> int:
    """The replicas that serve the highest rate of the trace."""
    return max(1, math.ceil(max(trace.rates) / model.capacity - 1e-9))


def arrivals_of(trace: RateTrace, variance: float, seed: int) -> list[float]:
    """The requests that arrive in each step. `variance` 0: exactly the rate; 1: Poisson arrivals; larger: the variance
    over the mean, normally distributed."""
    means = [rate * STEP_SECONDS for rate in trace.rates]
    if variance <= 0:
        return means
    generator = Random(seed)
    return [_noisy(generator, mean, variance) for mean in means]


def _noisy(generator: Random, mean: float, variance: float) -> float:
    if variance == 1.0 and mean < _NORMAL_FROM:
        limit, count, product = math.exp(-mean), 0, generator.random()
        while product > limit:
            count += 1
            product *= generator.random()
        return float(count)
    return float(max(0, round(generator.gauss(mean, math.sqrt(variance * mean)))))


def simulate(
    trace: RateTrace,
    arrivals: Sequence[float],
    model: PoolModel,
    choice: SignalChoice,
    hpa: HpaSettings,
    replicas: int | None = None,
) -> Outcome:
    """One signal over the trace. It begins with `replicas` that are ready; None: those that serve the first rate at
    80 % of their capacity."""
    settings = hpa.with_tolerances(*choice.tolerances)
    begin = max(settings.minimum, math.ceil(trace.rates[0] / model.capacity / 0.8)) if replicas is None else replicas
    signal: ScalingSignal = choice.make()
    controller, pool = Hpa(settings), SimulatedPool(model, begin, 0.0)
    steps: list[int] = []
    over = wait = 0.0
    changes = flaps = 0
    removed_at = -math.inf
    for rate, arrived in zip(trace.rates, arrivals, strict=True):
        steps.append(pool.replicas)
        supply = pool.ready * model.capacity
        over += max(0.0, rate - supply)
        pool.step(arrived)
        if pool.queue > 0:
            wait = max(wait, pool.queue / supply if supply > 0 else pool.queue / model.capacity)
        before = pool.replicas
        after = controller.sync(pool.now, before, signal.recommend(pool, arrived, settings))
        if after == before:
            continue
        pool.scale(after)
        changes += 1
        if after < before:
            removed_at = pool.now
        elif pool.now - removed_at <= FLAP_SECONDS:
            flaps += 1
            removed_at = -math.inf
    pods = sum(steps)
    total = sum(trace.rates)
    return Outcome(
        choice.name,
        pods * STEP_SECONDS / 3600,
        pods / (static_peak(trace, model) * len(steps)),
        over / total if total > 0 else 0.0,
        changes,
        flaps,
        wait,
        min(steps),
        max(steps),
        steps,
    )


def by_target(
    trace: RateTrace,
    arrivals: Sequence[float],
    model: PoolModel,
    settings: DemandSettings,
    hpa: HpaSettings,
    tolerances: tuple[float, float],
    slo: float,
) -> list[SloRow]:
    """Demand with look-ahead at each of `TARGETS`, and whether its overflow is at most `slo`."""
    rows, forecast = [], Forecast(arrivals, settings.lead_seconds)
    for target in TARGETS:
        at = settings._replace(target=target, look_ahead=True)
        choice = SignalChoice(f"target {target:.2f}", partial(DemandSignal, at, forecast), tolerances)
        outcome = simulate(trace, arrivals, model, choice, hpa)
        rows.append(SloRow(target, outcome, outcome.overflow <= slo))
    return rows


def cheapest(rows: Sequence[SloRow]) -> SloRow | None:
    """The row with the fewest pod-hours that holds the SLO; None: no target does."""
    return min((row for row in rows if row.holds), key=lambda row: row.outcome.pod_hours, default=None)
