"""Collects what happens to the requests of one pool, until it is reported to the peers. Pure.

While no peer listens, only the requests in flight are kept: the first report to a peer has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.replicas.report import (
    MAX_COUNT,
    MAX_ENDPOINTS,
    MAX_EVENTS,
    MAX_REQUESTS,
    MAX_WAITING,
    Emptied,
    EndpointBlocks,
    MovedRequest,
    PoolReport,
    SharedCapacity,
    SharedLogEntry,
    SharedOutcome,
    SharedRate,
    StartedRequest,
    pack_blocks,
)
from agent.replicas.shared_history import shared
from agent.requests.response import Response
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.state.prefill_rate import LearntRate

# Bytes of block hashes in one report of a pool. Beyond, requests are reported without their blocks.
MAX_BATCH_BYTES: Final = 2 << 20
_MAX_TOKENS: Final = 100_000_000
_MAX_AGE_MS: Final = 86_400_000
_MAX_NAME: Final = 256


def _not_learnt() -> None:
    """Nothing is learnt of the capacity."""


class _InFlight:
    """One request in flight, to be reported to a peer that begins to listen."""

    __slots__ = ("address", "hit_tokens", "picked_at", "uncached_tokens")

    def __init__(self, address: str, uncached_tokens: int, hit_tokens: int, picked_at: float) -> None:
        self.address = address
        self.uncached_tokens = uncached_tokens
        self.hit_tokens = hit_tokens
        self.picked_at = picked_at


class PoolPublisher:
    """The events of one pool. `wake` is called when there is something to report and a peer listens.

    `blocks` is as in `PoolReport`. `full` gives everything for a new listener, `take` what happened since the last
    `take`. `capacity` returns what this replica has learnt of the pool's capacity; a change of it goes out with the
    next report.
    """

    def __init__(
        self, pool: str, blocks: str, wake: Callable[[], None], capacity: Callable[[], Envelope | None] = _not_learnt
    ) -> None:
        self.pool = pool
        self.listened = False  # a peer gets the events
        self._blocks = blocks
        self._wake = wake
        self._in_flight: dict[int, _InFlight] = {}
        self._logs = 0
        self._waiting = 0
        self._capacity = capacity
        self._reported: Envelope | None = None
        self._changed = False
        self._clear()

    # -- what the stages report (`agent.requests.sharing.Sharing`) ---------------------------------------------------

    def started(
        self, work_id: int, address: str, uncached_tokens: float, hit_tokens: float, chain: Sequence[int], now: float
    ) -> None:
        """A request was picked for the endpoint."""
        if len(self._in_flight) >= MAX_REQUESTS:
            return
        uncached, hits = min(_MAX_TOKENS, int(uncached_tokens)), min(_MAX_TOKENS, int(hit_tokens))
        self._in_flight[work_id] = _InFlight(address, uncached, hits, now)
        if self._room(self._started):
            row = StartedRequest(work_id, self._place(address), uncached, hits, 0, self._packed(chain))
            self._started.append(row)
            self._started_at.append(now)

    def moved(self, work_id: int, address: str, uncached_tokens: float, chain: Sequence[int], now: float) -> None:
        """The proxy sent a request in flight to another endpoint than the picked one."""
        request = self._in_flight.get(work_id)
        if request is None:
            return
        request.address, request.uncached_tokens = address, min(_MAX_TOKENS, int(uncached_tokens))
        if self._room(self._moved):
            self._moved.append(
                MovedRequest(work_id, self._place(address), request.uncached_tokens, self._packed(chain))
            )

    def ended(self, work_id: int) -> None:
        """A request is over."""
        if self._in_flight.pop(work_id, None) is not None and self._room(self._ended):
            self._ended.append(work_id)

    def outcome(self, address: str, result: str) -> None:
        """The endpoint answered a request or failed on it."""
        if self._room(self._outcomes):
            place, rows = self._place(address), self._outcomes
            if rows and rows[-1].endpoint == place and rows[-1].result == result and rows[-1].times < MAX_EVENTS:
                rows[-1].times += 1
            else:
                rows.append(SharedOutcome(place, result))

    def withdrawn(self, address: str, blocks: Sequence[int]) -> None:
        """The endpoint did not prefill these blocks after all."""
        if self._room(self._withdrawn):
            self._withdrawn.append(EndpointBlocks(self._place(address), self._packed(blocks)))

    def emptied(self, address: str, reason: str) -> None:
        """The endpoint's prefix cache is empty."""
        if self._room(self._emptied):
            self._emptied.append(Emptied(self._place(address), reason))

    def logged(self, request_id: str, response: Response) -> None:
        """The proxy's log has an entry of a request that was not picked here."""
        if len(request_id) <= _MAX_NAME and self._room(self._logged):
            self._logged.append(
                SharedLogEntry(
                    request_id,
                    min(999, max(0, response.status)),
                    response.broken,
                    response.client_left,
                    response.served[:_MAX_NAME],
                    min(1000, max(1, response.attempts)),
                    response.retry_after,
                    response.body_bytes or 0,
                )
            )

    def logs(self, count: int) -> None:
        """The proxy has so many access log streams open here."""
        self._logs = count
        self._note()

    def waiting(self, count: int) -> None:
        """Flow control holds so many requests here."""
        self._waiting = min(MAX_WAITING, count)
        self._note()

    # -- reports -----------------------------------------------------------------------------------------------------

    def listen(self, *, listened: bool) -> None:
        """Whether a peer gets the events from here on; they are collected only then."""
        if not listened:
            self._clear()
        self.listened = listened

    def take(self, now: float) -> PoolReport | None:
        """What happened since the last call, None where nothing did."""
        learnt = self._capacity()
        if self._overflowed or not (self._changed or learnt != self._reported):
            return None
        for row, at in zip(self._started, self._started_at, strict=True):
            row.age_ms = _age_ms(at, now)
        report = PoolReport(
            self.pool,
            self._blocks,
            len(self._in_flight),
            self._logs,
            list(self._places),
            self._started,
            self._moved,
            self._ended,
            self._outcomes,
            self._withdrawn,
            self._emptied,
            self._logged,
            waiting=self._waiting,
            capacity=None if learnt == self._reported else _shared(learnt, now),
        )
        self._clear()
        self._reported = learnt
        return report

    @property
    def overflowed(self) -> bool:
        """Whether more happened than a report may hold: every listener needs a full one."""
        return self._overflowed

    def full(
        self,
        learnt: Mapping[str, LearntRate],
        now: float,
        held: Mapping[str, Sequence[int]] | None = None,
        history: DemandHistory | None = None,
    ) -> PoolReport:
        """Everything that a peer needs to begin with: requests in flight, without their blocks, learnt rates, the
        blocks that each endpoint holds, and what was seen of the pool's load."""
        places: dict[str, int] = {}

        def place(address: str) -> int | None:
            found = places.get(address)
            return places.setdefault(address, len(places)) if found is None and len(places) < MAX_ENDPOINTS else found

        started = [
            StartedRequest(
                work_id,
                places.setdefault(each.address, len(places)),
                each.uncached_tokens,
                each.hit_tokens,
                _age_ms(each.picked_at, now),
                b"",
            )
            for work_id, each in self._in_flight.items()
        ]
        rates = [
            SharedRate(places.setdefault(address, len(places)), *_thousandths(rate))
            for address, rate in learnt.items()
            if address in places or len(places) < MAX_ENDPOINTS
        ]
        blocks = [
            EndpointBlocks(places.setdefault(address, len(places)), pack_blocks(each))
            for address, each in (held or {}).items()
            if address in places or len(places) < MAX_ENDPOINTS
        ]
        seen = None if history is None else shared(history, now, place)
        return PoolReport(
            self.pool,
            self._blocks,
            len(started),
            self._logs,
            list(places),
            started,
            rates=rates,
            held=blocks,
            waiting=self._waiting,
            capacity=_shared(self._capacity(), now),
            history=seen,
        )

    # -- within ------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._places: dict[str, int] = {}
        self._bytes = 0
        self._changed = self._overflowed = False
        self._started: list[StartedRequest] = []
        self._started_at: list[float] = []
        self._moved: list[MovedRequest] = []
        self._ended: list[int] = []
        self._outcomes: list[SharedOutcome] = []
        self._withdrawn: list[EndpointBlocks] = []
        self._emptied: list[Emptied] = []
        self._logged: list[SharedLogEntry] = []

    def _note(self) -> None:
        if self.listened and not self._changed:
            self._changed = True
            self._wake()

    def _room(self, rows: Sequence[object]) -> bool:
        """Whether a row may be added to the next report: a peer listens, and the report is not full."""
        if not self.listened or self._overflowed:
            return False
        if len(rows) >= MAX_EVENTS or len(self._places) >= MAX_ENDPOINTS:
            self._overflowed = True
        self._note()
        return not self._overflowed

    def _place(self, address: str) -> int:
        return self._places.setdefault(address, len(self._places))

    def _packed(self, chain: Sequence[int]) -> bytes:
        if not chain or self._bytes + 8 * len(chain) > MAX_BATCH_BYTES:
            return b""
        packed = pack_blocks(chain)
        self._bytes += len(packed)
        return packed


def _age_ms(at: float, now: float) -> int:
    return min(_MAX_AGE_MS, max(0, int((now - at) * 1000)))


def _shared(learnt: Envelope | None, now: float) -> SharedCapacity | None:
    if learnt is None:
        return None
    millionths, age_ms = learnt.value * 1e6, (now - learnt.at) * 1000
    return SharedCapacity(min(MAX_COUNT, round(millionths)), min(MAX_COUNT, max(0, round(age_ms))))


def _thousandths(rate: LearntRate) -> tuple[int, int, int, int]:
    tokens, seconds, faded, prefills = (max(0, int(value * 1000)) for value in rate)
    return tokens, seconds, faded, prefills
