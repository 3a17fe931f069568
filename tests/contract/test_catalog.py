"""The catalogue, the page and docs/reference/metrics.md agree."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import events
from agent.accelerators.combine import DeviceSet, combine
from agent.accelerators.device import Device
from agent.accelerators.faults import faults_of
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.events import Event
from agent.events.accelerators import DeviceHealthChanged, DeviceLost, DevicesFailed, DevicesRead
from agent.events.access import AccessChecked, TokenFileProblem
from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.events.exchange import Exchange, Slo, TokenUsage
from agent.events.flow import HELD, DispatchRun, FlowDecided, HeldAtZero, RequestHeld, RequestSubmitted
from agent.events.keda import PoolActivated, ScalerCalled, ScalerStreams
from agent.events.kubernetes import KubernetesWriteFailed, KubernetesWritten, ObjectProblemFound, ObjectProblemSolved
from agent.events.leases import LeaseChanged, LeaseFailed
from agent.events.metrics_api import MetricsAccessChecked, MetricsApiProblem, MetricsRead
from agent.events.objectives import FlowHeaderIgnored, UnknownObjective
from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.events.replicas import PeerChanged, PeerFailed, PeerRefused, PeersCounted
from agent.events.requests import (
    Abandoned,
    Completed,
    EncodedBody,
    Ended,
    EndpointEjected,
    NotFollowed,
    Picked,
    Refused,
    Reported,
    Responded,
    StreamBroken,
    UnknownLogEntry,
    Unreported,
)
from agent.events.scraping import (
    BudgetChanged,
    BudgetExceeded,
    CacheEmptied,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.events.tls import CertificateInvalid, CertificateLoaded, CertificateNotLoaded, HandshakeFailed
from agent.flow.room import Room
from agent.instruments.hook import Instruments
from agent.scaling.gauges import gauge_set
from agent.signals import HISTOGRAMS, SIGNALS, Histogram, RefusedValue, SignalKind, Value
from agent.state.counter_rates import COUNTERS, Counters
from agent.state.devices import ExporterKey, ExporterView
from agent.state.identity import Identity
from agent.state.snapshot import Prefix
from agent.state.source import SourceStatus
from exporters.catalog import ALIASES, CATALOG
from exporters.catalog.metric import Metric
from exporters.gauge import REASONS
from exporters.prometheus import page
from tests.fakes.autoscalers import autoscaler_report
from tests.fakes.clock import ManualClock
from tests.fakes.demands import demand_report
from tests.fakes.flows import band, caller, flow_report
from tests.fakes.views import snapshot, view

# Set on every target by Prometheus, by the Prometheus operator's ServiceMonitor and PodMonitor, or by the relabelling
# that is usual with Kubernetes service discovery.
TARGET_LABELS = frozenset("container endpoint instance job namespace node pod service".split())
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

# One event of each type, so that every metric of events has a series.
EVERYTHING: tuple[Event, ...] = (
    Reported("pool", "a:1", "several"),
    EncodedBody("pool", "gzip", "read"),
    Picked("pool", "least-cost", "m", "a:1", 100, 64, left_warmest=True, took=0.0001),
    Refused("pool", "m", 503, "none_healthy"),
    RequestHeld("pool", 0),
    RequestSubmitted("pool", 0, "a", HELD, 0.0001),
    FlowDecided("pool", 0, "planned", 1.0, "a", "m", "", 100),
    DispatchRun("pool", 0.0001),
    HeldAtZero("pool", 1),
    Ended("pool", "m", "a:1", 1.0, "closed"),
    Abandoned("pool", "body"),
    Responded("pool", "a:1", "ok"),
    NotFollowed("pool", "a:1", "b:1"),
    EndpointEjected("pool", "a:1", "failure_ratio", "server_error", 1, 0.5, 2.0, 1),
    SourceProblemFound("pool", "NoMatchingPods", "it selects no pod"),
    SourceProblemSolved("pool", "NoMatchingPods"),
    TaskFailed("discovery/pool", "it returned", 0.5),
    StreamBroken("pool", "protocol", "x"),
    ScrapeDone("pool", "a:1", 0.0, 0.01, 1000, ("kv_blocks",), (RefusedValue("kv_usage_ratio", "not_finite", "NaN"),)),
    ScrapeFailed("pool", "a:1", 0.0, 0.01, "timeout", "x"),
    DevicesRead("dcgm", "x:1", 0.0, 0.01, 1000, (), (RefusedValue("accelerator_power_watts", "not_finite", "NaN"),)),
    DevicesFailed("dcgm", "x:1", 0.0, 0.01, "timeout", "x"),
    DeviceHealthChanged("dcgm", "x:1", "GPU-a", "accelerator_xid", "XID 79"),
    DeviceLost("dcgm", "x:1", "default", "a:1", "GPU-a", lost=True),
    HealthChanged("pool", "a:1", "unknown", "healthy", ""),
    HealthPathFailed("pool", "a:1", 1.0, 0.5, "health_timeout", "no answer"),
    ServerRestarted("pool", "a:1", "new_start_time"),
    CacheEmptied("pool", "a:1", "asleep"),
    FlowHeaderIgnored("pool", "x-llm-d-inference-ttl", "not_positive"),
    UnknownObjective("pool", "typo", first=True),
    KubernetesWritten("event"),
    KubernetesWriteFailed("event", "forbidden", "InferencePool ns/llama", "x"),
    ObjectProblemFound("InferenceObjective", "InferenceObjective ns/chat", "PoolNotFound", "x"),
    ObjectProblemSolved("InferenceObjective", "InferenceObjective ns/chat", "PoolNotFound"),
    Reloaded(ok=True, detail="x"),
    BudgetChanged(),
    ScrapesPaced(1.0, 1, 2.0, 3, {"scrapes": 0.5}),
    BudgetExceeded("scrapes", 4, 3.0, 2.0),
    WatcherDropped("slow"),
    AccessChecked("token", "allowed"),
    TokenFileProblem("line 1"),
    MetricsRead("ok", "", "custom", 0.5),
    MetricsAccessChecked("front_proxy", "allowed"),
    MetricsApiProblem("x"),
    ScalerCalled("IsActive", "pool", "llm/chat", "ok", ""),
    PoolActivated("pool", 1, 1),
    ScalerStreams(1),
    CertificateLoaded("ext_proc", "tls.crt", 1.0, 2.0),
    CertificateNotLoaded("ext_proc", "x"),
    Completed("pool", "m", "ok", 200, Exchange(2.0, 0.5, 1.9, 100, 200, True, TokenUsage(10, 5, 2)), slo=Slo(0.5, 0.1)),
    Completed("pool", "m", "ok", 200, Exchange(2.0, 0.5, 1.9, 100, 200, False)),
    UnknownLogEntry("pool"),
    Unreported("pool"),
    CertificateInvalid("ext_proc", "x"),
    HandshakeFailed("ext_proc", "version", "x", "192.0.2.1"),
    LeaseChanged("llm/agent", held=True, holder="a_1", released=False),
    LeaseFailed("llm/agent", "forbidden", "x"),
    PeerChanged("10.0.1.2:9003", "igw-1", "silent", "timeout", "x", {"silent": 1}),
    PeerFailed("10.0.1.2:9003", "timeout"),
    PeerRefused("igw-1", "version", "x"),
    PeersCounted({"reporting": 1}),
)


@pytest.fixture(scope="module")
def exported() -> dict[str, tuple[str, frozenset[str]]]:
    """Metric name -> type and labels, on the page of a pool that reports all signals and one that reports none."""
    instruments = Instruments(ManualClock())
    for event in EVERYTHING:
        instruments(event)
    values: dict[str, Value] = {
        name: frozenset({"x"}) if row.kind is SignalKind.NAMES else max(1.0, row.low) for name, row in SIGNALS.items()
    }
    histograms = dict.fromkeys(HISTOGRAMS, Histogram((0.1, 1.0), (1.0, 2.0), 3.0, 4.5))
    before = Counters(-10.0, tuple(0.0 for _ in COUNTERS))
    faulty = Device("GPU-a", "GPU-a", {signal: DEVICE_SIGNALS[signal].low for signal in COMBINED}, xids=(79,))
    devices = combine("dcgm", "x:1", DeviceSet([faulty]), 0.0, 15.0, faults_of(faulty))
    exporter = ExporterView(ExporterKey("dcgm", "x:1"), 15.0, 0.0, 0, "", {"a:1": (faulty,)}, (), (), devices.faults)
    seeing = snapshot(
        view("a:1", values)._replace(
            prefix=Prefix(2.0, 1.0),
            accelerators=(devices,),
            before=before,
            histograms=histograms,
            identity=Identity("llm/chat-0", "n1"),
        ),
        source=SourceStatus("InferencePool llm/chat", current=True, known_at=None),
    )
    blind = snapshot(view("b:1", {}), pool="blind")
    shed = band(-1, caller("a"), max_requests=10)._replace(max_bytes=1000.0)
    held = flow_report(shed, rooms=[Room(1.0)], max_requests=10, max_bytes=1000)
    body, _ = page(
        gauge_set([seeing, blind], 0.0, [exporter], (), [held], [demand_report()], [autoscaler_report()]),
        instruments.registry,
    )
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        name = family.name + "_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found[name] = (family.type, labels)
    return found


def test_every_type_of_event_is_covered():
    assert {type(event) for event in EVERYTHING} == set(typing.get_args(events.Event))


def test_every_exported_metric_is_in_the_catalogue_with_its_type_and_labels(exported):
    for name, (type_, labels) in exported.items():
        metric = CATALOG.get(name) or ALIASES[name]
        expected = set(metric.labels)
        if name in ALIASES:
            (alias,) = (each for each in metric.aliases if each.name == name)
            expected = set(alias.labels)
        assert (type_, labels) == (metric.type, expected), name


def test_everything_in_the_catalogue_is_exported(exported):
    assert exported.keys() == CATALOG.keys() | ALIASES.keys()


def test_every_name_is_that_of_one_metric():
    names = [*CATALOG, *(alias.name for metric in CATALOG.values() for alias in metric.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)
def test_a_name_shows_its_type_and_unit(metric: Metric):
    assert re.fullmatch(r"(igw|llm_d_epp|process)_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") is (metric.type == "counter")
    # The buckets of histograms of the state are the servers' own.
    assert bool(metric.buckets) is (metric.type == "histogram" and metric.origin != "state")
    assert metric.help
    assert not metric.help.endswith(".")
    if metric.name.startswith("igw_") and metric.unit in {"seconds", "bytes", "ratio", "tokens"}:
        assert f"_{metric.unit}" in metric.name


def test_no_label_is_one_that_a_scraper_or_service_discovery_sets():
    """Prometheus would rename ours to `exported_...`, and every query that selects it would be empty."""
    for metric in CATALOG.values():
        for labels in (metric.labels, *(tuple(alias.labels) for alias in metric.aliases)):
            assert not set(labels) & TARGET_LABELS, metric.name
            assert not any(label.startswith(("exported_", "__")) for label in labels), metric.name


def test_an_alias_takes_its_labels_from_its_metric():
    for metric in CATALOG.values():
        for alias in metric.aliases:
            assert set(alias.labels.values()) <= set(metric.labels)


def row(metric: Metric) -> str:
    """The metric's line in the document."""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    also = "".join(f"; also `{alias.name}` ({', '.join(alias.labels)})" for alias in metric.aliases)
    return f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {metric.help}{also} |"


@pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)
def test_the_document_has_the_metric_s_row(metric: Metric):
    assert row(metric) in DOCUMENT.read_text().splitlines(), f"metrics.md lacks this line:\n{row(metric)}"


def test_the_document_has_exactly_the_metrics_of_the_catalogue_in_its_order():
    named = re.findall(r"^\| `((?:igw|llm_d_epp|process)_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert named == list(CATALOG)


def test_the_document_explains_every_reason_for_withholding_a_gauge():
    text = DOCUMENT.read_text()
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text
