"""Which HorizontalPodAutoscalers scale a pool, and their gauges. Pure.

The workload decides: an autoscaler scales the pool if its target owns pods of the pool. Where its target owns pods of
no pool of the agent (there are none, or the target is of a kind that pods do not name), the metrics decide: those of
the type Object that describe the InferencePool, and served ones of the type External whose selector matches the pool.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from agent.kube.autoscalers import Autoscaler
from agent.kube.objectives import POOL_GROUP, POOL_KIND
from agent.kube.objects import Workload
from agent.scaling.accelerators import GaugeCollector
from agent.scaling.served_metrics import SERVED, MetricKind
from exporters.catalog import autoscalers as rows
from exporters.catalog.metric import Metric

MAX_PER_POOL: Final = 16  # of more, the first by namespace and name are exported
# Numbers of an API server that does not answer are withheld after this time. A watch that is renewed, or an API server
# that is restarted, takes less.
MAX_AGE_SECONDS: Final = 60.0
NO_STATUS: Final = "no_status"
STALE: Final = "stale"


class PoolToScale(NamedTuple):
    """A pool that autoscalers may scale. `inference_pool` is the name of its InferencePool, empty where it has none;
    `workloads` own its pods."""

    name: str
    namespace: str
    inference_pool: str
    workloads: Collection[Workload]

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its metrics, which the selector of an external metric selects by."""
        return {"pool": self.name, "inference_pool": self.inference_pool or self.name}


class AutoscalerReport(NamedTuple):
    """An autoscaler that scales a pool. `failing_since`: since when the API server has not answered for it (monotonic
    seconds), None while it answers."""

    pool: str
    autoscaler: Autoscaler
    failing_since: float | None = None


def scaled_by(autoscaler: Autoscaler, pools: Iterable[PoolToScale]) -> list[str]:
    """The names of the pools that the autoscaler scales."""
    near = [pool for pool in pools if pool.namespace == autoscaler.namespace]
    target = autoscaler.target
    owned = [pool.name for pool in near if Workload(target.kind, target.name) in pool.workloads]
    return owned or [pool.name for pool in near if _reads(autoscaler, pool)]


def _reads(autoscaler: Autoscaler, pool: PoolToScale) -> bool:
    """Whether a metric of the autoscaler is of this pool."""
    object_name = pool.inference_pool or pool.name
    of_object = any(
        each.kind == POOL_KIND and each.name == object_name and each.api_version.partition("/")[0] in ("", POOL_GROUP)
        for each in autoscaler.objects
    )
    served = SERVED[MetricKind.EXTERNAL]
    return of_object or any(each.name in served and each.selector.matches(pool.labels) for each in autoscaler.externals)


def reports(
    autoscalers: Iterable[tuple[Autoscaler, float | None]], pools: Sequence[PoolToScale]
) -> list[AutoscalerReport]:
    """The autoscalers of each pool, each with the time since when it is not current; MAX_PER_POOL of a pool at most."""
    counts: dict[str, int] = {}
    found: list[AutoscalerReport] = []
    for autoscaler, failing_since in sorted(autoscalers, key=lambda each: each[0].key):
        for pool in scaled_by(autoscaler, pools):
            counts[pool] = counts.get(pool, 0) + 1
            if counts[pool] <= MAX_PER_POOL:
                found.append(AutoscalerReport(pool, autoscaler, failing_since))
    return found


def of_pools(gauges: GaugeCollector, found: Sequence[AutoscalerReport], now: float) -> None:
    """The gauges of these autoscalers."""
    for report in found:
        each = report.autoscaler
        labels = (report.pool, each.namespace, each.name)
        values: tuple[tuple[Metric, float | None], ...] = (
            (rows.DESIRED, each.desired),
            (rows.CURRENT, each.current),
            (rows.MIN, each.min_replicas),
            (rows.MAX, each.max_replicas),
            (rows.ACTIVE, each.scaling_active),
        )
        stale = report.failing_since is not None and now - report.failing_since > MAX_AGE_SECONDS
        for metric, value in values:
            if stale or value is None:
                gauges.withhold(metric, labels, STALE if stale else NO_STATUS)
            else:
                gauges.known(metric, labels, float(value))
