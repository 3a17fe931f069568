"""One endpoint's record: the only thing in the agent that changes in place, and only by the store's hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.signals import PREFIX_HITS, START_TIME, WAITING, Reading, Value
from agent.state.health import DOWN_AFTER, PROOF_OF_DEATH, Health, Verdict, judge
from agent.state.inflight import InFlight
from agent.state.pace import QueuePace
from agent.state.rate import PrefillRate
from agent.state.snapshot import EndpointView, Prefix, Work

_new: Final = tuple.__new__


class Record:
    """What we hold about one endpoint between two snapshots."""

    __slots__ = (
        "address",
        "dead",
        "engine",
        "failure",
        "failures",
        "health",
        "hits_at_start",
        "in_flight",
        "learner",
        "learnt",
        "older",
        "pace",
        "page_at",
        "predicted_hits",
        "rate_source",
        "readings",
    )

    def __init__(self, address: str, engine: str, rate: float, rate_source: str) -> None:
        self.address = address
        self.engine = engine
        self.health = Health.UNKNOWN
        self.rate_source = rate_source
        self.readings: dict[str, Reading] = {}
        self.older: list[float] = []  # when the readings that the last page did not bring were asked for
        self.page_at: float | None = None
        self.failures = 0
        self.failure = ""
        self.dead = False  # a failure since the last page was a proof of death
        self.in_flight = InFlight(rate)
        self.learner = PrefillRate()
        self.pace = QueuePace()
        self.learnt: float | None = None  # the learner's rate when it last moved by more than noise
        self.predicted_hits = 0.0
        self.hits_at_start: float | None = None

    def restarted_by(self, values: Mapping[str, Value]) -> str:
        """Why this page must come from another server than the last one did, or the empty string."""
        known, told = self.readings.get(START_TIME), values.get(START_TIME)
        if known is not None and told is not None:
            return "new_start_time" if told != known.value else ""
        hits, before = values.get(PREFIX_HITS), self.readings.get(PREFIX_HITS)
        if before is not None and isinstance(hits, float) and isinstance(before.value, float) and hits < before.value:
            return "counter_went_back"
        return ""

    def forget(self) -> None:
        """Drop all that was learnt of the server; what we gave it and have not seen the end of stays in flight."""
        self.readings = {}
        self.older = []
        self.page_at = None
        self.learner.forget()
        self.pace.forget()
        self.predicted_hits = 0.0
        self.hits_at_start = None

    def apply(self, values: Mapping[str, Value], at: float) -> None:
        """Take in one page's values, each with the time at which the page was asked for."""
        before = self.readings
        # The tuple's own constructor: this line runs for each signal of each page.
        readings = {signal: _new(Reading, (value, at)) for signal, value in values.items()}
        older: list[float] = []
        for signal, reading in before.items():
            if signal not in readings:
                readings[signal] = reading
                older.append(reading.at)
        self.readings = readings
        self.older = older
        self.page_at = at
        self.failures = 0
        self.failure = ""
        self.dead = False
        hits = values.get(PREFIX_HITS)
        if self.hits_at_start is None and isinstance(hits, float):
            self.hits_at_start = hits
            self.predicted_hits = 0.0

    def bring(self, signal: str, reading: Reading) -> None:
        """Take in one reading that did not come with a page."""
        self.readings = {**self.readings, signal: reading}
        self.older = [*self.older, reading.at]

    def fail(self, reason: str) -> None:
        """Take in a scrape that brought no page. What was dead stays so until a page comes, whatever fails next."""
        self.failures += 1
        self.failure = reason
        self.dead = self.dead or reason in PROOF_OF_DEATH

    def judged(self, now: float, stale_after: float) -> Verdict:
        """Health at `now`."""
        failures = max(self.failures, DOWN_AFTER) if self.dead else self.failures
        return judge(now, self.page_at, failures, self.failure, stale_after)

    def look(self, now: float, stale_after: float) -> tuple[EndpointView, float]:
        """The view of this record at `now`, and until when it is good: until its health or a reading in it expires."""
        verdict = self.judged(now, stale_after)
        until = verdict.until
        for at in self.older:
            if now < at + stale_after < until:
                until = at + stale_after
        measured: float | None = None
        hits = self.readings.get(PREFIX_HITS)
        if self.hits_at_start is not None and hits is not None and isinstance(hits.value, float):
            measured = hits.value - self.hits_at_start
        work = self.in_flight
        waiting = self.readings.get(WAITING)
        corrected = waiting is not None and now - waiting.at < stale_after
        view = EndpointView(
            self.address,
            self.engine,
            verdict.health,
            verdict.reason,
            self.readings,
            self.page_at,
            self.failures,
            stale_after,
            Work(len(work), work.busy_until, work.rate, self.rate_source, corrected),
            Prefix(self.predicted_hits, measured),
        )
        return view, until
