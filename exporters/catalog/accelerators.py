"""Metrics of accelerators, per endpoint and per accelerator exporter, and of the scrapes of these exporters."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()


def _of_endpoint(what: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(f"igw_endpoint_accelerator{what}", unit, "pool server source", help)


UTILIZATION: Final = _of_endpoint(
    "_utilization_ratio",
    "ratio",
    "Share of time in which the busiest of the endpoint's accelerators ran any work, 0 to 1; not a measure of load",
)
MEMORY_USED: Final = _of_endpoint(
    "_memory_used_bytes",
    "bytes",
    "Memory in use on the endpoint's accelerators, summed; servers allocate it when they start",
)
MEMORY_TOTAL: Final = _of_endpoint(
    "_memory_total_bytes", "bytes", "Total memory of the endpoint's accelerators, summed"
)
POWER: Final = _of_endpoint("_power_watts", "watts", "Power draw of the endpoint's accelerators, summed")
TEMPERATURE: Final = _of_endpoint(
    "_temperature_celsius", "celsius", "Temperature of the hottest of the endpoint's accelerators"
)
ECC: Final = _of_endpoint(
    "_uncorrected_ecc_errors", "errors", "Uncorrected memory errors since the driver was loaded, summed"
)
AGE: Final = _of_endpoint(
    "_age_seconds", "seconds", "Age of the oldest of these readings; grows until a scrape of the exporter succeeds"
)
DEVICES: Final = _of_endpoint("s", "devices", "Accelerators that are matched with the endpoint")
UNHEALTHY: Final = _of_endpoint(
    "s_unhealthy",
    "devices",
    "Accelerators of the endpoint with a fault in effect; a single one makes the endpoint down",
)
LOST: Final = _of_endpoint(
    "s_lost",
    "devices",
    "Accelerators that the endpoint was seen with, or is configured to have, and that its exporter does not report",
)
EXPORTER_FRESH: Final = ROWS.gauge(
    "igw_accelerator_exporter_fresh",
    "boolean",
    "source exporter",
    "1 while the accelerator exporter's last page is younger than staleAfter, else 0",
)
EXPORTER_AGE: Final = ROWS.gauge(
    "igw_accelerator_exporter_page_age_seconds",
    "seconds",
    "source exporter",
    "Age of the last page of the accelerator exporter; absent before the first",
)
EXPORTER_DEVICES: Final = ROWS.gauge(
    "igw_accelerator_devices",
    "devices",
    "source exporter match",
    "Accelerators on the exporter's last page: joined (with one endpoint), unmatched (no endpoint) or ambiguous",
)
DEVICE_UNHEALTHY: Final = ROWS.gauge(
    "igw_accelerator_unhealthy",
    "boolean",
    "source exporter device reason",
    "Always 1; one series for each accelerator with a fault in effect",
)
SCRAPES: Final = ROWS.counter(
    "igw_accelerator_scrapes_total",
    "scrapes",
    "source result reason",
    "Scrapes of accelerator exporters, by result (ok, failed) and reason of the failure",
)
VALUES_REFUSED: Final = ROWS.counter(
    "igw_accelerator_refused_values_total",
    "values",
    "source signal reason",
    "Values on pages of accelerator exporters that are out of range and were discarded",
)
HEALTH_CHANGES: Final = ROWS.counter(
    "igw_accelerator_health_changes_total",
    "changes",
    "source reason",
    "Accelerators that became unhealthy, by reason, or healthy again (recovered)",
)
LOST_TOTAL: Final = ROWS.counter(
    "igw_accelerators_lost_total",
    "devices",
    "pool source",
    "Accelerators that an endpoint was seen with and that left the page of their exporter",
)
