"""The values of the served metrics, from snapshots of the routing state. Pure.

Values of pods are readings that may be used now (`agent.scaling.rollup.current`), rates, or readings of accelerators.
Sums and means of a pool are withheld below the coverage floor. Above it an endpoint without a fresh reading counts as
the mean of the others, also in a sum: a sum that lacks it would count it as 0, an order to scale down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from agent import signals
from agent.accelerators import table as devices
from agent.scaling.accelerators import reading
from agent.scaling.empty_pool import has_no_server
from agent.scaling.rates import rate
from agent.scaling.rollup import (
    POOL_SIGNALS,
    DatedValue,
    NoSpread,
    Spread,
    Unknown,
    number,
    rollup,
    saturation,
    spread,
)
from agent.scaling.served_metrics import DEMAND_REPLICAS, ServedValue, WithheldMetric
from agent.state.counter_rates import WINDOW_SECONDS
from agent.state.snapshot import EndpointView, Snapshot
from exporters.catalog import accelerators, endpoints, flow, pools, rates
from exporters.gauge import REASONS

Value = ServedValue | WithheldMetric
PoolValue = Callable[[str, float], Value]

_SIGNALS: Final[Mapping[str, str]] = {
    endpoints.WAITING.name: signals.WAITING,
    endpoints.RUNNING.name: signals.RUNNING,
    endpoints.KV.name: signals.KV_USAGE,
    endpoints.LORA_RUNNING.name: signals.LORA_RUNNING,
    endpoints.LORA_WAITING.name: signals.LORA_WAITING,
}
_RATES: Final[Mapping[str, str]] = {
    rates.PREFIX_HIT_RATIO.name: "prefix_hit_ratio",
    rates.PROMPT_RATE.name: "prompt_tokens_per_second",
    rates.GENERATION_RATE.name: "generation_tokens_per_second",
    rates.FINISHED_RATE.name: "finished_requests_per_second",
}
_POOL_RATES: Final[Mapping[str, str]] = {
    rates.POOL_PROMPT_RATE.name: "prompt_tokens_per_second",
    rates.POOL_GENERATION_RATE.name: "generation_tokens_per_second",
}
_DEVICES: Final[Mapping[str, str]] = {
    accelerators.UTILIZATION.name: devices.UTILIZATION,
    accelerators.MEMORY_USED.name: devices.MEMORY_USED,
}
_MEANS: Final[Mapping[str, str]] = {
    pools.AVERAGE_QUEUE.name: signals.WAITING,
    pools.AVERAGE_RUNNING.name: signals.RUNNING,
    pools.AVERAGE_KV.name: signals.KV_USAGE,
}
_SUMS: Final[Mapping[str, str]] = {pools.WAITING.name: signals.WAITING, pools.RUNNING.name: signals.RUNNING}


def not_computed(pool: str, now: float) -> Value:
    """The value of a metric that this agent does not compute."""
    return WithheldMetric("not_computed", "this agent does not compute it")


def _any_pod(_pool: str) -> Mapping[str, str]:
    return {}


class StoreMetrics:
    """A `MetricSource` over `snapshot_of`, which returns a pool's snapshot at a time.

    `held` returns the requests held for a pool by all replicas, `demand` its demand in replicas. `pods_of` returns the
    pods (`namespace/name`) that the reader takes a pool's endpoints for, by address: where another pod is behind the
    address by now, there is no value of that pod.
    """

    def __init__(
        self,
        snapshot_of: Callable[[str, float], Snapshot],
        min_coverage: float,
        held: PoolValue = not_computed,
        demand: PoolValue = not_computed,
        pods_of: Callable[[str], Mapping[str, str]] = _any_pod,
    ) -> None:
        self.min_coverage = min_coverage
        self._snapshot_of = snapshot_of
        self._pods_of = pods_of
        self._of_agent: Mapping[str, PoolValue] = {flow.HELD_REQUESTS.name: held, DEMAND_REPLICAS: demand}

    def pod_metrics(self, pool: str, metric: str, now: float) -> Mapping[str, Value]:
        """The value of each endpoint, by its address; computed when it is read."""
        return _PodValues(self._snapshot_of(pool, now), self._pods_of(pool), metric, now)

    def pool_metric(self, pool: str, metric: str, now: float) -> Value:
        """The value of the pool."""
        of_agent = self._of_agent.get(metric)
        if of_agent is not None:
            return of_agent(pool, now)
        return of_pool(self._snapshot_of(pool, now), metric, now, self.min_coverage)

    def external_metric(self, pool: str, metric: str, now: float) -> Value:
        """The value of the pool: the same as of the object."""
        return self.pool_metric(pool, metric, now)


class _PodValues(Mapping[str, Value]):
    """The values of the endpoints of a snapshot by address. `pods` are those that the reader knows."""

    def __init__(self, snapshot: Snapshot, pods: Mapping[str, str], metric: str, now: float) -> None:
        self._views = {view.address: view for view in snapshot.endpoints}
        self._pods = pods
        self._metric = metric
        self._now = now

    def __getitem__(self, address: str) -> Value:
        view = self._views[address]
        pod = view.identity.pod
        same = self._pods.get(address, pod) == pod
        return of_endpoint(view, self._metric, self._now) if same else _why("never_scraped")

    def get(self, address: str, default: Value | None = None) -> Value | None:  # type: ignore[override]
        """As of a dict; that of `Mapping` raises and catches an exception for each endpoint that is not there."""
        return self[address] if address in self._views else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def of_endpoint(view: EndpointView, metric: str, now: float) -> Value:
    """The value of an endpoint. KeyError for a metric that is not one of pods."""
    signal = _SIGNALS.get(metric)
    if signal is not None:
        return _served(number(view, signal, now))
    if metric in _RATES:
        found = _served(rate(view, _RATES[metric], now))
        if isinstance(found, ServedValue):
            before = view.before
            return found._replace(window_seconds=WINDOW_SECONDS if before is None else found.at - before.at)
        return found
    if metric == endpoints.SATURATION.name:
        return _served(saturation(view, now))
    return _of_devices(view, _DEVICES[metric], now)


def of_pool(snapshot: Snapshot, metric: str, now: float, min_coverage: float) -> Value:
    """The value of a pool. KeyError for a metric that is not one of pools."""
    if (metric in _SUMS or metric in _POOL_RATES) and has_no_server(snapshot):
        return ServedValue(0.0, now)
    if metric in _POOL_RATES:
        name = _POOL_RATES[metric]
        found = _covered(spread(rate(view, name, now) for view in snapshot.endpoints), "sum", min_coverage)
        return found._replace(window_seconds=WINDOW_SECONDS) if isinstance(found, ServedValue) else found
    load = rollup(snapshot, now)
    if metric == pools.READY_ENDPOINTS.name:
        source = snapshot.source
        if source is not None and source.known_at is None and not source.current:
            return _why("never_known")
        return ServedValue(float(load.ready), now)
    if metric == pools.COVERAGE.name:
        if not load.endpoints:
            return _why("no_endpoints")
        shares = [each.coverage if isinstance(each, Spread) else 0.0 for each in map(load.signals.get, POOL_SIGNALS)]
        return ServedValue(min(shares), now)
    if metric == pools.SATURATION.name:
        return _covered(load.saturation, "mean", min_coverage)
    if metric in _MEANS:
        return _covered(load.signals[_MEANS[metric]], "mean", min_coverage)
    return _covered(load.signals[_SUMS[metric]], "sum", min_coverage)


def _served(value: DatedValue | Unknown) -> Value:
    return _why(value.reason) if isinstance(value, Unknown) else ServedValue(value.value, value.at)


def _why(reason: str) -> WithheldMetric:
    return WithheldMetric(reason, REASONS.get(reason, ""))


def _covered(found: Spread | NoSpread, what: str, min_coverage: float) -> Value:
    if isinstance(found, NoSpread):
        return _why(found.reason)
    if found.coverage < min_coverage - 1e-9:
        return WithheldMetric(
            "low_coverage",
            f"{found.known} of {found.total} endpoints have a fresh reading, below the coverage of {min_coverage:g}",
        )
    if what == "mean":
        return ServedValue(found.mean, found.at)
    return ServedValue(found.sum if found.known == found.total else found.mean * found.total, found.at)


def _of_devices(view: EndpointView, signal: str, now: float) -> Value:
    """The largest reading of the sources that have one."""
    known: list[ServedValue] = []
    reason = "no_accelerator"
    for each in view.accelerators:
        found = reading(each, signal, now)
        if isinstance(found, Unknown):
            reason = found.reason
        elif isinstance(found.value, float):
            known.append(ServedValue(found.value, found.at))
    return max(known, key=lambda value: value.value) if known else _why(reason)
