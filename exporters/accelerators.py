"""The catalogue's rows of accelerators; `exporters.catalog` holds them with all others."""

from __future__ import annotations

from typing import Final

from exporters.metric import Metric, Rows

ROWS: Final = Rows()


def _of_endpoint(what: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(f"igw_endpoint_accelerator{what}", unit, "pool endpoint source", help)


UTILIZATION: Final = _of_endpoint(
    "_utilization_ratio",
    "ratio",
    "Busiest of the endpoint's accelerators: the part of the time in which anything ran, 0 to 1, not how much of it",
)
MEMORY_USED: Final = _of_endpoint(
    "_memory_used_bytes",
    "bytes",
    "Memory in use on the endpoint's accelerators, summed; servers take it at their start",
)
MEMORY_TOTAL: Final = _of_endpoint(
    "_memory_total_bytes", "bytes", "Memory that there is on the endpoint's accelerators, summed"
)
POWER: Final = _of_endpoint("_power_watts", "watts", "Power that the endpoint's accelerators draw, summed")
TEMPERATURE: Final = _of_endpoint("_temperature_celsius", "celsius", "Hottest of the endpoint's accelerators")
ECC: Final = _of_endpoint(
    "_uncorrected_ecc_errors", "errors", "Uncorrected memory errors since the driver was loaded, summed"
)
AGE: Final = _of_endpoint(
    "_age_seconds", "seconds", "Age of the oldest of these readings; grows while the exporter is silent"
)
DEVICES: Final = _of_endpoint("s", "devices", "Accelerators that are known to be the endpoint's")
SICK: Final = _of_endpoint(
    "s_sick",
    "devices",
    "Those of them that are sick by the exporter's last page; one is enough to take the endpoint out",
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
    "source exporter joined",
    "Accelerators on the exporter's last page: joined (with an endpoint), unmatched (fit none) or ambiguous",
)
DEVICE_SICK: Final = ROWS.gauge(
    "igw_accelerator_sick",
    "boolean",
    "source exporter device reason",
    "Always 1: an accelerator that is sick by its exporter's last page, and why",
)
SCRAPES: Final = ROWS.count(
    "igw_accelerator_scrapes_total",
    "scrapes",
    "source result reason",
    "Scrapes of accelerator exporters by result (ok, failed) and the reason of the failure",
)
REFUSED: Final = ROWS.count(
    "igw_accelerator_refused_values_total",
    "values",
    "source signal reason",
    "Values on good pages of accelerator exporters that cannot be true and were not let in",
)
HEALTH_CHANGES: Final = ROWS.count(
    "igw_accelerator_health_changes_total",
    "changes",
    "source reason",
    "Accelerators that fell sick, by reason, or recovered (well)",
)
