"""Metrics of the Lease whose holder does what one replica must do once."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

HELD: Final = ROWS.add(
    "igw_lease_held",
    "gauge",
    "boolean",
    "lease",
    "events",
    "1 while this replica holds the Lease and writes Kubernetes Events and conditions, 0 while it does not; absent "
    "where no Lease is used",
)
CHANGES: Final = ROWS.counter(
    "igw_lease_changes_total",
    "changes",
    "lease change",
    "Changes of this replica's right: acquired, lost (not renewed in time, or taken by another) and released",
)
FAILURES: Final = ROWS.counter(
    "igw_lease_failures_total",
    "requests",
    "lease reason",
    "Requests for the Lease that failed, by reason; the replica holds it no longer than its last renewal lasts",
)
