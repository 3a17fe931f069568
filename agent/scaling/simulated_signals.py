"""The signals that a simulated HPA scales on, and the replicas that it would recommend by each.

`demand` and `look-ahead` run the code that the agent runs (`agent.scaling.demand`). The others are what the field uses:
the mean of the waiting requests, or of the KV cache utilization, over the pods, and running requests over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from agent.scaling.arrivals import STEP_SECONDS, ArrivalHistory, ExpectedRate, expected
from agent.scaling.demand import DemandSettings, NoDemand, PoolUse, decide
from agent.scaling.hpa import DEFAULT_TOLERANCE, HpaSettings, average_value, pods_average
from agent.scaling.learnt_capacity import DECLARED, Capacity
from agent.scaling.loading import Loading
from agent.scaling.needs import ReplicaLoad, used
from agent.scaling.recent_mean import RecentMean
from agent.scaling.simulated_pool import SimulatedPool

QUEUE_TARGET: Final = 5.0
KV_TARGET: Final = 0.8
RUNNING_TARGET: Final = 0.8


class ScalingSignal(Protocol):
    """A signal over time: `recommend` is called after each step with the requests that arrived in it."""

    def recommend(self, pool: SimulatedPool, arrivals: float, settings: HpaSettings) -> int:
        """The replicas that the HPA's metrics recommend now."""
        ...


class QueueSignal:
    """Waiting requests, a Pods metric with the AverageValue 5."""

    def recommend(self, pool: SimulatedPool, arrivals: float, settings: HpaSettings) -> int:
        """By the queue, which the ready replicas share."""
        loading = pool.replicas - pool.ready
        return pods_average(pool.queue, pool.ready, loading, QUEUE_TARGET, pool.replicas, settings)


class KvSignal:
    """KV cache utilization, a Pods metric with the AverageValue 0.8."""

    def recommend(self, pool: SimulatedPool, arrivals: float, settings: HpaSettings) -> int:
        """By the cache that the last step used."""
        total = pool.ready * pool.used * pool.model.kv_at_capacity
        return pods_average(total, pool.ready, pool.replicas - pool.ready, KV_TARGET, pool.replicas, settings)


class RunningSignal:
    """Running and waiting requests over 0.8 of the batch, an External metric with AverageValue."""

    def recommend(self, pool: SimulatedPool, arrivals: float, settings: HpaSettings) -> int:
        """By the requests at the servers."""
        requests = pool.ready * pool.used * pool.model.slots + pool.queue
        return average_value(requests, pool.model.slots * RUNNING_TARGET, pool.replicas, settings)


class Forecast:
    """What is expected at the end of each step of a trace. It depends on the arrivals only, so that all simulations of
    one trace share it; each value is computed once, by the code that the agent runs."""

    def __init__(self, arrivals: Sequence[float], lead: float) -> None:
        self._arrivals = arrivals
        self._lead = lead
        self._history = ArrivalHistory()
        self._found: list[ExpectedRate | None] = []

    def after(self, step: int) -> ExpectedRate | None:
        """What is expected after this step, from 0."""
        found, history = self._found, self._history
        while len(found) <= step:
            place = len(found)
            until = (place + 1) * STEP_SECONDS
            history.add(self._arrivals[place], until - STEP_SECONDS, until)
            found.append(expected(history, until, self._lead))
        return found[step]


class DemandSignal:
    """Demand in replicas, an External metric with the AverageValue 1."""

    def __init__(self, settings: DemandSettings, forecast: Forecast) -> None:
        self.settings = settings
        self._forecast = forecast
        self._step = 0
        self._slots, self._kv = RecentMean(), RecentMean()

    def recommend(self, pool: SimulatedPool, arrivals: float, settings: HpaSettings) -> int:
        """By the agent's own decision."""
        now, model, own, ready = pool.now, pool.model, self.settings, pool.ready
        foreseen = self._forecast.after(self._step)
        self._step += 1
        if foreseen is not None and not own.look_ahead:
            foreseen = foreseen.without_trend()
        load = (ReplicaLoad(pool.used, pool.used * model.kv_at_capacity, pool.queue),) if ready else ()
        slots, kv = used(load, "slots", own.target), used(load, "kv", own.kv_target)
        use = PoolUse(
            now,
            pool.replicas,
            ready,
            ready,
            self._slots.observe(None if slots is None else slots * ready, now),
            self._kv.observe(None if kv is None else kv * ready, now),
            pool.queue,
            0.0,
            foreseen,
            Capacity(model.capacity, DECLARED),
            Loading(pool.replicas - ready, pool.loading_seconds),
        )
        found = decide(use, own)
        if isinstance(found, NoDemand):  # the HPA keeps its replicas
            return pool.replicas
        return average_value(found.replicas, 1.0, pool.replicas, settings)


class SignalChoice(NamedTuple):
    """One row of a comparison: its name, what makes the signal, and the HPA's tolerances for scale-up and -down."""

    name: str
    make: Callable[[], ScalingSignal]
    tolerances: tuple[float, float] = (DEFAULT_TOLERANCE, DEFAULT_TOLERANCE)


def choices(settings: DemandSettings, tolerances: tuple[float, float], forecast: Forecast) -> tuple[SignalChoice, ...]:
    """The signals that are compared: those of the field with the HPA's default tolerance, demand with `tolerances`."""
    without = settings._replace(look_ahead=False)
    return (
        SignalChoice("queue 5", QueueSignal),
        SignalChoice("KV 0.8", KvSignal),
        SignalChoice("running/batch", RunningSignal),
        SignalChoice("demand", lambda: DemandSignal(without, forecast), tolerances),
        SignalChoice("look-ahead", lambda: DemandSignal(settings._replace(look_ahead=True), forecast), tolerances),
    )
