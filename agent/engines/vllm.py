"""vLLM: its names, the newest first.

The first names are those of vLLM 0.10.2 and later (recorded: 0.32.0); the others are V0's and those of early V1, which
had `gpu_` in front of the cache's and counted the prefix cache in blocks before it counted tokens. A data-parallel
server has one series per engine. In 0.32.0 `waiting_lora_adapters` always equals `running_lora_adapters`.
"""

from __future__ import annotations

from typing import Final

from agent.engines.table import Combine, Engine, Source
from agent.signals import (
    BETWEEN_TOKENS_SECONDS,
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    FIRST_TOKEN_SECONDS,
    GENERATION_TOKENS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    MODEL_LOADED,
    MODELS,
    PREEMPTIONS,
    PREFILL_SECONDS,
    PREFILLS,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    QUEUE_SECONDS,
    REQUEST_SECONDS,
    RUNNING,
    SLOTS_USAGE,
    START_TIME,
    WAITING,
    WAITING_CAPACITY,
    WAITING_DEFERRED,
)

_BY_REASON: Final = "vllm:num_requests_waiting_by_reason"
_CACHE: Final = "vllm:cache_config_info"
_LORA: Final = "vllm:lora_requests_info"

VLLM: Final = Engine(
    name="vllm",
    marks=("vllm:",),
    sources={
        RUNNING: (Source("vllm:num_requests_running"),),
        WAITING: (Source("vllm:num_requests_waiting"),),
        WAITING_CAPACITY: (Source(_BY_REASON, where={"reason": "capacity"}),),
        WAITING_DEFERRED: (Source(_BY_REASON, where={"reason": "deferred"}),),
        KV_USAGE: (
            Source("vllm:kv_cache_usage_perc", Combine.MEAN_BY_BLOCKS),
            Source("vllm:gpu_cache_usage_perc", Combine.MEAN_BY_BLOCKS),
        ),
        PREFIX_QUERIES: (
            Source("vllm:prefix_cache_queries_total"),
            Source("vllm:gpu_prefix_cache_queries_total", tokens_or_blocks=True),
        ),
        PREFIX_HITS: (
            Source("vllm:prefix_cache_hits_total"),
            Source("vllm:gpu_prefix_cache_hits_total", tokens_or_blocks=True),
        ),
        PREEMPTIONS: (Source("vllm:num_preemptions_total"),),
        PROMPT_TOKENS: (Source("vllm:prompt_tokens_total"),),
        GENERATION_TOKENS: (Source("vllm:generation_tokens_total"),),
        FINISHED: (Source("vllm:request_success_total"),),
        PREFILL_SECONDS: (Source("vllm:request_prefill_time_seconds_sum"),),
        PREFILLS: (Source("vllm:request_prefill_time_seconds_count"),),
        BLOCK_SIZE: (Source(_CACHE, Combine.SAME, label="block_size"),),
        BLOCKS: (Source(_CACHE, Combine.SUM, label="num_gpu_blocks"),),
        LORA_MAX: (Source(_LORA, Combine.NEWEST, label="max_lora"),),
        LORA_RUNNING: (Source(_LORA, Combine.NEWEST, label="running_lora_adapters"),),
        LORA_WAITING: (Source(_LORA, Combine.NEWEST, label="waiting_lora_adapters"),),
        START_TIME: (Source("process_start_time_seconds", Combine.LATEST),),
        MODEL_LOADED: (Source("vllm:engine_sleep_state", Combine.LEAST, {"sleep_state": "awake"}),),
    },
    silent={
        SLOTS_USAGE: "how many places a batch has is not on the page",
        MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        FIRST_TOKEN_SECONDS: ("vllm:time_to_first_token_seconds",),
        # Before 0.11 the time between two tokens had the name of the mean time of a request's tokens.
        BETWEEN_TOKENS_SECONDS: ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        REQUEST_SECONDS: ("vllm:e2e_request_latency_seconds",),
        QUEUE_SECONDS: ("vllm:request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    hint="was the server started with --disable-log-stats?",
)
