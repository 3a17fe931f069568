"""vLLM: its metric names, the newest first.

The first names are those of vLLM 0.10.2 and later (recorded: 0.32.0). The others are those of V0 and early V1: cache
metrics began with `gpu_`, and the prefix cache counters counted blocks before they counted tokens. A data-parallel
server has one series per engine. In 0.32.0 `waiting_lora_adapters` always equals `running_lora_adapters`.

V0 moved preempted requests to a queue of its own, `num_requests_swapped`; V1 returns them to the waiting ones. The
reasons of waiting add up to the waiting requests (HELP of the metric). `kv_cache_size_tokens` is the size of the cache
as the engine computed it; with hybrid models and with context parallelism it is not the block size times the blocks.
Adapters are reported without an engine: each engine of a server overwrites the set of the others.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.cache_resets import ResetCounter
from agent.engines.table import Engine, SeriesCombination, SignalSource

_BY_REASON: Final = "vllm:num_requests_waiting_by_reason"
_CACHE: Final = "vllm:cache_config_info"
_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_LORA: Final = "vllm:lora_requests_info"

VLLM: Final = Engine(
    name="vllm",
    prefixes=("vllm:",),
    sources={
        signals.RUNNING: (SignalSource("vllm:num_requests_running"),),
        signals.WAITING: (
            SignalSource("vllm:num_requests_waiting", optional=(("vllm:num_requests_swapped",),), followed_by=_USAGE),
            SignalSource(_BY_REASON),
        ),
        signals.WAITING_CAPACITY: (SignalSource(_BY_REASON, where={"reason": "capacity"}),),
        signals.WAITING_DEFERRED: (SignalSource(_BY_REASON, where={"reason": "deferred"}),),
        signals.KV_USAGE: (
            SignalSource(_USAGE[0], SeriesCombination.MEAN_BY_BLOCKS),
            SignalSource(_USAGE[1], SeriesCombination.MEAN_BY_BLOCKS),
        ),
        signals.PREFIX_QUERIES: (
            SignalSource("vllm:prefix_cache_queries_total"),
            SignalSource("vllm:gpu_prefix_cache_queries_total", tokens_or_blocks=True),
        ),
        signals.PREFIX_HITS: (
            SignalSource("vllm:prefix_cache_hits_total"),
            SignalSource("vllm:gpu_prefix_cache_hits_total", tokens_or_blocks=True),
        ),
        signals.PREEMPTIONS: (SignalSource("vllm:num_preemptions_total"),),
        signals.PROMPT_TOKENS: (SignalSource("vllm:prompt_tokens_total"),),
        signals.GENERATION_TOKENS: (SignalSource("vllm:generation_tokens_total"),),
        signals.FINISHED: (SignalSource("vllm:request_success_total"),),
        signals.PREFILL_SECONDS: (SignalSource("vllm:request_prefill_time_seconds_sum"),),
        signals.PREFILLS: (SignalSource("vllm:request_prefill_time_seconds_count"),),
        signals.PREFILLED_TOKENS: (SignalSource("vllm:request_prefill_kv_computed_tokens_sum"),),
        signals.FIRST_TOKENS: (SignalSource("vllm:time_to_first_token_seconds_count"),),
        signals.FIRST_TOKEN_WAIT: (SignalSource("vllm:time_to_first_token_seconds_sum"),),
        signals.BLOCK_SIZE: (SignalSource(_CACHE, SeriesCombination.SAME, label="block_size"),),
        signals.BLOCKS: (SignalSource(_CACHE, SeriesCombination.SUM, label="num_gpu_blocks"),),
        signals.KV_TOKENS: (SignalSource(_CACHE, SeriesCombination.SUM, label="kv_cache_size_tokens"),),
        signals.LORA_MAX: (SignalSource(_LORA, SeriesCombination.NEWEST, label="max_lora"),),
        signals.LORA_RUNNING: (SignalSource(_LORA, SeriesCombination.NEWEST, label="running_lora_adapters"),),
        signals.LORA_WAITING: (SignalSource(_LORA, SeriesCombination.NEWEST, label="waiting_lora_adapters"),),
        signals.START_TIME: (SignalSource("process_start_time_seconds", SeriesCombination.MAX),),
        signals.MODEL_LOADED: (
            SignalSource("vllm:engine_sleep_state", SeriesCombination.MIN, {"sleep_state": "awake"}),
        ),
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("vllm:time_to_first_token_seconds",),
        # Before 0.11 the inter-token latency had the name that now is the mean time per token of a request.
        signals.BETWEEN_TOKENS_SECONDS: ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        signals.REQUEST_SECONDS: ("vllm:e2e_request_latency_seconds",),
        signals.QUEUE_SECONDS: ("vllm:request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    part_labels=("model_name", "reason"),
    pipelining=True,  # uvicorn
    reports={"num_requests_waiting": signals.WAITING, "kv_cache_usage_perc": signals.KV_USAGE},
    hint="was the server started with --disable-log-stats?",
    # The routes of its development mode (VLLM_SERVER_DEV_MODE=1; recorded: 0.32.0).
    cache_resets=ResetCounter(
        "http_requests_total",
        "handler",
        "status",
        (
            "/sleep",
            "/wake_up",
            "/reset_prefix_cache",
            "/release_kv_cache_memory",
            "/pause",
            "/update_weights",
            "/finish_weight_update",
        ),
    ),
)
