"""Metrics and log lines of `agent.events.requests`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from prometheus_client import Counter

from agent.events.exchange import NO_SLO
from agent.events.requests import (
    Abandoned,
    Completed,
    EncodedBody,
    Ended,
    EndpointEjected,
    NotFollowed,
    Picked,
    Refused,
    Reported,
    Responded,
    StreamBroken,
    UnknownLogEntry,
    Unreported,
)
from agent.instruments.caller_labels import CallerLabels
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.histogram import Buckets
from agent.instruments.known_names import KnownNames, NothingKnown
from agent.instruments.label_limiter import LabelLimiter
from agent.instruments.request_series import RequestNames, RequestSeries
from exporters.catalog import CATALOG, exchanges
from exporters.catalog import requests as rows
from exporters.catalog.metric import Metric

# Endpoints of the pools, and those that have left them since. Only discovery adds to them.
SERVER_NAMES: Final = 10_000

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


# Statuses of rejections that are no fault of the client.
_FAULTS_OF_THE_SERVICE: Final = frozenset({429, 500, 503})


class _PickCounters(NamedTuple):
    picks: Counter
    prompt_tokens: Counter
    hit_tokens: Counter
    left_warmest: Counter


def _names(event: Picked | Ended | Refused | Completed) -> RequestNames:
    return RequestNames(event.requested or event.model, event.model, event.caller, event.priority)


class RequestInstruments:
    """The handlers of request events. `names` are those of the pools."""

    def __init__(self, metrics: EventMetrics, log: EventLog, callers: CallerLabels) -> None:
        self._metrics = metrics
        self._log = log
        self.names: KnownNames = NothingKnown()
        self._series = RequestSeries(metrics, lambda: self.names, callers)
        self._server = LabelLimiter(
            SERVER_NAMES,
            SERVER_NAMES,
            listed=self._has_server,
            unlisted=lambda _: False,
            free=self._free_server,
        )
        self._decision: Buckets = metrics.child(rows.DECISION)
        # Children by label values, whose number is bounded.
        self._picks: dict[tuple[str, str, str], _PickCounters] = {}
        self._ends = cache(self._end_counter)
        # Counters of what became of picks: name of the metric and its label values, of which the second is the server.
        self._outcomes: dict[tuple[str, tuple[str, ...]], Counter] = {}
        self.counts: Mapping[type, Callable[[Any], None]] = {
            EncodedBody: self._count_encoded_body,
            Picked: self._count_picked,
            Refused: self._count_refused,
            Reported: self._count_reported,
            Responded: self._count_responded,
            Completed: self._count_completed,
            UnknownLogEntry: self._count_unknown_entry,
            Unreported: self._count_unreported,
            NotFollowed: self._count_not_followed,
            EndpointEjected: self._count_ejected,
            Ended: self._count_ended,
            Abandoned: self._count_abandoned,
            StreamBroken: self._count_stream_broken,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            Refused: self._log_refused,
            NotFollowed: self._log_not_followed,
            EndpointEjected: self._log_ejected,
            StreamBroken: self._log_stream_broken,
        }

    def declare_models(self, names: Iterable[str]) -> None:
        """Replace the names of models that the configuration declares."""
        self._series.declare(names)

    def _count_picked(self, event: Picked) -> None:
        self._series.picked(event.pool, _names(event))
        pick = self._picks.get((event.pool, event.profile, event.endpoint))
        if pick is None:
            pick = self._pick_counters(event.pool, event.profile, self._server(event.endpoint))
        pick.picks.inc()
        pick.prompt_tokens.inc(event.prompt_tokens)
        pick.hit_tokens.inc(event.predicted_hit_tokens)
        if event.left_warmest:
            pick.left_warmest.inc()
        self._decision.observe(event.took)

    def _count_encoded_body(self, event: EncodedBody) -> None:
        self._metrics.count(rows.ENCODED_BODIES, event.pool, event.encoding, event.result)

    def _count_refused(self, event: Refused) -> None:
        code = ERROR_CODES.get(event.status, str(event.status))
        slo = event.slo if event.status in _FAULTS_OF_THE_SERVICE else NO_SLO
        self._series.refused(event.pool, _names(event), code, slo)
        self._metrics.count(rows.REJECTED, event.pool, str(event.status), event.reason)

    def _log_refused(self, event: Refused) -> None:
        due = self._log.failed((event.pool, event.status, event.reason))
        if due:
            text = f"request rejected with {event.status}: {event.reason}{due.times}"
            self._log.warning(text, event.pool, status=event.status, reason=event.reason)

    def _count_reported(self, event: Reported) -> None:
        self._metrics.count(rows.LOAD_REPORTS, event.pool, "refused" if event.reason else "ok", event.reason)

    def _count_responded(self, event: Responded) -> None:
        self._outcome(rows.RESPONSES, event.pool, self._server(event.endpoint), event.result).inc()

    def _count_completed(self, event: Completed) -> None:
        self._series.completed(event.pool, _names(event), event.result, event.status, event.exchange, event.slo)

    def _count_unknown_entry(self, event: UnknownLogEntry) -> None:
        self._metrics.count(exchanges.UNKNOWN_ENTRIES, event.pool)

    def _count_unreported(self, event: Unreported) -> None:
        self._metrics.count(exchanges.UNREPORTED, event.pool)

    def _count_not_followed(self, event: NotFollowed) -> None:
        self._outcome(rows.NOT_FOLLOWED, event.pool, self._server(event.picked)).inc()

    def _log_not_followed(self, event: NotFollowed) -> None:
        due = self._log.failed((event.pool, NotFollowed, event.picked))
        if due:
            text = (
                f"the proxy sent a request that was picked for {event.picked} to {event.served}{due.times}: "
                "it does not have the endpoint, or has ejected it"
            )
            self._log.warning(text, event.pool, endpoint=event.picked, served=event.served)

    def _count_ejected(self, event: EndpointEjected) -> None:
        self._outcome(rows.EJECTIONS, event.pool, self._server(event.endpoint), event.reason).inc()

    def _log_ejected(self, event: EndpointEjected) -> None:
        text = (
            f"endpoint {event.endpoint} is ejected for {event.seconds:.3g}s: {event.reason}, "
            f"{event.consecutive} failures in a row, {event.ratio:.0%} of the recent requests, "
            f"the last one {event.last}"
        )
        self._log.warning(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_ended(self, event: Ended) -> None:
        self._series.ended(event.pool, _names(event), event.took)
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

    def _pick_counters(self, pool: str, profile: str, server: str) -> _PickCounters:
        known = self._picks.get((pool, profile, server))
        if known is None:
            known = self._picks[pool, profile, server] = _PickCounters(
                self._metrics.child(rows.PICKS, pool, profile, server),
                self._metrics.child(rows.PICK_PROMPT_TOKENS, pool),
                self._metrics.child(rows.PICK_HIT_TOKENS, pool),
                self._metrics.child(rows.LEFT_WARMEST, pool),
            )
        return known

    def _has_server(self, address: str) -> bool:
        return self.names.has_server(address)

    def _free_server(self, label: str) -> bool:
        for key in [key for key in self._picks if key[2] == label]:
            self._metrics.remove(rows.PICKS, *key)
            del self._picks[key]
        for name, labels in [key for key in self._outcomes if key[1][1] == label]:
            self._metrics.remove(CATALOG[name], *labels)
            del self._outcomes[name, labels]
        return True

    def _outcome(self, row: Metric, *labels: str) -> Counter:
        child = self._outcomes.get((row.name, labels))
        if child is None:
            child = self._outcomes[row.name, labels] = self._metrics.child(row, *labels)
        return child

    def _end_counter(self, pool: str, result: str) -> Counter:
        child: Counter = self._metrics.child(rows.ENDED, pool, result)
        return child
