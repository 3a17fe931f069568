"""The Prometheus exporter: the latest gauge set and the agent's own registry, rendered when the page is read.

A withheld gauge has no line, so that Prometheus marks its series stale within one scrape and a query returns nothing
instead of the last number. Lines carry no timestamps, because series with timestamps get no stale marker; ages are
metrics of their own. Aliases are written from the same samples as their metrics. The `_created` samples of the client
library are left out: they would double the number of series.

Gauges are written here and not by the client library, which takes ten times as long for a line: a fleet of a thousand
endpoints has thirty thousand lines. A test compares the output of both.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from exporters.catalog import CATALOG
from exporters.catalog.metric import Alias
from exporters.gauge import Distribution, Gauge, GaugeSet

# The escaping of special characters in names that a scraper accepts; our names have none.
_ESCAPING: Final = re.compile(r";\s*escaping=[^;,]*")
_OPENMETRICS: Final = "application/openmetrics-text"
# From here on Go's format has an exponent where Python's has none.
_PLAIN_BELOW: Final = 1e6

Series = Iterable[tuple[tuple[str, ...], float]]  # label values and number of each


class PrometheusExporter:
    """Serves the latest gauge set as a page. It sends nothing, so `run` only waits."""

    name = "prometheus"

    def __init__(self) -> None:
        self._latest = GaugeSet(0.0, (), ())

    def publish(self, gauges: GaugeSet) -> None:
        """Replace the set that the next page shows."""
        self._latest = gauges

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.Event().wait()

    def page(self, own: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
        """The page of the latest set, as `page` renders it."""
        return page(self._latest, own, accept)


def page(gauges: GaugeSet, own: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The whole page and its content type, in the format that the scraper's `Accept` header prefers.

    Its only mutable input are the metrics of `own`, which have locks: it may run in another thread.
    """
    encode, content_type = choose_encoder(_ESCAPING.sub("", accept))
    writer = _Writer(openmetrics=content_type.startswith(_OPENMETRICS))
    state = [*writer.families(gauges.gauges), *writer.histograms(gauges.distributions)]
    return b"".join([*state, encode(_Page(own))]), content_type


def clean(text: str) -> str:
    """A label value that can be encoded as UTF-8: a lone surrogate becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Writer:
    """Writes gauges in the client library's format, one metric family at a time."""

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._values: dict[str, str] = {}  # label value -> escaped
        self._labels: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}  # names -> values -> text

    def families(self, gauges: Iterable[Gauge]) -> Iterator[bytes]:
        """A family for each metric that has a value, and one for each of its aliases, in the catalogue's order.

        Metrics that the catalogue lacks are left out.
        """
        found: dict[str, list[Gauge]] = {}
        for gauge in gauges:
            found.setdefault(gauge.metric.name, []).append(gauge)
        for name, metric in CATALOG.items():
            rows = found.get(name)
            if rows is None:
                continue
            samples = [(gauge.labels, gauge.value) for gauge in rows]
            yield self._family(name, metric.type, metric.help, metric.labels, samples)
            for alias in metric.aliases:
                names, sums = tuple(alias.labels), _summed(metric.labels, alias, samples)
                yield self._family(alias.name, metric.type, f"The same as {name}", names, sums)

    def histograms(self, distributions: Iterable[Distribution]) -> Iterator[bytes]:
        """A family for each histogram of the catalogue that has a value."""
        found: dict[str, list[Distribution]] = {}
        for one in distributions:
            if one.metric.name in CATALOG:
                found.setdefault(one.metric.name, []).append(one)
        for name, rows in found.items():
            lines = [f"# HELP {name} {rows[0].metric.help}\n# TYPE {name} histogram\n"]
            for row in rows:
                names = (*row.metric.labels, "le")
                order = sorted(range(len(names)), key=names.__getitem__)
                for bound, count in zip((*row.bounds, float("inf")), (*row.counts, row.total), strict=True):
                    labels = self._written(names, (*row.labels, _large(bound)), order)
                    lines.append(f"{name}_bucket{labels} {_large(count)}\n")
                labels = self._written(
                    row.metric.labels, row.labels, order=sorted(range(len(names) - 1), key=names.__getitem__)
                )
                lines.append(f"{name}_count{labels} {_large(row.total)}\n{name}_sum{labels} {_large(row.sum)}\n")
            yield "".join(lines).encode()

    def _family(self, name: str, kind: str, help: str, names: tuple[str, ...], rows: Series) -> bytes:
        text = help.replace("\\", r"\\").replace("\n", r"\n")
        family = name
        if self._openmetrics:
            text = text.replace('"', r"\"")
            family = name.removesuffix("_total")
        known = self._labels.setdefault(names, {})
        order = sorted(range(len(names)), key=names.__getitem__)
        lines = [f"# HELP {family} {text}\n# TYPE {family} {kind}\n"]
        for values, number in rows:
            labels = known.get(values)
            if labels is None:
                labels = known[values] = self._written(names, values, order)
            value = float(number)
            lines.append(f"{name}{labels} {repr(value) if value < _PLAIN_BELOW else _large(value)}\n")
        return "".join(lines).encode()

    def _written(self, names: tuple[str, ...], values: tuple[str, ...], order: Sequence[int]) -> str:
        if not names:
            return ""
        return "{" + ",".join(f'{names[place]}="{self._value(values[place])}"' for place in order) + "}"

    def _value(self, text: str) -> str:
        written = self._values.get(text)
        if written is None:
            plain = clean(text).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
            written = self._values[text] = plain
        return written


def _large(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _summed(labels: tuple[str, ...], alias: Alias, rows: Series) -> Series:
    """The rows with the alias's labels, summed over the labels that the alias lacks."""
    places = [labels.index(ours) for ours in alias.labels.values()]
    sums: dict[tuple[str, ...], float] = {}
    for values, number in rows:
        key = tuple([values[place] for place in places])
        sums[key] = sums.get(key, 0.0) + number
    return sums.items()


class _Page:
    """The agent's own registry with the aliases of its metrics, for the encoders of prometheus_client."""

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own

    def collect(self) -> Iterator[Family]:
        """Every family of the registry, followed by its aliases."""
        for family in self._own.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
            yield from _aliases(family)


def _aliases(family: Family) -> Iterable[Family]:
    """The family under its metric's other names."""
    name = family.name + "_total" if family.type == "counter" else family.name
    metric = CATALOG.get(name)
    return [_renamed(family, name, alias) for alias in metric.aliases] if metric is not None else ()


def _renamed(family: Family, name: str, alias: Alias) -> Family:
    """The family under the alias: labels renamed, and summed over the labels that the alias lacks."""
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
