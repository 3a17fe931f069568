"""The catalogue's rows of what counters grew by lately, and of histograms; `exporters.catalog` holds all rows."""

from __future__ import annotations

from typing import Final

from exporters.metric import Metric, Rows

ROWS: Final = Rows()


def _endpoint(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool endpoint", help)


def _pool(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool", help)


POOL_PROMPT_RATE: Final = _pool(
    "igw_pool_prompt_tokens_per_second",
    "tokens per second",
    "Prompt tokens processed, summed over the endpoints whose rate is known: at least so many",
)
POOL_GENERATION_RATE: Final = _pool(
    "igw_pool_generation_tokens_per_second",
    "tokens per second",
    "Tokens generated, summed over the endpoints whose rate is known: at least so many",
)
POOL_FINISHED_RATE: Final = _pool(
    "igw_pool_finished_requests_per_second",
    "requests per second",
    "Requests ended, summed over the endpoints whose rate is known: at least so many",
)
PREFIX_HIT_RATIO: Final = _endpoint(
    "igw_endpoint_prefix_hit_ratio",
    "ratio",
    "Part of the prompt tokens that the server found in its prefix cache, over the last 30 seconds",
)
PROMPT_RATE: Final = _endpoint(
    "igw_endpoint_prompt_tokens_per_second",
    "tokens per second",
    "Prompt tokens that the server processed, cached ones included, over the last 30 seconds",
)
GENERATION_RATE: Final = _endpoint(
    "igw_endpoint_generation_tokens_per_second",
    "tokens per second",
    "Tokens that the server generated, over the last 30 seconds",
)
FINISHED_RATE: Final = _endpoint(
    "igw_endpoint_finished_requests_per_second",
    "requests per second",
    "Requests that ended at the server, over the last 30 seconds",
)
PREEMPTION_RATE: Final = _endpoint(
    "igw_endpoint_preemptions_per_second",
    "preemptions per second",
    "Requests that the server threw out of its batch for room, over the last 30 seconds",
)

# -- endpoints, the histograms that the configuration asks for -------------------------------------------------------


def _histogram(name: str, help: str) -> Metric:
    return ROWS.add(name, "histogram", "seconds", "pool endpoint", "state", help)


FIRST_TOKEN: Final = _histogram(
    "igw_endpoint_time_to_first_token_seconds",
    "Time from a request's arrival at the server to its first token, as the server counts it, in its buckets",
)
BETWEEN_TOKENS: Final = _histogram(
    "igw_endpoint_inter_token_latency_seconds",
    "Time from one token of an answer to the next, as the server counts it, in its buckets",
)
REQUEST_LATENCY: Final = _histogram(
    "igw_endpoint_request_latency_seconds",
    "Time from a request's arrival at the server to its last token, as the server counts it, in its buckets",
)
QUEUE_TIME: Final = _histogram(
    "igw_endpoint_queue_time_seconds",
    "Time from a request's arrival at the server to its first scheduling, as the server counts it, in its buckets",
)
