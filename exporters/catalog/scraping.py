"""Metrics of how the agent observes model servers: scrapes, health probes, restarts, the scrape budget."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()
_counter: Final = ROWS.counter


def _histogram(name: str, unit: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return ROWS.add(name, "histogram", unit, "pool", "events", help, (), buckets)


def _gauge(name: str, unit: str, labels: str, help: str) -> Metric:
    return ROWS.add(name, "gauge", unit, labels, "events", help)


SCRAPES: Final = _counter(
    "igw_scrapes_total", "scrapes", "pool result reason", "Scrapes by result (ok, failed) and reason of the failure"
)
DURATION: Final = _histogram(
    "igw_scrape_duration_seconds",
    "seconds",
    "Time from sending the request for a page until the page is applied to the state",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
PAGE_BYTES: Final = _histogram(
    "igw_scrape_page_bytes",
    "bytes",
    "Size of the scraped pages",
    (1024.0, 4096.0, 16384.0, 65536.0, 131072.0, 262144.0, 1048576.0, 4194304.0),
)
MISSING: Final = _counter(
    "igw_scrape_missing_signals_total",
    "pages",
    "pool signal",
    "Valid pages that lack a signal which their engine reports",
)
VALUES_REFUSED: Final = _counter(
    "igw_scrape_refused_values_total",
    "values",
    "pool signal reason",
    "Values on valid pages that are out of range and were discarded",
)
HEALTH_CHANGES: Final = _counter(
    "igw_health_changes_total", "changes", "pool state", "Transitions of endpoints into this health state"
)
HEALTH_PATH_FAILURES: Final = _counter(
    "igw_health_path_failures_total",
    "probes",
    "pool reason",
    "Failed health probes, by reason",
)
SERVER_RESTARTS: Final = _counter(
    "igw_server_restarts_total", "restarts", "pool reason", "New servers detected at a known address"
)
CACHES_EMPTIED: Final = _counter(
    "igw_prefix_caches_emptied_total",
    "caches",
    "pool reason",
    "Prefix caches of model servers that were seen to be emptied, whose blocks the prefix index then forgot",
)
INTERVAL: Final = _gauge(
    "igw_scrape_interval_seconds",
    "seconds",
    "activity",
    "Current scrape interval of model servers that are active (busy) and of the others (idle); only with scrape.budget",
)
PACED_ENDPOINTS: Final = _gauge(
    "igw_scrape_paced_endpoints", "endpoints", "activity", "Model servers that are scraped at this interval"
)
BUDGET_USED: Final = _gauge(
    "igw_scrape_budget_used_ratio",
    "ratio",
    "resource",
    "Recent use of scrape.budget, of its scrapes and of its cpu; above 1 the budget is exceeded",
)
BUDGET_EXCEEDED: Final = _counter(
    "igw_scrape_budget_exceeded_total",
    "times",
    "resource",
    "Times that the fleet began to need more than this part of scrape.budget for its readings to stay fresh",
)
