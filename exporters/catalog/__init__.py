"""The catalogue of every metric that the agent publishes, in the order of docs/reference/metrics.md.

Documents, dashboards, alerts and tests are checked against it, and exporters take names, labels and help from it, so
that a metric is described once. Each family of metrics is a module of this package and one line in `_FAMILIES`.

The `llm_d_epp_*` names, labels and buckets are those of the llm-d endpoint picker; an `Alias` is the same number under
the name that the Gateway API inference extension used before. All other names begin with `igw_`.

No label has a name that a scraper or Kubernetes service discovery sets (`endpoint`, `pod`, `instance` and others):
Prometheus would rename ours to `exported_endpoint`, and queries would select nothing. A model server's address is
therefore the label `server`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exporters.catalog import (
    accelerators,
    access,
    autoscalers,
    demand,
    discovery,
    endpoints,
    exchanges,
    flow,
    histograms,
    keda,
    kubernetes,
    leases,
    metrics_api,
    objectives,
    pools,
    process,
    rates,
    replicas,
    requests,
    scraping,
    tls,
    withheld,
)
from exporters.catalog.metric import Metric

_FAMILIES: Final = (
    pools.ROWS,
    endpoints.ROWS,
    rates.ROWS,
    demand.ROWS,
    autoscalers.ROWS,
    histograms.ROWS,
    accelerators.ROWS,
    withheld.ROWS,
    requests.ROWS,
    exchanges.ROWS,
    objectives.ROWS,
    flow.ROWS,
    scraping.ROWS,
    discovery.ROWS,
    kubernetes.ROWS,
    keda.ROWS,
    replicas.ROWS,
    leases.ROWS,
    process.ROWS,
    access.ROWS,
    metrics_api.ROWS,
    tls.ROWS,
)
CATALOG: Final[Mapping[str, Metric]] = {row.name: row for rows in _FAMILIES for row in rows}
ALIASES: Final[Mapping[str, Metric]] = {alias.name: row for row in CATALOG.values() for alias in row.aliases}
