"""TensorRT-LLM behind its own server, `trtllm-serve`: its metric names.

Source: `tensorrt_llm/metrics/collector.py` of NVIDIA/TensorRT-LLM. The page is at `/prometheus/metrics`; `/metrics` is
a JSON list of iterations. Load and cache are on the page with `enable_iter_perf_stats`, requests and tokens with
`return_perf_metrics`. Releases before 1.2 only have latencies, under names without `trtllm_`.

On a page collected from several processes a gauge has one series per process (`pid`); only one process reports, and
the largest value counts.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, SeriesCombination, SignalSource

TRTLLM_SERVE: Final = Engine(
    name="trtllm-serve",
    prefixes=("trtllm_",),
    sources={
        signals.RUNNING: (SignalSource("trtllm_num_requests_running"),),
        signals.WAITING: (SignalSource("trtllm_num_requests_waiting"),),
        signals.KV_USAGE: (SignalSource("trtllm_kv_cache_utilization", SeriesCombination.MEAN_BY_BLOCKS),),
        signals.PREFIX_QUERIES: (SignalSource("trtllm_prompt_tokens_total"),),
        signals.PREFIX_HITS: (SignalSource("trtllm_prompt_cached_tokens_total"),),
        signals.PROMPT_TOKENS: (SignalSource("trtllm_prompt_tokens_total"),),
        signals.GENERATION_TOKENS: (SignalSource("trtllm_generation_tokens_total"),),
        signals.FINISHED: (
            SignalSource("trtllm_request_success_total"),
            SignalSource("trtllm_num_requests_completed_total"),
        ),
        signals.PREFILL_SECONDS: (SignalSource("trtllm_request_prefill_time_seconds_sum"),),
        signals.PREFILLS: (SignalSource("trtllm_request_prefill_time_seconds_count"),),
        signals.FIRST_TOKENS: (SignalSource("trtllm_time_to_first_token_seconds_count"),),
        signals.FIRST_TOKEN_WAIT: (SignalSource("trtllm_time_to_first_token_seconds_sum"),),
        signals.BLOCK_SIZE: (SignalSource("trtllm_kv_cache_tokens_per_block", SeriesCombination.SAME),),
        signals.BLOCKS: (SignalSource("trtllm_kv_cache_max_blocks"),),
    },
    silent={
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.SLOTS_USAGE: "the page only has the peak number of active requests",
        signals.PREEMPTIONS: "the page has the paused requests of the last iteration, not a counter",
        signals.START_TIME: "the page is collected from several processes and has no start time",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("trtllm_time_to_first_token_seconds",),
        signals.REQUEST_SECONDS: ("trtllm_e2e_request_latency_seconds",),
        signals.QUEUE_SECONDS: ("trtllm_request_queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    pipelining=True,  # uvicorn
    page_path="/prometheus/metrics",
    rank_labels=(),
    part_labels=("model_name", "engine_type"),
    hint="is the path /prometheus/metrics, and are enable_iter_perf_stats and return_perf_metrics set?",
)
