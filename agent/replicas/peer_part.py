"""What one peer has reported, applied to the routing state of this replica. Pure.

A report is checked as a whole before anything of it is applied. A request, an endpoint or a pool that this replica does
not have is no error, because two replicas notice a change at different times: its events are kept in mind and have no
effect. Nothing that a peer has reported is ever reported to another peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from agent.config.prefix_index import PrefixIndexConfig
from agent.prefix.index import PrefixIndex
from agent.replicas.report import (
    MAX_REQUESTS,
    BadReport,
    PeerReport,
    PoolReport,
    SharedCapacity,
    SharedLogEntry,
    unpack_blocks,
)
from agent.replicas.shared_history import restored
from agent.requests.outcomes import Outcomes
from agent.requests.response import CONNECT_FAILURE, OK, PROXY, RESET, RESULTS, TIMEOUT, Response
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.state.endpoint import EMPTIED
from agent.state.prefill_rate import LearntRate
from agent.state.store import OF_PEER, RoutingStore

# Results in a row that are applied one by one: more change no average by more than rounding.
_MAX_REPEATS: Final = 100
_BROKEN: Final = frozenset({"", CONNECT_FAILURE, RESET, TIMEOUT, PROXY})
_NOT_HERE: Final = 0  # the local id of a request at an endpoint that is not in the pool here


class PoolTarget(NamedTuple):
    """The parts of one pool of this replica that a peer's report changes. `blocks` as in `PoolReport`."""

    store: RoutingStore
    prefixes: PrefixIndex
    outcomes: Outcomes
    blocks: str


def block_format(index: PrefixIndexConfig) -> str:
    """How prompts become blocks; blocks of another format cannot be compared."""
    return f"xxh3-64 {index.block_tokens}x{index.bytes_per_token}"


class _PoolPart:
    """One pool of one peer. `requests`: the peer's id of a request -> its id in the store here."""

    def __init__(self) -> None:
        self.target: PoolTarget | None = None
        self.requests: dict[int, int] = {}
        self.waiting = 0
        self.capacity: Envelope | None = None
        self.history: DemandHistory | None = None  # until it is taken
        self.logs = False

    def check(self, report: PoolReport, *, full: bool) -> None:
        """Raises BadReport for a report that contradicts itself or the ones before."""
        known: set[int] = set() if full else set(self.requests)
        where = f"pool {report.name}"
        for started in report.started:
            if started.id in known:
                raise BadReport(f"{where}: request {started.id} starts twice")
            known.add(started.id)
        for moved in report.moved:
            if moved.id not in known:
                raise BadReport(f"{where}: request {moved.id} moves and has not started")
        for work_id in report.ended:
            if work_id not in known:
                raise BadReport(f"{where}: request {work_id} ends and has not started")
            known.remove(work_id)
        if len(known) != report.in_flight:
            raise BadReport(f"{where}: {report.in_flight} requests in flight, and {len(known)} by its events")
        _check_words(report, where)

    def apply(self, report: PoolReport, target: PoolTarget | None, now: float, *, full: bool) -> None:
        """Apply a report that was checked."""
        self._set_target(target, now)
        self.waiting = report.waiting
        self._set_capacity(report.capacity, now, full=full)
        if report.history is not None:
            self.history = restored(report.history, report.endpoints, now)
        if full:
            self._end(tuple(self.requests), now)
        if target is None:
            self._track(report)
            return
        store, index, endpoints = target.store, target.prefixes, report.endpoints
        comparable = report.blocks == target.blocks
        requests = self.requests
        for each in report.started:
            address = endpoints[each.endpoint]
            picked_at = now - each.age_ms / 1000
            found = store.peer_started(address, each.uncached_tokens, each.hit_tokens, picked_at, now)
            requests[each.id] = found or _NOT_HERE
            if each.chain and comparable and found:
                index.record(address, unpack_blocks(each.chain))
        for moved in report.moved:
            address = endpoints[moved.endpoint]
            self._end((moved.id,), now)
            found = store.peer_started(address, moved.uncached_tokens, 0, now, now)
            requests[moved.id] = found or _NOT_HERE
            if moved.chain and comparable and found:
                index.record(address, unpack_blocks(moved.chain))
        self._end(report.ended, now)
        for outcome in report.outcomes:
            address = endpoints[outcome.endpoint]
            for _ in range(min(_MAX_REPEATS, outcome.times)):
                if outcome.result == OK:
                    store.succeeded(address, OF_PEER, now)
                else:
                    store.request_failed(address, OF_PEER, outcome.result, now)
        if comparable:
            for withdrawn in report.withdrawn:
                index.remove(endpoints[withdrawn.endpoint], unpack_blocks(withdrawn.blocks))
            for held in report.held:
                if store.has(endpoints[held.endpoint]):
                    index.restore(endpoints[held.endpoint], unpack_blocks(held.blocks))
        for emptied in report.emptied:
            store.cache_emptied(endpoints[emptied.endpoint], emptied.reason, now)
        for rate in report.rates:
            sums = (rate.tokens, rate.milliseconds, rate.faded_prefills, rate.prefills)
            store.adopt_rate(endpoints[rate.endpoint], LearntRate(*(each / 1000 for each in sums)), now)
        self._set_logs(target, opened=report.logs > 0)
        for entry in report.logged:
            target.outcomes.logged_at_peer(entry.request_id, _response(entry), now)

    def drop(self, now: float) -> None:
        """The part is over, or unknown from here on."""
        if self.target is not None:
            self._end(tuple(self.requests), now)
            self._set_logs(self.target, opened=False)
        self.requests.clear()
        self.waiting = 0
        self.capacity = self.history = None

    def _set_capacity(self, capacity: SharedCapacity | None, now: float, *, full: bool) -> None:
        if capacity is not None:
            self.capacity = Envelope(capacity.millionths / 1e6, now - capacity.age_ms / 1000)
        elif full:
            self.capacity = None

    def _set_target(self, target: PoolTarget | None, now: float) -> None:
        """The pool may have come, gone or been replaced here since the last report."""
        before = self.target
        if (before is None) != (target is None) or (
            before is not None and target is not None and before.store is not target.store
        ):
            known, waiting, capacity, history = tuple(self.requests), self.waiting, self.capacity, self.history
            self.drop(now)
            self.requests = dict.fromkeys(known, _NOT_HERE)
            self.waiting, self.capacity, self.history = waiting, capacity, history
        self.target = target

    def _end(self, ids: Iterable[int], now: float) -> None:
        target = self.target
        for work_id in ids:
            local = self.requests.pop(work_id)
            if local and target is not None:
                target.store.peer_ended(local, now)

    def _track(self, report: PoolReport) -> None:
        """Keep the ids of a pool that is not here, which the next reports refer to."""
        for each in report.started:
            self.requests[each.id] = _NOT_HERE
        for work_id in report.ended:
            del self.requests[work_id]

    def _set_logs(self, target: PoolTarget, *, opened: bool) -> None:
        if opened and not self.logs:
            target.outcomes.peer_log_opened()
        elif self.logs and not opened:
            target.outcomes.peer_log_closed()
        self.logs = opened


class PeerPart:
    """All that one peer has reported on its present stream. `target` finds a pool of this replica by its name."""

    def __init__(self, target: Callable[[str], PoolTarget | None]) -> None:
        self._target = target
        self._pools: dict[str, _PoolPart] = {}
        self._next = 0  # the sequence number of the next report
        self._begun = False

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Requests in flight of the peer, by pool."""
        return {name: len(part.requests) for name, part in self._pools.items()}

    @property
    def waiting(self) -> Mapping[str, int]:
        """Requests that flow control of the peer holds, by pool; pools without are left out."""
        return {name: part.waiting for name, part in self._pools.items() if part.waiting}

    def capacity(self, pool: str) -> Envelope | None:
        """The envelope of the pool's capacity that the peer has learnt; None without."""
        part = self._pools.get(pool)
        return None if part is None else part.capacity

    def take_history(self, pool: str) -> DemandHistory | None:
        """What the peer has seen of the pool's load until the stream began, once; None without."""
        part = self._pools.get(pool)
        if part is None:
            return None
        found, part.history = part.history, None
        return found

    def begin(self) -> None:
        """A new stream begins; its first report replaces what is known."""
        self._next, self._begun = 0, False

    def apply(self, report: PeerReport, now: float) -> None:
        """Apply a report, as a whole. Raises BadReport and changes nothing."""
        self._check(report)
        self._next += 1
        self._begun = True
        if report.full:
            named = {pool.name for pool in report.pools}
            for name in [name for name in self._pools if name not in named]:
                self._pools.pop(name).drop(now)
        for pool in report.pools:
            part = self._pools.setdefault(pool.name, _PoolPart())
            part.apply(pool, self._target(pool.name), now, full=report.full)

    def drop(self, now: float) -> None:
        """The peer's part is over, or unknown from here on."""
        for part in self._pools.values():
            part.drop(now)
        self._pools.clear()

    def _check(self, report: PeerReport) -> None:
        if report.sequence != self._next:
            raise BadReport(f"report number {report.sequence} where {self._next} is due")
        if not self._begun and not report.full:
            raise BadReport("the first report of a stream is not a full one")
        names = {pool.name for pool in report.pools}
        if len(names) < len(report.pools):
            raise BadReport("a pool is in a report twice")
        total = sum(pool.in_flight for pool in report.pools)
        if not report.full:
            total += sum(len(part.requests) for name, part in self._pools.items() if name not in names)
        if total > MAX_REQUESTS:
            raise BadReport(f"{total} requests in flight, over the limit of {MAX_REQUESTS}")
        for pool in report.pools:
            (self._pools.get(pool.name) or _PoolPart()).check(pool, full=report.full)


def _check_words(report: PoolReport, where: str) -> None:
    for outcome in report.outcomes:
        row = RESULTS.get(outcome.result)
        if row is None or not (row.failure or outcome.result == OK):
            raise BadReport(f"{where}: result {outcome.result!r}")
    for emptied in report.emptied:
        if emptied.reason not in EMPTIED:
            raise BadReport(f"{where}: the reason {emptied.reason!r} for an empty cache")
    for entry in report.logged:
        if entry.broken not in _BROKEN:
            raise BadReport(f"{where}: a log entry that is broken by {entry.broken!r}")
    for rate in report.rates:
        if rate.faded_prefills > rate.prefills:
            raise BadReport(f"{where}: a learnt rate of {rate.faded_prefills / 1000:g} recent prefills")


def _response(entry: SharedLogEntry) -> Response:
    return Response(
        entry.status,
        entry.broken,
        entry.client_left,
        entry.served,
        entry.attempts,
        entry.retry_after,
        complete=True,
        body_bytes=entry.body_bytes,
    )
