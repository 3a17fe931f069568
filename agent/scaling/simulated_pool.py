"""A pool in a simulation: replicas of one capacity that take a fixed time to start, and a queue.

The model is a fluid. In a step of 15 s the ready replicas serve what has arrived and what waits, up to their capacity;
the rest waits. A replica at its capacity has a full batch, and below it a part of the batch in proportion (Little's law
with a constant service time); the used KV cache is in proportion to the batch. A replica counts as a pod from the
moment it is requested, as it is paid for from then on.
"""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

from agent.scaling.arrivals import STEP_SECONDS


class PoolModel(NamedTuple):
    """`capacity` is in requests per second of a replica; `slots` are the requests that it runs at capacity, and
    `kv_at_capacity` the part of its KV cache that they use. A replica serves `startup_seconds` after it was
    requested."""

    capacity: float
    startup_seconds: float = 300.0
    slots: float = 64.0
    kv_at_capacity: float = 0.9


class SimulatedPool:
    """The replicas and the queue over time. `begin` is when the first `replicas` are ready."""

    def __init__(self, model: PoolModel, replicas: int, begin: float) -> None:
        self.model = model
        self._ready = replicas
        self._loading: list[tuple[float, float]] = []  # when it is ready, when it was requested; in order
        self.now = begin
        self.queue = 0.0
        self.used = 0.0  # part of the ready replicas' capacity that the last step used

    @property
    def ready(self) -> int:
        """Replicas that serve."""
        return self._ready

    @property
    def replicas(self) -> int:
        """All replicas, those that load included."""
        return self._ready + len(self._loading)

    @property
    def loading_seconds(self) -> float:
        """For how long the loading replicas have loaded, summed."""
        return sum(self.now - requested for _, requested in self._loading)

    def scale(self, replicas: int) -> None:
        """Request or remove replicas. Those that load are removed first, the youngest first."""
        while self.replicas > replicas and self._loading:
            self._loading.pop()
        self._ready = min(self._ready, replicas)
        for _ in range(replicas - self.replicas):
            insort(self._loading, (self.now + self.model.startup_seconds, self.now))

    def step(self, arrivals: float) -> None:
        """Serve for one step in which so many requests arrive; `now` is its end afterwards."""
        supply = self._ready * self.model.capacity * STEP_SECONDS
        work = self.queue + arrivals
        served = min(work, supply)
        self.queue = work - served if work - served > 1e-9 else 0.0
        self.used = served / supply if supply > 0 else 0.0
        self.now += STEP_SECONDS
        while self._loading and self._loading[0][0] <= self.now:
            self._loading.pop(0)
            self._ready += 1
