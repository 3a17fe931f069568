"""The Prometheus page: the latest gauge set beside the agent's own registry, rendered only when somebody reads it.

A withheld gauge has no line at all, so that Prometheus marks its series as gone within one scrape and a query over it
returns nothing instead of the last number. Lines carry no time stamps, because Prometheus gives a series with time
stamps no such mark; ages are metrics of their own. Aliases are written from the same samples as the metrics that they
stand for, and the `_created` samples of the client library are left out: nobody asked for twice the series.

The gauges are written here and not by the client library, which spends ten times as long on a line: a fleet of a
thousand endpoints has thirty thousand of them. What both write is the same, and tested to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from exporters.catalog import CATALOG
from exporters.gauge import Distribution, Gauge, GaugeSet
from exporters.metric import Alias

# How a reader would have odd characters in names written: ours have none.
_ESCAPING: Final = re.compile(r";\s*escaping=[^;,]*")
_OPENMETRICS: Final = "application/openmetrics-text"
# From here on Go writes an exponent where Python does not.
_PLAIN_BELOW: Final = 1e6

Rows = Iterable[tuple[tuple[str, ...], float]]


def page(gauges: GaugeSet, own: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The whole page and its content type, in the format that the reader's `Accept` header prefers.

    It touches nothing that changes but the metrics of `own`, which lock themselves: it may run in another thread.
    """
    encode, content_type = choose_encoder(_ESCAPING.sub("", accept))
    writer = _Writer(openmetrics=content_type.startswith(_OPENMETRICS))
    state = [*writer.families(gauges.gauges), *writer.histograms(gauges.distributions)]
    return b"".join([*state, encode(_Page(own))]), content_type


def clean(text: str) -> str:
    """A label's value that can be written as UTF-8: half of a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Writer:
    """Writes gauges as the client library would, one family at a time."""

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._values: dict[str, str] = {}  # a label's value -> as it is written
        self._labels: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}  # names -> values -> as they are written

    def families(self, gauges: Iterable[Gauge]) -> Iterator[bytes]:
        """One family for each metric that has a value, and one for each of its aliases, in the catalogue's order."""
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
        """One family for each histogram that some server tells."""
        found: dict[str, list[Distribution]] = {}
        for one in distributions:
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

    def _family(self, name: str, kind: str, help: str, names: tuple[str, ...], rows: Rows) -> bytes:
        told = help.replace("\\", r"\\").replace("\n", r"\n")
        family = name
        if self._openmetrics:
            told = told.replace('"', r"\"")
            family = name.removesuffix("_total")
        known = self._labels.setdefault(names, {})
        order = sorted(range(len(names)), key=names.__getitem__)
        lines = [f"# HELP {family} {told}\n# TYPE {family} {kind}\n"]
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


def _summed(labels: tuple[str, ...], alias: Alias, rows: Rows) -> Rows:
    """The rows with the alias' labels, summed over those that it has not."""
    places = [labels.index(ours) for ours in alias.labels.values()]
    sums: dict[tuple[str, ...], float] = {}
    for values, number in rows:
        key = tuple([values[place] for place in places])
        sums[key] = sums.get(key, 0.0) + number
    return sums.items()


class _Page:
    """The agent's own registry with the aliases of its metrics, as the encoders of prometheus_client take it."""

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own

    def collect(self) -> Iterator[Family]:
        """Every family of the registry, and the same under its metric's other names."""
        for family in self._own.collect():
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
