"""THE table of what we publish: name, type, unit, labels, meaning and other names of every metric.

Documents, dashboards, alerts and tests are checked against it, and exporters take names and help from it, so that a
metric is described once. `origin` says where its numbers come from: `state` (computed from a snapshot when somebody
reads), `events` (counted as things happen) or `process` (the operating system's view of the agent).

The `llm_d_epp_*` names, labels and buckets are those of the llm-d endpoint picker; an `Alias` is the same number under
the name that the Gateway API inference extension gave it before, for dashboards that still ask for that. What neither
of them exports begins with `igw_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exporters import accelerators, asking, rates, servers, work
from exporters.metric import Alias, Metric, Rows

_ROWS: Final = Rows()
_row: Final = _ROWS.add
_state: Final = _ROWS.gauge
_event: Final = _ROWS.count


def _pool(name: str, unit: str, help: str) -> Metric:
    return _state(name, unit, "pool", help)


def _endpoint(name: str, unit: str, help: str) -> Metric:
    return _state(name, unit, "pool endpoint", help)


def _mean(of: str, unit: str, what: str, *aliases: str) -> Metric:
    text = f"Mean {what} over the pool's endpoints with a fresh reading; absent when none has one"
    return _state(f"llm_d_epp_average_{of}", unit, "name", text, *(_same(alias, "name") for alias in aliases))


def _deviation(of: str, unit: str, what: str) -> Metric:
    text = f"Sample standard deviation of the {what} over the endpoints with a fresh reading; 0 for a single one"
    return _state(f"llm_d_epp_std_dev_{of}", unit, "name", text)


def _server_counter(name: str, unit: str, help: str) -> Metric:
    return _row(name, "counter", unit, "pool endpoint", "state", help)


def _same(name: str, *labels: str) -> Alias:
    return Alias(name, {label: label for label in labels})


# -- pools, by the names of the reference -----------------------------------------------------------------------------

AVERAGE_KV: Final = _mean(
    "kv_cache_utilization", "ratio", "KV cache utilization, 0 to 1,", "inference_pool_average_kv_cache_utilization"
)
AVERAGE_QUEUE: Final = _mean(
    "queue_size", "requests", "number of waiting requests", "inference_pool_average_queue_size"
)
AVERAGE_RUNNING: Final = _mean("running_requests", "requests", "number of running requests")
DEVIATION_KV: Final = _deviation("kv_cache_utilization", "ratio", "KV cache utilization")
DEVIATION_QUEUE: Final = _deviation("queue_size", "requests", "number of waiting requests")
DEVIATION_RUNNING: Final = _deviation("running_requests", "requests", "number of running requests")
READY_ENDPOINTS: Final = _state(
    "llm_d_epp_ready_endpoints",
    "endpoints",
    "name",
    "Healthy endpoints of the pool, those that may be picked; 0 is a true zero",
    _same("inference_pool_ready_pods", "name"),
)
ENDPOINT_QUEUE: Final = _state(
    "llm_d_epp_per_endpoint_queue_size",
    "requests",
    "name model_server_endpoint",
    "Waiting requests at the endpoint",
    Alias("inference_pool_per_pod_queue_size", {"name": "name", "model_server_pod": "model_server_endpoint"}),
)
POOL_SATURATION: Final = _state(
    "llm_d_epp_flow_control_pool_saturation",
    "ratio",
    "inference_pool stage",
    "Mean saturation of the endpoints whose saturation is known; 1 is the reference's threshold; not clamped",
)

# -- pools, what the reference does not say ---------------------------------------------------------------------------

POOL_ENDPOINTS: Final = _pool("igw_pool_endpoints", "endpoints", "Endpoints that the pool has, whatever their health")
POOL_BY_HEALTH: Final = _state(
    "igw_pool_endpoints_by_health", "endpoints", "pool state", "Endpoints of the pool in each state of health"
)
POOL_COVERAGE: Final = _state(
    "igw_pool_coverage_ratio",
    "ratio",
    "pool signal",
    "Part of the pool's endpoints that have a fresh reading of the signal: what the pool's means and sums are made of",
)
POOL_RUNNING: Final = _pool(
    "igw_pool_running_requests",
    "requests",
    "Running requests, summed over the endpoints with a fresh reading: at least so many",
)
POOL_WAITING: Final = _pool(
    "igw_pool_waiting_requests",
    "requests",
    "Waiting requests, summed over the endpoints with a fresh reading: at least so many",
)
POOL_IN_FLIGHT: Final = _pool(
    "igw_pool_in_flight_requests",
    "requests",
    "Requests that the agent gave to endpoints of the pool and that have not ended",
)
POOL_AHEAD_TOKENS: Final = _pool(
    "igw_pool_prefill_ahead_tokens",
    "tokens",
    "Uncached prompt tokens that the pool has still to prefill, estimated, summed",
)
POOL_AHEAD_SECONDS: Final = _pool(
    "igw_pool_prefill_ahead_seconds",
    "seconds",
    "The same in seconds at each endpoint's prefill rate, summed: over the number of endpoints it is the mean wait",
)

# -- endpoints, as their servers report them --------------------------------------------------------------------------

KV: Final = _endpoint("igw_endpoint_kv_usage_ratio", "ratio", "KV cache utilization of the endpoint, 0 to 1")
RUNNING: Final = _endpoint("igw_endpoint_running_requests", "requests", "Requests in the endpoint's running batch")
WAITING: Final = _endpoint("igw_endpoint_waiting_requests", "requests", "Requests that wait at the endpoint")
SATURATION: Final = _endpoint(
    "igw_endpoint_saturation_ratio",
    "ratio",
    "The larger of waiting / 5 and KV utilization / 0.8, not clamped; absent when either is unknown",
)
LORA_RUNNING: Final = _endpoint(
    "igw_endpoint_lora_running_adapters", "adapters", "Different LoRA adapters among the running requests"
)
LORA_MAX: Final = _endpoint("igw_endpoint_lora_max_adapters", "adapters", "LoRA adapters that fit into one batch")
PREFIX_QUERIES: Final = _server_counter(
    "igw_endpoint_prefix_query_tokens_total",
    "tokens",
    "Prompt tokens that the server looked up in its prefix cache, as it counts them",
)
PREFIX_HITS: Final = _server_counter(
    "igw_endpoint_prefix_hit_tokens_total",
    "tokens",
    "Prompt tokens that the server found in its prefix cache, as it counts them",
)
PREEMPTIONS: Final = _server_counter(
    "igw_endpoint_preemptions_total",
    "preemptions",
    "Requests that the server threw out of its batch for room, as it counts them",
)
PROMPT_TOKENS: Final = _server_counter(
    "igw_endpoint_prompt_tokens_total",
    "tokens",
    "Prompt tokens that the server processed, cached ones included, as it counts them",
)
GENERATION_TOKENS: Final = _server_counter(
    "igw_endpoint_generation_tokens_total", "tokens", "Tokens that the server generated, as it counts them"
)
FINISHED: Final = _server_counter(
    "igw_endpoint_finished_requests_total",
    "requests",
    "Requests that ended at the server, whatever the reason, as it counts them",
)

# -- endpoints, as the agent knows them -------------------------------------------------------------------------------

PAGE_AGE: Final = _endpoint(
    "igw_endpoint_page_age_seconds",
    "seconds",
    "Age of the last page that was read from the endpoint; grows while none comes",
)
SIGNAL_AGE: Final = _state(
    "igw_endpoint_signal_age_seconds",
    "seconds",
    "pool endpoint signal",
    "Age of the last reading of each signal that pool gauges are made of; grows while none comes",
)
HEALTH: Final = _state(
    "igw_endpoint_health", "boolean", "pool endpoint state", "1 for the state of health that the endpoint is in, else 0"
)
HEALTH_INFO: Final = _state(
    "igw_endpoint_health_info",
    "boolean",
    "pool endpoint engine state reason",
    "Always 1: the endpoint's engine, its state of health and the reason for it",
)
IN_FLIGHT: Final = _endpoint(
    "igw_endpoint_in_flight_requests",
    "requests",
    "Requests that the agent has given to the endpoint and that have not ended",
)
AHEAD_TOKENS: Final = _endpoint(
    "igw_endpoint_prefill_ahead_tokens",
    "tokens",
    "Uncached prompt tokens that the endpoint has still to prefill, estimated",
)
AHEAD_SECONDS: Final = _endpoint(
    "igw_endpoint_prefill_ahead_seconds",
    "seconds",
    "The same in seconds: what a request that comes now has to wait, estimated",
)
PREFILL_RATE: Final = _state(
    "igw_endpoint_prefill_rate_tokens_per_second",
    "tokens per second",
    "pool endpoint source",
    "Uncached prompt tokens a second that the agent reckons with; the source is configured, learnt, pool or default",
)
PREDICTED_HITS: Final = _server_counter(
    "igw_endpoint_predicted_prefix_hit_tokens_total",
    "tokens",
    "Prompt tokens that the agent's index expected in the endpoint's cache at each pick",
)
MEASURED_HITS: Final = _server_counter(
    "igw_endpoint_measured_prefix_hit_tokens_total",
    "tokens",
    "Prefix hits that the server counted since the agent knows it, to hold against the predicted ones",
)
HIT_GAP: Final = _endpoint(
    "igw_endpoint_prefix_hit_gap_tokens",
    "tokens",
    "Predicted minus measured prefix hits since the agent knows the server; above 0 the index promises too much",
)
WITHHELD: Final = _state(
    "igw_withheld_gauges",
    "gauges",
    "gauge reason",
    "Series that are absent from this page because there is no fresh data, by metric and reason",
)

# -- requests, by the names of the reference --------------------------------------------------------------------------

_L: Final = "model_name target_model_name fairness_id priority"
_OBJECTIVE: Final = ("model_name", "target_model_name")

REQUESTS: Final = _event(
    "llm_d_epp_request_total",
    "requests",
    _L,
    "Requests that the picker decided on, picked or refused",
    _same("inference_objective_request_total", *_OBJECTIVE),
)
REQUEST_ERRORS: Final = _event(
    "llm_d_epp_request_error_total",
    "requests",
    f"{_L} error_code",
    "Requests that the agent answered with an error, by the reference's names of errors",
    _same("inference_objective_request_error_total", *_OBJECTIVE, "error_code"),
)
REQUEST_DURATION: Final = _row(
    "llm_d_epp_request_duration_seconds",
    "histogram",
    "seconds",
    _L,
    "events",
    "Time from the pick of a request to its end at the proxy",
    (_same("inference_objective_request_duration_seconds", *_OBJECTIVE),),
    (
        *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45),
        *(60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600),
    ),
)
REQUESTS_RUNNING: Final = _row(
    "llm_d_epp_request_running",
    "gauge",
    "requests",
    _L,
    "events",
    "Requests that were given to an endpoint and have not ended",
    (_same("inference_objective_running_requests", "model_name"),),
)
DECISION: Final = _row(
    "llm_d_epp_scheduler_e2e_duration_seconds",
    "histogram",
    "seconds",
    "",
    "events",
    "Time that the decision for one request takes",
    (),
    (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
)

CATALOG: Final[Mapping[str, Metric]] = {
    row.name: row for row in (*_ROWS, *servers.ROWS, *work.ROWS, *rates.ROWS, *asking.ROWS, *accelerators.ROWS)
}
ALIASES: Final[Mapping[str, Metric]] = {alias.name: row for row in _ROWS for alias in row.aliases}
