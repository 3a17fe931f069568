"""The demand of one pool over time: what each snapshot adds to arrivals and capacity, and the decisions of
the last hour.

Arrivals are counted at the servers, so that all replicas of the agent count the same, and requests of others too: an
endpoint's ended, running and waiting requests together grow by one with each arrival. What the agent holds is added. A
request that was held is taken off there when it arrives at a server, and counts once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from agent.scaling.arrivals import ArrivalHistory, ExpectedRate, expected
from agent.scaling.demand import Demand, DemandSettings, NoDemand, PoolUse, decide, unseen_factor
from agent.scaling.demand_history import BatchRecord, DemandHistory
from agent.scaling.learnt_capacity import LearntCapacity
from agent.scaling.loading import LoadingReplicas
from agent.scaling.needs import ReplicaLoad, used
from agent.scaling.recent_mean import SeenLevel
from agent.signals import FINISHED, KV_USAGE, RUNNING, SLOTS_USAGE, START_TIME, WAITING
from agent.state.batch_size import SATURATED_KV_USAGE, SATURATED_WAITING, UNKNOWN, BatchSize
from agent.state.freshness import is_fresh
from agent.state.health import Health
from agent.state.snapshot import EndpointView, Snapshot

HISTORY_SECONDS: Final = 3600.0
# Between two decisions that are kept for people to read.
HISTORY_SPACING: Final = 15.0
# Saturated time over which the throughput of an endpoint is measured, and the age up to which the measurement counts.
MEASURED_SECONDS: Final = 30.0
MEASUREMENT_AGE: Final = 60.0


class PastDecision(NamedTuple):
    """A decision and when it was made (monotonic seconds)."""

    at: float
    decision: Demand | NoDemand


class DemandInputs(NamedTuple):
    """What is known of a pool beside its endpoints: the requests that the agents hold, the replicas that load, whether
    the endpoints were ever known, and the peers whose part of the held requests is unknown, one phrase each."""

    held: int = 0
    loading: int = 0
    known: bool = True
    unknown_peers: tuple[str, ...] = ()


class _Observed:
    """What the last fresh page of one endpoint showed, and its throughput while it was saturated."""

    __slots__ = (
        "at",
        "batch",
        "finished",
        "load",
        "measured",
        "record",
        "saturated_at",
        "saturated_finished",
        "start",
        "total",
    )

    def __init__(self) -> None:
        self.batch = BatchSize()
        self.record: BatchRecord | None = None
        self.load = ReplicaLoad(None, None, 0.0)
        self.at: float | None = None
        self.total: float | None = None  # ended, running and waiting requests
        self.finished = 0.0
        self.start: float | None = None  # the server's start time, where it reports one
        self.saturated_at: float | None = None
        self.saturated_finished = 0.0
        self.measured: tuple[float, float] | None = None  # requests per second, and when

    def batch_record(self) -> BatchRecord:
        """What the pages have shown of the server's batch."""
        return BatchRecord(self.start or 0.0, *self.batch.shown())

    def adopt(self, record: BatchRecord | None) -> None:
        """Add what another replica of the agent has seen of the same server, now or when its first page shows it."""
        self.record = record
        if self.at is not None:
            self._take_record(self.start)

    def page(self, view: EndpointView, at: float, arrivals: ArrivalHistory) -> None:
        """Record a new page, and the arrivals since the last one."""
        running, waiting = _number(view, RUNNING), _number(view, WAITING) or 0.0
        kv, slots = _number(view, KV_USAGE), _number(view, SLOTS_USAGE)
        finished, start = _number(view, FINISHED), _number(view, START_TIME)
        restarted = start != self.start or (finished is not None and finished < self.finished)
        if restarted:
            self.batch.reset()
            self.total = self.saturated_at = self.measured = None
        self._take_record(start)
        free = self.batch.observe(running, waiting, kv, slots)
        if slots is None and running is not None and free != UNKNOWN:
            slots = running / (running + free) if running + free > 0 else 0.0
        self.load = ReplicaLoad(slots, kv, waiting)
        total = None if finished is None or running is None else finished + running + waiting
        if total is not None and self.total is not None and self.at is not None:
            arrivals.add(total - self.total, self.at, at)
            arrivals.seen(1, self.at, at)
        saturated = waiting >= SATURATED_WAITING or (
            waiting > 0 and (free <= 0 or (kv is not None and kv >= SATURATED_KV_USAGE))
        )
        self._measure(finished if saturated else None, at)
        self.at, self.total, self.start, self.finished = at, total, start, finished or 0.0

    def _take_record(self, start: float | None) -> None:
        record, self.record = self.record, None
        if record is not None and abs((start or 0.0) - record.started) < 1:
            self.batch.adopt(record.largest, record.beside_queue, record.times)

    def _measure(self, finished: float | None, at: float) -> None:
        """Measure the throughput over time in which every page shows a saturated server."""
        if finished is None or self.saturated_at is None:
            self.saturated_at, self.saturated_finished = (None if finished is None else at), finished or 0.0
            return
        seconds = at - self.saturated_at
        if seconds >= MEASURED_SECONDS:
            self.measured = ((finished - self.saturated_finished) / seconds, at)
            self.saturated_at, self.saturated_finished = at, finished


class PoolDemand:
    """The demand of one pool. `observe` is called about twice a second, in order of time. `shift` is as in
    `ArrivalHistory`."""

    def __init__(self, pool: str, settings: DemandSettings, declared: float | None, shift: float = 0.0) -> None:
        self.pool = pool
        self.settings = settings
        self.capacity = LearntCapacity(declared)
        self.latest: PastDecision | None = None
        self.past: deque[PastDecision] = deque()
        self._arrivals = ArrivalHistory(shift)
        self._loading = LoadingReplicas()
        self._slots, self._kv = SeenLevel(), SeenLevel()
        self._endpoints: dict[str, _Observed] = {}
        self._batches: Mapping[str, BatchRecord] = {}  # of another replica of the agent
        self._held: tuple[int, float] | None = None  # requests that the agents held when all of them were known last
        self._at: float | None = None

    def apply(self, settings: DemandSettings, declared: float | None) -> None:
        """Other settings; what was learnt stays."""
        self.settings, self.capacity.declared = settings, declared

    @property
    def history(self) -> DemandHistory:
        """What was seen of the pool's load."""
        return DemandHistory(
            self._arrivals.spans(),
            self._slots.samples,
            self._kv.samples,
            self._loading.since,
            {address: each.batch_record() for address, each in self._endpoints.items()},
        )

    def adopt(self, history: DemandHistory) -> bool:
        """Continue with what another replica of the agent has seen. False: too early, as nothing shows yet from when on
        this one counts arrivals itself."""
        pages = [each for each in self._endpoints.values() if each.at is not None]
        counting = any(each.total is not None for each in pages) and not self._arrivals.has_seen
        if not self._arrivals.has_begun or counting or (self._endpoints and not pages):
            return False
        self._arrivals.adopt(history.arrivals)
        self._slots.adopt(history.slots)
        self._kv.adopt(history.kv)
        self._loading.adopt(history.loading)
        self._batches = history.batches
        for address, each in self._endpoints.items():
            each.adopt(self._batches.get(address))
        return True

    def observe(self, snapshot: Snapshot, inputs: DemandInputs, now: float) -> Demand | NoDemand:
        """The demand at `now` (monotonic seconds), of a snapshot taken then."""
        views, before = snapshot.endpoints, self._at
        seen = self._pages(views, now)
        if before is not None and now > before:
            self._arrivals.due(sum(each.total is not None for each in self._endpoints.values()), before, now)
        if not inputs.unknown_peers:
            self._count_held(inputs.held, now)
        self._at = now
        per_replica = _endpoints_per_replica(views)
        self._learn(per_replica, now - before if before is not None else 0.0, now)
        self._loading.observe(inputs.loading, now)
        loads = [each.load for each in seen]
        ready, settings = len(views) / per_replica, self.settings
        factor = unseen_factor(len(seen) / per_replica, ready, settings.coverage_floor)
        use = PoolUse(
            min((each.at for each in seen if each.at is not None), default=now),
            ready + inputs.loading if inputs.known else None,
            ready,
            len(seen) / per_replica,
            self._slots.observe(_replicas(used(loads, "slots", settings.target), per_replica), factor, now),
            self._kv.observe(_replicas(used(loads, "kv", settings.kv_target), per_replica), factor, now),
            sum(load.waiting for load in loads),
            float(inputs.held),
            self._expected(now),
            self.capacity.capacity(),
            self._loading.loading(now, settings.startup_seconds),
            inputs.unknown_peers,
        )
        decision = decide(use, settings)
        self.latest = PastDecision(now, decision)
        self._remember(self.latest)
        return decision

    def _expected(self, now: float) -> ExpectedRate | None:
        found = expected(self._arrivals, now, self.settings.lead_seconds)
        return found if found is None or self.settings.look_ahead else found.without_trend()

    def _pages(self, views: Sequence[EndpointView], now: float) -> list[_Observed]:
        """Record each new page; the endpoints whose last page is fresh."""
        known, self._endpoints = self._endpoints, {}
        seen = []
        for view in views:
            observed = known.get(view.address)
            if observed is None:
                observed = _Observed()
                observed.adopt(self._batches.get(view.address))
            self._endpoints[view.address] = observed
            at = view.page_at
            if at is None or view.health is not Health.HEALTHY or not is_fresh(at, view.stale_after, now):
                observed.saturated_at = None
                continue
            if observed.at is None or at > observed.at:
                observed.page(view, at, self._arrivals)
            seen.append(observed)
        return seen

    def _count_held(self, held: int, now: float) -> None:
        """A change of the held requests is arrivals, or arrivals taken back. While the part of a peer is unknown its
        requests have not left: the change counts when it is known again."""
        if self._held is not None:
            count, at = self._held
            self._arrivals.add(held - count, at, now)
        self._held = held, now

    def _learn(self, per_replica: float, seconds: float, now: float) -> None:
        measured = (each.measured for each in self._endpoints.values())
        rates = [rate for rate, at in _present(measured) if now - at <= MEASUREMENT_AGE]
        self.capacity.observe([rate * per_replica for rate in rates], seconds, now)

    def _remember(self, latest: PastDecision) -> None:
        past, now = self.past, latest.at
        if not past or now - past[-1].at >= HISTORY_SPACING - HISTORY_SPACING / 10:
            past.append(latest)
        while past and past[0].at < now - HISTORY_SECONDS:
            past.popleft()


def _present(measured: Iterator[tuple[float, float] | None]) -> Iterator[tuple[float, float]]:
    return (each for each in measured if each is not None)


def _number(view: EndpointView, signal: str) -> float | None:
    value = view.values.get(signal)
    return None if value is None or isinstance(value, frozenset) else value


def _replicas(endpoints: float | None, per_replica: float) -> float | None:
    return None if endpoints is None else endpoints / per_replica


def _endpoints_per_replica(views: Sequence[EndpointView]) -> float:
    """The endpoints of one replica: a pod has one for each of its ports; an endpoint without a pod is a replica."""
    replicas = len({view.identity.pod or view.address for view in views})
    return len(views) / replicas if replicas else 1.0
