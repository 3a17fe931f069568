"""SGLang: its metric names, the newest first.

Source: the releases 0.3.6 to 0.5.23 (Python packages of PyPI). The server writes `sglang:`; gateways and collectors
that do not allow the colon forward it as `sglang_`, so both forms of each name are read.

The page is collected from several processes. Each reporting scheduler has the labels `tp_rank`, `pp_rank` and
`moe_ep_rank`, and `dp_rank` with data parallelism (since 0.5; before, the ranks overwrote each other and the last one
counts). Without `--enable-metrics-for-all-schedulers` one scheduler of each data-parallel rank reports. With it all
schedulers report, and those of one rank report the same queue, so the lowest one is used. With priority scheduling the
series with an empty `priority` is the whole queue.

Tokens and requests are counted when a request ends, by the process that accepts requests. `token_usage` excludes
evictable prefix cache entries, as vLLM's usage does. Before 0.5.7 retractions were a histogram over ended requests.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.cache_resets import ResetCounter
from agent.engines.table import Engine, SeriesCombination, SignalSource

_WHOLE_QUEUE: Final = {"priority": ""}


def _both_forms(
    name: str,
    combine: SeriesCombination = SeriesCombination.SUM,
    *,
    where: dict[str, str] | None = None,
    label: str | None = None,
) -> tuple[SignalSource, SignalSource]:
    """The sample as the server writes it, and as it is forwarded without the colon."""
    return (
        SignalSource(f"sglang:{name}", combine, where or {}, label),
        SignalSource(f"sglang_{name}", combine, where or {}, label),
    )


_NO_PREFILLS: Final = "the page only has the time to the first token, which includes the queue time"

SGLANG: Final = Engine(
    name="sglang",
    prefixes=("sglang:", "sglang_"),
    sources={
        signals.RUNNING: _both_forms("num_running_reqs", where=_WHOLE_QUEUE),
        signals.WAITING: _both_forms("num_queue_reqs", where=_WHOLE_QUEUE),
        signals.WAITING_DEFERRED: _both_forms("num_grammar_queue_reqs", where=_WHOLE_QUEUE),
        signals.KV_USAGE: _both_forms("token_usage", SeriesCombination.MEAN_BY_BLOCKS),
        signals.PREFIX_QUERIES: _both_forms("prompt_tokens_total"),
        signals.PREFIX_HITS: _both_forms("cached_tokens_total"),
        signals.PREEMPTIONS: (*_both_forms("num_retracted_requests_total"), *_both_forms("num_retractions_sum")),
        signals.PROMPT_TOKENS: _both_forms("prompt_tokens_total"),
        signals.GENERATION_TOKENS: _both_forms("generation_tokens_total"),
        signals.FINISHED: _both_forms("num_requests_total"),
        signals.BLOCK_SIZE: (
            *_both_forms("page_size", SeriesCombination.SAME),
            *_both_forms("cache_config_info", SeriesCombination.SAME, label="page_size"),
        ),
        signals.BLOCKS: (
            *_both_forms("num_pages"),
            *_both_forms("cache_config_info", SeriesCombination.PER_ENGINE, label="num_pages"),
        ),
        signals.LORA_MAX: _both_forms("lora_pool_slots_total", SeriesCombination.SAME),
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
        signals.FIRST_TOKEN_SECONDS: ("sglang:time_to_first_token_seconds", "sglang_time_to_first_token_seconds"),
        signals.BETWEEN_TOKENS_SECONDS: ("sglang:inter_token_latency_seconds", "sglang_inter_token_latency_seconds"),
        signals.REQUEST_SECONDS: ("sglang:e2e_request_latency_seconds", "sglang_e2e_request_latency_seconds"),
        signals.QUEUE_SECONDS: ("sglang:queue_time_seconds", "sglang_queue_time_seconds"),
    },
    health_path="/health",
    models_path="/v1/models",
    pipelining=True,  # uvicorn
    rank_labels=("dp_rank",),
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
