"""Metrics and log lines of `agent.events.requests`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from agent.events.requests import Abandoned, EncodedBody, Ended, Picked, Refused, Reported, StreamBroken
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.label_limiter import LabelLimiter
from exporters.catalog import requests as rows

MODEL_NAMES: Final = 1000  # distinct ones on the page; the reference's limit
SERVER_NAMES: Final = 10_000

# The reference's defaults of labels that no request sets yet.
FAIRNESS_ID: Final = "default-flow"
PRIORITY: Final = "0"

# The reference's error names by HTTP status; other statuses are written as they are.
ERROR_CODES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    412: "PreconditionFailed",
    429: "ResourceExhausted",
    500: "Internal",
    503: "ServiceUnavailable",
}


class _ModelCounters(NamedTuple):
    total: Counter
    running: Gauge
    duration: Histogram


class _PickCounters(NamedTuple):
    picks: Counter
    prompt_tokens: Counter
    hit_tokens: Counter
    left_warmest: Counter


class RequestInstruments:
    """The handlers of request events."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self._model = LabelLimiter(MODEL_NAMES)
        self._server = LabelLimiter(SERVER_NAMES)
        self._decision: Histogram = metrics.child(rows.DECISION)
        # Children by label values, whose number is bounded.
        self._models = cache(self._model_counters)
        self._picks = cache(self._pick_counters)
        self._ends = cache(self._end_counter)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            EncodedBody: self._count_encoded_body,
            Picked: self._count_picked,
            Refused: self._count_refused,
            Reported: self._count_reported,
            Ended: self._count_ended,
            Abandoned: self._count_abandoned,
            StreamBroken: self._count_stream_broken,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            Refused: self._log_refused,
            StreamBroken: self._log_stream_broken,
        }

    def _count_picked(self, event: Picked) -> None:
        model = self._models(self._model(event.model))
        model.total.inc()
        model.running.inc()
        pick = self._picks(event.pool, event.profile, self._server(event.endpoint))
        pick.picks.inc()
        pick.prompt_tokens.inc(event.prompt_tokens)
        pick.hit_tokens.inc(event.predicted_hit_tokens)
        if event.left_warmest:
            pick.left_warmest.inc()
        self._decision.observe(event.took)

    def _count_encoded_body(self, event: EncodedBody) -> None:
        self._metrics.count(rows.ENCODED_BODIES, event.pool, event.encoding, event.result)

    def _count_refused(self, event: Refused) -> None:
        model = self._model(event.model)
        self._metrics.count(rows.REQUESTS, model, model, FAIRNESS_ID, PRIORITY)
        code = ERROR_CODES.get(event.status, str(event.status))
        self._metrics.count(rows.REQUEST_ERRORS, model, model, FAIRNESS_ID, PRIORITY, code)
        self._metrics.count(rows.REJECTED, event.pool, str(event.status), event.reason)

    def _log_refused(self, event: Refused) -> None:
        due = self._log.failed((event.pool, event.status, event.reason))
        if due:
            text = f"request rejected with {event.status}: {event.reason}{due.times}"
            self._log.warning(text, event.pool, status=event.status, reason=event.reason)

    def _count_reported(self, event: Reported) -> None:
        self._metrics.count(rows.LOAD_REPORTS, event.pool, "refused" if event.reason else "ok", event.reason)

    def _count_ended(self, event: Ended) -> None:
        model = self._models(self._model(event.model))
        model.running.dec()
        model.duration.observe(event.took)
        self._ends(event.pool, event.how).inc()

    def _count_abandoned(self, event: Abandoned) -> None:
        self._metrics.count(rows.ABANDONED, event.pool, event.stage)

    def _count_stream_broken(self, event: StreamBroken) -> None:
        self._metrics.count(rows.STREAM_ERRORS, event.pool, event.reason)

    def _log_stream_broken(self, event: StreamBroken) -> None:
        due = self._log.failed((event.pool, event.reason))
        if due:
            text = f"ext_proc stream failed: {event.reason}: {shortened(event.detail)}{due.times}"
            self._log.warning(text, event.pool, reason=event.reason)

    # -- children ------------------------------------------------------------------------------------------------

    def _model_counters(self, model: str) -> _ModelCounters:
        labels = (model, model, FAIRNESS_ID, PRIORITY)
        return _ModelCounters(
            self._metrics.child(rows.REQUESTS, *labels),
            self._metrics.child(rows.REQUESTS_RUNNING, *labels),
            self._metrics.child(rows.REQUEST_DURATION, *labels),
        )

    def _pick_counters(self, pool: str, profile: str, server: str) -> _PickCounters:
        return _PickCounters(
            self._metrics.child(rows.PICKS, pool, profile, server),
            self._metrics.child(rows.PICK_PROMPT_TOKENS, pool),
            self._metrics.child(rows.PICK_HIT_TOKENS, pool),
            self._metrics.child(rows.LEFT_WARMEST, pool),
        )

    def _end_counter(self, pool: str, result: str) -> Counter:
        child: Counter = self._metrics.child(rows.ENDED, pool, result)
        return child
