"""The metric that counts the series that are not published."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

WITHHELD: Final = ROWS.gauge(
    "igw_withheld_gauges",
    "gauges",
    "gauge reason",
    "Series that are absent from this page because there is no fresh data, by metric and reason",
)
