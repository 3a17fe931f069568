"""Metrics of endpoints: what their servers report, then what the agent knows of them.

`server` is the endpoint's address. Counters of servers restart with the server.
"""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Alias, Metric, Rows

ROWS: Final = Rows()


def _endpoint(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool server", help)


def _counter(name: str, unit: str, help: str) -> Metric:
    return ROWS.add(name, "counter", unit, "pool server", "state", help)


# -- as the servers report them ---------------------------------------------------------------------------------------

QUEUE: Final = ROWS.gauge(
    "llm_d_epp_per_endpoint_queue_size",
    "requests",
    "name model_server_endpoint",
    "Requests waiting at the endpoint",
    Alias("inference_pool_per_pod_queue_size", {"name": "name", "model_server_pod": "model_server_endpoint"}),
)
KV: Final = _endpoint("igw_endpoint_kv_usage_ratio", "ratio", "KV cache utilization of the endpoint, 0 to 1")
RUNNING: Final = _endpoint("igw_endpoint_running_requests", "requests", "Requests in the endpoint's running batch")
SLOTS_USAGE: Final = _endpoint(
    "igw_endpoint_slots_usage_ratio", "ratio", "Share of the slots of the endpoint's running batch that are in use"
)
WAITING: Final = _endpoint("igw_endpoint_waiting_requests", "requests", "Requests waiting at the endpoint")
WAITING_CAPACITY: Final = _endpoint(
    "igw_endpoint_waiting_for_capacity_requests",
    "requests",
    "Waiting requests that need a slot in the batch or space in the KV cache",
)
WAITING_DEFERRED: Final = _endpoint(
    "igw_endpoint_waiting_deferred_requests",
    "requests",
    "Waiting requests that need something else, such as a LoRA slot",
)
SATURATION: Final = _endpoint(
    "igw_endpoint_saturation_ratio",
    "ratio",
    "The larger of waiting / 5 and KV utilization / 0.8, not clamped; absent when either is unknown",
)
LORA_RUNNING: Final = _endpoint(
    "igw_endpoint_lora_running_adapters", "adapters", "Distinct LoRA adapters among the running requests"
)
LORA_WAITING: Final = _endpoint(
    "igw_endpoint_lora_waiting_adapters", "adapters", "Distinct LoRA adapters among the waiting requests"
)
LORA_MAX: Final = _endpoint("igw_endpoint_lora_max_adapters", "adapters", "Maximum number of LoRA adapters in a batch")
BLOCKS: Final = _endpoint("igw_endpoint_kv_blocks", "blocks", "Number of blocks of the endpoint's KV cache")
BLOCK_SIZE: Final = _endpoint("igw_endpoint_block_size_tokens", "tokens", "Tokens per block of the KV cache")
KV_TOKENS: Final = _endpoint(
    "igw_endpoint_kv_cache_tokens", "tokens", "Tokens that fit into the endpoint's KV cache, as its engine reports it"
)
MODEL_LOADED: Final = _endpoint(
    "igw_endpoint_model_loaded",
    "boolean",
    "1 while the endpoint's model is loaded, 0 while the server sleeps; absent where the server does not report it",
)
PREFIX_QUERIES: Final = _counter(
    "igw_endpoint_prefix_query_tokens_total",
    "tokens",
    "Prompt tokens that the server looked up in its prefix cache, counted by the server",
)
PREFIX_HITS: Final = _counter(
    "igw_endpoint_prefix_hit_tokens_total",
    "tokens",
    "Prompt tokens that the server found in its prefix cache, counted by the server",
)
PREEMPTIONS: Final = _counter(
    "igw_endpoint_preemptions_total",
    "preemptions",
    "Requests that the server preempted (KV cache full), counted by the server",
)
PROMPT_TOKENS: Final = _counter(
    "igw_endpoint_prompt_tokens_total",
    "tokens",
    "Prompt tokens that the server processed, cached ones included, counted by the server",
)
GENERATION_TOKENS: Final = _counter(
    "igw_endpoint_generation_tokens_total", "tokens", "Tokens that the server generated, counted by the server"
)
FINISHED: Final = _counter(
    "igw_endpoint_finished_requests_total",
    "requests",
    "Requests that ended at the server for any reason, counted by the server",
)

# -- as the agent knows them ------------------------------------------------------------------------------------------

INFO: Final = ROWS.gauge(
    "igw_endpoint_info",
    "boolean",
    "pool server server_namespace server_pod server_node",
    "Always 1; labels carry the pod and the node of the endpoint, empty where unknown; absent where both are",
)

PAGE_AGE: Final = _endpoint(
    "igw_endpoint_page_age_seconds",
    "seconds",
    "Age of the endpoint's last scraped page; grows until a scrape succeeds",
)
SIGNAL_AGE: Final = ROWS.gauge(
    "igw_endpoint_signal_age_seconds",
    "seconds",
    "pool server signal",
    "Age of the last reading of each signal that pool gauges are computed from; grows until there is a new one",
)
HEALTH: Final = ROWS.gauge(
    "igw_endpoint_health", "boolean", "pool server state", "1 for the endpoint's current health state, 0 for the others"
)
HEALTH_INFO: Final = ROWS.gauge(
    "igw_endpoint_health_info",
    "boolean",
    "pool server engine state reason",
    "Always 1; labels carry the endpoint's engine, its health state and the reason for it",
)
IN_FLIGHT: Final = _endpoint(
    "igw_endpoint_in_flight_requests",
    "requests",
    "Requests that the agent, and its replicas where it has some, assigned to the endpoint and that have not ended; "
    "absent while the part of a replica is unknown",
)
BACKLOG_TOKENS: Final = _endpoint(
    "igw_endpoint_prefill_backlog_tokens",
    "tokens",
    "Estimated uncached prompt tokens that the endpoint has yet to prefill",
)
BACKLOG_SECONDS: Final = _endpoint(
    "igw_endpoint_prefill_backlog_seconds",
    "seconds",
    "Estimated time of that prefill, which a new request has to wait",
)
PREFILL_RATE: Final = ROWS.gauge(
    "igw_endpoint_prefill_rate_tokens_per_second",
    "tokens per second",
    "pool server source",
    "Uncached prompt tokens per second that estimates assume; source is configured, learnt, pool or default",
)
PREDICTED_HITS: Final = _counter(
    "igw_endpoint_predicted_prefix_hit_tokens_total",
    "tokens",
    "Prompt tokens that the prefix index predicted to be in the endpoint's cache, at each pick",
)
MEASURED_HITS: Final = _counter(
    "igw_endpoint_measured_prefix_hit_tokens_total",
    "tokens",
    "Prefix hit tokens that the server counted over the same time as the predicted ones",
)
HIT_GAP: Final = _endpoint(
    "igw_endpoint_prefix_hit_gap_tokens",
    "tokens",
    "Predicted minus measured prefix hit tokens since the agent first saw the server; above 0 the index overestimates",
)
