"""SGLang: its names, the newest first.

Read from the sources of the releases 0.3.6 to 0.5.23 (Python packages of PyPI). The server writes `sglang:`; gateways
and collectors that forbid the colon pass it on as `sglang_`, so each name is known in both ways.

The page is gathered from several processes. Each scheduler that reports carries `tp_rank`, `pp_rank` and
`moe_ep_rank`, and `dp_rank` where there is data parallelism (from 0.5 on; before, the ranks wrote over one another and
the last one counts). Without `--enable-metrics-for-all-schedulers` one scheduler of each data-parallel rank reports;
with it all do, and those of one rank tell the same queue, so the lowest one is taken. With priority scheduling the
whole queue stands under an empty `priority`, beside its parts.

Tokens and requests are counted when a request has ended, by the process that takes requests. `token_usage` leaves out
what the prefix cache could give up, as vLLM's usage does. Retractions were a histogram of ended requests before 0.5.7.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Combine, Engine, Source

_WHOLE_QUEUE: Final = {"priority": ""}


def _both(
    name: str, combine: Combine = Combine.SUM, *, where: dict[str, str] | None = None, label: str | None = None
) -> tuple[Source, Source]:
    """The sample as the server writes it, and as it is passed on without the colon."""
    return (
        Source(f"sglang:{name}", combine, where or {}, label),
        Source(f"sglang_{name}", combine, where or {}, label),
    )


_NO_PREFILLS: Final = "only the time to the first token is on the page, and it has the time in the queue in it"

SGLANG: Final = Engine(
    name="sglang",
    marks=("sglang:", "sglang_"),
    sources={
        signals.RUNNING: _both("num_running_reqs", where=_WHOLE_QUEUE),
        signals.WAITING: _both("num_queue_reqs", where=_WHOLE_QUEUE),
        signals.WAITING_DEFERRED: _both("num_grammar_queue_reqs", where=_WHOLE_QUEUE),
        signals.KV_USAGE: _both("token_usage", Combine.MEAN_BY_BLOCKS),
        signals.PREFIX_QUERIES: _both("prompt_tokens_total"),
        signals.PREFIX_HITS: _both("cached_tokens_total"),
        signals.PREEMPTIONS: (*_both("num_retracted_requests_total"), *_both("num_retractions_sum")),
        signals.PROMPT_TOKENS: _both("prompt_tokens_total"),
        signals.GENERATION_TOKENS: _both("generation_tokens_total"),
        signals.FINISHED: _both("num_requests_total"),
        signals.BLOCK_SIZE: (
            *_both("page_size", Combine.SAME),
            *_both("cache_config_info", Combine.SAME, label="page_size"),
        ),
        signals.BLOCKS: (
            *_both("num_pages"),
            *_both("cache_config_info", Combine.EACH, label="num_pages"),
        ),
        signals.LORA_MAX: _both("lora_pool_slots_total", Combine.SAME),
    },
    silent={
        signals.WAITING_CAPACITY: "the queue is not told by reason",
        signals.SLOTS_USAGE: "how many places a batch has is not on the page",
        signals.PREFILL_SECONDS: _NO_PREFILLS,
        signals.PREFILLS: _NO_PREFILLS,
        signals.LORA_RUNNING: "adapters are counted on the page and not named",
        signals.LORA_WAITING: "adapters are counted on the page and not named",
        signals.START_TIME: "the page is gathered from several processes and has no time of their start",
        signals.MODEL_LOADED: "the page tells how long the weights took to load and not whether they are",
        signals.MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("sglang:time_to_first_token_seconds", "sglang_time_to_first_token_seconds"),
        signals.BETWEEN_TOKENS_SECONDS: ("sglang:inter_token_latency_seconds", "sglang_inter_token_latency_seconds"),
        signals.REQUEST_SECONDS: ("sglang:e2e_request_latency_seconds", "sglang_e2e_request_latency_seconds"),
        signals.QUEUE_SECONDS: ("sglang:queue_time_seconds", "sglang_queue_time_seconds"),
    },
    health_path="/health",
    models_path="/v1/models",
    answers_in_turn=True,  # uvicorn
    rank=("dp_rank",),
    copies=("tp_rank", "pp_rank", "moe_ep_rank"),
    hint="was the server started with --enable-metrics?",
)
