"""vLLM: its names, the newest first.

The first names are those of vLLM 0.10.2 and later (recorded: 0.32.0); the others are V0's and those of early V1, which
had `gpu_` in front of the cache's and counted the prefix cache in blocks before it counted tokens. A data-parallel
server has one series per engine. In 0.32.0 `waiting_lora_adapters` always equals `running_lora_adapters`.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Combine, Engine, Source

_BY_REASON: Final = "vllm:num_requests_waiting_by_reason"
_CACHE: Final = "vllm:cache_config_info"
_LORA: Final = "vllm:lora_requests_info"

VLLM: Final = Engine(
    name="vllm",
    marks=("vllm:",),
    sources={
        signals.RUNNING: (Source("vllm:num_requests_running"),),
        signals.WAITING: (Source("vllm:num_requests_waiting"),),
        signals.WAITING_CAPACITY: (Source(_BY_REASON, where={"reason": "capacity"}),),
        signals.WAITING_DEFERRED: (Source(_BY_REASON, where={"reason": "deferred"}),),
        signals.KV_USAGE: (
            Source("vllm:kv_cache_usage_perc", Combine.MEAN_BY_BLOCKS),
            Source("vllm:gpu_cache_usage_perc", Combine.MEAN_BY_BLOCKS),
        ),
        signals.PREFIX_QUERIES: (
            Source("vllm:prefix_cache_queries_total"),
            Source("vllm:gpu_prefix_cache_queries_total", tokens_or_blocks=True),
        ),
        signals.PREFIX_HITS: (
            Source("vllm:prefix_cache_hits_total"),
            Source("vllm:gpu_prefix_cache_hits_total", tokens_or_blocks=True),
        ),
        signals.PREEMPTIONS: (Source("vllm:num_preemptions_total"),),
        signals.PROMPT_TOKENS: (Source("vllm:prompt_tokens_total"),),
        signals.GENERATION_TOKENS: (Source("vllm:generation_tokens_total"),),
        signals.FINISHED: (Source("vllm:request_success_total"),),
        signals.PREFILL_SECONDS: (Source("vllm:request_prefill_time_seconds_sum"),),
        signals.PREFILLS: (Source("vllm:request_prefill_time_seconds_count"),),
        signals.BLOCK_SIZE: (Source(_CACHE, Combine.SAME, label="block_size"),),
        signals.BLOCKS: (Source(_CACHE, Combine.SUM, label="num_gpu_blocks"),),
        signals.LORA_MAX: (Source(_LORA, Combine.NEWEST, label="max_lora"),),
        signals.LORA_RUNNING: (Source(_LORA, Combine.NEWEST, label="running_lora_adapters"),),
        signals.LORA_WAITING: (Source(_LORA, Combine.NEWEST, label="waiting_lora_adapters"),),
        signals.START_TIME: (Source("process_start_time_seconds", Combine.LATEST),),
        signals.MODEL_LOADED: (Source("vllm:engine_sleep_state", Combine.LEAST, {"sleep_state": "awake"}),),
    },
    silent={
        signals.SLOTS_USAGE: "how many places a batch has is not on the page",
        signals.MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("vllm:time_to_first_token_seconds",),
        # Before 0.11 the time between two tokens had the name of the mean time of a request's tokens.
        signals.BETWEEN_TOKENS_SECONDS: ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        signals.REQUEST_SECONDS: ("vllm:e2e_request_latency_seconds",),
        signals.QUEUE_SECONDS: ("vllm:request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    answers_in_turn=True,  # uvicorn
    reports={"num_requests_waiting": signals.WAITING, "kv_cache_usage_perc": signals.KV_USAGE},
    hint="was the server started with --disable-log-stats?",
)
