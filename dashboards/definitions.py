"""The dashboard as data: rows of panels in order, each panel with the question that it answers.

Every query has a `truth`: the same quantity computed from the model servers' own pages, which a Prometheus scrapes as
job `servers` beside the agent. `tests/journeys/test_dashboard_live.py` runs both against a live fleet and compares the
results.

`$pool` and `$__rate_interval` are variables of Grafana; `dashboards.render` writes the JSON.
"""

from __future__ import annotations

from typing import Final

from dashboards.flow import FLOW
from dashboards.freshness import FRESHNESS
from dashboards.panel import Panel
from dashboards.pools import ENDPOINTS, POOLS
from dashboards.traffic import PREFIXES, REQUESTS

TITLE: Final = "Inference gateway"
UID: Final = "igw"
DESCRIPTION: Final = "Pools of model servers as observed by the inference gateway agent, and the agent itself."
ROWS: Final = (POOLS, ENDPOINTS, PREFIXES, REQUESTS, FLOW, FRESHNESS)


def panels() -> list[Panel]:
    """All panels, in order."""
    return [panel for row in ROWS for panel in row.panels]
