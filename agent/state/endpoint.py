"""One endpoint's record: the only thing in the agent that changes in place, and only by the store's hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.accelerators.combine import Accelerators
from agent.engines.mapping import NO_HISTOGRAMS
from agent.signals import MODEL_LOADED, PREFIX_HITS, SIGNALS, START_TIME, WAITING, Histogram, Reading, SignalKind, Value
from agent.state.health import ANSWERED, DOWN_AFTER, PROOF_OF_DEATH, Health, Verdict, Word, judge
from agent.state.inflight import InFlight
from agent.state.pace import QueuePace
from agent.state.rate import PrefillRate
from agent.state.rates import Window
from agent.state.snapshot import EndpointView, Prefix, Work

_new: Final = tuple.__new__
_COUNTERS: Final = tuple(row.name for row in SIGNALS.values() if row.kind is SignalKind.COUNTER)


class Identity(NamedTuple):
    """Who serves at an address, as far as anybody said: the pod and the node, empty where nobody did."""

    pod: str = ""
    node: str = ""

    def lost_in(self, told: Identity) -> str:
        """Why what is told now is another server than this, or the empty string. To hear a name for the first time is
        to know more of the same one; to hear no name any more is to know nothing of who serves now."""
        if self.pod and told.pod != self.pod:
            return "another_pod"
        return "another_node" if self.node and told.node != self.node else ""


NOBODY_SAID: Final = Identity()


class Stamp(NamedTuple):
    """The time stamp of a series, as text, and when the first page with it was asked for."""

    text: bytes
    at: float


class Record:
    """What we hold about one endpoint between two snapshots."""

    __slots__ = (
        "accelerators",
        "address",
        "configured_engine",
        "dead",
        "engine",
        "failure",
        "failures",
        "health",
        "histograms",
        "hits_at_start",
        "identity",
        "in_flight",
        "learner",
        "learnt",
        "others",
        "others_at",
        "pace",
        "page_at",
        "predicted_hits",
        "rate_of_pool",
        "rate_source",
        "sick",
        "stamps",
        "until",
        "values",
        "was_well",
        "window",
        "word",
    )

    def __init__(self, address: str, engine: str, rate: float, rate_source: str) -> None:
        self.address = address
        self.identity = NOBODY_SAID
        self.engine = engine  # what it is known to be
        self.configured_engine = engine  # what it was said to be
        self.health = Health.UNKNOWN
        self.rate_source = rate_source
        self.values: Mapping[str, Value] = {}  # those of the last page
        self.others: Mapping[str, Reading] = {}  # readings that it did not bring
        self.others_at: tuple[float, ...] = ()  # when these were asked for
        self.page_at: float | None = None
        self.accelerators: tuple[Accelerators, ...] = ()
        self.sick = ""  # what one of them suffers from
        self.stamps: dict[str, tuple[Stamp, ...]] = {}  # of signals whose series have time stamps
        self.until = 0.0  # when its health or a reading of it expires, as far as it was looked at
        self.failures = 0
        self.failure = ""
        self.dead = False  # a failure since the last page was a proof of death
        self.word: Word | None = None  # what the health path said last, if it is asked
        self.was_well = False  # the health path has answered well since the server came up
        self.in_flight = InFlight(rate)
        self.learner = PrefillRate()
        self.pace = QueuePace()
        self.window = Window()
        self.histograms: Mapping[str, Histogram | None] = NO_HISTOGRAMS
        self.rate_of_pool: float | None = None  # the pool's when the rate was last reckoned
        self.learnt: float | None = None  # the learner's rate when it last moved by more than noise
        self.predicted_hits = 0.0
        self.hits_at_start: float | None = None

    def restarted_by(self, values: Mapping[str, Value]) -> str:
        """Why this page must come from another server than the last one did, or the empty string."""
        known, told = self.value(START_TIME), values.get(START_TIME)
        if known is not None and told is not None and told != known:
            return "new_start_time"
        before = self.values
        for name in _COUNTERS:
            now = values.get(name)
            if now is not None:
                last = before.get(name)
                if last is None:
                    last = self.value(name)
                # One process may hold several engines, of which one begins anew: its cache is gone all the same.
                if last is not None and now < last:  # type: ignore[operator]
                    return "counter_went_back"
        return ""

    def value(self, signal: str) -> Value | None:
        """The signal's last value, however old."""
        value = self.values.get(signal)
        if value is None:
            other = self.others.get(signal)
            return None if other is None else other.value
        return value

    def forget(self) -> None:
        """Drop all that was learnt of the server; what we gave it and have not seen the end of stays in flight."""
        self.values = {}
        self.others = {}
        self.others_at = ()
        self.stamps = {}
        self.page_at = None
        self.was_well = self.word == ANSWERED
        self.learner.forget()
        self.pace.forget()
        self.window.forget()
        self.histograms = NO_HISTOGRAMS
        self.predicted_hits = 0.0
        self.hits_at_start = None

    def apply(self, values: Mapping[str, Value], at: float) -> None:
        """Take in one page's values; the page was asked for at `at`."""
        if not (self.values.keys() <= values.keys() and self.others.keys().isdisjoint(values)):
            younger = {name for name, it in self.others.items() if it.at > at and name in values}
            if younger:
                values = {name: value for name, value in values.items() if name not in younger}
            dated = (
                {} if self.page_at is None else {name: Reading(it, self.page_at) for name, it in self.values.items()}
            )
            self._keep({name: it for name, it in {**self.others, **dated}.items() if name not in values})
        self.values = values
        self.page_at = at
        self.window.observe(values, at)
        self.failures = 0
        self.failure = ""
        self.dead = False
        hits = values.get(PREFIX_HITS)
        if self.hits_at_start is None and isinstance(hits, float):
            self.hits_at_start = hits
            self.predicted_hits = 0.0

    def apply_stamped(
        self, values: Mapping[str, Value], stamps: Mapping[str, tuple[bytes, ...]], at: float
    ) -> Mapping[str, Value]:
        """Take in a page whose series have time stamps; the values that are as of this page. The others are as old as
        the first page that had the same stamp: they were not measured since. A sum is as old as the oldest part of it,
        and a page that brings nothing new keeps nobody from growing stale.

        Stamps are compared and never read as times, for whose clock they are and whether it is right, nobody knows. A
        value without a stamp is as of its page, as for Prometheus.
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
        fresh = {signal: value for signal, value in values.items() if signal not in old}
        if fresh or not old:
            self.apply(fresh, at)
            self._keep({**self.others, **{signal: Reading(values[signal], since) for signal, since in old.items()}})
        else:  # it answers, and that is all
            self.failures = 0
            self.failure = ""
            self.dead = False
        return fresh

    def hear(self, values: Mapping[str, Value], at: float) -> None:
        """Take in readings that did not come with a page, each unless there is a younger one."""
        page_at, others = self.page_at, dict(self.others)
        for signal, value in values.items():
            old = others.get(signal)
            if (old is None or old.at < at) and (signal not in self.values or page_at is None or page_at < at):
                others[signal] = Reading(value, at)
        self.values = {name: value for name, value in self.values.items() if name not in others}
        self._keep(others)

    def _keep(self, others: Mapping[str, Reading]) -> None:
        self.others = others
        self.others_at = tuple({reading.at for reading in others.values()})

    def fail(self, reason: str) -> None:
        """Take in a scrape that brought no page. What was dead stays so until a page comes, whatever fails next."""
        self.failures += 1
        self.failure = reason
        if self.word == ANSWERED and self.failures == 1:
            self.word = None  # it says nothing of a server whose page fails: only the next ones do
        if reason in PROOF_OF_DEATH:
            self.dead = True
            self.word = None  # what it said before it died says nothing of who comes back
            self.was_well = False

    def say(self, answered: bool, reason: str) -> bool:  # noqa: FBT001
        """Take in what the health path said; whether that is news. Neither answer nor reason: it is asked no more."""
        before = self.word
        if answered:
            self.word = ANSWERED
            self.was_well = True
        elif not reason:
            self.word = None
        else:
            if reason == "health_unavailable" and not self.was_well:
                reason = "loading"
            self.word = Word(reason, before.times + 1 if before else 1)
        return self.word != before

    def run_on(self, accelerators: tuple[Accelerators, ...]) -> None:
        """Take in what runs under the server. It is not the server's: another server on it finds it as it is."""
        self.accelerators = accelerators
        self.sick = next((fault.reason for each in accelerators for fault in each.faults), "")

    def judged(self, now: float, stale_after: float) -> Verdict:
        """Health at `now`."""
        failures = max(self.failures, DOWN_AFTER) if self.dead else self.failures
        return judge(
            now,
            self.page_at,
            failures,
            self.failure,
            stale_after,
            self.word,
            self.sick,
            asleep=self.values.get(MODEL_LOADED) == 0.0,
        )

    def look(self, now: float, stale_after: float) -> tuple[EndpointView, float]:
        """The view of this record at `now`, and until when it is good: until its health or a reading in it expires."""
        verdict = self.judged(now, stale_after)
        until = verdict.until
        for at in self.others_at:
            if now < at + stale_after < until:
                until = at + stale_after
        for each in self.accelerators:
            if now < each.at + each.stale_after < until:
                until = each.at + each.stale_after
        measured: float | None = None
        hits = self.value(PREFIX_HITS)
        if self.hits_at_start is not None and isinstance(hits, float):
            measured = hits - self.hits_at_start
        work = self.in_flight
        waiting_at = self.page_at
        if WAITING not in self.values:
            waiting = self.others.get(WAITING)
            waiting_at = None if waiting is None else waiting.at
        corrected = waiting_at is not None and now - waiting_at < stale_after
        # The tuple's own constructor: a view is made for each page.
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
            _new(Work, (len(work), work.busy_until, work.rate, self.rate_source, corrected)),
            _new(Prefix, (self.predicted_hits, measured)),
            self.accelerators,
            self.window.oldest,
            self.histograms,
        )
        return _new(EndpointView, fields), until
