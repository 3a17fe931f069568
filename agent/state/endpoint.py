"""The state of one endpoint. It changes in place, and only the store (`agent.state.store`) changes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.accelerators.combine import Accelerators
from agent.engines.mapping import NO_HISTOGRAMS
from agent.signals import (
    FINISHED,
    FIRST_TOKEN_WAIT,
    FIRST_TOKENS,
    GENERATION_TOKENS,
    KV_USAGE,
    MODEL_LOADED,
    PREFIX_HITS,
    RUNNING,
    SIGNALS,
    SLOTS_USAGE,
    START_TIME,
    WAITING,
    Histogram,
    Reading,
    SignalKind,
    Value,
)
from agent.state.batch_size import UNKNOWN, BatchSize
from agent.state.counter_rates import Window
from agent.state.drain_rate import DrainRate, TokensDone
from agent.state.freshness import expiry, is_fresh
from agent.state.health import (
    DOWN_AFTER,
    PICKED,
    PROOF_OF_DEATH,
    PROOF_OF_LIFE,
    SUCCESS,
    Health,
    ProbeResult,
    Verdict,
    evaluate,
)
from agent.state.identity import UNIDENTIFIED
from agent.state.inflight import FirstTokens, InFlight, QueueEvidence
from agent.state.outliers import OutlierDetector
from agent.state.prefill_rate import PrefillRateEstimator
from agent.state.snapshot import EndpointView, Prefix, Work

_BLIND: Final = Health.BLIND
_new: Final = tuple.__new__
_COUNTERS: Final = tuple(row.name for row in SIGNALS.values() if row.kind is SignalKind.COUNTER)


# Why the prefix cache of a server that goes on is known to be empty.
EMPTIED: Final[Mapping[str, str]] = {
    "asleep": "its page shows that its model is not loaded: it sleeps",
    "reset": "its page counts another request that empties the cache, such as a reset or an update of its weights",
    "request": "a request that empties the cache passed through the picker",
    "other_weights": "its list of models has other weights under a known name, or no model of before",
}


class Stamp(NamedTuple):
    """The time stamp of a series, as text, and when the first page with it was requested."""

    text: bytes
    at: float


class EndpointState:
    """What is known of one endpoint between two snapshots."""

    __slots__ = (
        "accelerators",
        "address",
        "answered_at",
        "batch",
        "cache_resets",
        "configured_engine",
        "dead",
        "died",
        "drain",
        "engine",
        "failure",
        "failures",
        "fault",
        "first_work_id",
        "health",
        "histograms",
        "hits_at_start",
        "identity",
        "in_flight",
        "learnt_rate",
        "others",
        "others_at",
        "outliers",
        "page_at",
        "pool_rate",
        "predicted_hits",
        "probe",
        "probe_succeeded",
        "rate_estimator",
        "rate_source",
        "replaced",
        "roots",
        "stamps",
        "unfollowed_at",
        "until",
        "values",
        "window",
    )

    def __init__(self, address: str, engine: str, rate: float, rate_source: str) -> None:
        self.address = address
        self.identity = UNIDENTIFIED
        self.first_work_id = 0  # of requests with a smaller id, another server at the address had the work
        self.engine = engine  # recognised from its page, or configured
        self.configured_engine = engine
        self.health = Health.UNKNOWN
        self.rate_source = rate_source
        self.values: Mapping[str, Value] = {}  # those of the last page
        self.others: Mapping[str, Reading] = {}  # readings that the last page did not bring
        self.others_at: tuple[float, ...] = ()  # when these were requested
        self.page_at: float | None = None
        self.accelerators: tuple[Accelerators, ...] = ()
        self.fault = ""  # why one of them is unhealthy
        self.stamps: dict[str, tuple[Stamp, ...]] = {}  # of signals whose series have time stamps
        self.until = 0.0  # when its health or a reading expires, as of the last view or verdict
        self.failures = 0
        self.failure = ""
        self.dead = ""  # the proof of death since the last page; a refused connection is the stronger one
        self.answered_at: float | None = None  # the last proof of life since the last page or the first failure
        self.died = False  # a connection was refused since the last page: its process had ended
        self.replaced = False  # another server is at the address, and no page of it was applied yet
        self.probe: ProbeResult | None = None  # the last result of the health path, if it is probed
        self.probe_succeeded = False  # the health path has succeeded since the server started
        self.in_flight = InFlight(rate)
        self.rate_estimator = PrefillRateEstimator()
        self.batch = BatchSize()
        self.drain = DrainRate()
        self.outliers = OutlierDetector()
        self.unfollowed_at = float("-inf")  # when the proxy last sent a request elsewhere that was picked for it
        self.window = Window()
        self.histograms: Mapping[str, Histogram | None] = NO_HISTOGRAMS
        self.pool_rate: float | None = None  # the pool's prefill rate when this endpoint's was last computed
        self.learnt_rate: float | None = None  # the estimator's rate when it last changed by more than noise
        self.predicted_hits = 0.0
        self.hits_at_start: float | None = None
        self.cache_resets: float | None = None  # the largest number of them on a page so far
        self.roots: Mapping[str, str] = {}  # name of a model -> the place of its weights

    def restarted_by(self, values: Mapping[str, Value]) -> str:
        """Why a page with these values comes from another server than the last page, or the empty string."""
        before, after = self.value(START_TIME), values.get(START_TIME)
        if before is not None and after is not None and after != before:
            return "new_start_time"
        known = self.values
        for name in _COUNTERS:
            now = values.get(name)
            if now is not None:
                last = known.get(name)
                if last is None:
                    last = self.value(name)
                # One process may hold several engines. If one of them restarts, its cache is lost as well.
                if last is not None and now < last:  # type: ignore[operator]
                    return "counter_went_back"
        return ""

    def emptied_by(self, values: Mapping[str, Value], cache_resets: float) -> str:
        """Why a page with these values, of the same server, shows that its prefix cache was emptied since the last
        page: a key of `EMPTIED`, or the empty string."""
        before = self.cache_resets
        if before is None or cache_resets > before:
            self.cache_resets = cache_resets
            if before is not None:
                return "reset"
        asleep = values.get(MODEL_LOADED) == 0.0
        return "asleep" if asleep and self.values.get(MODEL_LOADED) != 0.0 else ""

    def other_weights(self, roots: Mapping[str, str]) -> bool:
        """Whether a list of models, of the same server, shows that its weights were replaced since the last list."""
        before, self.roots = self.roots, roots
        if not before or not roots:
            return False
        return not (before.keys() & roots.keys()) or any(roots.get(name, root) != root for name, root in before.items())

    def value(self, signal: str) -> Value | None:
        """The signal's last value, however old."""
        value = self.values.get(signal)
        if value is None:
            other = self.others.get(signal)
            return None if other is None else other.value
        return value

    def reset(self) -> None:
        """Drop everything that was learnt of the server; requests without a known end stay in flight."""
        self.values = {}
        self.others = {}
        self.others_at = ()
        self.stamps = {}
        self.page_at = None
        self.probe_succeeded = self.probe == SUCCESS
        self.rate_estimator.reset()
        self.in_flight.forget_others()
        self.batch.reset()
        self.drain.reset()
        self.outliers.reset()
        self.window.reset()
        self.histograms = NO_HISTOGRAMS
        self.predicted_hits = 0.0
        self.hits_at_start = None
        self.cache_resets = None
        self.roots = {}

    def apply(self, values: Mapping[str, Value], at: float) -> None:
        """Apply one page's values; the page was requested at `at`."""
        if not (self.values.keys() <= values.keys() and self.others.keys().isdisjoint(values)):
            younger = {name for name, it in self.others.items() if it.at > at and name in values}
            if younger:
                values = {name: value for name, value in values.items() if name not in younger}
            dated = (
                {} if self.page_at is None else {name: Reading(it, self.page_at) for name, it in self.values.items()}
            )
            self._set_others({name: it for name, it in {**self.others, **dated}.items() if name not in values})
        self.values = values
        self.page_at = at
        self.window.observe(values, at)
        self.failures = 0
        self.failure = ""
        self.dead = ""
        self.died = False
        self.answered_at = None
        hits = values.get(PREFIX_HITS)
        if self.hits_at_start is None and isinstance(hits, float):
            self.hits_at_start = hits
            self.predicted_hits = 0.0

    def apply_queue(self, values: Mapping[str, Value], at: float, now: float) -> None:
        """Correct the work in flight by what a page that was requested at `at` reports of running and waiting requests.
        A page that lacks the waiting requests of a server which has reported them changes nothing: what the older page
        has shown holds until it is stale."""
        running, waiting, finished = values.get(RUNNING), values.get(WAITING), values.get(FINISHED)
        kv_usage, slots_usage = values.get(KV_USAGE), values.get(SLOTS_USAGE)
        work = self.in_flight
        known_running = running if isinstance(running, float) else None
        if not isinstance(waiting, float):
            if known_running is not None and self.value(WAITING) is None:
                work.count(known_running, 0.0, UNKNOWN, at)
            return
        tokens: TokensDone | None = None
        mean = self.mean_tokens
        if waiting > 0:
            generated = values.get(GENERATION_TOKENS)
            tokens = TokensDone(
                generated if isinstance(generated, float) else None,
                self.rate_estimator.uncached_tokens,
                work.rate,
                mean,
                work.busy_until,
            )
        first_tokens = self._count_first_tokens(values, known_running, waiting, at, now)
        queue = work.correct(known_running, waiting, at, now, mean, first_tokens)
        free = self.batch.observe(
            known_running,
            waiting,
            kv_usage if isinstance(kv_usage, float) else None,
            slots_usage if isinstance(slots_usage, float) else None,
        )
        work.count(known_running or 0.0, waiting, free, at)
        if isinstance(finished, float):
            self.drain.observe(finished, at, tokens)
        if free < UNKNOWN:
            self._set_delay(known_running or 0.0, waiting, queue)

    def _count_first_tokens(
        self, values: Mapping[str, Value], running: float | None, waiting: float, at: float, now: float
    ) -> FirstTokens | None:
        """What a page shows by its count of first tokens; the rate of prefill is learnt from them."""
        count, waited = values.get(FIRST_TOKENS), values.get(FIRST_TOKEN_WAIT)
        if running is None or not isinstance(count, float):
            return None
        found = self.in_flight.count_first_tokens(count, running + waiting, waiting, at, now)
        if isinstance(waited, float):
            if found is None or found.backlogs is None:
                self.rate_estimator.skip_first_tokens(waited)
            else:
                self.rate_estimator.observe_first_tokens(found.counted, found.backlogs, waited)
        return found

    def apply_report(self, waiting: float, at: float, now: float) -> None:
        """Correct the work in flight by a load report, as of `at`, which has the waiting requests alone."""
        queue = self.in_flight.correct(None, waiting, at, now, self.mean_tokens)
        self.in_flight.count_waiting(waiting, at)
        running = self.value(RUNNING)
        self._set_delay(running if isinstance(running, float) else 0.0, waiting, queue)

    @property
    def mean_tokens(self) -> float:
        """Uncached prompt tokens of a mean request at this server."""
        return self.rate_estimator.mean_tokens or self.in_flight.mean_tokens

    def _set_delay(self, running: float, waiting: float, queue: QueueEvidence) -> None:
        work = self.in_flight
        mean_prefill = self.mean_tokens / work.rate
        # With so many requests of others they hold the batch; with fewer, the agent's own leave it and admit others.
        foreign = 0 < work.foreign >= running
        work.delay(self.drain.delay_seconds(self.batch.largest, waiting, queue, mean_prefill, foreign=foreign))

    def apply_stamped(
        self, values: Mapping[str, Value], stamps: Mapping[str, tuple[bytes, ...]], at: float
    ) -> Mapping[str, Value]:
        """Apply a page whose series have time stamps; returns the values that are as of this page.

        A value whose stamp repeats was not measured again: it is as old as the first page with the same stamp. A sum is
        as old as its oldest part. A page on which every stamp repeats does not keep the endpoint from going stale.

        Stamps are compared and never read as times, because the clock behind them is unknown. A value without a stamp
        is as of its page, as in Prometheus.
        """
        old: dict[str, float] = {}
        kept: dict[str, tuple[Stamp, ...]] = {}
        for signal, texts in stamps.items():
            before = self.stamps.get(signal, ())
            if len(before) != len(texts):
                before = (Stamp(b"", at),) * len(texts)
            kept[signal] = tuple(
                last if text and text == last.text else Stamp(text, at)
                for text, last in zip(texts, before, strict=True)
            )
            oldest = min(stamp.at for stamp in kept[signal])
            if oldest < at:
                old[signal] = oldest
        self.stamps = kept
        new = {signal: value for signal, value in values.items() if signal not in old}
        if new or not old:
            self.apply(new, at)
            others = {signal: Reading(values[signal], since) for signal, since in old.items()}
            self._set_others({**self.others, **others})
        else:  # the server responded, but measured nothing since the last page
            self.failures = 0
            self.failure = ""
            self.dead = ""
            self.died = False
            self.answered_at = at
        return new

    def merge_readings(self, values: Mapping[str, Value], at: float) -> None:
        """Merge readings that did not come with a page; a younger reading of the same signal is kept."""
        page_at, others = self.page_at, dict(self.others)
        for signal, value in values.items():
            old = others.get(signal)
            if (old is None or old.at < at) and (signal not in self.values or page_at is None or page_at < at):
                others[signal] = Reading(value, at)
        self.values = {name: value for name, value in self.values.items() if name not in others}
        self._set_others(others)

    def _set_others(self, others: Mapping[str, Reading]) -> None:
        self.others = others
        self.others_at = tuple({reading.at for reading in others.values()})

    def record_failure(self, reason: str, at: float) -> None:
        """Record a scrape that brought no page, requested at `at`. After a proof of death the endpoint stays dead until
        the next page or proof of life."""
        self.failures += 1
        self.failure = reason
        if self.failures == 1:
            self.answered_at = None
            if self.probe == SUCCESS:
                self.probe = None  # a success from before the failure proves nothing; later results do
        if reason in PROOF_OF_LIFE:
            self.answered_at = at
        elif reason in PROOF_OF_DEATH:
            if self.dead != "refused":
                self.dead = reason
            self.died = self.died or reason == "refused"
            self.answered_at = None
            self.probe = None  # a result of the dead server does not apply to its successor
            self.probe_succeeded = False

    def record_probe(self, answered: bool, reason: str, at: float) -> bool:  # noqa: FBT001
        """Record a result of the health path, requested at `at`; returns whether it can change the verdict. Neither
        answered nor a reason: the health path is not probed any more."""
        before = self.probe
        if answered:
            self.probe = SUCCESS
            self.probe_succeeded = True
            self.answered_at = at
        elif not reason:
            self.probe = None
        else:
            if reason == "health_unavailable" and not self.probe_succeeded:
                reason = "loading"
            self.probe = ProbeResult(reason, before.failures + 1 if before else 1)
        return self.probe != before or (answered and self.health not in PICKED)

    def replaced_unseen(self) -> bool:
        """Whether another process answers at the address, although no page shows it: connections were refused, and a
        later request has had a response without a page. True once for each replacement."""
        if self.dead != "refused" or self.answered_at is None or self.failure in PROOF_OF_DEATH:
            return False
        self.dead = ""
        return True

    def set_accelerators(self, accelerators: tuple[Accelerators, ...]) -> None:
        """Set the accelerators that the endpoint runs on. They outlive a restart of the server."""
        self.accelerators = accelerators
        self.fault = next((fault.reason for each in accelerators for fault in each.faults), "")

    def verdict(self, now: float, stale_after: float) -> Verdict:
        """Health at `now`."""
        failures = max(self.failures, DOWN_AFTER) if self.dead else self.failures
        return evaluate(
            now,
            self.page_at,
            failures,
            self.failure,
            stale_after,
            self.probe,
            self.fault,
            asleep=self.values.get(MODEL_LOADED) == 0.0,
            ejected=self.outliers.reason,
            answered_at=self.answered_at,
        )

    def view(self, now: float, stale_after: float) -> tuple[EndpointView, float]:
        """The view of this endpoint at `now`, and when its health or a reading in it expires."""
        verdict = self.verdict(now, stale_after)
        until = verdict.until
        for at in self.others_at:
            expires = expiry(at, stale_after)
            if now < expires < until:
                until = expires
        for each in self.accelerators:
            expires = expiry(each.at, each.stale_after)
            if now < expires < until:
                until = expires
        measured: float | None = None
        hits = self.value(PREFIX_HITS)
        if self.hits_at_start is not None and isinstance(hits, float):
            measured = hits - self.hits_at_start
        work = self.in_flight
        waiting_at = self.page_at
        if WAITING not in self.values:
            waiting = self.others.get(WAITING)
            waiting_at = None if waiting is None else waiting.at
        corrected = waiting_at is not None and is_fresh(waiting_at, stale_after, now) and verdict.health is not _BLIND
        foreign, queue_seconds = work.foreign, work.queue_seconds
        if not is_fresh(work.counted_at, stale_after, now):
            foreign, queue_seconds = 0.0, 0.0
        # The tuple's own constructor, because a view is made for each page.
        fields = (
            self.address,
            self.engine,
            verdict.health,
            verdict.reason,
            self.values,
            self.others,
            self.page_at,
            self.failures,
            stale_after,
            _new(
                Work,
                (
                    len(work),
                    work.busy_until,
                    work.rate,
                    self.rate_source,
                    corrected,
                    foreign,
                    queue_seconds,
                    work.of_peers,
                ),
            ),
            _new(Prefix, (self.predicted_hits, measured)),
            self.accelerators,
            self.window.oldest,
            self.histograms,
            self.outliers.errors,
            self.identity,
        )
        return _new(EndpointView, fields), until
