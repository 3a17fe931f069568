"""The metrics that autoscalers read from the agent: the one table of them, and what a source of their values returns.

A metric is of pods (one value for each endpoint of a pool), of an object (one value for each pool), or external (one
value for each pool, without an object of the cluster). A row of the catalogue with the same meaning lends its name,
unit and help; a metric may be in the table once for each kind.

A value is a number with the time of its oldest input, or it is withheld with the reason. Unknown is never 0: an
autoscaler takes 0 as an order to scale down.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from exporters.catalog import accelerators, demand, endpoints, flow, pools, rates
from exporters.catalog.metric import Metric


class ServedValue(NamedTuple):
    """A number, the time at which its oldest input was sampled (monotonic seconds), and the window in seconds that it
    is averaged over; None for a number of one instant."""

    value: float
    at: float
    window_seconds: float | None = None


class WithheldMetric(NamedTuple):
    """Why there is no number: `reason` is a word for programs, as in `exporters.gauge.REASONS`, `detail` a sentence for
    people, which may be empty."""

    reason: str
    detail: str = ""


def not_older(value: ServedValue | WithheldMetric, max_age: float, now: float) -> ServedValue | WithheldMetric:
    """The value, or why it is withheld at `now`: its age is over `max_age` seconds. The rule of every reader."""
    if isinstance(value, ServedValue) and now - value.at > max_age:
        detail = f"its age of {now - value.at:.1f} s is over metricsApi.maxAge ({max_age:g} s)"
        return WithheldMetric("stale", detail)
    return value


class MetricKind(StrEnum):
    """What a metric is of, in the words of an HPA."""

    PODS = "pods"
    OBJECT = "object"
    EXTERNAL = "external"


class OverPorts(StrEnum):
    """How the endpoints of one pod, one for each port (data-parallel rank), become one value of the pod. The value is
    withheld while that of one of them is."""

    SUM = "sum"
    MAX = "max"
    MEAN = "mean"


class MetricRow(NamedTuple):
    """One row of the table. `over_ports` is for metrics of pods only."""

    name: str
    kind: MetricKind
    unit: str
    meaning: str
    over_ports: OverPorts = OverPorts.SUM


def _of(metric: Metric, kind: MetricKind, over_ports: OverPorts = OverPorts.SUM) -> MetricRow:
    return MetricRow(metric.name, kind, metric.unit, metric.help, over_ports)


def _sum_of(metric: Metric, kind: MetricKind) -> MetricRow:
    """A sum over a pool, which is no lower bound where autoscalers read it."""
    return MetricRow(metric.name, kind, metric.unit, metric.help.replace("a lower bound", OTHERS_AS_THE_MEAN))


OTHERS_AS_THE_MEAN: Final = "the others count as the mean of these"
DEMAND_REPLICAS: Final = demand.DEMAND.name

_PODS, _OBJECT, _EXTERNAL = MetricKind.PODS, MetricKind.OBJECT, MetricKind.EXTERNAL
_ROWS: Final = (
    _of(endpoints.WAITING, _PODS),
    _of(endpoints.RUNNING, _PODS),
    _of(endpoints.KV, _PODS, OverPorts.MAX),
    _of(endpoints.SATURATION, _PODS, OverPorts.MAX),
    _of(endpoints.LORA_RUNNING, _PODS, OverPorts.MAX),
    _of(endpoints.LORA_WAITING, _PODS, OverPorts.MAX),
    _of(rates.PREFIX_HIT_RATIO, _PODS, OverPorts.MEAN),
    _of(rates.PROMPT_RATE, _PODS),
    _of(rates.GENERATION_RATE, _PODS),
    _of(rates.FINISHED_RATE, _PODS),
    _of(accelerators.UTILIZATION, _PODS, OverPorts.MAX),
    _of(accelerators.MEMORY_USED, _PODS, OverPorts.MAX),
    _of(pools.AVERAGE_QUEUE, _OBJECT),
    _of(pools.AVERAGE_RUNNING, _OBJECT),
    _of(pools.AVERAGE_KV, _OBJECT),
    _of(pools.SATURATION, _OBJECT),
    _of(pools.READY_ENDPOINTS, _OBJECT),
    MetricRow(
        pools.COVERAGE.name,
        _OBJECT,
        pools.COVERAGE.unit,
        "Share of the pool's endpoints that have a fresh reading, of the signal that the fewest have",
    ),
    _sum_of(pools.WAITING, _OBJECT),
    _sum_of(pools.RUNNING, _OBJECT),
    _of(flow.HELD_REQUESTS, _OBJECT),
    _of(flow.HELD_REQUESTS, _EXTERNAL),
    _sum_of(pools.WAITING, _EXTERNAL),
    _sum_of(pools.RUNNING, _EXTERNAL),
    _sum_of(rates.POOL_PROMPT_RATE, _EXTERNAL),
    _sum_of(rates.POOL_GENERATION_RATE, _EXTERNAL),
    _of(demand.DEMAND, _EXTERNAL),
)

# The rows of each kind by name. The one place where a served metric is listed.
SERVED: Final[Mapping[MetricKind, Mapping[str, MetricRow]]] = {
    kind: {row.name: row for row in _ROWS if row.kind is kind} for kind in MetricKind
}


class MetricSource(Protocol):
    """What computes the values. `pool` is the name of a pool of the agent, `metric` a name of SERVED of the kind; both
    exist. Every answer is made at `now` (monotonic seconds) from memory: it waits for nothing."""

    def pod_metrics(self, pool: str, metric: str, now: float) -> Mapping[str, ServedValue | WithheldMetric]:
        """The value of each endpoint of the pool, by its address. A value may be computed when it is read."""
        ...

    def pool_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        """The value of the pool as an object."""
        ...

    def external_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        """The value of the pool without an object."""
        ...
