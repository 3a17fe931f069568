"""The catalogue's rows of how model servers are asked, beside their scrapes; `exporters.catalog` holds them with all
others."""

from __future__ import annotations

from typing import Final

from exporters.metric import Metric, Rows

ROWS: Final = Rows()
_event: Final = ROWS.count


def _paced(name: str, unit: str, labels: str, help: str) -> Metric:
    return ROWS.add(name, "gauge", unit, labels, "events", help)


HEALTH_PATH_FAILURES: Final = _event(
    "igw_health_path_failures_total",
    "questions",
    "pool reason",
    "Questions to health paths that were not answered well",
)
LOAD_REPORTS: Final = _event(
    "igw_load_reports_total",
    "reports",
    "pool result reason",
    "Load reports that came with answers by result (ok, refused) and the reason of the refusal",
)
HEALTH_CHANGES: Final = _event(
    "igw_health_changes_total", "changes", "pool state", "Endpoints that came into this state of health"
)
SERVER_RESTARTS: Final = _event(
    "igw_server_restarts_total", "restarts", "pool reason", "New servers found under a known address"
)
SCRAPE_INTERVAL: Final = _paced(
    "igw_scrape_interval_seconds",
    "seconds",
    "endpoints",
    "Interval in force for model servers that are at work (busy) and for the others (idle); only with scrape.budget",
)
PACED_ENDPOINTS: Final = _paced(
    "igw_scrape_paced_endpoints", "endpoints", "endpoints", "Model servers that are asked at this interval"
)
BUDGET_USED: Final = _paced(
    "igw_scrape_budget_used_ratio",
    "ratio",
    "of",
    "Part of scrape.budget that was used of late: of the scrapes, and of the CPU; above 1 it is exceeded",
)
BUDGET_OUTGROWN: Final = _event(
    "igw_scrape_budget_outgrown_total",
    "times",
    "of",
    "How often the fleet came to need more than this part of scrape.budget for its readings to stay fresh",
)
