"""The gateway's routing state: one writer takes in pages, failures and our own picks; readers take immutable snapshots.

A page is applied whole. A signal that a good page lacks keeps its old reading and ages; a failed scrape changes health
and nothing else. Between two changes a snapshot is the same object, and a change makes the view of one endpoint anew,
not of all. Nothing here waits or reads a clock: every method is told `now`, and all of them run on one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from agent.accelerators.combine import Accelerators
from agent.engines.mapping import Extraction
from agent.events import Hook, ignore
from agent.events.scraping import HealthChanged, HealthPathFailed, ScrapeDone, ScrapeFailed, ServerRestarted
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    LORA_RUNNING,
    LORA_WAITING,
    MODELS,
    RUNNING,
    WAITING,
    Value,
)
from agent.state.endpoint import NOBODY_SAID, Identity, Record
from agent.state.health import Health
from agent.state.names import Names
from agent.state.prefix import PrefixMemory
from agent.state.rate import POOL_RATE_CHANGE, PoolRates, RateLimits, differ
from agent.state.snapshot import EndpointView, Snapshot

_HEALTHY: Final = Health.HEALTHY


class RoutingStore:
    """The state of one pool. `version` grows by one with every change; `on_change` is called after each."""

    def __init__(
        self,
        pool: str,
        *,
        stale_after: float,
        rate: RateLimits | None = None,
        hook: Hook = ignore,
        prefix: PrefixMemory | None = None,
        index_block_tokens: int = 64,
    ) -> None:
        self.pool = pool
        self.version = 0
        self.stale_after = stale_after
        self.on_change: list[Callable[[], None]] = []
        self._limits = rate or RateLimits()
        self._hook = hook
        self._prefix = prefix
        self._index_block_tokens = index_block_tokens
        self._records: dict[str, Record] = {}
        self._places: dict[str, int] = {}  # address -> place in the snapshot, in the order of addresses
        self._addresses: tuple[str, ...] = ()  # in the same order
        self._unhealthy = 0  # endpoints in the last snapshot that are not healthy
        self._dirty: set[str] = set()  # addresses whose view in the last snapshot is out of date
        self._snapshot: Snapshot | None = None
        self._read = False  # somebody asked for a snapshot since `age` was last called
        self._expires = 0.0  # no record's `until` is earlier
        self._adapters = Names()
        self._models = Names()
        self._renamed: set[str] = set()  # addresses whose names in the two above may be out of date
        self._tickets: dict[int, Record] = {}
        self._next_ticket = 0
        self._learnt = PoolRates()
        self._learnt_by_pool: float | None = None
        self._told_of_pool: float | None = None  # the pool's rate when all endpoints were told of it last

    # -- what the scrape loop tells ------------------------------------------------------------------------------

    def set_endpoints(
        self, engines: Mapping[str, str], now: float, identities: Mapping[str, Identity] | None = None
    ) -> None:
        """The endpoints of the pool, address -> engine. Known ones keep their state, others come new or go, and so do
        those that are somebody else by `identities`, which are told for every address or for none."""
        for address in self._records.keys() - engines.keys():
            self._drop(address)
        for address, engine in engines.items():
            record = self._records.get(address)
            identity = NOBODY_SAID if identities is None else identities.get(address, NOBODY_SAID)
            other = "" if record is None else record.identity.lost_in(identity)
            if record is not None and (other or record.configured_engine != engine):
                self._drop(address)
                record = None
            if record is None:
                record = Record(address, engine, *self._limits.choose(None, self._learnt_by_pool))
                self._records[address] = record
            record.identity = identity
            if other:
                self._hook(ServerRestarted(self.pool, address, other))
        self._places = {address: place for place, address in enumerate(sorted(self._records))}
        self._addresses = tuple(self._places)
        self._anew()

    def set_limits(self, *, stale_after: float, rate: RateLimits, now: float) -> None:
        """New limits from a changed configuration; they hold from now on."""
        self.stale_after = stale_after
        self._limits = rate
        self._tell_rate(now)
        self._anew()

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        """A page of `size` bytes that was asked for at `at` and was here `took` seconds later; whether it comes from
        another server than the page before."""
        record = self._records.get(address)
        if record is None:
            return False
        now = at + took
        values: Mapping[str, Value] = extraction.readings
        reason = record.restarted_by(values)
        if reason:
            self._replaced(record, reason)
        if self._prefix is not None and (BLOCKS in values or BLOCK_SIZE in values):
            self._resize(record, values)
        for signal in (LORA_RUNNING, LORA_WAITING):
            if values.get(signal) != record.value(signal):
                self._renamed.add(address)
        if extraction.stamps:
            values = record.apply_stamped(values, extraction.stamps, at)
        else:
            record.apply(values, at)
        record.histograms = extraction.histograms
        learnt = self._limits.fixed is None and record.learner.observe(values)
        if learnt or record.rate_of_pool != self._learnt_by_pool:
            self._reckon_rate(record, now)
            if differ(self._learnt_by_pool, self._told_of_pool, POOL_RATE_CHANGE):
                self._tell_rate(now)
        waiting = values.get(WAITING)
        if isinstance(waiting, float):
            running = values.get(RUNNING)
            record.in_flight.correct(running if isinstance(running, float) else None, waiting, at, now)
            finished = values.get(FINISHED)
            if isinstance(finished, float):
                record.pace.observe(finished, waiting, at)
                record.in_flight.hold(record.pace.wait_seconds(waiting), waiting, at, now)
        self._refresh(record, now)
        self._hook(ScrapeDone(self.pool, address, at, took, size, extraction.missing, extraction.refused))
        return bool(reason)

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """A scrape that brought no page; `reason` is one of `agent.scrape.reasons.REASONS`."""
        record = self._records.get(address)
        if record is None:
            return
        record.fail(reason)
        self._refresh(record, at + took)
        self._hook(ScrapeFailed(self.pool, address, at, took, reason, detail))

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:  # noqa: FBT001
        """What the health path said, asked at `at`; `reason` is one of `agent.state.health.HEALTH_REASONS`, or empty
        where it `answered` well. Neither answered nor failed: it is not asked any more."""
        record = self._records.get(address)
        if record is None:
            return
        if record.say(answered, reason):
            self._refresh(record, at + took)
        if record.word is not None and not answered:
            self._hook(HealthPathFailed(self.pool, address, at, took, record.word.reason, detail))

    def recognised(self, address: str, engine: str) -> None:
        """What an endpoint runs by its page, where nobody said so. Another engine than before is another server."""
        record = self._records.get(address)
        if record is None or record.engine == engine:
            return
        if record.engine != record.configured_engine:
            self._replaced(record, "another_engine")
        record.engine = engine
        self._changed(address)

    def served_models(self, address: str, names: frozenset[str], at: float) -> None:
        """The models and adapters that the endpoint answers for."""
        record = self._records.get(address)
        if record is not None:
            if record.value(MODELS) != names:
                self._renamed.add(address)
            record.hear({MODELS: names}, at)
            self._changed(address)

    def run_on(self, address: str, accelerators: tuple[Accelerators, ...], now: float) -> None:
        """What the exporters say of the endpoint's accelerators: a sick one makes the endpoint unfit."""
        record = self._records.get(address)
        if record is not None and record.accelerators != accelerators:
            record.run_on(accelerators)
            self._refresh(record, now)

    # -- what the picker tells -----------------------------------------------------------------------------------

    def started(self, address: str, uncached_tokens: float, hit_tokens: float, now: float) -> int:
        """A request was given to the endpoint; returns the ticket with which its end is told.

        `uncached_tokens` of its prompt have to be prefilled, `hit_tokens` are expected in the cache. KeyError when the
        endpoint is not in the pool: a pick from a snapshot that is current cannot name such a one.
        """
        record = self._records[address]
        self._next_ticket += 1
        ticket = self._next_ticket
        self._tickets[ticket] = record
        record.in_flight.start(ticket, uncached_tokens, now)
        record.predicted_hits += hit_tokens
        self._changed(address)
        return ticket

    def ended(self, ticket: int, now: float) -> None:
        """The request is over, however it ended. KeyError for a ticket that is not in flight: each ends once."""
        record = self._tickets.pop(ticket)
        record.in_flight.end(ticket, now)
        if self._records.get(record.address) is record:
            self._changed(record.address)

    def reported(self, ticket: int, values: Mapping[str, Value], at: float, now: float) -> None:
        """What an endpoint said of itself with the answer to this request, as of `at`: readings between two pages.

        It brings no more than readings; whether a server is well, pages and its health path tell.
        """
        record = self._tickets.get(ticket)
        if record is None or self._records.get(record.address) is not record:
            return
        record.hear(values, at)
        waiting = values.get(WAITING)
        if isinstance(waiting, float):
            record.in_flight.correct(None, waiting, at, now)
        self._changed(record.address)

    @property
    def in_flight(self) -> int:
        """Requests that were started and have not ended, those at endpoints that left the pool included."""
        return len(self._tickets)

    def engine(self, address: str) -> str:
        """What the endpoint runs, as far as it is known; empty where it is not in the pool."""
        record = self._records.get(address)
        return "" if record is None else record.engine

    # -- what readers ask ----------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        """All endpoints at `now`: the last snapshot while nothing changed and nothing expired, else a new one."""
        self._read = True
        last = self._snapshot
        if last is None:
            return self._take(now)
        good_until = last.good_until
        if now >= good_until:
            self._expire(now)
        elif last.version == self.version:
            return last
        endpoints = list(last.endpoints)
        for address in self._dirty:
            place, record = self._places[address], self._records[address]
            view = self._look(record, now)
            self._unhealthy += (view.health is not _HEALTHY) - (endpoints[place].health is not _HEALTHY)
            endpoints[place] = view
            good_until = min(good_until, record.until)
        self._dirty.clear()
        # The earliest expiry may have belonged to a view that was replaced: then `_expire` comes early, not late.
        return self._taken(now, good_until if now < good_until else self._soonest(), endpoints)

    def age(self, now: float) -> None:
        """Let what nobody asked for grow old: to be called every so often. Where there are readers, the snapshot is
        renewed for the next of them; where there are none, it costs nothing until something may have expired."""
        if self._read or self._snapshot is None:
            self.snapshot(now)
        elif now >= self._expires:
            self._expire(now)
            self._expires = self._soonest()
        self._read = False

    # -- within --------------------------------------------------------------------------------------------------

    def _take(self, now: float) -> Snapshot:
        """Look at every endpoint: the pool has changed."""
        endpoints = [self._look(self._records[address], now) for address in self._places]
        self._dirty.clear()
        self._unhealthy = sum(view.health is not _HEALTHY for view in endpoints)
        snapshot = self._taken(now, self._soonest(), endpoints)
        self._tell()
        return snapshot

    def _look(self, record: Record, now: float) -> EndpointView:
        view, record.until = record.look(now, self.stale_after)
        self._note_health(record, view.health, view.reason)
        return view

    def _expire(self, now: float) -> None:
        """Find the endpoints that the mere passing of time has changed."""
        for record in self._records.values():
            if record.until <= now:
                self._refresh(record, now)

    def _soonest(self) -> float:
        return min((record.until for record in self._records.values()), default=float("inf"))

    def _taken(self, now: float, good_until: float, endpoints: list[EndpointView]) -> Snapshot:
        for address in self._renamed:
            view = endpoints[self._places[address]]
            self._adapters.tell(address, view.names(LORA_RUNNING, LORA_WAITING))
            self._models.tell(address, view.names(MODELS))
        self._renamed.clear()
        self._expires = good_until
        self._snapshot = Snapshot(
            self.pool,
            self.version,
            now,
            good_until,
            tuple(endpoints),
            self._adapters.anywhere,
            self._models.everywhere,
            () if self._unhealthy else self._addresses,
            self._addresses,
        )
        return self._snapshot

    def _refresh(self, record: Record, now: float) -> None:
        verdict = record.judged(now, self.stale_after)
        record.until = verdict.until
        self._expires = min(self._expires, verdict.until)
        self._note_health(record, verdict.health, verdict.reason)
        self._changed(record.address)

    def _note_health(self, record: Record, health: Health, reason: str) -> None:
        before = record.health
        if health is not before:
            record.health = health
            self._hook(HealthChanged(self.pool, record.address, before, health, reason))

    def _replaced(self, record: Record, reason: str) -> None:
        """Another server answers at the address: drop what was known of the old one."""
        record.forget()
        self._renamed.add(record.address)
        if self._prefix is not None:
            self._prefix.forget(record.address)
        self._hook(ServerRestarted(self.pool, record.address, reason))

    def _changed(self, address: str) -> None:
        self._dirty.add(address)
        self.version += 1
        self._tell()

    def _anew(self) -> None:
        self._snapshot = None
        self._adapters, self._models, self._renamed = Names(), Names(), set(self._addresses)
        self._dirty.clear()
        self.version += 1
        self._tell()

    def _tell(self) -> None:
        for call in self.on_change:
            call()

    def _drop(self, address: str) -> None:
        self._learnt.replace(self._records.pop(address).learnt, None)
        self._learnt_by_pool = self._learnt.median
        if self._prefix is not None:
            self._prefix.forget(address)

    def _reckon_rate(self, record: Record, now: float) -> None:
        learnt = record.learner.rate
        if differ(learnt, record.learnt):
            self._learnt.replace(record.learnt, learnt)
            record.learnt = learnt
            self._learnt_by_pool = self._learnt.median
        record.rate_of_pool = self._learnt_by_pool
        own = record.learnt if record.learner.proven else None
        rate, record.rate_source = self._limits.choose(own, self._learnt_by_pool)
        if differ(rate, record.in_flight.rate):
            record.in_flight.set_rate(rate, now)

    def _tell_rate(self, now: float) -> None:
        """All endpoints go by the pool's rate as it is now."""
        self._told_of_pool = self._learnt_by_pool
        for record in self._records.values():
            before = record.in_flight.rate, record.rate_source
            self._reckon_rate(record, now)
            if (record.in_flight.rate, record.rate_source) != before:
                self._dirty.add(record.address)
        self.version += 1
        self._tell()

    def _resize(self, record: Record, values: Mapping[str, Value]) -> None:
        """Tell the index how many of its blocks the endpoint's cache holds, when a page says something new of it."""
        blocks, tokens = values.get(BLOCKS), values.get(BLOCK_SIZE)
        if not (isinstance(blocks, float) and isinstance(tokens, float)) or self._prefix is None:
            return
        if (record.value(BLOCKS), record.value(BLOCK_SIZE)) != (blocks, tokens):
            self._prefix.resize(record.address, max(1, int(blocks * tokens) // self._index_block_tokens))
