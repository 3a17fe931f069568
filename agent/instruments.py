"""The hook: events become the agent's own metrics and its log lines.

It is called for every pick and every scrape, so it looks its counters up once and keeps them: an event costs a few
increments. All names, labels and buckets come from `exporters.catalog`. What a caller or a server chooses freely (model
names, endpoints that come and go) is capped at a number of distinct values; what comes after counts as `other`, for as
long as the process lives, so that no stranger can make the page grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from agent.clock import Clock
from agent.events import Event
from agent.events.accelerators import DeviceHealthChanged, DevicesFailed, DevicesRead
from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.events.requests import Abandoned, Ended, Picked, Refused, Reported, StreamBroken
from agent.events.scraping import (
    BudgetChanged,
    BudgetOutgrown,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.log_lines import LogLines
from exporters import accelerators, asking, catalog, work
from exporters.metric import Metric
from exporters.prometheus import clean

MODEL_NAMES: Final = 1000  # the reference's limit
ENDPOINT_NAMES: Final = 10_000
NAME_LENGTH: Final = 256  # characters; nobody names a model so, and a body may hold megabytes
OTHER: Final = "other"

# The reference's defaults for what no request says yet: whose it is, and how urgent.
FAIRNESS_ID: Final = "default-flow"
PRIORITY: Final = "0"

# The reference's names of errors, by the HTTP status that they are answered with; others go by their status.
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


class Names:
    """At most `limit` distinct label values; whatever comes after, or is too long to be a name, is `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The name as a label's value."""
        known = self._known.get(name)
        if known is not None:
            return known
        if len(self._known) >= self._limit or len(name) > NAME_LENGTH:
            return OTHER
        self._known[name] = clean(name)
        return self._known[name]


class _Request(NamedTuple):
    total: Counter
    running: Gauge
    duration: Histogram


class _Pick(NamedTuple):
    picks: Counter
    prompt_tokens: Counter
    hit_tokens: Counter
    left_warmest: Counter


class _Scrape(NamedTuple):
    ok: Counter
    duration: Histogram
    page_bytes: Histogram


# The events of which there may be thousands a second. They are counted when so many are there, or when somebody reads:
# counting many in a row costs a third of counting each where it happens, between code that knows nothing of it.
_FREQUENT: Final = frozenset({Picked, Ended, ScrapeDone})
COUNTED_TOGETHER: Final = 256


class Instruments:
    """Call it with every event. `registry` holds the metrics, this agent's alone; `log` writes the lines."""

    def __init__(self, clock: Clock, log: LogLines | None = None) -> None:
        self._registry = CollectorRegistry()
        self._uncounted: deque[Picked | Ended | ScrapeDone] = deque()
        self._log = log or LogLines(clock)
        self._model = Names(MODEL_NAMES)
        self._endpoint = Names(ENDPOINT_NAMES)
        self._metrics: dict[str, Any] = {
            row.name: self._make(row) for row in catalog.CATALOG.values() if row.origin == "events"
        }
        ProcessCollector(registry=self._registry)
        self._decision: Histogram = self._metrics[catalog.DECISION.name]
        for result in ("ok", "failed"):
            self._child(work.RELOADS, result)  # at 0 from the start, so that a first one is an increase
        self._child(work.RELOAD_GOOD).set(1)
        for reason in ("slow", "too_large", "too_many"):
            self._child(work.WATCHERS_DROPPED, reason)
        # The children of labelled metrics, by what an event says; bounded because the label values are.
        self._requests = cache(self._request)
        self._picks = cache(self._pick)
        self._scrapes = cache(self._scrape)
        self._ends = cache(self._end)
        self._missing = lru_cache(1024)(self._missing_signals)
        self._actions: dict[type, Callable[[Any], None]] = {
            Abandoned: self._abandoned,
            BudgetChanged: self._budget_changed,
            BudgetOutgrown: self._budget_outgrown,
            DeviceHealthChanged: self._device_health_changed,
            DevicesFailed: self._devices_failed,
            DevicesRead: self._devices_read,
            Ended: self._ended,
            HealthChanged: self._health_changed,
            HealthPathFailed: self._health_path_failed,
            Picked: self._picked,
            Refused: self._refused,
            Reloaded: self._reloaded,
            Reported: self._reported,
            ScrapeDone: self._scrape_done,
            ScrapeFailed: self._scrape_failed,
            ScrapesPaced: self._scrapes_paced,
            ServerRestarted: self._server_restarted,
            StreamBroken: self._stream_broken,
            TaskFailed: lambda _: None,
            WatcherDropped: self._watcher_dropped,
        }

    def __call__(self, event: Event) -> None:
        """Count the event, and write a line where somebody wants to know."""
        kind = type(event)
        if kind in _FREQUENT:
            if kind is ScrapeDone:
                self._log.scrape_done(event)  # type: ignore[arg-type]
            self._uncounted.append(event)  # type: ignore[arg-type]
            if len(self._uncounted) >= COUNTED_TOGETHER:
                self._count_up()
        else:
            self._actions[kind](event)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics, with every event counted in."""
        self._count_up()
        return self._registry

    def _count_up(self) -> None:
        waiting = self._uncounted
        while True:
            try:
                event = waiting.popleft()  # one reader may run in a thread: no event is taken twice or lost
            except IndexError:
                return
            self._actions[type(event)](event)

    # -- requests --------------------------------------------------------------------------------------------------

    def _picked(self, event: Picked) -> None:
        request = self._requests(self._model(event.model))
        request.total.inc()
        request.running.inc()
        pick = self._picks(event.pool, event.profile, self._endpoint(event.endpoint))
        pick.picks.inc()
        pick.prompt_tokens.inc(event.prompt_tokens)
        pick.hit_tokens.inc(event.predicted_hit_tokens)
        if event.left_warmest:
            pick.left_warmest.inc()
        self._decision.observe(event.took)

    def _ended(self, event: Ended) -> None:
        request = self._requests(self._model(event.model))
        request.running.dec()
        request.duration.observe(event.took)
        self._ends(event.pool, event.how).inc()

    def _abandoned(self, event: Abandoned) -> None:
        self._count(work.ABANDONED, event.pool)

    def _refused(self, event: Refused) -> None:
        model = self._model(event.model)
        self._count(catalog.REQUESTS, model, model, FAIRNESS_ID, PRIORITY)
        code = ERROR_CODES.get(event.status, str(event.status))
        self._count(catalog.REQUEST_ERRORS, model, model, FAIRNESS_ID, PRIORITY, code)
        self._count(work.REFUSALS, event.pool, str(event.status), event.reason)
        self._log.refused(event)

    def _stream_broken(self, event: StreamBroken) -> None:
        self._count(work.STREAM_BREAKS, event.pool, event.reason)
        self._log.stream_broken(event)

    # -- scrapes ---------------------------------------------------------------------------------------------------

    def _scrape_done(self, event: ScrapeDone) -> None:
        scrape = self._scrapes(event.pool)
        scrape.ok.inc()
        scrape.duration.observe(event.took)
        scrape.page_bytes.observe(event.size)
        for counter in self._missing(event.pool, event.missing):
            counter.inc()
        for refusal in event.refused:
            self._count(work.VALUES_REFUSED, event.pool, refusal.signal, refusal.reason)

    def _scrape_failed(self, event: ScrapeFailed) -> None:
        self._count(work.SCRAPES, event.pool, "failed", event.reason)
        self._log.scrape_failed(event)

    def _health_path_failed(self, event: HealthPathFailed) -> None:
        self._count(asking.HEALTH_PATH_FAILURES, event.pool, event.reason)
        self._log.health_path_failed(event)

    def _health_changed(self, event: HealthChanged) -> None:
        self._count(asking.HEALTH_CHANGES, event.pool, event.new)
        self._log.health_changed(event)

    def _reported(self, event: Reported) -> None:
        self._count(asking.LOAD_REPORTS, event.pool, "refused" if event.reason else "ok", event.reason)

    def _server_restarted(self, event: ServerRestarted) -> None:
        self._count(asking.SERVER_RESTARTS, event.pool, event.reason)
        self._log.server_restarted(event)

    def _devices_read(self, event: DevicesRead) -> None:
        self._count(accelerators.SCRAPES, event.source, "ok", "")
        for refusal in event.refused:
            self._count(accelerators.REFUSED, event.source, refusal.signal, refusal.reason)
        self._log.devices_read(event)

    def _devices_failed(self, event: DevicesFailed) -> None:
        self._count(accelerators.SCRAPES, event.source, "failed", event.reason)
        self._log.devices_failed(event)

    def _device_health_changed(self, event: DeviceHealthChanged) -> None:
        self._count(accelerators.HEALTH_CHANGES, event.source, event.reason or "well")
        self._log.device_health_changed(event)

    def _scrapes_paced(self, event: ScrapesPaced) -> None:
        for which, interval, count in (
            ("busy", event.busy_interval, event.busy),
            ("idle", event.idle_interval, event.idle),
        ):
            self._child(asking.SCRAPE_INTERVAL, which).set(interval)
            self._child(asking.PACED_ENDPOINTS, which).set(count)
        for of, part in event.used.items():
            self._child(asking.BUDGET_USED, of).set(part)
            self._child(asking.BUDGET_OUTGROWN, of)  # at 0 from the start, so that a first one is an increase

    def _budget_changed(self, event: BudgetChanged) -> None:
        for row in (asking.SCRAPE_INTERVAL, asking.PACED_ENDPOINTS, asking.BUDGET_USED):
            self._metrics[row.name].clear()

    def _budget_outgrown(self, event: BudgetOutgrown) -> None:
        self._count(asking.BUDGET_OUTGROWN, event.of)
        self._log.budget_outgrown(event)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _reloaded(self, event: Reloaded) -> None:
        self._count(work.RELOADS, "ok" if event.ok else "failed")
        self._child(work.RELOAD_GOOD).set(event.ok or event.no_file)
        self._log.reloaded(event)

    def _watcher_dropped(self, event: WatcherDropped) -> None:
        self._count(work.WATCHERS_DROPPED, event.reason)
        self._log.watcher_dropped(event)

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _make(self, row: Metric) -> MetricWrapperBase:
        if row.type == "histogram":
            return Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=self._registry)
        make = Counter if row.type == "counter" else Gauge
        return make(row.name, row.help, row.labels, registry=self._registry)

    def _child(self, row: Metric, *labels: str) -> Any:
        metric = self._metrics[row.name]
        return metric.labels(*labels) if labels else metric

    def _count(self, row: Metric, *labels: str) -> None:
        self._child(row, *labels).inc()

    def _request(self, model: str) -> _Request:
        labels = (model, model, FAIRNESS_ID, PRIORITY)
        return _Request(
            self._child(catalog.REQUESTS, *labels),
            self._child(catalog.REQUESTS_RUNNING, *labels),
            self._child(catalog.REQUEST_DURATION, *labels),
        )

    def _pick(self, pool: str, profile: str, endpoint: str) -> _Pick:
        return _Pick(
            self._child(work.PICKS, pool, profile, endpoint),
            self._child(work.PICK_PROMPT_TOKENS, pool),
            self._child(work.PICK_HIT_TOKENS, pool),
            self._child(work.LEFT_WARMEST, pool),
        )

    def _end(self, pool: str, how: str) -> Counter:
        child: Counter = self._child(work.ENDED, pool, how)
        return child

    def _scrape(self, pool: str) -> _Scrape:
        return _Scrape(
            self._child(work.SCRAPES, pool, "ok", ""),
            self._child(work.SCRAPE_DURATION, pool),
            self._child(work.PAGE_BYTES, pool),
        )

    def _missing_signals(self, pool: str, missing: tuple[str, ...]) -> tuple[Counter, ...]:
        return tuple(self._child(work.MISSING, pool, signal) for signal in missing)
