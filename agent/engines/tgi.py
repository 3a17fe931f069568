"""Text Generation Inference of Hugging Face: its metric names.

Source: `docs/source/reference/metrics.md` and the router's source of huggingface/text-generation-inference. Releases of
2023 have summaries where later ones have histograms; both have the sums. Token counters are sums of lengths: those of
the prompt when a request is accepted, those of the response when it has ended. Failed requests are not counted.

`/health` of this server reports unhealthy while its queue is full.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, SignalSource

_NO_CACHE: Final = "the page has the token limit of a batch, neither the KV cache nor its size"

TGI: Final = Engine(
    name="tgi",
    prefixes=("tgi_",),
    sources={
        signals.RUNNING: (SignalSource("tgi_batch_current_size"),),
        signals.WAITING: (SignalSource("tgi_queue_size"),),
        signals.PROMPT_TOKENS: (SignalSource("tgi_request_input_length_sum"),),
        signals.GENERATION_TOKENS: (SignalSource("tgi_request_generated_tokens_sum"),),
        signals.FINISHED: (SignalSource("tgi_request_success"),),
    },
    silent={
        signals.FIRST_TOKEN_SECONDS: "the page has the prefill time per batch",
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.KV_USAGE: _NO_CACHE,
        signals.PREFILL_SECONDS: "the page has the prefill time per batch, not per request",
        signals.PREFILLS: "the page has the prefill time per batch, not per request",
        signals.FIRST_TOKENS: "the page has the prefill time per batch",
        signals.FIRST_TOKEN_WAIT: "the page has the prefill time per batch",
        signals.BLOCK_SIZE: _NO_CACHE,
        signals.BLOCKS: _NO_CACHE,
    },
    histograms={
        signals.REQUEST_SECONDS: ("tgi_request_duration",),
        signals.QUEUE_SECONDS: ("tgi_request_queue_duration",),
    },
    health_path="/health",
    models_path="/v1/models",
)
