"""Metrics of the custom and external metrics APIs."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

REQUESTS: Final = ROWS.counter(
    "igw_metrics_api_requests_total",
    "requests",
    "result",
    "Requests to the custom and external metrics APIs, by result: ok, or why they were refused",
)
AGE: Final = ROWS.add(
    "igw_metrics_api_value_age_seconds",
    "histogram",
    "seconds",
    "api",
    "events",
    "Age of the oldest value in an answer when it was read, by API (custom, external)",
    (),
    (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 15.0, 30.0, 60.0),
)
ACCESS_CHECKS: Final = ROWS.counter(
    "igw_metrics_api_access_checks_total",
    "requests",
    "method result",
    "Requests to the metrics APIs whose sender was checked, by method (front_proxy: the API server vouches for it; "
    "client_certificate, token, none) and result (allowed, unauthenticated, forbidden, unavailable)",
)
TRUST_PROBLEMS: Final = ROWS.counter(
    "igw_metrics_api_trust_problems_total",
    "problems",
    "",
    "Times that the authorities of the API server's front proxy could not be read",
)
