"""The dashboard as data: what is shown, in which order, each panel with the question that it answers.

Every query carries its `truth`: the same quantity asked of the model servers themselves, which a Prometheus scrapes as
job `servers` beside the agent. `tests/journeys/test_dashboard_live.py` runs both against a live fleet and compares
them, so that no panel shows a number that nobody has checked.

`$pool` and `$__rate_interval` are Grafana's; `dashboards.render` makes its JSON of all this.
"""

from __future__ import annotations

from typing import Final

from dashboards.freshness import FRESHNESS
from dashboards.panel import Panel
from dashboards.pools import ENDPOINTS, POOLS
from dashboards.traffic import PREFIXES, REQUESTS

TITLE: Final = "Inference gateway"
UID: Final = "igw"
DESCRIPTION: Final = "Pools of model servers as the inference gateway agent sees them, and the agent itself."
ROWS: Final = (POOLS, ENDPOINTS, PREFIXES, REQUESTS, FRESHNESS)


def panels() -> list[Panel]:
    """All panels, in the order in which they are read."""
    return [panel for row in ROWS for panel in row.panels]
