"""Everything that is published of snapshots: gauges, and the gauges that are withheld with their reasons.

Nothing is rounded, smoothed or carried over from an earlier set. The agent's own counts (requests in flight, prefill
backlog) are known, but for the part of a replica of the agent that is silent: a sum that lacks it is withheld, because
half of a load is an order to scale down. What servers report is withheld unless it is current
(`agent.scaling.rollup.current`). Ages are published of stale readings too, because that is when they matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from agent import signals
from agent.flow.report import FlowReport
from agent.kube.pool_endpoints import SOURCE_REASONS
from agent.scaling import accelerators, autoscalers, demand_gauges, flow
from agent.scaling.autoscalers import AutoscalerReport
from agent.scaling.demand_gauges import DemandReport
from agent.scaling.rates import rate
from agent.scaling.rollup import (
    POOL_SIGNALS,
    DatedValue,
    Load,
    NoSpread,
    Spread,
    Unknown,
    histogram,
    number,
    rollup,
    saturation,
    spread,
)
from agent.state.devices import ExporterView
from agent.state.health import Health
from agent.state.snapshot import EndpointView, Snapshot
from exporters.catalog import discovery, endpoints, histograms, pools, rates
from exporters.catalog.metric import Metric
from exporters.catalog.withheld import WITHHELD
from exporters.gauge import Distribution, Gauge, GaugeSet, Withheld

# The metrics of each signal of an endpoint. Counters among them restart with their server.
BY_SIGNAL: Final[tuple[tuple[str, tuple[Metric, ...]], ...]] = (
    (signals.KV_USAGE, (endpoints.KV,)),
    (signals.RUNNING, (endpoints.RUNNING,)),
    (signals.WAITING, (endpoints.WAITING, endpoints.QUEUE)),
    (signals.WAITING_CAPACITY, (endpoints.WAITING_CAPACITY,)),
    (signals.WAITING_DEFERRED, (endpoints.WAITING_DEFERRED,)),
    (signals.SLOTS_USAGE, (endpoints.SLOTS_USAGE,)),
    (signals.LORA_RUNNING, (endpoints.LORA_RUNNING,)),
    (signals.LORA_WAITING, (endpoints.LORA_WAITING,)),
    (signals.LORA_MAX, (endpoints.LORA_MAX,)),
    (signals.BLOCKS, (endpoints.BLOCKS,)),
    (signals.BLOCK_SIZE, (endpoints.BLOCK_SIZE,)),
    (signals.KV_TOKENS, (endpoints.KV_TOKENS,)),
    (signals.MODEL_LOADED, (endpoints.MODEL_LOADED,)),
    (signals.PREFIX_QUERIES, (endpoints.PREFIX_QUERIES,)),
    (signals.PREFIX_HITS, (endpoints.PREFIX_HITS,)),
    (signals.PREEMPTIONS, (endpoints.PREEMPTIONS,)),
    (signals.PROMPT_TOKENS, (endpoints.PROMPT_TOKENS,)),
    (signals.GENERATION_TOKENS, (endpoints.GENERATION_TOKENS,)),
    (signals.FINISHED, (endpoints.FINISHED,)),
)
BY_RATE: Final[Mapping[str, Metric]] = {
    "prefix_hit_ratio": rates.PREFIX_HIT_RATIO,
    "prompt_tokens_per_second": rates.PROMPT_RATE,
    "generation_tokens_per_second": rates.GENERATION_RATE,
    "finished_requests_per_second": rates.FINISHED_RATE,
    "preemptions_per_second": rates.PREEMPTION_RATE,
}
BY_HISTOGRAM: Final[Mapping[str, Metric]] = {
    signals.FIRST_TOKEN_SECONDS: histograms.FIRST_TOKEN,
    signals.BETWEEN_TOKENS_SECONDS: histograms.BETWEEN_TOKENS,
    signals.REQUEST_SECONDS: histograms.REQUEST_LATENCY,
    signals.QUEUE_SECONDS: histograms.QUEUE_TIME,
}
POOL_RATES: Final[Mapping[str, Metric]] = {
    "prompt_tokens_per_second": rates.POOL_PROMPT_RATE,
    "generation_tokens_per_second": rates.POOL_GENERATION_RATE,
    "finished_requests_per_second": rates.POOL_FINISHED_RATE,
}
POOL_STATISTICS: Final = (
    (signals.KV_USAGE, pools.AVERAGE_KV, pools.DEVIATION_KV, None),
    (signals.WAITING, pools.AVERAGE_QUEUE, pools.DEVIATION_QUEUE, pools.WAITING),
    (signals.RUNNING, pools.AVERAGE_RUNNING, pools.DEVIATION_RUNNING, pools.RUNNING),
)
STAGE: Final = "effective"  # the reference's word for a pool without separate prefill and decode


class _Gauges:
    """The gauges of one set while it is collected."""

    def __init__(self, now: float, unknown_peers: Sequence[str] = ()) -> None:
        self.now = now
        self._unknown_peers = "; ".join(unknown_peers)
        self.published: list[Gauge] = []
        self.withheld: list[Withheld] = []
        self.distributions: list[Distribution] = []

    def known(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Add a number as of now, such as a count of the agent's own."""
        self.published.append(Gauge(metric, labels, value, self.now))

    def over_replicas(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Add a sum over the replicas of the agent, or withhold it where the part of one is unknown."""
        if self._unknown_peers:
            self.withheld.append(Withheld(metric, labels, "replica_unknown", self._unknown_peers))
        else:
            self.published.append(Gauge(metric, labels, value, self.now))

    def dated(self, metric: Metric, labels: tuple[str, ...], value: float, at: float) -> None:
        """Add a number as of some time."""
        self.published.append(Gauge(metric, labels, value, at))

    def withhold(self, metric: Metric, labels: tuple[str, ...], reason: str) -> None:
        """Add a number that is not published, and why."""
        self.withheld.append(Withheld(metric, labels, reason))

    def add(self, metric: Metric, labels: tuple[str, ...], value: DatedValue | Unknown) -> None:
        """Add a number with its time, or withhold it with the reason."""
        if isinstance(value, Unknown):
            self.withheld.append(Withheld(metric, labels, value.reason))
        else:
            self.published.append(Gauge(metric, labels, value.value, value.at))

    def statistic(self, metric: Metric, labels: tuple[str, ...], spread: Spread | NoSpread, what: str) -> None:
        """Add one field of a spread (`mean`, `deviation`, `sum`), or withhold it where no endpoint has the quantity."""
        if isinstance(spread, NoSpread):
            self.withheld.append(Withheld(metric, labels, spread.reason))
        else:
            self.published.append(Gauge(metric, labels, getattr(spread, what), spread.at))


def gauge_set(
    snapshots: Sequence[Snapshot],
    now: float,
    exporters: Sequence[ExporterView] = (),
    unknown_peers: Sequence[str] = (),
    flows: Sequence[FlowReport] = (),
    demands: Sequence[DemandReport] = (),
    scalers: Sequence[AutoscalerReport] = (),
) -> GaugeSet:
    """Everything to publish of these pools and exporters at `now`, the count of what is withheld included.

    `unknown_peers`: replicas of the agent whose part of a sum over replicas is unknown, one phrase each. `flows` are
    the reports of the pools' flow control, `demands` those of their demand, `scalers` the HPAs that
    scale them.
    """
    gauges = _Gauges(now, unknown_peers)
    for snapshot in snapshots:
        _pool(gauges, rollup(snapshot, now))
        _source(gauges, snapshot)
        for name, metric in POOL_RATES.items():
            whole = spread(rate(view, name, now) for view in snapshot.endpoints)
            gauges.statistic(metric, (snapshot.pool,), whole, "sum")
        for view in snapshot.endpoints:
            _endpoint(gauges, snapshot.pool, view)
            accelerators.of_endpoint(gauges, snapshot.pool, view, now)
    accelerators.of_exporters(gauges, exporters, now)
    flow.of_pools(gauges, flows)
    demand_gauges.of_pools(gauges, demands, now)
    autoscalers.of_pools(gauges, scalers, now)
    for (name, reason), count in sorted(Counter((row.metric.name, row.reason) for row in gauges.withheld).items()):
        gauges.known(WITHHELD, (name, reason), count)
    return GaugeSet(now, gauges.published, gauges.withheld, gauges.distributions)


def _pool(gauges: _Gauges, load: Load) -> None:
    pool = (load.pool,)
    for signal, mean, deviation, whole in POOL_STATISTICS:
        spread = load.signals[signal]
        gauges.statistic(mean, pool, spread, "mean")
        gauges.statistic(deviation, pool, spread, "deviation")
        if whole is not None:
            gauges.statistic(whole, pool, spread, "sum")
    gauges.statistic(pools.SATURATION, (load.pool, STAGE), load.saturation, "mean")
    for signal in POOL_SIGNALS:
        spread = load.signals[signal]
        if isinstance(spread, Spread):
            gauges.known(pools.COVERAGE, (load.pool, signal), spread.coverage)
        elif spread.total:
            gauges.known(pools.COVERAGE, (load.pool, signal), 0.0)
        else:
            gauges.withheld.append(Withheld(pools.COVERAGE, (load.pool, signal), spread.reason))
    gauges.known(pools.READY_ENDPOINTS, pool, load.ready)
    gauges.known(pools.ENDPOINTS, pool, load.endpoints)
    for health, count in load.by_health.items():
        gauges.known(pools.BY_HEALTH, (load.pool, health.value), count)
    if load.endpoints:
        gauges.known(pools.BLIND, pool, load.by_health[Health.BLIND] / load.endpoints)
    else:
        gauges.withhold(pools.BLIND, pool, "no_endpoints")
    gauges.known(pools.OWN_IN_FLIGHT, pool, load.own_in_flight)
    gauges.over_replicas(pools.IN_FLIGHT, pool, load.in_flight)
    gauges.over_replicas(pools.BACKLOG_TOKENS, pool, load.backlog_tokens)
    gauges.over_replicas(pools.BACKLOG_SECONDS, pool, load.backlog_seconds)


def _source(gauges: _Gauges, snapshot: Snapshot) -> None:
    source = snapshot.source
    if source is None:
        return
    age_seconds = source.age(gauges.now)
    if age_seconds is None:
        gauges.withhold(discovery.AGE, (snapshot.pool,), "never_known")
    else:
        gauges.known(discovery.AGE, (snapshot.pool,), age_seconds)
    counts = Counter(problem.reason for problem in source.problems)
    for reason in SOURCE_REASONS:
        gauges.known(discovery.PROBLEMS, (snapshot.pool, reason), float(counts[reason]))


def _endpoint(gauges: _Gauges, pool: str, view: EndpointView) -> None:
    now, address = gauges.now, view.address
    labels = (pool, address)
    for signal, metrics in BY_SIGNAL:
        value = number(view, signal, now)
        for metric in metrics:
            gauges.add(metric, labels, value)
    for name, metric in BY_RATE.items():
        gauges.add(metric, labels, rate(view, name, now))
    for name in view.histograms:
        found = histogram(view, name, now)
        if isinstance(found, Unknown):
            gauges.withheld.append(Withheld(BY_HISTOGRAM[name], labels, found.reason))
        else:
            gauges.distributions.append(Distribution(BY_HISTOGRAM[name], labels, *found.value, found.at))
    gauges.add(endpoints.SATURATION, labels, saturation(view, now))
    identity = view.identity
    if identity.pod or identity.node:
        gauges.known(endpoints.INFO, (*labels, identity.namespace, identity.pod_name, identity.node), 1.0)
    _ages(gauges, pool, view)
    for health in Health:
        gauges.known(endpoints.HEALTH, (pool, address, health.value), float(view.health is health))
    gauges.known(endpoints.HEALTH_INFO, (pool, address, view.engine, view.health.value, view.reason), 1.0)
    work = view.work
    gauges.over_replicas(endpoints.IN_FLIGHT, labels, work.requests)
    gauges.over_replicas(endpoints.BACKLOG_TOKENS, labels, work.prefill_tokens(now))
    gauges.over_replicas(endpoints.BACKLOG_SECONDS, labels, work.prefill_seconds(now))
    gauges.known(endpoints.PREFILL_RATE, (pool, address, work.rate_source), work.rate)
    _prefix(gauges, labels, view)


def _ages(gauges: _Gauges, pool: str, view: EndpointView) -> None:
    now, address = gauges.now, view.address
    never = Unknown("not_reported" if view.page_at is not None else "never_scraped")
    page = never if view.page_at is None else DatedValue(age(view.page_at, now), now)
    gauges.add(endpoints.PAGE_AGE, (pool, address), page)
    for signal in POOL_SIGNALS:
        reading = view.reading(signal)
        since = never if reading is None else DatedValue(age(reading.at, now), now)
        gauges.add(endpoints.SIGNAL_AGE, (pool, address, signal), since)


def _prefix(gauges: _Gauges, labels: tuple[str, ...], view: EndpointView) -> None:
    predicted, measured = view.prefix
    gauges.known(endpoints.PREDICTED_HITS, labels, predicted)
    hits = number(view, signals.PREFIX_HITS, gauges.now)
    if isinstance(hits, DatedValue) and measured is not None:
        gauges.add(endpoints.MEASURED_HITS, labels, DatedValue(measured, hits.at))
        gauges.add(endpoints.HIT_GAP, labels, DatedValue(predicted - measured, hits.at))
        return
    reason = hits if isinstance(hits, Unknown) else Unknown("not_reported")
    gauges.add(endpoints.MEASURED_HITS, labels, reason)
    gauges.add(endpoints.HIT_GAP, labels, reason)


def age(at: float, now: float) -> float:
    """Seconds from `at` to `now`; 0 for a page that was requested after `now`."""
    return max(0.0, now - at)
