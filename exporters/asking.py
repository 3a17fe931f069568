"""The catalogue's rows of how model servers are asked, beside their scrapes; `exporters.catalog` holds them with all
others."""

from __future__ import annotations

from typing import Final

from exporters.metric import Rows

ROWS: Final = Rows()
_event: Final = ROWS.count

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
