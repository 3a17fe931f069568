"""Metrics of who may read the admin address."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

ACCESS_CHECKS: Final = ROWS.counter(
    "igw_access_checks_total",
    "requests",
    "method result",
    "Requests to the admin address whose sender was checked, by method (token, client_certificate, front_proxy, none) "
    "and result (allowed, unauthenticated, forbidden, unavailable: it could not be checked)",
)
TOKEN_FILE_PROBLEMS: Final = ROWS.counter(
    "igw_token_file_problems_total",
    "problems",
    "",
    "Lines of `admin.auth.tokenFile` that were ignored, and reads of it that failed",
)
