"""Metrics and log lines of `agent.events.flow`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import Counter

from agent.events.flow import HELD, DispatchRun, FlowDecided, HeldAtZero, RequestHeld, RequestSubmitted
from agent.flow.outcomes import (
    CANCELLED,
    DIRECT,
    DISPLACED,
    EXPIRED,
    NO_ENDPOINTS,
    PLANNED,
    SHED,
    SHUTTING_DOWN,
    STOLEN,
)
from agent.instruments.caller_labels import CallerLabels
from agent.instruments.event_log import EventLog
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.histogram import Buckets
from agent.instruments.known_names import KnownNames, NothingKnown
from agent.instruments.label_limiter import OTHER, LabelLimiter
from exporters.catalog import flow as rows

# Distinct models, those that servers list and others; and combinations of pool, caller, priority and both models.
MODEL_NAMES: Final = 200
UNPINNED_MODEL_NAMES: Final = 20
COMBINATIONS: Final = 300


class FieldOutcome(NamedTuple):
    """The reference's names of an outcome: of a request that did not wait, and of one that did."""

    at_once: str
    waited: str


DISPATCHED: Final = FieldOutcome("Dispatched", "Dispatched")
FIELD_OUTCOMES: Final[Mapping[str, FieldOutcome]] = {
    DIRECT: DISPATCHED,
    PLANNED: DISPATCHED,
    STOLEN: DISPATCHED,
    SHED: FieldOutcome("RejectedCapacity", "RejectedCapacity"),
    DISPLACED: FieldOutcome("RejectedCapacity", "EvictedOther"),
    EXPIRED: FieldOutcome("EvictedTTL", "EvictedTTL"),
    NO_ENDPOINTS: FieldOutcome("RejectedNoEndpoints", "EvictedNoEndpoints"),
    CANCELLED: FieldOutcome("EvictedContextCancelled", "EvictedContextCancelled"),
    SHUTTING_DOWN: FieldOutcome("RejectedOther", "EvictedOther"),
}
# Of a rejection that flow control did not cause: no endpoint could be picked when the request was dispatched.
OTHER_OUTCOME: Final = FieldOutcome("RejectedOther", "EvictedOther")
NOT_YET: Final = "NotYetFinalized"

Labels = tuple[str, str, str, str, str]  # pool, fairness_id, priority, model_name, target_model_name


class _Series:
    """The children of one combination of labels, by outcome."""

    __slots__ = ("durations", "labels", "outcomes")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        # Our outcome -> the counters of the reference's and of ours, the wait by our outcome, and the duration.
        self.outcomes: dict[tuple[str, bool], tuple[Counter, Counter, Buckets, Buckets]] = {}
        self.durations: set[str] = set()  # the reference's outcomes


class FlowInstruments:
    """The handlers of events of flow control. `names` are those of the pools."""

    def __init__(self, metrics: EventMetrics, log: EventLog, callers: CallerLabels) -> None:
        self._metrics = metrics
        self._log = log
        self.names: KnownNames = NothingKnown()
        self._callers = callers
        self._models = LabelLimiter(
            MODEL_NAMES,
            UNPINNED_MODEL_NAMES,
            listed=self._serves_model,
            unlisted=lambda pool: not self.names.lists_models(pool),
            free=self._free_model,
        )
        self._series: dict[Labels, _Series] = {}
        # The names of an event -> their series and the tokens of the caller, where all have labels of their own.
        self._own: dict[tuple[str, str, int, str, str], tuple[_Series, Counter]] = {}
        self._tokens: dict[tuple[str, str, str], Counter] = {}  # pool, priority, caller
        self._submitted: dict[tuple[str, str, str], Buckets] = {}
        self._held: dict[tuple[str, int], Counter] = {}
        self._cycle: Buckets = metrics.child(rows.DISPATCH_CYCLE)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            RequestHeld: self._count_held,
            FlowDecided: self._count_decided,
            RequestSubmitted: self._count_submitted,
            DispatchRun: self._count_run,
            HeldAtZero: self._count_at_zero,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {HeldAtZero: self._log_at_zero}

    def declare_models(self, names: Iterable[str]) -> None:
        """Replace the names of models that the configuration declares."""
        self._models.declare(names)

    def _count_held(self, event: RequestHeld) -> None:
        child = self._held.get((event.pool, event.priority))
        if child is None:
            label = self._callers.priority(event.priority)
            child = self._metrics.child(rows.HELD, event.pool, label)
            if label != OTHER:
                self._held[event.pool, event.priority] = child
        child.inc()

    def _count_decided(self, event: FlowDecided) -> None:
        requested = event.requested or event.model
        found = self._own.get((event.pool, event.caller, event.priority, requested, event.model))
        series, tokens = found or self._of(event.pool, event.caller, event.priority, requested, event.model)
        waited = event.waited_seconds > 0
        children = series.outcomes.get((event.outcome, waited))
        if children is None:
            children = self._children(series, event.outcome, waited=waited)
        theirs, ours, wait, duration = children
        theirs.inc()
        ours.inc()
        duration.observe(event.waited_seconds)
        if waited:
            wait.observe(event.waited_seconds)
        if FIELD_OUTCOMES.get(event.outcome) is DISPATCHED:
            tokens.inc(event.tokens)

    def _count_submitted(self, event: RequestSubmitted) -> None:
        caller, priority = self._callers.pair(event.caller, event.priority)
        self._tokens_of(event.pool, priority, caller)  # from 0 on, so that one that is never served is seen
        outcome = NOT_YET if event.outcome == HELD else FIELD_OUTCOMES.get(event.outcome, OTHER_OUTCOME).at_once
        labels = (caller, priority, outcome)
        child = self._submitted.get(labels)
        if child is None:
            child = self._submitted[labels] = self._metrics.child(rows.ENQUEUE_DURATION, *labels)
        child.observe(event.took)

    def _count_run(self, event: DispatchRun) -> None:
        self._cycle.observe(event.took)

    def _count_at_zero(self, event: HeldAtZero) -> None:
        self._metrics.count(rows.AT_ZERO, event.pool)

    def _log_at_zero(self, event: HeldAtZero) -> None:
        due = self._log.failed((event.pool, HeldAtZero))
        if due:
            text = f"requests are held for the first endpoint: the pool has none that may be picked{due.times}"
            self._log.info(text, event.pool, requests=event.requests)

    # -- labels and children -----------------------------------------------------------------------------------------

    def _tokens_of(self, pool: str, priority: str, caller: str) -> Counter:
        labels = (pool, priority, caller)
        child = self._tokens.get(labels)
        if child is None:
            child = self._tokens[labels] = self._metrics.child(rows.DISPATCHED_TOKENS, *labels)
        return child

    def _of(self, pool: str, name: str, number: int, model: str, target: str) -> tuple[_Series, Counter]:
        caller, priority = self._callers.pair(name, number)
        tokens = self._tokens_of(pool, priority, caller)
        target_label = self._models(target, pool)
        labels: Labels = (pool, caller, priority, self._models(model, pool), target_label)
        if labels not in self._series and len(self._series) >= COMBINATIONS:
            labels = (pool, caller if caller in self._callers.declared else OTHER, priority, OTHER, OTHER)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(labels)
        if OTHER not in labels:
            self._own[pool, name, number, model, target] = series, tokens
        return series, tokens

    def _children(self, series: _Series, outcome: str, *, waited: bool) -> tuple[Counter, Counter, Buckets, Buckets]:
        pool, caller, priority, model, target = series.labels
        both = FIELD_OUTCOMES.get(outcome, OTHER_OUTCOME)
        theirs = both.waited if waited else both.at_once
        series.durations.add(theirs)
        children = series.outcomes[outcome, waited] = (
            self._metrics.child(rows.FIELD_REQUESTS, theirs, priority, pool),
            self._metrics.child(rows.REQUESTS, pool, priority, outcome),
            self._metrics.child(rows.WAIT, pool, priority, outcome),
            self._metrics.child(rows.QUEUE_DURATION, caller, priority, theirs, pool, model, target),
        )
        # From 0 on: a rate does not see the first increment of a series that begins with it.
        for each in FIELD_OUTCOMES:
            self._metrics.child(rows.REQUESTS, pool, priority, each)
        for each in (PLANNED, STOLEN):
            self._metrics.child(rows.WAIT, pool, priority, each)
        return children

    def _serves_model(self, name: str) -> bool:
        return self.names.serves_model(name)

    def _free_model(self, label: str) -> bool:
        """Remove the series of a model that no server lists any more."""
        gone = [series for labels, series in self._series.items() if label in labels[3:]]
        for series in gone:
            pool, caller, priority, model, target = series.labels
            for outcome in series.durations:
                self._metrics.remove(rows.QUEUE_DURATION, caller, priority, outcome, pool, model, target)
            del self._series[series.labels]
        self._own = {names: found for names, found in self._own.items() if found[0] not in gone}
        return True
