"""The page that Prometheus scrapes: valid, complete, and without a line for an unknown value."""

from __future__ import annotations

import math
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from agent.clock import SystemClock
from agent.events.requests import Ended, Picked, Refused
from agent.events.scraping import ScrapeDone
from agent.instruments.hook import Instruments
from agent.scaling.gauges import gauge_set
from agent.signals import LORA_RUNNING, SIGNALS, WAITING, SignalKind, Value
from agent.state.snapshot import Prefix
from exporters.catalog import ALIASES, CATALOG, endpoints, requests
from exporters.gauge import Gauge, GaugeSet
from exporters.prometheus import page
from tests.fakes.views import STALE_AFTER, snapshot, view

ALL_SIGNALS: dict[str, Value] = {
    name: frozenset({"adapter"}) if row.kind is SignalKind.NAMES else row.low for name, row in SIGNALS.items()
}


def lines(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a page, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def rendered(made: GaugeSet) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return lines(page(made, CollectorRegistry())[0])


@given(
    st.lists(
        st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)), max_size=5, unique_by=lambda x: x[0]
    )
)
def test_any_label_value_is_parsed_back_unchanged(rows):
    made = GaugeSet(0.0, [Gauge(endpoints.WAITING, ("pool", name), value, 0.0) for name, value in rows], [])
    expected = {
        (endpoints.WAITING.name, frozenset({("pool", "pool"), ("server", name)})): value for name, value in rows
    }
    assert rendered(made) == expected


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\\nb", "\ud800", "模型", '"} 1\nfake_metric 2', "\x00"])
def test_a_hostile_name_adds_no_line(name):
    made = gauge_set([snapshot(view(name))], 0.0)
    found = rendered(made)
    assert {labels for metric, labels in found if metric == endpoints.WAITING.name} == {
        frozenset({("pool", "pool"), ("server", name.replace("\ud800", "?"))})
    }
    assert {metric for metric, _ in found} <= CATALOG.keys() | ALIASES.keys()


def test_a_stale_gauge_has_no_line_and_is_counted_as_withheld():
    fleet = [snapshot(view("a:1", ALL_SIGNALS, at=0.0))]
    fresh, stale = rendered(gauge_set(fleet, 1.0)), rendered(gauge_set(fleet, STALE_AFTER))
    gone = {name for name, _ in fresh} - {name for name, _ in stale}
    assert {"llm_d_epp_average_queue_size", "inference_pool_average_queue_size", "igw_endpoint_kv_usage_ratio"} <= gone
    assert (
        stale["igw_withheld_gauges", frozenset({("gauge", "llm_d_epp_average_queue_size"), ("reason", "none_fresh")})]
        == 1
    )
    assert stale["llm_d_epp_ready_endpoints", frozenset({("name", "pool")})] == 1


@pytest.mark.parametrize(
    ("alias", "labels"),
    [
        ("inference_pool_average_kv_cache_utilization", {("name", "pool")}),
        ("inference_pool_average_queue_size", {("name", "pool")}),
        ("inference_pool_ready_pods", {("name", "pool")}),
        ("inference_pool_per_pod_queue_size", {("name", "pool"), ("model_server_pod", "a:1")}),
    ],
)
def test_the_older_names_carry_the_same_numbers(alias, labels):
    found = rendered(gauge_set([snapshot(view("a:1", ALL_SIGNALS | {WAITING: 7.0}))], 0.0))
    metric = ALIASES[alias]
    (value,) = (value for (name, _), value in found.items() if name == metric.name)
    assert found[alias, frozenset(labels)] == value


def busy_instruments() -> Instruments:
    instruments = Instruments(SystemClock())
    for model, status in (("base", 503), ("tuned", 400)):
        instruments(Picked("pool", "least-cost", model, "a:1", 100, 64, left_warmest=True, took=0.0001))
        instruments(Refused("pool", model, status, "none_healthy"))
        instruments(Ended("pool", model, "a:1", 1.5, "closed"))
    instruments(ScrapeDone("pool", "a:1", 0.0, 0.003, 73_000, ("kv_blocks",), ()))
    return instruments


def test_an_alias_with_fewer_labels_is_the_sum():
    registry = CollectorRegistry()
    total = Counter("llm_d_epp_request_total", "x", requests.REQUESTS.labels, registry=registry)
    total.labels("m", "m", "tenant-a", "0").inc(2)
    total.labels("m", "m", "tenant-b", "1").inc(3)
    found = lines(page(GaugeSet(0.0, [], []), registry)[0])
    key = ("inference_objective_request_total", frozenset({("model_name", "m"), ("target_model_name", "m")}))
    assert found[key] == 5


def test_an_alias_of_a_histogram_has_its_buckets():
    found = lines(page(GaugeSet(0.0, [], []), busy_instruments().registry)[0])
    labels = {("model_name", "base"), ("target_model_name", "base")}
    assert found["inference_objective_request_duration_seconds_count", frozenset(labels)] == 1
    assert found["inference_objective_request_duration_seconds_bucket", frozenset(labels | {("le", "1.5")})] == 1
    assert found["inference_objective_request_duration_seconds_bucket", frozenset(labels | {("le", "1.25")})] == 0


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_page_has_the_accepted_format(accept):
    made = gauge_set([snapshot(view("a:1", ALL_SIGNALS))], 0.0)
    body, content_type = page(made, busy_instruments().registry, accept)
    assert ("openmetrics" in content_type) is bool(accept)
    assert body.endswith(b"# EOF\n") is bool(accept)


class LibraryCollector(Collector):
    """The gauges as the client library's own families."""

    def __init__(self, gauges: list[Gauge]) -> None:
        self._gauges = gauges

    def collect(self):
        for name, metric in CATALOG.items():
            rows = [gauge for gauge in self._gauges if gauge.metric.name == name]
            family = Metric(name.removesuffix("_total"), metric.help, metric.type)
            for gauge in rows:
                family.add_sample(name, dict(zip(metric.labels, gauge.labels, strict=True)), gauge.value)
            if rows:
                yield family


PLAIN = [metric for metric in CATALOG.values() if metric.origin == "state" and not metric.aliases]


@pytest.mark.parametrize(
    "accept",
    ["", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text;version=1.0.0;escaping=values"],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PLAIN),
            st.lists(st.text(st.characters(codec="utf-8")), min_size=8, max_size=8),
            st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10, 10**9),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_gauge_is_written_as_the_client_library_writes_it(accept, rows):
    made = [Gauge(metric, tuple(values[: len(metric.labels)]), value, 0.0) for metric, values, value in rows]
    body, content_type = page(GaugeSet(0.0, made, []), CollectorRegistry(), accept)
    assert "values" not in content_type
    assert body == choose_encoder(content_type)[0](LibraryCollector(made))


def test_promtool_accepts_the_whole_page():
    fleet = snapshot(view("a:1", ALL_SIGNALS)._replace(prefix=Prefix(2.0, 1.0)))
    body, _ = page(gauge_set([fleet], 0.0), busy_instruments().registry)
    checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    complaints = checked.stderr.decode().splitlines()
    # The linter takes the `d` of the reference's prefix for an abbreviated "day".
    assert [line for line in complaints if not (line.startswith("llm_d_epp_") and "abbreviated units" in line)] == []
    assert checked.stdout == b""


def test_every_value_on_the_page_is_a_number():
    made = gauge_set([snapshot(view("a:1", {LORA_RUNNING: frozenset()}))], 0.0)
    assert all(map(math.isfinite, lines(page(made, busy_instruments().registry)[0]).values()))
