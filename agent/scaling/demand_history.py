"""What a replica of the agent has seen of a pool's load, for one that has just started.

Demand follows from the last hour: arrivals and their trend, the mean of the last minute, the batches of the servers,
and since when replicas load. A replica that has started a minute ago would publish another number than the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ArrivalSpan(NamedTuple):
    """Arrivals from `begin` to `end` (monotonic seconds), and the endpoint-seconds in which they were seen and due."""

    begin: float
    end: float
    arrivals: float
    seen: float
    due: float


class LevelSample(NamedTuple):
    """A level at one time (monotonic seconds)."""

    at: float
    value: float


class BatchRecord(NamedTuple):
    """What pages have shown of the batch of a server that started at `started` (seconds since 1970; 0: not reported):
    see `agent.state.batch_size`."""

    started: float
    largest: float
    beside_queue: float
    times: int


class DemandHistory(NamedTuple):
    """The inputs of the demand of one pool: arrivals, levels of slots and KV cache, since when each replica loads, and
    the batches by endpoint."""

    arrivals: Sequence[ArrivalSpan] = ()
    slots: Sequence[LevelSample] = ()
    kv: Sequence[LevelSample] = ()
    loading: Sequence[float] = ()
    batches: Mapping[str, BatchRecord] = {}
