"""TensorRT-LLM behind its own server, `trtllm-serve`: its names.

Read from `tensorrt_llm/metrics/collector.py` of NVIDIA/TensorRT-LLM. The page is at `/prometheus/metrics`; what stands
at `/metrics` is a list of iterations in JSON. Load and cache are on the page with `enable_iter_perf_stats`, requests
and tokens with `return_perf_metrics`. Releases before 1.2 have latencies only, under names without `trtllm_`, and no
load.

A page gathered from several processes tells a gauge once for each of them (`pid`); one process alone reports.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Combine, Engine, Source

_NO_ADAPTERS: Final = "LoRA adapters are not on the page"

TRTLLM_SERVE: Final = Engine(
    name="trtllm-serve",
    marks=("trtllm_",),
    sources={
        signals.RUNNING: (Source("trtllm_num_requests_running"),),
        signals.WAITING: (Source("trtllm_num_requests_waiting"),),
        signals.KV_USAGE: (Source("trtllm_kv_cache_utilization", Combine.MEAN_BY_BLOCKS),),
        signals.PREFIX_QUERIES: (Source("trtllm_prompt_tokens_total"),),
        signals.PREFIX_HITS: (Source("trtllm_prompt_cached_tokens_total"),),
        signals.PROMPT_TOKENS: (Source("trtllm_prompt_tokens_total"),),
        signals.GENERATION_TOKENS: (Source("trtllm_generation_tokens_total"),),
        signals.FINISHED: (Source("trtllm_request_success_total"), Source("trtllm_num_requests_completed_total")),
        signals.PREFILL_SECONDS: (Source("trtllm_request_prefill_time_seconds_sum"),),
        signals.PREFILLS: (Source("trtllm_request_prefill_time_seconds_count"),),
        signals.BLOCK_SIZE: (Source("trtllm_kv_cache_tokens_per_block", Combine.SAME),),
        signals.BLOCKS: (Source("trtllm_kv_cache_max_blocks"),),
    },
    silent={
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.WAITING_CAPACITY: "the queue is not told by reason",
        signals.WAITING_DEFERRED: "the queue is not told by reason",
        signals.SLOTS_USAGE: "only the most requests that were ever active is on the page",
        signals.PREEMPTIONS: "paused requests are told of the last iteration alone",
        signals.LORA_MAX: _NO_ADAPTERS,
        signals.LORA_RUNNING: _NO_ADAPTERS,
        signals.LORA_WAITING: _NO_ADAPTERS,
        signals.START_TIME: "the page is gathered from several processes and has no time of their start",
        signals.MODEL_LOADED: "whether the model is loaded is not on the page",
        signals.MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("trtllm_time_to_first_token_seconds",),
        signals.REQUEST_SECONDS: ("trtllm_e2e_request_latency_seconds",),
        signals.QUEUE_SECONDS: ("trtllm_request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    answers_in_turn=True,  # uvicorn
    page_path="/prometheus/metrics",
    rank=("pid",),
    hint="is it asked at /prometheus/metrics, of a server with enable_iter_perf_stats and return_perf_metrics?",
)
