"""The Prometheus page: the latest gauge set beside the agent's own registry, rendered only when somebody reads it.

A withheld gauge has no line at all, so that Prometheus marks its series as gone within one scrape and a query over it
returns nothing instead of the last number. Lines carry no time stamps, because Prometheus gives a series with time
stamps no such mark; ages are metrics of their own. Aliases are written from the same samples as the metrics that they
stand for, and the `_created` samples of the client library are left out: nobody asked for twice the series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from exporters.catalog import CATALOG
from exporters.gauge import GaugeSet
from exporters.metric import Alias


class GaugeCollector(Collector):
    """The gauge set that `take` returns at the moment of reading, as families of prometheus_client."""

    def __init__(self, take: Callable[[], GaugeSet]) -> None:
        self._take = take

    def collect(self) -> Iterator[Family]:
        """One family for each metric that has a value, in the catalogue's order."""
        families: dict[str, Family] = {}
        for metric, labels, value in ((gauge.metric, gauge.labels, gauge.value) for gauge in self._take().gauges):
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = Family(metric.name.removesuffix("_total"), metric.help, metric.type)
            family.add_sample(metric.name, dict(zip(metric.labels, map(clean, labels), strict=True)), value)
        for name in CATALOG:
            if name in families:
                yield families[name]


def page(gauges: GaugeSet, own: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The whole page and its content type, in the format that the reader's `Accept` header prefers.

    It touches nothing that changes but the metrics of `own`, which lock themselves: it may run in another thread.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Page(GaugeCollector(lambda: gauges), own)), content_type


def clean(text: str) -> str:
    """A label's value that can be written as UTF-8: half of a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Page:
    """What the encoders of prometheus_client take for a registry."""

    def __init__(self, *collectors: Collector | CollectorRegistry) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            for family in collector.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family
                yield from _aliases(family)


def _aliases(family: Family) -> Iterable[Family]:
    """The same numbers under the metric's other names."""
    name = family.name + "_total" if family.type == "counter" else family.name
    metric = CATALOG.get(name)
    return [_renamed(family, name, alias) for alias in metric.aliases] if metric is not None else ()


def _renamed(family: Family, name: str, alias: Alias) -> Family:
    """`family` under the alias: its labels renamed, and summed over those that the alias has not."""
    other = Family(alias.name.removesuffix("_total"), f"The same as {name}", family.type)
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        labels = [(theirs, sample.labels[ours]) for theirs, ours in alias.labels.items()]
        if "le" in sample.labels:
            labels.append(("le", sample.labels["le"]))
        key = (alias.name + sample.name.removeprefix(name), tuple(labels))
        sums[key] = sums.get(key, 0.0) + sample.value
    for (sample_name, pairs), value in sums.items():
        other.add_sample(sample_name, dict(pairs), value)
    return other
