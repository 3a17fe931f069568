"""Metrics of rates: the increase of a server's counters over the last 30 seconds (`agent.state.counter_rates`)."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()


def _endpoint(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool server", help)


def _pool(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool", help)


POOL_PROMPT_RATE: Final = _pool(
    "igw_pool_prompt_tokens_per_second",
    "tokens per second",
    "Prompt tokens processed per second, summed over the endpoints with a known rate; a lower bound",
)
POOL_GENERATION_RATE: Final = _pool(
    "igw_pool_generation_tokens_per_second",
    "tokens per second",
    "Tokens generated per second, summed over the endpoints with a known rate; a lower bound",
)
POOL_FINISHED_RATE: Final = _pool(
    "igw_pool_finished_requests_per_second",
    "requests per second",
    "Requests ended per second, summed over the endpoints with a known rate; a lower bound",
)
PREFIX_HIT_RATIO: Final = _endpoint(
    "igw_endpoint_prefix_hit_ratio",
    "ratio",
    "Share of the prompt tokens that the server found in its prefix cache, over the last 30 seconds",
)
PROMPT_RATE: Final = _endpoint(
    "igw_endpoint_prompt_tokens_per_second",
    "tokens per second",
    "Prompt tokens that the server processed per second, cached ones included, over the last 30 seconds",
)
GENERATION_RATE: Final = _endpoint(
    "igw_endpoint_generation_tokens_per_second",
    "tokens per second",
    "Tokens that the server generated per second, over the last 30 seconds",
)
FINISHED_RATE: Final = _endpoint(
    "igw_endpoint_finished_requests_per_second",
    "requests per second",
    "Requests that ended at the server per second, over the last 30 seconds",
)
PREEMPTION_RATE: Final = _endpoint(
    "igw_endpoint_preemptions_per_second",
    "preemptions per second",
    "Requests that the server preempted (KV cache full) per second, over the last 30 seconds",
)
