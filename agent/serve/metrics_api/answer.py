"""The values that a request for a metric gets, or why there are none. Pure: pools, a source of values, `now`.

A pod is known by its endpoints. Only a value that is younger than `max_age` and has a quantity is served; any other is
withheld, and unknown is never 0. An HPA counts a pod without a value at its target when it would scale down, so that a
list that lacks many pods would let it shrink: below `min_coverage` the whole list is withheld.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import fsum
from typing import Final, NamedTuple

from agent.scaling.served_metrics import (
    SERVED,
    MetricKind,
    MetricRow,
    MetricSource,
    OverPorts,
    ServedValue,
    WithheldMetric,
    not_older,
)
from agent.serve.metrics_api.paths import ALL, ExternalRequest, ObjectRequest
from agent.serve.metrics_api.quantity import quantity
from agent.serve.metrics_api.status import (
    AMBIGUOUS,
    LOW_COVERAGE,
    NO_MATCH,
    UNKNOWN_METRIC,
    UNKNOWN_NAMESPACE,
    UNKNOWN_OBJECT,
    WITHHELD,
    RequestRefused,
)
from exporters.gauge import REASONS

PODS: Final = "pods"
POOLS: Final = "inferencepools.inference.networking.k8s.io"
_POOLS: Final = frozenset({POOLS, "inferencepools"})
# Labels of every value, which metricLabelSelector and the labelSelector of external metrics select by.
POOL_LABEL: Final = "pool"
INFERENCE_POOL_LABEL: Final = "inference_pool"
_SHOWN: Final = 3  # pods in a message


class PodOfEndpoint(NamedTuple):
    """The pod behind an endpoint; `labels` are those of the pod."""

    namespace: str
    name: str
    labels: Mapping[str, str]


class PoolOfApi(NamedTuple):
    """A pool as the APIs know it: its name in the agent, the namespace and name of its InferencePool (the name is empty
    for a pool without one), and the pods of its endpoints by address."""

    name: str
    namespace: str
    inference_pool: str
    pods: Mapping[str, PodOfEndpoint]

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the pool's values."""
        return {POOL_LABEL: self.name, INFERENCE_POOL_LABEL: self.inference_pool or self.name}


class ReadLimits(NamedTuple):
    """`max_age` in seconds of any value; `min_coverage`: the part of the selected pods that a list has to have."""

    max_age: float
    min_coverage: float


class ObjectReference(NamedTuple):
    """The object that a value describes."""

    api_version: str
    kind: str
    namespace: str
    name: str


class ServedItem(NamedTuple):
    """One value of an answer. `described` is None for an external metric; `labels` are those of the metric."""

    described: ObjectReference | None
    metric: str
    labels: Mapping[str, str]
    value: ServedValue


Value = ServedValue | WithheldMetric
# What returns the items in the end, and yields where other work may be done.
Steps = Generator[None, None, list[ServedItem]]
STEP: Final = 128  # pods, about a millisecond


def object_metric(
    request: ObjectRequest, pools: Sequence[PoolOfApi], source: MetricSource, limits: ReadLimits, now: float
) -> list[ServedItem]:
    """The items of a custom metric: exactly one for a name, one for each object for ALL. Raises RequestRefused."""
    steps = object_metric_in_steps(request, pools, source, limits, now)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[ServedItem] = end.value
            return found


def object_metric_in_steps(
    request: ObjectRequest, pools: Sequence[PoolOfApi], source: MetricSource, limits: ReadLimits, now: float
) -> Steps:
    """As `object_metric`, in steps of at most `STEP` pods, so that an event loop may do other work between them. All
    steps are of the same instant."""
    if request.resource == PODS:
        row = _row(MetricKind.PODS, request.metric, request.resource)
        return (yield from _of_pods(request, row, pools, source, limits, now))
    if request.resource in _POOLS:
        row = _row(MetricKind.OBJECT, request.metric, request.resource)
        return _of_pools(request, row, pools, source, limits, now)
    raise RequestRefused(
        404,
        UNKNOWN_METRIC,
        f"the server could not find the metric {request.metric} for {request.resource}; metrics are served for "
        f"{PODS} and {POOLS}",
    )


def external_metric(
    request: ExternalRequest, pools: Sequence[PoolOfApi], source: MetricSource, limits: ReadLimits, now: float
) -> list[ServedItem]:
    """The items of an external metric, one for each pool. An HPA sums them, so that one that is withheld withholds all:
    a sum that lacks a part is an order to scale down. Raises RequestRefused."""
    row = _row(MetricKind.EXTERNAL, request.metric, "")
    found = _in_namespace(pools, request.namespace)
    matching = [pool for pool in found if request.metric_labels.matches(pool.labels)]
    if not matching:
        raise _no_match(f"no pool of namespace {request.namespace}", request.metric_labels.text, "labelSelector")
    items: list[ServedItem] = []
    for pool in matching:
        value = _usable(source.external_metric(pool.name, row.name, now), limits, now)
        if isinstance(value, WithheldMetric):
            raise _withheld(row.name, f"pool {pool.name}", value)
        items.append(ServedItem(None, row.name, pool.labels, value))
    return items


# -- pods --------------------------------------------------------------------------------------------------------------


def _of_pods(
    request: ObjectRequest,
    row: MetricRow,
    pools: Sequence[PoolOfApi],
    source: MetricSource,
    limits: ReadLimits,
    now: float,
) -> Steps:
    namespace, one = request.namespace, request.name != ALL
    by_pod: dict[str, list[Value]] = {}
    pool_of: dict[str, PoolOfApi] = {}
    in_namespace = False
    for pool in pools:
        in_namespace = in_namespace or pool.namespace == namespace
        in_namespace = in_namespace or any(pod.namespace == namespace for pod in pool.pods.values())
        if not request.metric_labels.matches(pool.labels):
            continue
        selected = {
            address: pod.name
            for address, pod in pool.pods.items()
            if pod.namespace == namespace and (pod.name == request.name if one else request.labels.matches(pod.labels))
        }
        if not selected:
            continue
        yield
        values = source.pod_metrics(pool.name, row.name, now)
        for number, (address, name) in enumerate(selected.items(), 1):
            if not number % STEP:
                yield
            other = pool_of.setdefault(name, pool)
            if other is not pool:
                raise RequestRefused(
                    409,
                    AMBIGUOUS,
                    f"pod {namespace}/{name} is an endpoint of the pools {other.name} and {pool.name}; choose one with "
                    f"metricLabelSelector={POOL_LABEL}={pool.name}, or correct the selectors of the pools",
                )
            value = values.get(address, WithheldMetric("never_scraped"))
            by_pod.setdefault(name, []).append(_usable(value, limits, now))
    if not in_namespace:
        raise _unknown_namespace(namespace, pools)
    if not by_pod:
        if one:
            what = f"pod {namespace}/{request.name} is no endpoint of a pool of the agent: it does not exist, is not "
            raise RequestRefused(404, UNKNOWN_OBJECT, f"{what}ready, or no pool selects it")
        text = request.labels.text or request.metric_labels.text
        raise _no_match(f"no endpoint of namespace {namespace}", text, "labelSelector")
    labels = {pool.name: pool.labels for pool in pools}
    known: list[ServedItem] = []
    withheld: dict[str, WithheldMetric] = {}
    for number, name in enumerate(sorted(by_pod), 1):
        if not number % (2 * STEP):
            yield
        value = over_ports(row, by_pod[name])
        if isinstance(value, WithheldMetric):
            withheld[name] = value
            continue
        described = ObjectReference("v1", "Pod", namespace, name)
        known.append(ServedItem(described, row.name, labels[pool_of[name].name], value))
    if one and withheld:
        raise _withheld(row.name, f"pod {namespace}/{request.name}", withheld[request.name])
    if not known or len(known) < limits.min_coverage * len(by_pod) - 1e-9:
        raise _low_coverage(row.name, len(known), len(by_pod), withheld, limits)
    return known


def over_ports(row: MetricRow, values: Sequence[Value]) -> Value:
    """The value of a pod from those of its endpoints: withheld where one is; as old as the oldest."""
    if len(values) == 1:
        return values[0]
    known: list[ServedValue] = []
    for value in values:
        if isinstance(value, WithheldMetric):
            return value
        known.append(value)
    numbers = [each.value for each in known]
    match row.over_ports:
        case OverPorts.SUM:
            whole = fsum(numbers)
        case OverPorts.MAX:
            whole = max(numbers)
        case OverPorts.MEAN:
            whole = fsum(numbers) / len(numbers)
    windows = [each.window_seconds for each in known if each.window_seconds is not None]
    return ServedValue(whole, min(each.at for each in known), max(windows, default=None))


# -- pools -------------------------------------------------------------------------------------------------------------


def _of_pools(
    request: ObjectRequest,
    row: MetricRow,
    pools: Sequence[PoolOfApi],
    source: MetricSource,
    limits: ReadLimits,
    now: float,
) -> list[ServedItem]:
    """Several pools of the agent may have one InferencePool: the first counts. An InferencePool's labels are not known
    here, so that a labelSelector matches as if it had none."""
    by_object: dict[str, PoolOfApi] = {}
    for pool in _in_namespace(pools, request.namespace):
        if pool.inference_pool and request.metric_labels.matches(pool.labels):
            by_object.setdefault(pool.inference_pool, pool)
    if request.name != ALL:
        if request.name not in by_object:
            raise RequestRefused(
                404,
                UNKNOWN_OBJECT,
                f"InferencePool {request.namespace}/{request.name} is no pool of the agent"
                + _instead(by_object, "those are"),
            )
        by_object = {request.name: by_object[request.name]}
    elif not by_object or not request.labels.matches({}):
        text = request.labels.text or request.metric_labels.text
        raise _no_match(f"no InferencePool of namespace {request.namespace}", text, "labelSelector")
    items: list[ServedItem] = []
    withheld: dict[str, WithheldMetric] = {}
    for name, pool in sorted(by_object.items()):
        value = _usable(source.pool_metric(pool.name, row.name, now), limits, now)
        if isinstance(value, WithheldMetric):
            withheld[name] = value
            continue
        described = ObjectReference("inference.networking.k8s.io/v1", "InferencePool", request.namespace, name)
        items.append(ServedItem(described, row.name, pool.labels, value))
    if not items:
        name, first = next(iter(withheld.items()))
        raise _withheld(row.name, f"InferencePool {request.namespace}/{name}", first)
    return items


# -- within ------------------------------------------------------------------------------------------------------------


def _usable(value: Value, limits: ReadLimits, now: float) -> Value:
    """The value, or why it may not be served."""
    found = not_older(value, limits.max_age, now)
    if isinstance(found, ServedValue) and quantity(found.value) is None:
        return WithheldMetric("out_of_range", f"{found.value!r} has no quantity in Kubernetes")
    return found


def _row(kind: MetricKind, metric: str, resource: str) -> MetricRow:
    row = SERVED[kind].get(metric)
    if row is not None:
        return row
    what = f"the metric {metric[:128]} for {resource}" if resource else f"the external metric {metric[:128]}"
    others = [f"it is a metric of kind {other}" for other, rows in SERVED.items() if metric in rows]
    near = get_close_matches(metric[:128], SERVED[kind], 1, 0.7)
    hints = others or [f"did you mean {name}?" for name in near] or ["discovery lists all metrics"]
    raise RequestRefused(404, UNKNOWN_METRIC, f"the server could not find {what}; {hints[0]}")


def _in_namespace(pools: Sequence[PoolOfApi], namespace: str) -> list[PoolOfApi]:
    found = [pool for pool in pools if pool.namespace == namespace]
    if not found:
        raise _unknown_namespace(namespace, pools)
    return found


def _unknown_namespace(namespace: str, pools: Sequence[PoolOfApi]) -> RequestRefused:
    known = sorted({pool.namespace for pool in pools if pool.namespace})
    message = f"no pool of the agent is in the namespace {namespace[:64]}" + _instead(known, "there are pools in")
    return RequestRefused(404, UNKNOWN_NAMESPACE, message)


def _instead(names: Iterable[str], words: str) -> str:
    shown = sorted(names)
    return f"; {words}: {', '.join(shown[:_SHOWN])}{' and others' if len(shown) > _SHOWN else ''}" if shown else ""


def _no_match(what: str, selector: str, parameter: str) -> RequestRefused:
    selected = f" matches {selector[:128]}; correct the {parameter}" if selector else " is known"
    return RequestRefused(404, NO_MATCH, what + selected)


def _withheld(metric: str, what: str, value: WithheldMetric) -> RequestRefused:
    return RequestRefused(503, WITHHELD, f"{metric} of {what} is unknown now: {_why(value)}")


def _low_coverage(
    metric: str, known: int, total: int, withheld: Mapping[str, WithheldMetric], limits: ReadLimits
) -> RequestRefused:
    shown = "; ".join(f"{name}: {_why(value)}" for name, value in list(withheld.items())[:_SHOWN])
    more = f"; and {len(withheld) - _SHOWN} others" if len(withheld) > _SHOWN else ""
    return RequestRefused(
        503,
        LOW_COVERAGE,
        f"{known} of {total} pods have {metric}, below the coverage of {limits.min_coverage:g}, so none is served: an "
        f"autoscaler would take the others as loaded at target and shrink. {shown}{more}",
    )


def _why(value: WithheldMetric) -> str:
    return value.detail or REASONS.get(value.reason, value.reason)
