"""How many replicas each part of a pool's load needs; the largest of these needs is the demand.

* rate: the expected arrivals over the capacity of a replica at the target utilisation.
* slots: the running requests over the batch of a replica at the target utilisation.
* KV cache: its used part over the part that may be used.
* backlog: the requests that wait, at the servers and in the agents, over what a replica serves within the drain
  horizon. Replicas that load are credited here, and only here, with what they would have served since they were
  created.

A replica with a queue counts as at most one in slots and in KV cache. Its batch is as full as there are replicas,
whatever arrives: more of them would be full as well while there is a backlog, so that this need would follow the
number of replicas and grow without end. Rate and backlog say how many replicas a queue needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.scaling.arrivals import ExpectedRate
from agent.scaling.learnt_capacity import Capacity
from agent.scaling.loading import Loading

RATE: Final = "rate"
SLOTS: Final = "slots"
KV: Final = "kv_cache"
BACKLOG: Final = "backlog"
NEEDS: Final = (RATE, SLOTS, KV, BACKLOG)

# Why a need is unknown.
NO_CAPACITY: Final = "no_capacity"
NO_ARRIVALS: Final = "no_arrivals"
NOT_REPORTED: Final = "not_reported"


class ReplicaLoad(NamedTuple):
    """The load of one replica that is seen: used parts of its batch slots and its KV cache (None: unknown), and the
    requests that wait there."""

    slots: float | None
    kv: float | None
    waiting: float


class Need(NamedTuple):
    """The replicas that one part of the load needs; None where that is unknown, for the `reason`."""

    name: str
    replicas: float | None
    reason: str = ""


def rate_need(expected: ExpectedRate | None, capacity: Capacity, target: float) -> Need:
    """The replicas that serve the expected arrivals at the target utilisation."""
    if expected is None:
        return Need(RATE, None, NO_ARRIVALS)
    if capacity.requests_per_second is None:
        return Need(RATE, None, NO_CAPACITY)
    return Need(RATE, expected.rate / capacity.requests_per_second / target)


def used(replicas: Iterable[ReplicaLoad], field: str, target: float) -> float | None:
    """The sum of a used part over its target, at most 1 for a replica with a queue; None where no replica reports it. A
    replica that does not report it counts like the mean of the others."""
    total, known, count = 0.0, 0, 0
    for replica in replicas:
        count += 1
        part: float | None = getattr(replica, field)
        if part is None:
            continue
        known += 1
        total += part / target if replica.waiting <= 0 else min(1.0, part / target)
    return total * count / known if known else None


def used_need(name: str, replicas: float | None) -> Need:
    """The need of slots or of KV cache; unknown where no server reports it."""
    return Need(name, None, NOT_REPORTED) if replicas is None else Need(name, replicas)


def backlog_need(waiting: float, capacity: Capacity, drain_seconds: float, loading: Loading) -> Need:
    """The replicas that serve `waiting` requests within `drain_seconds`, less what loading replicas would have
    served."""
    if waiting <= 0:
        return Need(BACKLOG, 0.0)
    if capacity.requests_per_second is None:
        return Need(BACKLOG, None, NO_CAPACITY)
    left = waiting - loading.seconds * capacity.requests_per_second
    return Need(BACKLOG, max(0.0, left) / (capacity.requests_per_second * drain_seconds))
