"""From a snapshot to everything that we publish of it: gauges, and what is withheld with its reason.

Nothing is rounded, smoothed or carried over: the set is made anew whenever somebody reads, from the newest snapshot.
The agent's own counts (requests in flight, work ahead) are always known; what servers report is withheld unless current
(`agent.scaling.rollup.current`). Ages are published even of readings that are too old to be: that is when they matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from agent import signals
from agent.scaling import accelerators
from agent.scaling.rates import rate
from agent.scaling.rollup import (
    POOL_SIGNALS,
    Load,
    NoSpread,
    Sample,
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
from exporters.catalog import endpoints, histograms, pools, rates
from exporters.catalog.metric import Metric
from exporters.catalog.withheld import WITHHELD
from exporters.gauge import Distribution, Gauge, GaugeSet, Withheld

# Which metric carries which signal of an endpoint. Counters among them restart with their server.
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
STAGE: Final = "effective"  # the reference's word for the pool as a whole, without prefill and decode apart


class _Maker:
    """Collects the gauges of one set."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.gauges: list[Gauge] = []
        self.withheld: list[Withheld] = []
        self.distributions: list[Distribution] = []

    def known(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """A number that is true now, such as a count of our own."""
        self.gauges.append(Gauge(metric, labels, value, self.now))

    def dated(self, metric: Metric, labels: tuple[str, ...], value: float, at: float) -> None:
        """A number as of some time."""
        self.gauges.append(Gauge(metric, labels, value, at))

    def withhold(self, metric: Metric, labels: tuple[str, ...], reason: str) -> None:
        """A number that is not published, and why."""
        self.withheld.append(Withheld(metric, labels, reason))

    def sample(self, metric: Metric, labels: tuple[str, ...], sample: Sample | Unknown) -> None:
        """A number with its time, or withheld with the reason."""
        if isinstance(sample, Unknown):
            self.withheld.append(Withheld(metric, labels, sample.reason))
        else:
            self.gauges.append(Gauge(metric, labels, sample.value, sample.at))

    def statistic(self, metric: Metric, labels: tuple[str, ...], spread: Spread | NoSpread, what: str) -> None:
        """One field of a spread (`mean`, `deviation`, `sum`), or withheld where nobody knows the quantity."""
        if isinstance(spread, NoSpread):
            self.withheld.append(Withheld(metric, labels, spread.reason))
        else:
            self.gauges.append(Gauge(metric, labels, getattr(spread, what), spread.at))


def gauge_set(snapshots: Sequence[Snapshot], now: float, exporters: Sequence[ExporterView] = ()) -> GaugeSet:
    """Everything to publish of these pools and exporters at `now`, the count of what is withheld included."""
    maker = _Maker(now)
    for snapshot in snapshots:
        _pool(maker, rollup(snapshot, now))
        for name, metric in POOL_RATES.items():
            whole = spread(rate(view, name, now) for view in snapshot.endpoints)
            maker.statistic(metric, (snapshot.pool,), whole, "sum")
        for view in snapshot.endpoints:
            _endpoint(maker, snapshot.pool, view)
            accelerators.of_endpoint(maker, snapshot.pool, view, now)
    accelerators.of_exporters(maker, exporters, now)
    for (name, reason), count in sorted(Counter((row.metric.name, row.reason) for row in maker.withheld).items()):
        maker.known(WITHHELD, (name, reason), count)
    return GaugeSet(now, maker.gauges, maker.withheld, maker.distributions)


def _pool(maker: _Maker, load: Load) -> None:
    pool = (load.pool,)
    for signal, mean, deviation, whole in POOL_STATISTICS:
        spread = load.signals[signal]
        maker.statistic(mean, pool, spread, "mean")
        maker.statistic(deviation, pool, spread, "deviation")
        if whole is not None:
            maker.statistic(whole, pool, spread, "sum")
    maker.statistic(pools.SATURATION, (load.pool, STAGE), load.saturation, "mean")
    for signal in POOL_SIGNALS:
        spread = load.signals[signal]
        if isinstance(spread, Spread):
            maker.known(pools.COVERAGE, (load.pool, signal), spread.coverage)
        elif spread.total:
            maker.known(pools.COVERAGE, (load.pool, signal), 0.0)
        else:
            maker.withheld.append(Withheld(pools.COVERAGE, (load.pool, signal), spread.reason))
    maker.known(pools.READY_ENDPOINTS, pool, load.by_health[Health.HEALTHY])
    maker.known(pools.ENDPOINTS, pool, load.endpoints)
    for health, count in load.by_health.items():
        maker.known(pools.BY_HEALTH, (load.pool, health.value), count)
    maker.known(pools.IN_FLIGHT, pool, load.in_flight)
    maker.known(pools.BACKLOG_TOKENS, pool, load.backlog_tokens)
    maker.known(pools.BACKLOG_SECONDS, pool, load.backlog_seconds)


def _endpoint(maker: _Maker, pool: str, view: EndpointView) -> None:
    now, address = maker.now, view.address
    labels = (pool, address)
    for signal, metrics in BY_SIGNAL:
        sample = number(view, signal, now)
        for metric in metrics:
            maker.sample(metric, labels, sample)
    for name, metric in BY_RATE.items():
        maker.sample(metric, labels, rate(view, name, now))
    for name in view.histograms:
        told = histogram(view, name, now)
        if isinstance(told, Unknown):
            maker.withheld.append(Withheld(BY_HISTOGRAM[name], labels, told.reason))
        else:
            maker.distributions.append(Distribution(BY_HISTOGRAM[name], labels, *told.value, told.at))
    maker.sample(endpoints.SATURATION, labels, saturation(view, now))
    _ages(maker, pool, view)
    for health in Health:
        maker.known(endpoints.HEALTH, (pool, address, health.value), float(view.health is health))
    maker.known(endpoints.HEALTH_INFO, (pool, address, view.engine, view.health.value, view.reason), 1.0)
    work = view.work
    maker.known(endpoints.IN_FLIGHT, labels, work.requests)
    maker.known(endpoints.BACKLOG_TOKENS, labels, work.prefill_tokens(now))
    maker.known(endpoints.BACKLOG_SECONDS, labels, work.prefill_seconds(now))
    maker.known(endpoints.PREFILL_RATE, (pool, address, work.rate_source), work.rate)
    _prefix(maker, labels, view)


def _ages(maker: _Maker, pool: str, view: EndpointView) -> None:
    now, address = maker.now, view.address
    never = Unknown("not_reported" if view.page_at is not None else "never_scraped")
    page = never if view.page_at is None else Sample(age(view.page_at, now), now)
    maker.sample(endpoints.PAGE_AGE, (pool, address), page)
    for signal in POOL_SIGNALS:
        reading = view.reading(signal)
        sample = never if reading is None else Sample(age(reading.at, now), now)
        maker.sample(endpoints.SIGNAL_AGE, (pool, address, signal), sample)


def _prefix(maker: _Maker, labels: tuple[str, ...], view: EndpointView) -> None:
    predicted, measured = view.prefix
    maker.known(endpoints.PREDICTED_HITS, labels, predicted)
    hits = number(view, signals.PREFIX_HITS, maker.now)
    if isinstance(hits, Sample) and measured is not None:
        maker.sample(endpoints.MEASURED_HITS, labels, Sample(measured, hits.at))
        maker.sample(endpoints.HIT_GAP, labels, Sample(predicted - measured, hits.at))
        return
    reason = hits if isinstance(hits, Unknown) else Unknown("not_reported")
    maker.sample(endpoints.MEASURED_HITS, labels, reason)
    maker.sample(endpoints.HIT_GAP, labels, reason)


def age(at: float, now: float) -> float:
    """Seconds from `at` to `now`; a page that is still being applied has age 0, not less."""
    return max(0.0, now - at)
