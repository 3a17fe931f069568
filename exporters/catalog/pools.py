"""Metrics of pools: the reference's names first, then what the reference does not export."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows, same_labels

ROWS: Final = Rows()


def _mean(of: str, unit: str, what: str, *aliases: str) -> Metric:
    text = f"Mean {what} over the pool's endpoints with a fresh reading; absent when none has one"
    return ROWS.gauge(f"llm_d_epp_average_{of}", unit, "name", text, *(same_labels(alias, "name") for alias in aliases))


def _deviation(of: str, unit: str, what: str) -> Metric:
    text = f"Sample standard deviation of the {what} over the endpoints with a fresh reading; 0 for a single one"
    return ROWS.gauge(f"llm_d_epp_std_dev_{of}", unit, "name", text)


def _pool(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool", help)


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
READY_ENDPOINTS: Final = ROWS.gauge(
    "llm_d_epp_ready_endpoints",
    "endpoints",
    "name",
    "Endpoints of the pool that may be picked, healthy or blind; never absent, 0 when there is none",
    same_labels("inference_pool_ready_pods", "name"),
)
SATURATION: Final = ROWS.gauge(
    "llm_d_epp_flow_control_pool_saturation",
    "ratio",
    "inference_pool stage",
    "Mean saturation of the endpoints whose saturation is known; 1 is the reference's threshold; not clamped",
    same_labels("inference_extension_flow_control_pool_saturation", "inference_pool", "stage"),
)
ENDPOINTS: Final = _pool("igw_pool_endpoints", "endpoints", "Endpoints of the pool, whatever their health")
BY_HEALTH: Final = ROWS.gauge(
    "igw_pool_endpoints_by_health", "endpoints", "pool state", "Endpoints of the pool in each health state"
)
BLIND: Final = _pool(
    "igw_pool_blind_ratio",
    "ratio",
    "Share of the pool's endpoints that answer without a readable page, and are picked by requests in flight alone",
)
COVERAGE: Final = ROWS.gauge(
    "igw_pool_coverage_ratio",
    "ratio",
    "pool signal",
    "Share of the pool's endpoints that have a fresh reading of the signal and enter the pool's means and sums",
)
RUNNING: Final = _pool(
    "igw_pool_running_requests",
    "requests",
    "Running requests, summed over the endpoints with a fresh reading; a lower bound",
)
WAITING: Final = _pool(
    "igw_pool_waiting_requests",
    "requests",
    "Waiting requests, summed over the endpoints with a fresh reading; a lower bound",
)
IN_FLIGHT: Final = _pool(
    "igw_pool_in_flight_requests",
    "requests",
    "Requests that the agent, and its replicas where it has some, assigned to endpoints of the pool and that have not "
    "ended; absent while the part of a replica is unknown",
)
OWN_IN_FLIGHT: Final = _pool(
    "igw_pool_own_in_flight_requests",
    "requests",
    "Those of them that this replica of the agent assigned; never absent",
)
BACKLOG_TOKENS: Final = _pool(
    "igw_pool_prefill_backlog_tokens",
    "tokens",
    "Estimated uncached prompt tokens that the pool's endpoints have yet to prefill, summed",
)
BACKLOG_SECONDS: Final = _pool(
    "igw_pool_prefill_backlog_seconds",
    "seconds",
    "Estimated time of that prefill at each endpoint's rate, summed; divided by the number of endpoints, the mean wait",
)
