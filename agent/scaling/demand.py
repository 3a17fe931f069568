"""Demand: the number of replicas that a pool needs, for a plain HPA (External metric, AverageValue 1).

The demand is the largest of the needs of `agent.scaling.needs`. It keeps no state, so replicas of the agent with the
same inputs publish the same number. What is not seen is not idle:

* Where some replicas are not seen, they count like the mean of those that are.
* Below the coverage floor that is a guess. The demand is then the larger of what the seen part proves by itself and the
  current replicas: the pool grows where that is proven and never shrinks.
* While the part of a peer is unknown, requests that it holds are missing. The same rule applies.
* A pool without a replica needs at least one for the requests that are held, also where no capacity is known.

A decision has all of its inputs and what determined it, so that explaining it computes nothing again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.scaling.arrivals import SHORT_SECONDS, ExpectedRate
from agent.scaling.learnt_capacity import Capacity
from agent.scaling.loading import NOT_LOADING, Loading
from agent.scaling.needs import KV, NEEDS, SLOTS, Need, backlog_need, rate_need, used_need

# The mean of the last minute is the rate of half a minute ago.
MEAN_AGE_SECONDS: Final = SHORT_SECONDS / 2

# What determines a demand that no need does.
COVERAGE: Final = "coverage"
PEER_UNKNOWN: Final = "replica_unknown"
FIRST_REPLICA: Final = "first_replica"
IDLE: Final = "idle"
# Where there is no number.
WITHHELD: Final = "withheld"
DRIVERS: Final = (*NEEDS, COVERAGE, PEER_UNKNOWN, FIRST_REPLICA, IDLE, WITHHELD)

# Why there is no demand.
NEVER_KNOWN: Final = "never_known"


class DemandSettings(NamedTuple):
    """`target` and `kv_target` are the parts of a replica that may be used. A backlog is drained within
    `drain_seconds`, at least the start-up time."""

    target: float = 0.85
    kv_target: float = 0.9
    startup_seconds: float = 300.0
    drain_seconds: float = 300.0
    coverage_floor: float = 0.8
    look_ahead: bool = True

    @property
    def lead_seconds(self) -> float:
        """The time from the middle of the last minute until the replicas that a demand requests serve."""
        return self.startup_seconds + MEAN_AGE_SECONDS

    @property
    def horizon(self) -> float:
        """The seconds within which a backlog is drained: in less than the start-up time no new replica serves."""
        return max(self.drain_seconds, self.startup_seconds)


def coverage_of(seen: float, ready: float) -> float:
    """The seen part of the replicas that serve; 1 where none does, as nothing is missing then."""
    return min(1.0, seen / ready) if ready > 0 else 1.0


def unseen_factor(seen: float, ready: float, floor: float) -> float | None:
    """By how much the load of the seen replicas is multiplied to be that of all; None below the coverage floor."""
    if coverage_of(seen, ready) < floor:
        return None
    return ready / seen if seen > 0 else 1.0


class PoolUse(NamedTuple):
    """What is known of a pool at `at`, the time of the oldest reading in it (monotonic seconds).

    `replicas` are those that exist, loading ones included (None: never known); `ready` of them serve, and the load of
    `seen` is fresh. `slots`, `kv` (sums of used parts over their targets; None: not reported) and `waiting` are those
    of the seen ones. `held` are the requests that wait in the agents; `unknown_peers` those whose part is missing
    there.
    """

    at: float
    replicas: float | None
    ready: float
    seen: float
    slots: float | None
    kv: float | None
    waiting: float
    held: float
    expected: ExpectedRate | None
    capacity: Capacity
    loading: Loading = NOT_LOADING
    unknown_peers: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """The seen part of the replicas that serve; 1 where none does, as nothing is missing then."""
        return coverage_of(self.seen, self.ready)


class Demand(NamedTuple):
    """The replicas that are needed, what determined that (`driver`), the needs, and all inputs. `partial`: the number
    is not less than the current replicas because too little is known."""

    replicas: float
    driver: str
    needs: tuple[Need, ...]
    use: PoolUse
    partial: bool = False


class NoDemand(NamedTuple):
    """There is no number: `never_known`, the replicas of the pool were never known."""

    reason: str
    detail: str
    use: PoolUse


def decide(use: PoolUse, settings: DemandSettings) -> Demand | NoDemand:
    """The demand at `use.at`."""
    current = use.replicas
    if current is None:
        return NoDemand(NEVER_KNOWN, "the endpoints of the pool were never known", use)
    factor = unseen_factor(use.seen, use.ready, settings.coverage_floor)
    covered, scale = factor is not None, factor or 1.0
    needs = (
        rate_need(use.expected, use.capacity, settings.target),
        used_need(SLOTS, None if use.slots is None else use.slots * scale),
        used_need(KV, None if use.kv is None else use.kv * scale),
        backlog_need(use.waiting * scale + use.held, use.capacity, settings.horizon, use.loading),
    )
    driver, replicas = IDLE, 0.0
    for need in needs:
        if need.replicas is not None and need.replicas > replicas:
            driver, replicas = need.name, need.replicas
    if current <= 0 and use.held > 0 and replicas < 1:
        driver, replicas = FIRST_REPLICA, 1.0
    why = COVERAGE if not covered else PEER_UNKNOWN if use.unknown_peers else ""
    if why and replicas < current:
        return Demand(current, why, needs, use, partial=True)
    return Demand(replicas, driver, needs, use, partial=bool(why))
