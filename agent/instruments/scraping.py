"""Metrics and log lines of `agent.events.scraping`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from prometheus_client import Counter

from agent.events.scraping import (
    BudgetChanged,
    BudgetExceeded,
    CacheEmptied,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.histogram import Buckets
from exporters.catalog import scraping as rows


class _ScrapeCounters(NamedTuple):
    ok: Counter
    duration: Buckets
    page_bytes: Buckets


class ScrapingInstruments:
    """The handlers of scraping events."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        # Children by label values, whose number is bounded.
        self._scrapes = cache(self._scrape_counters)
        self._missing = lru_cache(1024)(self._missing_counters)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            ScrapeDone: self._count_scrape_done,
            ScrapeFailed: self._count_scrape_failed,
            HealthPathFailed: self._count_health_path_failed,
            HealthChanged: self._count_health_changed,
            ServerRestarted: self._count_server_restarted,
            CacheEmptied: self._count_cache_emptied,
            ScrapesPaced: self._count_scrapes_paced,
            BudgetChanged: self._count_budget_changed,
            BudgetExceeded: self._count_budget_exceeded,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            ScrapeDone: self._log_scrape_done,
            ScrapeFailed: self._log_scrape_failed,
            HealthPathFailed: self._log_health_path_failed,
            HealthChanged: self._log_health_changed,
            ServerRestarted: self._log_server_restarted,
            CacheEmptied: self._log_cache_emptied,
            BudgetExceeded: self._log_budget_exceeded,
        }

    def _count_scrape_done(self, event: ScrapeDone) -> None:
        scrape = self._scrapes(event.pool)
        scrape.ok.inc()
        scrape.duration.observe(event.took)
        scrape.page_bytes.observe(event.size)
        for counter in self._missing(event.pool, event.missing):
            counter.inc()
        for refused in event.refused:
            self._metrics.count(rows.VALUES_REFUSED, event.pool, refused.signal, refused.reason)

    def _log_scrape_done(self, event: ScrapeDone) -> None:
        """Only refused values are logged."""
        self._log.succeeded((event.pool, event.endpoint))
        for refused in event.refused:
            due = self._log.failed((event.pool, event.endpoint, refused.signal, refused.reason), event.at)
            if due:
                what = f"{event.endpoint} reports {shortened(refused.text)} for {refused.signal}"
                text = f"{what}: {refused.reason}, value discarded{due.times}"
                self._log.warning(text, event.pool, endpoint=event.endpoint, reason=refused.reason)

    def _count_scrape_failed(self, event: ScrapeFailed) -> None:
        self._metrics.count(rows.SCRAPES, event.pool, "failed", event.reason)

    def _log_scrape_failed(self, event: ScrapeFailed) -> None:
        due = self._log.failed((event.pool, event.endpoint), event.at)
        if due:
            text = f"scrape of {event.endpoint} failed: {event.reason}: {shortened(event.detail)}{due.of_scrapes}"
            self._log.warning(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_health_path_failed(self, event: HealthPathFailed) -> None:
        self._metrics.count(rows.HEALTH_PATH_FAILURES, event.pool, event.reason)

    def _log_health_path_failed(self, event: HealthPathFailed) -> None:
        due = self._log.failed((event.pool, event.endpoint, event.reason), event.at)
        if due:
            text = f"health probe of {event.endpoint} failed: {event.reason}: {shortened(event.detail)}{due.times}"
            self._log.warning(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_health_changed(self, event: HealthChanged) -> None:
        self._metrics.count(rows.HEALTH_CHANGES, event.pool, event.new)

    def _log_health_changed(self, event: HealthChanged) -> None:
        write = self._log.info if event.new == "healthy" else self._log.warning
        why = f" ({event.reason})" if event.reason else ""
        text = f"{event.endpoint} is {event.new}{why}, was {event.old}"
        if event.endpoints:
            text += f": {event.blind} of {event.endpoints} endpoints are blind"
            if event.blind:
                text += ", picked by requests in flight alone, with gauges withheld"
            if event.blind == event.endpoints:
                write = self._log.error
        write(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_server_restarted(self, event: ServerRestarted) -> None:
        self._metrics.count(rows.SERVER_RESTARTS, event.pool, event.reason)

    def _log_server_restarted(self, event: ServerRestarted) -> None:
        due = self._log.failed((event.pool, event.endpoint, event.reason))
        if due:
            text = f"new server at {event.endpoint} ({event.reason}): the state of the previous one is discarded"
            if due.failures > 1:
                text += f"{due.times}; if several servers share this address, list each one by its own address"
            self._log.info(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_cache_emptied(self, event: CacheEmptied) -> None:
        self._metrics.count(rows.CACHES_EMPTIED, event.pool, event.reason)

    def _log_cache_emptied(self, event: CacheEmptied) -> None:
        due = self._log.failed((event.pool, event.endpoint, "emptied", event.reason))
        if due:
            text = (
                f"the prefix cache of {event.endpoint} is empty ({event.reason}): its blocks are forgotten{due.times}"
            )
            self._log.info(text, event.pool, endpoint=event.endpoint, reason=event.reason)

    def _count_scrapes_paced(self, event: ScrapesPaced) -> None:
        for activity, interval, count in (
            ("busy", event.busy_interval, event.busy),
            ("idle", event.idle_interval, event.idle),
        ):
            self._metrics.child(rows.INTERVAL, activity).set(interval)
            self._metrics.child(rows.PACED_ENDPOINTS, activity).set(count)
        for resource, part in event.used.items():
            self._metrics.child(rows.BUDGET_USED, resource).set(part)
            self._metrics.child(rows.BUDGET_EXCEEDED, resource)  # 0 from the start, so that the first is an increase

    def _count_budget_changed(self, event: BudgetChanged) -> None:
        for row in (rows.INTERVAL, rows.PACED_ENDPOINTS, rows.BUDGET_USED):
            self._metrics.clear(row)

    def _count_budget_exceeded(self, event: BudgetExceeded) -> None:
        self._metrics.count(rows.BUDGET_EXCEEDED, event.resource)

    def _log_budget_exceeded(self, event: BudgetExceeded) -> None:
        key, unit = ("scrapesPerSecond", "scrapes/s") if event.resource == "scrapes" else ("cpu", "cores")
        self._log.warning(
            f"{event.endpoints} endpoints need {event.needed:.3g} {unit} to stay fresh, but scrape.budget.{key} is "
            f"{event.budget:.3g}: they stay fresh and exceed the budget; raise it, or raise state.staleAfter"
        )

    # -- children ------------------------------------------------------------------------------------------------

    def _scrape_counters(self, pool: str) -> _ScrapeCounters:
        return _ScrapeCounters(
            self._metrics.child(rows.SCRAPES, pool, "ok", ""),
            self._metrics.child(rows.DURATION, pool),
            self._metrics.child(rows.PAGE_BYTES, pool),
        )

    def _missing_counters(self, pool: str, missing: tuple[str, ...]) -> tuple[Counter, ...]:
        return tuple(self._metrics.child(rows.MISSING, pool, signal) for signal in missing)
