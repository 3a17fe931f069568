"""SGLang: its metric names, the newest first.

Source: the releases 0.3.6 to 0.5.23 (Python packages of PyPI).

The page is collected from several processes. Each reporting scheduler has the labels `tp_rank`, `pp_rank` and
`moe_ep_rank`, and `dp_rank` with data parallelism (since 0.5; before, the ranks overwrote each other and the last one
counts). Without `--enable-metrics-for-all-schedulers` one scheduler of each data-parallel rank reports. With it all
schedulers report, and those of one rank report the same queue, so the lowest one is used. With priority scheduling the
series with an empty `priority` is the whole queue.

Requests wait in several queues, by the role of the server: in any for a grammar; in a prefill server for the connection
to its decode server (`bootstrap`, in older releases `prealloc`); in a decode server for memory (`prealloc`) and for the
KV cache of their prompt (`transfer`). SGLang's own count of waiting requests (`get_load`) is of the same queues without
that for grammars. Not counted are the inflight queue of a prefill server, whose requests are prefilled, `host_receive`,
which is a part of `transfer`, and `paused`, whose requests are in the waiting queue again.

Tokens and requests are counted when a request ends, by the process that accepts requests. `token_usage` excludes
evictable prefix cache entries, as vLLM's usage does. Before 0.5.7 retractions were a histogram over ended requests.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.cache_resets import ResetCounter
from agent.engines.table import Engine, SeriesCombination, SignalSource

_WHOLE_QUEUE: Final = {"priority": ""}
_CACHE: Final = "sglang:cache_config_info"
_OTHER_QUEUES: Final = (
    ("sglang:num_grammar_queue_reqs",),
    ("sglang:num_prefill_bootstrap_queue_reqs", "sglang:num_prefill_prealloc_queue_reqs"),
    ("sglang:num_decode_prealloc_queue_reqs",),
    ("sglang:num_decode_transfer_queue_reqs",),
)
_NO_PREFILLS: Final = "the page only has the time to the first token, which includes the queue time"

SGLANG: Final = Engine(
    name="sglang",
    prefixes=("sglang:",),
    sources={
        signals.RUNNING: (SignalSource("sglang:num_running_reqs", where=_WHOLE_QUEUE),),
        signals.WAITING: (SignalSource("sglang:num_queue_reqs", where=_WHOLE_QUEUE, optional=_OTHER_QUEUES),),
        signals.WAITING_DEFERRED: (SignalSource("sglang:num_grammar_queue_reqs", where=_WHOLE_QUEUE),),
        signals.KV_USAGE: (SignalSource("sglang:token_usage", SeriesCombination.MEAN_BY_BLOCKS),),
        signals.PREFIX_QUERIES: (SignalSource("sglang:prompt_tokens_total"),),
        signals.PREFIX_HITS: (SignalSource("sglang:cached_tokens_total"),),
        signals.PREEMPTIONS: (
            SignalSource("sglang:num_retracted_requests_total"),
            SignalSource("sglang:num_retractions_sum"),
        ),
        signals.PROMPT_TOKENS: (SignalSource("sglang:prompt_tokens_total"),),
        signals.GENERATION_TOKENS: (SignalSource("sglang:generation_tokens_total"),),
        signals.FINISHED: (SignalSource("sglang:num_requests_total"),),
        signals.FIRST_TOKENS: (SignalSource("sglang:time_to_first_token_seconds_count"),),
        signals.FIRST_TOKEN_WAIT: (SignalSource("sglang:time_to_first_token_seconds_sum"),),
        signals.BLOCK_SIZE: (
            SignalSource("sglang:page_size", SeriesCombination.SAME),
            SignalSource(_CACHE, SeriesCombination.SAME, label="page_size"),
        ),
        signals.BLOCKS: (
            SignalSource("sglang:num_pages"),
            SignalSource(_CACHE, SeriesCombination.PER_ENGINE, label="num_pages"),
        ),
        signals.KV_TOKENS: (SignalSource("sglang:max_total_num_tokens"),),
        signals.LORA_MAX: (SignalSource("sglang:lora_pool_slots_total", SeriesCombination.SAME),),
    },
    silent={
        signals.PREFILL_SECONDS: _NO_PREFILLS,
        signals.PREFILLS: _NO_PREFILLS,
        signals.LORA_RUNNING: "the page has the number of adapters, not their names",
        signals.LORA_WAITING: "the page has the number of adapters, not their names",
        signals.START_TIME: "the page is collected from several processes and has no start time",
        signals.MODEL_LOADED: "the page has the load time of the weights, not whether they are loaded",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("sglang:time_to_first_token_seconds",),
        signals.BETWEEN_TOKENS_SECONDS: ("sglang:inter_token_latency_seconds",),
        signals.REQUEST_SECONDS: ("sglang:e2e_request_latency_seconds",),
        signals.QUEUE_SECONDS: ("sglang:queue_time_seconds",),
    },
    health_path="/health",
    models_path="/v1/models",
    pipelining=True,  # uvicorn
    rank_labels=("dp_rank",),
    part_labels=("model_name", "engine_type"),
    copy_labels=("tp_rank", "pp_rank", "moe_ep_rank"),
    hint="was the server started with --enable-metrics?",
    cache_resets=ResetCounter(
        "sglang:http_responses_total",
        "endpoint",
        "status_code",
        (
            "/flush_cache",
            "/update_weights_from_disk",
            "/update_weights_from_tensor",
            "/update_weights_from_distributed",
            "/update_weights_from_ipc",
            "/release_memory_occupation",
            "/resume_memory_occupation",
        ),
    ),
)
