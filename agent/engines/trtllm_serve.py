"""TensorRT-LLM behind its own server, `trtllm-serve`: its names.

Read from `tensorrt_llm/metrics/collector.py` of NVIDIA/TensorRT-LLM. The page is at `/prometheus/metrics`; what stands
at `/metrics` is a list of iterations in JSON. Load and cache are on the page with `enable_iter_perf_stats`, requests
and tokens with `return_perf_metrics`. Releases before 1.2 have latencies only, under names without `trtllm_`, and no
load.

A page gathered from several processes tells a gauge once for each of them (`pid`); one process alone reports.
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

_NO_ADAPTERS: Final = "LoRA adapters are not on the page"

TRTLLM_SERVE: Final = Engine(
    name="trtllm-serve",
    marks=("trtllm_",),
    sources={
        RUNNING: (Source("trtllm_num_requests_running"),),
        WAITING: (Source("trtllm_num_requests_waiting"),),
        KV_USAGE: (Source("trtllm_kv_cache_utilization", Combine.MEAN_BY_BLOCKS),),
        PREFIX_QUERIES: (Source("trtllm_prompt_tokens_total"),),
        PREFIX_HITS: (Source("trtllm_prompt_cached_tokens_total"),),
        PROMPT_TOKENS: (Source("trtllm_prompt_tokens_total"),),
        GENERATION_TOKENS: (Source("trtllm_generation_tokens_total"),),
        FINISHED: (Source("trtllm_request_success_total"), Source("trtllm_num_requests_completed_total")),
        PREFILL_SECONDS: (Source("trtllm_request_prefill_time_seconds_sum"),),
        PREFILLS: (Source("trtllm_request_prefill_time_seconds_count"),),
        BLOCK_SIZE: (Source("trtllm_kv_cache_tokens_per_block", Combine.SAME),),
        BLOCKS: (Source("trtllm_kv_cache_max_blocks"),),
    },
    silent={
        BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        WAITING_CAPACITY: "the queue is not told by reason",
        WAITING_DEFERRED: "the queue is not told by reason",
        SLOTS_USAGE: "only the most requests that were ever active is on the page",
        PREEMPTIONS: "paused requests are told of the last iteration alone",
        LORA_MAX: _NO_ADAPTERS,
        LORA_RUNNING: _NO_ADAPTERS,
        LORA_WAITING: _NO_ADAPTERS,
        START_TIME: "the page is gathered from several processes and has no time of their start",
        MODEL_LOADED: "whether the model is loaded is not on the page",
        MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        FIRST_TOKEN_SECONDS: ("trtllm_time_to_first_token_seconds",),
        REQUEST_SECONDS: ("trtllm_e2e_request_latency_seconds",),
        QUEUE_SECONDS: ("trtllm_request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    page_path="/prometheus/metrics",
    rank=("pid",),
    hint="is it asked at /prometheus/metrics, of a server with enable_iter_perf_stats and return_perf_metrics?",
)
