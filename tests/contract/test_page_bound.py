"""The number of series and bytes of `/metrics` has a bound that follows from the catalogue and the configuration."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from agent import signals
from agent.accelerators.faults import FAULTS
from agent.accelerators.table import DEVICE_SIGNALS
from agent.engines.report import REASONS as REPORT_REASONS
from agent.events.discovery import SourceProblemFound
from agent.events.flow import HELD, FlowDecided, RequestHeld, RequestSubmitted
from agent.events.objectives import FlowHeaderIgnored, UnknownObjective
from agent.events.requests import Ended, Picked, Refused
from agent.events.scraping import HealthChanged, ScrapeDone, ScrapeFailed
from agent.events.tls import REASONS as TLS_REASONS
from agent.exposition.page import MAX_SERIES
from agent.flow.room import DETECTORS
from agent.instruments.caller_labels import CALLER_PAIRS, PRIORITIES
from agent.instruments.flow import COMBINATIONS, FIELD_OUTCOMES
from agent.instruments.hook import Instruments
from agent.instruments.label_limiter import NAME_LENGTH
from agent.instruments.request_series import CODES, MODEL_NAMES, REWRITTEN_PAIRS, UNPINNED_MODEL_NAMES
from agent.instruments.request_series import COMBINATIONS as REQUEST_COMBINATIONS
from agent.instruments.requests import SERVER_NAMES
from agent.kube.authn.access import RESULTS as ACCESS_RESULTS
from agent.kube.authn.identity import METHODS
from agent.kube.pool_endpoints import SOURCE_REASONS
from agent.kube.problem_reasons import REASONS as PROBLEM_REASONS
from agent.requests.control_headers import CONTROL_HEADERS
from agent.requests.flow_headers import REASONS as HEADER_REASONS
from agent.requests.rejections import REJECTIONS
from agent.requests.response import RESULTS
from agent.requests.unpack import ENCODINGS
from agent.scaling.autoscalers import MAX_PER_POOL, PoolToScale, reports
from agent.scaling.flow import MAX_BANDS, MAX_QUEUES
from agent.scaling.gauges import gauge_set
from agent.scaling.needs import NEEDS
from agent.scaling.rollup import POOL_SIGNALS
from agent.scrape.reasons import REASONS as SCRAPE_REASONS
from agent.serve.keda.messages import RPCS
from agent.serve.keda.service import RESULTS as KEDA_RESULTS
from agent.serve.metrics_api.status import RESULTS as API_RESULTS
from agent.signals import RefusedValue
from agent.state.health import HEALTH_REASONS, Health
from agent.state.identity import Identity
from agent.state.replicas import REASONS as PEER_REASONS
from agent.state.source import SourceStatus
from exporters.catalog import CATALOG
from exporters.catalog import flow as flow_rows
from exporters.catalog.accelerators import ROWS as ACCELERATOR_ROWS
from exporters.catalog.histograms import ROWS as HISTOGRAM_ROWS
from exporters.catalog.metric import Metric
from exporters.gauge import REASONS as WITHHELD_REASONS
from exporters.prometheus import page
from tests.fakes.autoscalers import autoscaler
from tests.fakes.clock import ManualClock
from tests.fakes.flows import band, caller, flow_report
from tests.fakes.known_names import ScriptedNames
from tests.fakes.views import IDLE, snapshot, view

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

# Values of labels that the code chooses, each list closed. A reason that is not listed here is one word of the code.
WORDS: Final = 16
VALUES: Final = {
    "result": 2, "activity": 2, "resource": 2, "stage": 8, "match": 3, "gauge": len(CATALOG), "task": 64,
    "state": len(Health), "error_code": len({row.status for row in REJECTIONS.values()}), "engine": 1,
    "method": len(METHODS), "signal": len(signals.SIGNALS) + len(DEVICE_SIGNALS), "encoding": len(ENCODINGS),
    "kind": 5, "what": 3, "lease": 1, "need": len(NEEDS), "change": 3, "port": 4, "api": 2,
    "streaming": 2, "objective": 2, "code": len(CODES) + 1,
    "rpc": len(RPCS) + 2,  # with a connection, and a method that does not exist
    "header": len([header for header in CONTROL_HEADERS if header.terms]) + 1,
}  # fmt: skip
RESULT_VALUES: Final = {
    "igw_responses_total": len(RESULTS),
    "igw_request_results_total": len(RESULTS),
    "igw_slo_requests_total": 3,
    "igw_encoded_bodies_total": 3,
    "igw_kubernetes_writes_total": 4,
    "igw_access_checks_total": len(ACCESS_RESULTS),
    "igw_metrics_api_access_checks_total": len(ACCESS_RESULTS),
    "igw_metrics_api_requests_total": len(API_RESULTS),
    "igw_keda_calls_total": len(KEDA_RESULTS),
}
REASONS: Final = {
    "igw_scrapes_total": len(SCRAPE_REASONS) + 1, "igw_health_path_failures_total": len(HEALTH_REASONS),
    "igw_load_reports_total": len(REPORT_REASONS) + WORDS, "igw_withheld_gauges": len(WITHHELD_REASONS),
    "igw_accelerator_scrapes_total": len(SCRAPE_REASONS) + 2, "igw_accelerator_health_changes_total": len(FAULTS) + 1,
    "igw_tls_handshake_failures_total": len(TLS_REASONS),
    "igw_kubernetes_object_problems": len(PROBLEM_REASONS),
    "igw_kubernetes_object_problems_found_total": len(PROBLEM_REASONS),
    "igw_discovery_problems": len(SOURCE_REASONS), "igw_discovery_problems_total": len(SOURCE_REASONS),
    "igw_replica_peer_failures_total": len(PEER_REASONS), "igw_replica_callers_refused_total": 7,
    "igw_flow_headers_ignored_total": len(HEADER_REASONS),
    "igw_requests_rejected_total": 1,  # one for each pair of status and reason
}  # fmt: skip
# Labels of which each endpoint, exporter or device has one value at a time.
ONE_AT_A_TIME: Final = {
    "igw_endpoint_health_info": {"engine", "state", "reason"},
    "igw_endpoint_info": {"server_namespace", "server_pod", "server_node"},
    "igw_endpoint_prefill_rate_tokens_per_second": {"source"},
    "igw_demand_capacity_requests_per_second": {"source"},
    "igw_accelerator_unhealthy": {"source", "exporter", "reason"},
}
# A sum or a bucket has a number of at most 24 characters; each label value is at most NAME_LENGTH characters of at most
# four bytes, and an escaped character has at most two.
NUMBER_BYTES: Final = 24
VALUE_BYTES: Final = 4 * NAME_LENGTH


class FleetSize(NamedTuple):
    """What the configuration and discovery give: numbers of pools, of their endpoints, of declared models and
    callers."""

    pools: int
    endpoints: int
    declared: int = 0
    callers: int = 0
    sources: int = 0
    exporters: int = 0
    devices: int = 0

    @property
    def model_pairs(self) -> int:
        """Pairs of `model_name` and `target_model_name`."""
        own = self.declared + MODEL_NAMES + UNPINNED_MODEL_NAMES
        return 2 * own + REWRITTEN_PAIRS + 2  # with itself, with `other`; `other` alone, and no name


def children(metric: Metric, size: FleetSize) -> int:
    """The largest number of combinations of label values."""
    if metric in set(flow_rows.ROWS):
        return flow_children(metric, size)
    labels = set(metric.labels) - ONE_AT_A_TIME.get(metric.name, set())
    if "model_name" in labels:
        labels -= {"model_name", "target_model_name", "fairness_id", "priority"}
        declared = (size.callers + 2) * (PRIORITIES + 1)
        count = 2 * size.model_pairs + REQUEST_COMBINATIONS + declared
    elif labels & {"server", "model_server_endpoint"}:
        labels -= {"server", "model_server_endpoint", "pool", "name", "profile"}
        count = size.endpoints if metric.origin == "state" else (SERVER_NAMES + 1) * size.pools
    elif "device" in labels:
        labels -= {"device"}
        count = size.devices
    elif labels & {"pool", "name", "inference_pool"}:
        labels -= {"pool", "name", "inference_pool"}
        count = size.pools
    else:
        count = 1
    if "hpa" in labels:
        labels -= {"hpa", "hpa_namespace"}
        count *= MAX_PER_POOL
    if "exporter" in labels:
        labels -= {"exporter", "source"}
        count *= size.exporters
    if metric.name == "igw_requests_rejected_total":
        labels -= {"status"}
        count *= len(REJECTIONS)
    for label in labels:
        if label == "source":
            count *= size.sources
        elif label == "result" and metric.name in RESULT_VALUES:
            count *= RESULT_VALUES[metric.name]
        elif label == "reason":
            count *= REASONS.get(metric.name, WORDS)
        elif label == "signal" and metric.origin == "state":
            count *= len(POOL_SIGNALS)
        else:
            assert label in VALUES, f"add the number of values of the label {label} of {metric.name} to VALUES"
            count *= VALUES[label]
    return count


def flow_children(metric: Metric, size: FleetSize) -> int:
    """The same for the metrics of flow control."""
    labels = set(metric.labels)
    pools = size.pools if labels & {"pool", "inference_pool"} else 1
    state = metric.origin == "state"
    bands = (MAX_BANDS if state else PRIORITIES) + 1
    declared = (size.callers + 2) * bands  # with `default-flow` and `other`
    outcomes = 1
    if "outcome" in labels:
        ours = metric in {flow_rows.REQUESTS, flow_rows.WAIT}
        names = {name for both in FIELD_OUTCOMES.values() for name in both} | {"NotYetFinalized", "RejectedOther"}
        outcomes = len(FIELD_OUTCOMES) if ours else len(names)
    if metric in {flow_rows.QUEUE_SIZE, flow_rows.QUEUE_BYTES}:
        return pools * (MAX_QUEUES + bands + 1)
    if metric is flow_rows.OLDEST_OF_CALLER:
        return pools * MAX_QUEUES
    if metric is flow_rows.QUEUE_DURATION:
        return (COMBINATIONS + pools * declared) * outcomes
    if "fairness_id" in labels:
        return pools * (CALLER_PAIRS + declared) * outcomes
    if "detector" in labels:
        return len(DETECTORS)
    return pools * outcomes * (bands if "priority" in labels else 1)


def series(metric: Metric, size: FleetSize) -> int:
    """The largest number of lines of this metric and its aliases."""
    if metric.type != "histogram":
        lines = 1
    elif metric.buckets:
        lines = len(metric.buckets) + 3  # the infinite one, the sum and the count
    else:
        lines = MAX_SERIES  # the buckets are the servers' own: a page with more is refused
    return children(metric, size) * lines * (1 + len(metric.aliases))


def line_bytes(metric: Metric) -> int:
    """The largest length of a line."""
    name = max(len(each) for each in (metric.name, *(alias.name for alias in metric.aliases)))
    labels = sum(len(label) + 4 + VALUE_BYTES for label in metric.labels)
    return name + len("_bucket") + 2 + labels + len('le="",') + 2 * NUMBER_BYTES + 2


def bound(size: FleetSize) -> tuple[int, int]:
    """Series and bytes of a page at most; help and type are two lines a name."""
    total = {row: series(row, size) for row in CATALOG.values()}
    heads = sum((1 + len(row.aliases)) * 2 * (len(row.help) * 2 + len(row.name) + 32) for row in CATALOG.values())
    return sum(total.values()), heads + sum(count * line_bytes(row) for row, count in total.items())


def counted(body: bytes) -> Counter[str]:
    """The number of lines of each metric, its aliases included."""
    owner = {name: row.name for row in CATALOG.values() for name in (row.name, *(alias.name for alias in row.aliases))}
    found: Counter[str] = Counter()
    for line in body.decode().splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            found[owner.get(name) or owner[re.sub("_(bucket|sum|count)$", "", name)]] += 1
    return found


def hostile(number: int) -> str:
    """A name as long as a label may be, of characters that are escaped or need four bytes."""
    return f"{number}" + '"\\\n😀' * ((NAME_LENGTH - 8) // 4)


def test_a_page_stays_within_its_bound_whatever_clients_request_and_servers_list() -> None:
    size = FleetSize(pools=2, endpoints=4, declared=1)
    instruments = Instruments(ManualClock())
    listed = [hostile(number) for number in range(60)]
    names = ScriptedNames(listed, listing=("pool",))
    names.servers = {"a:1"}
    instruments.set_names(names)
    instruments.declare_models(["declared"])
    requested = [*listed, "declared", "", "m" * (NAME_LENGTH + 1), *(f"junk-{number}" for number in range(1000))]
    for pool in ("pool", "silent"):
        for model in requested:
            instruments(Picked(pool, "least-cost", model, "a:1", 1, 0, left_warmest=False, took=0.001))
            instruments(Ended(pool, model, "a:1", 1.0, "closed"))
        for reason, row in REJECTIONS.items():
            instruments(Refused(pool, "declared", row.status, reason))
        for number in range(1000):
            instruments(UnknownObjective(pool, f"objective-{number}", first=number < 100))
        for header in (*(each.name for each in CONTROL_HEADERS if each.terms), "x-tenant"):
            for reason in HEADER_REASONS:
                instruments(FlowHeaderIgnored(pool, header, reason))
        for number, outcome in enumerate([*FIELD_OUTCOMES, "junk"] * 60):
            name = hostile(number)
            instruments(RequestHeld(pool, number))
            instruments(RequestSubmitted(pool, number % 20, name, HELD if number % 2 else outcome, 0.001))
            instruments(FlowDecided(pool, number % 20, outcome, float(number % 2), name, listed[number % 60], "", 10))
        for reason in SOURCE_REASONS:
            instruments(SourceProblemFound(pool, reason, "it is wrong"))
        for reason in SCRAPE_REASONS:
            instruments(ScrapeFailed(pool, "a:1", 0.0, 0.1, reason, "x"))
        for health in Health:
            instruments(HealthChanged(pool, "a:1", "", health, ""))
        refused = tuple(RefusedValue(signal, "not_finite", "NaN") for signal in signals.SIGNALS)
        instruments(ScrapeDone(pool, "a:1", 0.0, 0.1, 100, tuple(signals.SIGNALS), refused))
    views = [view(f"{number}:1", IDLE, identity=Identity("llm/chat-0", "n1")) for number in range(2)]
    source = SourceStatus("InferencePool llm/chat", current=True, known_at=None)
    snapshots = [snapshot(*views, source=source), snapshot(*views, pool="silent")]
    flows = [
        flow_report(
            *(
                band(number, *(caller(hostile(each)) for each in range(20)), max_requests=9)
                for number in range(-20, 20)
            ),
            pool=pool,
            model=hostile(0),
            max_requests=10,
            max_bytes=10,
        )
        for pool in ("pool", "silent")
    ]
    pools = [PoolToScale(name, "llm", "chat", frozenset()) for name in ("pool", "silent")]
    metric = {"type": "Object", "object": {"describedObject": {"kind": "InferencePool", "name": "chat"}}}
    scalers = reports(((autoscaler(f"a-{number}", metrics=[metric]), None) for number in range(100)), pools)
    body, _ = page(gauge_set(snapshots, 0.0, flows=flows, scalers=scalers), instruments.registry)
    found = counted(body)
    too_many = {name: count for name, count in found.items() if count > series(CATALOG[name], size)}
    assert too_many == {}
    max_series, max_bytes = bound(size)
    assert found.total() <= max_series
    assert len(body) <= max_bytes


def test_the_bound_counts_every_metric_and_grows_with_the_endpoints_and_with_the_declared_models_alone() -> None:
    small, more = FleetSize(1, 1), FleetSize(1, 2, declared=3)
    assert all(series(row, small) > 0 for row in CATALOG.values() if row not in set(ACCELERATOR_ROWS))
    assert all(math.isfinite(series(row, more)) for row in CATALOG.values())
    grew = {row.name for row in CATALOG.values() if series(row, more) > series(row, small)}
    expected = {row.name for row in CATALOG.values() if {"server", "model_server_endpoint"} & set(row.labels)}
    expected = {name for name in expected if CATALOG[name].origin == "state" and "source" not in CATALOG[name].labels}
    by_model = {row.name for row in CATALOG.values() if "model_name" in row.labels and row not in set(flow_rows.ROWS)}
    assert grew == expected | by_model | {"igw_endpoint_prefill_rate_tokens_per_second"}


def test_the_document_states_what_an_endpoint_and_a_model_add_to_the_page() -> None:
    """Without the servers' histograms and accelerators, which the configuration adds, and without flow control, whose
    combinations of labels have a bound of their own."""
    beside = {*HISTOGRAM_ROWS, *ACCELERATOR_ROWS, *flow_rows.ROWS}
    rows = [row for row in CATALOG.values() if row not in beside]
    endpoint = sum(series(row, FleetSize(1, 2)) - series(row, FleetSize(1, 1)) for row in rows)
    lines = {
        row: series(row, FleetSize(1, 1)) // children(row, FleetSize(1, 1))
        for row in rows
        if "model_name" in row.labels
    }
    errors = sum(count for row, count in lines.items() if "error_code" in row.labels)
    model = sum(lines.values()) - errors
    sentence = re.search(
        r"an endpoint adds at most ([\d,]+) series, and a model ([\d,]+) and ([\d,]+) for each kind of error",
        " ".join(DOCUMENT.read_text().split()),
    )
    assert sentence is not None
    stated = [int(number.replace(",", "")) for number in sentence.groups()]
    assert stated == [endpoint, model, errors]
