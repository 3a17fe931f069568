"""The contract of every registered exporter: it exports the latest set, no withheld gauge, and never blocks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agent.scaling.gauges import gauge_set
from agent.signals import KV_USAGE, RUNNING, WAITING
from exporters import EXPORTERS, make_exporter
from exporters.catalog import ALIASES, CATALOG, endpoints, histograms
from exporters.catalog.metric import Metric
from exporters.exporter import Exporter
from exporters.gauge import Distribution, Gauge, GaugeSet, Withheld
from exporters.prometheus import PrometheusExporter
from tests.fakes.views import STALE_AFTER, snapshot, view

# The output of an exporter: metric name and labels -> value.
Exported = dict[tuple[str, frozenset[tuple[str, str]]], float]


def of_prometheus(exporter: Exporter) -> Exported:
    body, _ = cast(PrometheusExporter, exporter).page(CollectorRegistry())
    families = text_string_to_metric_families(body.decode())
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


# How a test reads the output of an exporter; a new exporter adds its line.
OUTPUTS: Mapping[str, Callable[[Exporter], Exported]] = {"prometheus": of_prometheus}
EVERY_EXPORTER = pytest.mark.parametrize("name", EXPORTERS)
UNKNOWN = Metric("igw_unknown_ratio", "gauge", "ratio", ("pool",), "state", "x")
FLEET = [snapshot(view("a:1", {WAITING: 3.0, RUNNING: 2.0, KV_USAGE: 0.4}), view("b:1", at=-STALE_AFTER))]


def test_every_exporter_has_an_output() -> None:
    assert OUTPUTS.keys() == EXPORTERS.keys()


@EVERY_EXPORTER
def test_published_gauges_are_exported_with_their_labels_and_withheld_ones_are_not(name: str) -> None:
    exporter = make_exporter(name)
    made = gauge_set(FLEET, 0.0)
    exporter.publish(made)
    exported = OUTPUTS[name](exporter)
    for gauge in made.gauges:
        labels = frozenset(zip(gauge.metric.labels, gauge.labels, strict=True))
        assert exported[gauge.metric.name, labels] == pytest.approx(gauge.value)
    assert made.withheld
    for row in made.withheld:
        assert (row.metric.name, frozenset(zip(row.metric.labels, row.labels, strict=True))) not in exported


@EVERY_EXPORTER
def test_a_gauge_that_is_withheld_later_disappears(name: str) -> None:
    exporter = make_exporter(name)
    labels = ("pool", "a:1")
    exporter.publish(GaugeSet(0.0, [Gauge(endpoints.WAITING, labels, 3.0, 0.0)], []))
    assert OUTPUTS[name](exporter)
    exporter.publish(GaugeSet(9.0, [], [Withheld(endpoints.WAITING, labels, "stale")]))
    assert OUTPUTS[name](exporter) == {}


@EVERY_EXPORTER
def test_publishing_a_set_twice_has_no_further_effect(name: str) -> None:
    once, twice = make_exporter(name), make_exporter(name)
    made = gauge_set(FLEET, 0.0)
    once.publish(made)
    twice.publish(made)
    twice.publish(made)
    assert OUTPUTS[name](once) == OUTPUTS[name](twice)


@EVERY_EXPORTER
def test_only_the_latest_set_is_exported(name: str) -> None:
    exporter, direct = make_exporter(name), make_exporter(name)
    exporter.publish(gauge_set(FLEET, 0.0))
    latest = gauge_set([snapshot(view("c:1", {WAITING: 1.0}))], 1.0)
    exporter.publish(latest)
    direct.publish(latest)
    assert OUTPUTS[name](exporter) == OUTPUTS[name](direct)


@EVERY_EXPORTER
def test_a_metric_that_the_catalogue_lacks_is_not_exported(name: str) -> None:
    exporter = make_exporter(name)
    histogram = Metric("igw_unknown_seconds", "histogram", "seconds", ("pool",), "state", "x")
    known = Distribution(histograms.FIRST_TOKEN, ("pool", "a:1"), (0.1,), (1.0,), 2.0, 3.0, 0.0)
    exporter.publish(
        GaugeSet(
            0.0,
            [Gauge(UNKNOWN, ("pool",), 0.5, 0.0), Gauge(endpoints.KV, ("pool", "a:1"), 0.5, 0.0)],
            [],
            [known, known._replace(metric=histogram, labels=("pool",))],
        )
    )
    families = {sample.removesuffix("_bucket").removesuffix("_count") for sample, _ in OUTPUTS[name](exporter)}
    families = {sample.removesuffix("_sum") for sample in families}
    assert families == {endpoints.KV.name, histograms.FIRST_TOKEN.name}
    assert families <= CATALOG.keys() | ALIASES.keys()


@EVERY_EXPORTER
async def test_publish_does_not_wait_for_a_run_that_hangs(name: str) -> None:
    exporter = make_exporter(name)
    running = asyncio.get_running_loop().create_task(exporter.run())
    await asyncio.sleep(0)
    exporter.publish(gauge_set(FLEET, 0.0))  # on the event loop's thread: had it to wait, it would never return
    exporter.publish(gauge_set(FLEET, 1.0))
    assert OUTPUTS[name](exporter)
    assert not running.done()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
