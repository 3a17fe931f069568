"""The routing state of a pool: one writer applies pages, failures and the agent's own picks; readers take snapshots.

A page is applied as a whole. A signal that a good page lacks keeps its old reading, which ages; a failed scrape changes
only health. Between two changes the snapshot is the same object, and a change rebuilds the view of one endpoint, not of
all. Nothing here waits or reads a clock: `now` is an argument of every method, and all methods run on one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from agent.accelerators.combine import Accelerators
from agent.engine_specs import AUTO
from agent.engines.mapping import Extraction
from agent.events import Hook, ignore
from agent.events.requests import EndpointEjected
from agent.events.scraping import (
    CacheEmptied,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ServerRestarted,
)
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    KV_TOKENS,
    LORA_RUNNING,
    LORA_WAITING,
    MODEL_LOADED,
    MODELS,
    START_TIME,
    WAITING,
    Value,
)
from agent.state.endpoint import EndpointState
from agent.state.freshness import is_fresh
from agent.state.health import PICKED, Health
from agent.state.identity import UNIDENTIFIED, Identity
from agent.state.name_counts import NameCounts
from agent.state.outliers import OutlierLimits
from agent.state.prefill_rate import POOL_RATE_CHANGE, LearntRate, PoolRates, RateLimits, differ
from agent.state.snapshot import EndpointView, Snapshot
from agent.state.source import SourceStatus

_BLIND: Final = Health.BLIND
# A proxy that ejects an endpoint itself does so for 30 s the first time (Envoy's base_ejection_time). As long after a
# pick that it did not follow, the endpoint counts as ejected by the proxy.
UNFOLLOWED_SECONDS: Final = 30.0
# The id of a request whose result a peer reports. It is in no trial of this agent.
OF_PEER: Final = 0


class PrefixMemory(Protocol):
    """The part of the prefix index that the store updates."""

    def resize(self, address: str, capacity_blocks: int) -> None:
        """The cache of this endpoint holds at most that many of the index's blocks."""
        ...

    def clear(self, address: str) -> None:
        """The cache of this endpoint is empty; its size is the same."""
        ...

    def forget(self, address: str) -> None:
        """Another server responds at the address, or it left the pool."""
        ...


class RoutingStore:
    """The state of one pool. `version` grows by one with every change; `on_change` is called after each, and
    `on_changed` with the address of the endpoint that has changed, empty where the set of endpoints or the limits of
    all have."""

    def __init__(
        self,
        pool: str,
        *,
        stale_after: float,
        rate: RateLimits | None = None,
        hook: Hook = ignore,
        prefix: PrefixMemory | None = None,
        index_block_tokens: int = 64,
        outliers: OutlierLimits | None = None,
    ) -> None:
        self.pool = pool
        self.version = 0
        self.shared_engine = ""  # the engine that all endpoints have, as far as it is known; empty for several
        self.stale_after = stale_after
        self.on_change: list[Callable[[], None]] = []
        self.on_changed: list[Callable[[str], None]] = []
        self.on_peer_started: list[Callable[[str], None]] = []  # address of a request that a peer has sent
        self.on_restart: list[Callable[[str, float], None]] = []  # address and time, after the page that shows it
        self._limits = rate or RateLimits()
        self._outlier_limits = outliers or OutlierLimits()
        self._hook = hook
        self._prefix = prefix
        self._index_block_tokens = index_block_tokens
        self._endpoints: dict[str, EndpointState] = {}
        self._places: dict[str, int] = {}  # address -> place in the snapshot, in the order of addresses
        self._addresses: tuple[str, ...] = ()  # in the same order
        self._not_picked = 0  # endpoints in the last snapshot whose health excludes them from picks
        self._with_errors = 0  # endpoints in it whose recent requests failed
        self._queued = 0  # endpoints in it whose requests wait for more than prefill
        self._blind = 0
        self._dirty: set[str] = set()  # addresses whose view in the last snapshot is out of date
        self._snapshot: Snapshot | None = None
        self._views: dict[str, EndpointView] = {}  # while there is no snapshot: views that are up to date, by address
        self._read = False  # a snapshot was read since `age` was last called
        self._expires = float("inf")  # no endpoint's `until` is earlier
        self._adapters = NameCounts()
        self._models = NameCounts()
        self._renamed: set[str] = set()  # addresses whose names in the two above may be out of date
        self._requests: dict[int, EndpointState] = {}
        self._last_work_id = 0
        self._peer_requests: dict[int, EndpointState] = {}
        self._last_peer_work_id = 0  # they count down
        self._learnt_rates = PoolRates()
        self._pool_rate: float | None = None
        self._source: SourceStatus | None = None
        self._announced_rate: float | None = None  # the pool's rate when it was last applied to all endpoints

    # -- called by discovery and the scrape loop -----------------------------------------------------------------

    def set_endpoints(
        self, engines: Mapping[str, str], now: float, identities: Mapping[str, Identity] | None = None
    ) -> None:
        """Set the endpoints of the pool: address -> engine. Known ones keep their state. One whose identity or engine
        changed starts over, because it is another server. `identities` has every address, or is None."""
        self.change_endpoints(engines, now, identities, engines.keys())

    def change_endpoints(
        self,
        engines: Mapping[str, str],
        now: float,
        identities: Mapping[str, Identity] | None,
        addresses: AbstractSet[str],
    ) -> None:
        """Add or change these endpoints, as `set_endpoints` does, and remove those that are not among `addresses`; the
        others stay as they are."""
        for address in self._endpoints.keys() - addresses:
            self._drop(address)
        for address, engine in engines.items():
            state = self._endpoints.get(address)
            identity = UNIDENTIFIED if identities is None else identities.get(address, UNIDENTIFIED)
            other = "" if state is None else state.identity.replaced_by(identity)
            if state is not None and (other or state.configured_engine != engine):
                self._drop(address)
                state = None
            if state is None:
                state = EndpointState(address, engine, *self._limits.choose(None, self._pool_rate))
                state.first_work_id = self._last_work_id + 1
                self._endpoints[address] = state
                self._renamed.add(address)
            if state.identity != identity:
                state.identity = identity
                self._dirty.add(address)
            if other:
                self._hook(ServerRestarted(self.pool, address, other))
                state.replaced = True
        self._places = {address: place for place, address in enumerate(sorted(self._endpoints))}
        self._addresses = tuple(self._places)
        self._share_engine()
        self._rebuild()

    def set_source(self, source: SourceStatus | None) -> None:
        """Set whether the endpoints are those of their source; None where the configuration lists them."""
        if source != self._source:
            self._source = source
            self.version += 1
            self._notify()

    def set_limits(
        self, *, stale_after: float, rate: RateLimits, now: float, outliers: OutlierLimits | None = None
    ) -> None:
        """Apply the limits of a changed configuration."""
        self.stale_after = stale_after
        self._limits = rate
        self._outlier_limits = outliers or OutlierLimits()
        if not self._outlier_limits.enabled:
            for state in self._endpoints.values():
                state.outliers.reset()
        self._dirty.update(self._endpoints)
        self._apply_pool_rate(now)
        self._rebuild()

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        """Apply a page of `size` bytes that was requested at `at` and read `took` seconds later. Returns whether it
        comes from another server than the page before."""
        state = self._endpoints.get(address)
        if state is None:
            return False
        now = at + took
        values: Mapping[str, Value] = extraction.readings
        reason = state.restarted_by(values)
        if not reason and not values and state.dead == "refused":
            reason = "answers_again"  # and a page without a sample shows of no server that it is the same
        if reason:
            self._restarted(state, reason)
        emptied = state.emptied_by(values, extraction.cache_resets)
        if emptied:
            self._cache_emptied(state, emptied)
        elif self._prefix is not None and values.get(MODEL_LOADED) == 0.0:
            self._prefix.clear(address)  # of prompts that were picked before it was seen asleep, and recorded later
        replaced = bool(reason) or state.replaced or (state.died and START_TIME not in values)
        if self._prefix is not None and (BLOCKS in values or BLOCK_SIZE in values or KV_TOKENS in values):
            self._resize(state, values)
        for signal in (LORA_RUNNING, LORA_WAITING):
            if values.get(signal) != state.value(signal):
                self._renamed.add(address)
        if extraction.stamps:
            values = state.apply_stamped(values, extraction.stamps, at)
        else:
            state.apply(values, at)
        state.histograms = extraction.histograms
        learnt = state.rate_estimator.observe(values) and self._limits.fixed is None
        if learnt or state.pool_rate != self._pool_rate:
            self._update_rate(state, now)
            if differ(self._pool_rate, self._announced_rate, POOL_RATE_CHANGE):
                self._apply_pool_rate(now)
        state.apply_queue(values, at, now)
        self._refresh(state, now)
        self._hook(ScrapeDone(self.pool, address, at, took, size, extraction.missing, extraction.refused))
        if replaced:
            state.replaced = False
            for call in self.on_restart:
                call(address, now)
        return bool(reason)

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """Record a scrape that brought no page; `reason` is one of `agent.scrape.reasons.REASONS`."""
        state = self._endpoints.get(address)
        if state is None:
            return
        state.record_failure(reason, at)
        replaced = state.replaced_unseen()
        if replaced:
            self._restarted(state, "answers_again")
        if replaced or state.pool_rate != self._pool_rate:
            self._update_rate(state, at + took)
        self._refresh(state, at + took)
        self._hook(ScrapeFailed(self.pool, address, at, took, reason, detail))

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:  # noqa: FBT001
        """Record a result of the health path, requested at `at`. `reason` is one of
        `agent.state.health.HEALTH_REASONS`, or empty where it `answered` with success. Neither of the two: the health
        path is not probed any more."""
        state = self._endpoints.get(address)
        if state is None:
            return
        if state.record_probe(answered, reason, at):
            self._refresh(state, at + took)
        if state.probe is not None and not answered:
            self._hook(HealthPathFailed(self.pool, address, at, took, state.probe.reason, detail))

    def recognised(self, address: str, engine: str) -> None:
        """Record the engine that was recognised from the page, where none is configured. Another engine than before is
        another server."""
        state = self._endpoints.get(address)
        if state is None or state.engine == engine:
            return
        if state.engine != state.configured_engine:
            self._restarted(state, "another_engine")
            state.replaced = True
        state.engine = engine
        self._share_engine()
        self._changed(address)

    def served_models(
        self, address: str, names: frozenset[str], at: float, roots: Mapping[str, str] | None = None
    ) -> None:
        """Record the models and adapters that the endpoint serves. `roots`: the place of each model's weights, if
        the list has it; other weights under a known name have another cache."""
        state = self._endpoints.get(address)
        if state is not None:
            if roots is not None and state.other_weights(roots):
                self._cache_emptied(state, "other_weights")
            if state.value(MODELS) != names:
                self._renamed.add(address)
            state.merge_readings({MODELS: names}, at)
            self._changed(address)

    def set_accelerators(self, address: str, accelerators: tuple[Accelerators, ...], now: float) -> None:
        """Set what the exporters report of the endpoint's accelerators. An unhealthy one makes the endpoint `down`."""
        state = self._endpoints.get(address)
        if state is not None and state.accelerators != accelerators:
            state.set_accelerators(accelerators)
            self._refresh(state, now)

    # -- called for each request ---------------------------------------------------------------------------------

    def started(self, address: str, uncached_tokens: float, hit_tokens: float, now: float) -> int:
        """Count a request as in flight at the endpoint; returns its id for `ended` and `reported`.

        `uncached_tokens` of its prompt have to be prefilled, `hit_tokens` are expected in the cache. KeyError when the
        endpoint is not in the pool, which a pick from the current snapshot excludes.
        """
        state = self._endpoints[address]
        self._last_work_id += 1
        work_id = self._last_work_id
        self._requests[work_id] = state
        state.in_flight.start(work_id, uncached_tokens, now)
        state.predicted_hits += hit_tokens
        if state.outliers.ejected:
            state.outliers.started(work_id, now)
        self._changed(address)
        return work_id

    def ended(self, work_id: int, now: float) -> None:
        """Count the request as ended, with whatever result. KeyError for an id that is not in flight."""
        state = self._requests.pop(work_id)
        state.in_flight.end(work_id, now)
        if self._endpoints.get(state.address) is state:
            self._changed(state.address)

    def reported(self, work_id: int, values: Mapping[str, Value], at: float, now: float) -> None:
        """Merge the load report that the endpoint sent with its response to this request, as of `at`.

        It changes readings only. Health depends on pages and on the health path.
        """
        state = self._requests.get(work_id)
        if state is None or self._endpoints.get(state.address) is not state:
            return
        state.merge_readings(values, at)
        waiting = values.get(WAITING)
        if isinstance(waiting, float):
            state.apply_report(waiting, at, now)
        self._changed(state.address)

    # -- called for what a peer reports ------------------------------------------------------------------------------

    def peer_started(
        self, address: str, uncached_tokens: float, hit_tokens: float, picked_at: float, now: float
    ) -> int | None:
        """Count a request that a peer has picked at `picked_at` as in flight; returns its id for `peer_ended`. None
        where the endpoint is not in the pool."""
        state = self._endpoints.get(address)
        if state is None:
            return None
        self._last_peer_work_id -= 1
        work_id = self._last_peer_work_id
        self._peer_requests[work_id] = state
        state.in_flight.start_of_peer(work_id, uncached_tokens, picked_at, now)
        state.predicted_hits += hit_tokens
        for call in self.on_peer_started:
            call(address)
        self._changed(address)
        return work_id

    def peer_ended(self, work_id: int, now: float) -> None:
        """Count a peer's request as ended, or as unknown. KeyError for an id that is not in flight."""
        state = self._peer_requests.pop(work_id)
        state.in_flight.end(work_id, now)
        if self._endpoints.get(state.address) is state:
            self._changed(state.address)

    def learnt_rates(self) -> dict[str, LearntRate]:
        """What was learnt of the prefill rate of each endpoint, where anything was."""
        found = {address: state.rate_estimator.learnt for address, state in self._endpoints.items()}
        return {address: learnt for address, learnt in found.items() if learnt.prefills > 0}

    def adopt_rate(self, address: str, learnt: LearntRate, now: float) -> None:
        """Continue from what a peer has learnt of an endpoint, if that is more than what is known here."""
        state = self._endpoints.get(address)
        if state is not None and state.rate_estimator.adopt(learnt) and self._limits.fixed is None:
            self._update_rate(state, now)
            if differ(self._pool_rate, self._announced_rate, POOL_RATE_CHANGE):
                self._apply_pool_rate(now)
            self._changed(address)

    # -- outcomes of requests ----------------------------------------------------------------------------------------

    def succeeded(self, address: str, work_id: int, now: float) -> None:
        """Record that the endpoint answered the request without a failure of its own. It counts only for the server to
        which the request was sent."""
        state = self._endpoints.get(address)
        if state is None or not self.sent(address, work_id):
            return
        outliers = state.outliers
        before = outliers.errors
        if outliers.succeeded(work_id, now):
            self._refresh(state, now)
        elif outliers.errors is not before:
            self._changed(address)

    def request_failed(self, address: str, work_id: int, kind: str, now: float) -> None:
        """Record that the endpoint failed on the request; `kind` is a key of `agent.requests.response.RESULTS`. It is
        ejected where its failures exceed the limits and the share of the pool that may be ejected is not used up. It
        counts only for the server to which the request was sent."""
        state, limits = self._endpoints.get(address), self._outlier_limits
        if state is None or not limits.enabled or not self.sent(address, work_id):
            return
        outliers = state.outliers
        reason = outliers.failed(work_id, kind, limits, now)
        if reason and (outliers.ejected or self._may_eject(state, now)):
            seconds = outliers.eject(reason, limits, now)
            errors = outliers.errors
            if errors is not None:
                self._hook(
                    EndpointEjected(
                        self.pool, address, reason, kind, errors.consecutive, errors.ratio, seconds, errors.ejections
                    )
                )
        self._refresh(state, now)

    def sent(self, address: str, work_id: int) -> bool:
        """Whether the server that is at the address now was there when the request was picked. Of a request that a peer
        has picked (`OF_PEER`) the peer has checked that."""
        state = self._endpoints.get(address)
        return state is not None and (work_id >= state.first_work_id or work_id == OF_PEER)

    def not_followed(self, picked: str, now: float) -> None:
        """Record that the proxy sent a request elsewhere that was picked for this endpoint."""
        state = self._endpoints.get(picked)
        if state is not None:
            state.unfollowed_at = now

    def unfollowed(self, address: str, now: float) -> bool:
        """Whether the proxy recently sent a request elsewhere that was picked for this endpoint."""
        state = self._endpoints.get(address)
        return state is not None and now - state.unfollowed_at < UNFOLLOWED_SECONDS

    def moved(self, work_id: int, address: str, uncached_tokens: float, now: float) -> bool:
        """Move a request in flight to the endpoint that the proxy sent it to. False where it is not in flight, or the
        address is not in the pool: it stays where it was picked."""
        before, state = self._requests.get(work_id), self._endpoints.get(address)
        if before is None or state is None:
            return False
        before.in_flight.end(work_id, now)
        state.in_flight.start(work_id, uncached_tokens, now)
        self._requests[work_id] = state
        if self._endpoints.get(before.address) is before:
            self._changed(before.address)
        self._changed(address)
        return True

    def withdraw_hits(self, address: str, hit_tokens: float) -> None:
        """Take back predicted hits of a request that the endpoint did not prefill."""
        state = self._endpoints.get(address)
        if state is not None and hit_tokens:
            state.predicted_hits = max(0.0, state.predicted_hits - hit_tokens)
            self._changed(address)

    def has_queue(self, address: str, now: float) -> bool:
        """Whether a fresh page of the endpoint reports waiting requests: a 503 then says that the queue is full."""
        state = self._endpoints.get(address)
        if state is None:
            return False
        waiting = state.value(WAITING)
        at = state.page_at
        if WAITING not in state.values:
            other = state.others.get(WAITING)
            at = None if other is None else other.at
        return isinstance(waiting, float) and waiting > 0 and at is not None and is_fresh(at, self.stale_after, now)

    def cache_emptied(self, address: str, reason: str, now: float) -> None:
        """Record that the endpoint's prefix cache is empty; `reason` is a key of `agent.state.endpoint.EMPTIED`."""
        state = self._endpoints.get(address)
        if state is not None:
            self._cache_emptied(state, reason)

    @property
    def in_flight(self) -> int:
        """The agent's own requests that were started and have not ended, those at endpoints that left the pool
        included."""
        return len(self._requests)

    def engine(self, address: str) -> str:
        """The endpoint's engine, as configured or recognised; empty where the address is not in the pool."""
        state = self._endpoints.get(address)
        return "" if state is None else state.engine

    def serves(self, model: str) -> bool:
        """Whether an endpoint lists this model or names this adapter, as of the last snapshot."""
        return model in self._models or model in self._adapters

    @property
    def lists_models(self) -> bool:
        """Whether an endpoint lists any model, as of the last snapshot."""
        return bool(self._models)

    @property
    def addresses(self) -> AbstractSet[str]:
        """The addresses of all endpoints."""
        return self._endpoints.keys()

    def has(self, address: str) -> bool:
        """Whether the address is an endpoint of the pool."""
        return address in self._endpoints

    # -- called by readers ---------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        """All endpoints at `now`: the last snapshot while nothing changed and nothing expired, else a new one."""
        self._read = True
        last = self._snapshot
        if last is None:
            return self._retake(now)
        good_until = last.good_until
        if now >= good_until:
            self._expire(now)
        elif last.version == self.version:
            return last
        endpoints = list(last.endpoints)
        for address in self._dirty:
            place, state = self._places[address], self._endpoints[address]
            view = self._view(state, now)
            before = endpoints[place]
            self._not_picked += (view.health not in PICKED) - (before.health not in PICKED)
            self._with_errors += (view.errors is not None) - (before.errors is not None)
            self._queued += before.work.only_prefill - view.work.only_prefill
            endpoints[place] = view
            good_until = min(good_until, state.until)
        self._dirty.clear()
        # The earliest expiry may belong to a view that was replaced. `_expire` is then called early, never late.
        return self._snapshot_of(now, good_until if now < good_until else self._next_expiry(), endpoints)

    def age(self, now: float) -> None:
        """Let readings expire in a pool that is not read; called periodically. With readers, the next one finds a
        current snapshot; without, a call costs nothing until something may have expired."""
        if self._read or self._snapshot is None:
            self.snapshot(now)
        elif now >= self._expires:
            self._expire(now)
            self._expires = self._next_expiry()
        self._read = False

    # -- within --------------------------------------------------------------------------------------------------

    def _retake(self, now: float) -> Snapshot:
        """A snapshot with a new view of every endpoint whose last one is out of date."""
        self._forget_views()
        if now >= self._expires:
            self._dirty.update(address for address in self._views if self._endpoints[address].until <= now)
            self._forget_views()
        kept, good_until = self._views, self._expires
        for address in self._places.keys() - kept.keys():
            state = self._endpoints[address]
            view = kept[address] = self._view(state, now)
            self._count(view, 1)
            good_until = min(good_until, state.until)
        endpoints = [kept[address] for address in self._places]
        self._views = {}
        self._dirty.clear()
        snapshot = self._snapshot_of(now, good_until if now < good_until else self._next_expiry(), endpoints)
        self._notify()
        return snapshot

    def _view(self, state: EndpointState, now: float) -> EndpointView:
        view, state.until = state.view(now, self.stale_after)
        self._set_health(state, view.health, view.reason)
        return view

    def _expire(self, now: float) -> None:
        """Refresh the endpoints that the passing of time alone has changed."""
        for state in self._endpoints.values():
            if state.until <= now:
                self._refresh(state, now)

    def _next_expiry(self) -> float:
        return min((state.until for state in self._endpoints.values()), default=float("inf"))

    def _snapshot_of(self, now: float, good_until: float, endpoints: list[EndpointView]) -> Snapshot:
        for address in self._renamed:
            view = endpoints[self._places[address]]
            self._adapters.set(address, view.names(LORA_RUNNING, LORA_WAITING))
            self._models.set(address, view.names(MODELS))
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
            () if self._not_picked else self._addresses,
            self._addresses,
            self._with_errors > 0,
            not self._queued,
            self._source,
        )
        return self._snapshot

    def _refresh(self, state: EndpointState, now: float) -> None:
        verdict = state.verdict(now, self.stale_after)
        state.until = verdict.until
        self._expires = min(self._expires, verdict.until)
        self._set_health(state, verdict.health, verdict.reason)
        self._changed(state.address)

    def _set_health(self, state: EndpointState, health: Health, reason: str) -> None:
        before = state.health
        if health is not before:
            state.health = health
            if health is _BLIND or before is _BLIND:
                self._blind += 1 if health is _BLIND else -1
                counts = (self._blind, len(self._endpoints))
                self._hook(HealthChanged(self.pool, state.address, before, health, reason, *counts))
            else:
                self._hook(HealthChanged(self.pool, state.address, before, health, reason))

    def _restarted(self, state: EndpointState, reason: str) -> None:
        """Another server responds at the address: drop what was known of the old one."""
        state.reset()
        self._renamed.add(state.address)
        if self._prefix is not None:
            self._prefix.forget(state.address)
        self._hook(ServerRestarted(self.pool, state.address, reason))

    def _may_eject(self, state: EndpointState, now: float) -> bool:
        """Whether the pool can do without this endpoint: another one is picked, and the agent and the proxy together
        have not ejected as many as they may."""
        ejected = unfollowed = 0
        picked = False
        for each in self._endpoints.values():
            if each is state:
                continue
            ejected += each.outliers.ejected
            unfollowed += not each.outliers.ejected and now - each.unfollowed_at < UNFOLLOWED_SECONDS
            if not picked:
                verdict = each.verdict(now, self.stale_after)
                picked = verdict.health.picked
        largest = max(1, int(self._outlier_limits.largest_share * len(self._endpoints)))
        return picked and ejected + unfollowed < largest

    def _cache_emptied(self, state: EndpointState, reason: str) -> None:
        if self._prefix is not None:
            self._prefix.clear(state.address)
        self._hook(CacheEmptied(self.pool, state.address, reason))

    def _share_engine(self) -> None:
        engines = {state.engine for state in self._endpoints.values()} - {AUTO}
        self.shared_engine = engines.pop() if len(engines) == 1 else ""

    def _changed(self, address: str) -> None:
        self._dirty.add(address)
        self.version += 1
        self._notify()
        for call in self.on_changed:
            call(address)

    def _rebuild(self) -> None:
        """The endpoints have changed: the next snapshot is made of the views that are up to date and of new ones."""
        last = self._snapshot
        if last is not None:
            self._views = dict(zip(last.addresses, last.endpoints, strict=True))
        self._forget_views()
        self._snapshot = None
        self.version += 1
        self._notify()
        for call in self.on_changed:
            call("")

    def _forget_views(self) -> None:
        """Forget the views that are out of date."""
        for address in self._dirty:
            view = self._views.pop(address, None)
            if view is not None:
                self._count(view, -1)
        self._dirty.clear()

    def _count(self, view: EndpointView, by: int) -> None:
        """Count a view in the sums of the snapshot, or withdraw it."""
        self._not_picked += by * (view.health not in PICKED)
        self._with_errors += by * (view.errors is not None)
        self._queued += by * (not view.work.only_prefill)

    def _notify(self) -> None:
        for call in self.on_change:
            call()

    def _drop(self, address: str) -> None:
        state = self._endpoints.pop(address)
        self._dirty.add(address)
        self._renamed.discard(address)
        self._adapters.remove(address)
        self._models.remove(address)
        self._blind -= state.health is _BLIND
        self._learnt_rates.replace(state.learnt_rate, None)
        self._pool_rate = self._learnt_rates.median
        if self._prefix is not None:
            self._prefix.forget(address)

    def _update_rate(self, state: EndpointState, now: float) -> None:
        learnt = state.rate_estimator.rate
        if differ(learnt, state.learnt_rate):
            self._learnt_rates.replace(state.learnt_rate, learnt)
            state.learnt_rate = learnt
            self._pool_rate = self._learnt_rates.median
        state.pool_rate = self._pool_rate
        own = state.learnt_rate if state.rate_estimator.proven else None
        rate, state.rate_source = self._limits.choose(own, self._pool_rate)
        if differ(rate, state.in_flight.rate):
            state.in_flight.set_rate(rate, now)

    def _apply_pool_rate(self, now: float) -> None:
        """Apply the pool's current rate to all endpoints."""
        self._announced_rate = self._pool_rate
        changed: list[str] = []
        for state in self._endpoints.values():
            before = state.in_flight.rate, state.rate_source
            self._update_rate(state, now)
            if (state.in_flight.rate, state.rate_source) != before:
                changed.append(state.address)
        self._dirty.update(changed)
        self.version += 1
        self._notify()
        for address in changed:
            for call in self.on_changed:
                call(address)

    def _resize(self, state: EndpointState, values: Mapping[str, Value]) -> None:
        """Set how many of its blocks the index keeps for the endpoint's cache, when a page reports another size. The
        size in tokens is the engine's own where it reports one: blocks times block size is not that of every cache."""
        whole = values.get(KV_TOKENS, state.value(KV_TOKENS))
        tokens = _cache_tokens(whole, values.get(BLOCKS), values.get(BLOCK_SIZE))
        if tokens is None or self._prefix is None:
            return
        if _cache_tokens(state.value(KV_TOKENS), state.value(BLOCKS), state.value(BLOCK_SIZE)) != tokens:
            self._prefix.resize(state.address, max(1, int(tokens) // self._index_block_tokens))


def _cache_tokens(whole: Value | None, blocks: Value | None, block_size: Value | None) -> float | None:
    """The size of a KV cache in tokens, None where it is unknown."""
    if isinstance(whole, float):
        return whole
    return blocks * block_size if isinstance(blocks, float) and isinstance(block_size, float) else None
