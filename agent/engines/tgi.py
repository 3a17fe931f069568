"""Text Generation Inference of Hugging Face: its names.

Read from `docs/source/reference/metrics.md` and the router's sources of huggingface/text-generation-inference.
Releases of 2023 write summaries where later ones write histograms; both have the sums. Tokens are the sums of lengths:
those of the prompt when a request was accepted, those of the answer when it has ended. Requests that failed are not
among the ended.

`/health` of this server says unhealthy while its queue is full.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, Source

_NO_CACHE: Final = "the page has the tokens that a batch may grow to, and neither the cache nor its size"

TGI: Final = Engine(
    name="tgi",
    marks=("tgi_",),
    sources={
        signals.RUNNING: (Source("tgi_batch_current_size"),),
        signals.WAITING: (Source("tgi_queue_size"),),
        signals.PROMPT_TOKENS: (Source("tgi_request_input_length_sum"),),
        signals.GENERATION_TOKENS: (Source("tgi_request_generated_tokens_sum"),),
        signals.FINISHED: (Source("tgi_request_success"),),
    },
    silent={
        signals.FIRST_TOKEN_SECONDS: "the page has the time of prefills, by batches",
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.WAITING_CAPACITY: "the queue is not told by reason",
        signals.WAITING_DEFERRED: "the queue is not told by reason",
        signals.KV_USAGE: _NO_CACHE,
        signals.SLOTS_USAGE: "how many places a batch has is not on the page",
        signals.PREFIX_QUERIES: "the prefix cache is not on the page",
        signals.PREFIX_HITS: "the prefix cache is not on the page",
        signals.PREEMPTIONS: "preemptions are not on the page",
        signals.PREFILL_SECONDS: "the time of prefills is that of batches and not of requests",
        signals.PREFILLS: "the time of prefills is that of batches and not of requests",
        signals.BLOCK_SIZE: _NO_CACHE,
        signals.BLOCKS: _NO_CACHE,
        signals.LORA_MAX: "LoRA adapters are not on the page",
        signals.LORA_RUNNING: "LoRA adapters are not on the page",
        signals.LORA_WAITING: "LoRA adapters are not on the page",
        signals.START_TIME: "the time of the start is not on the page",
        signals.MODEL_LOADED: "whether the model is loaded is not on the page",
        signals.MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        signals.REQUEST_SECONDS: ("tgi_request_duration",),
        signals.QUEUE_SECONDS: ("tgi_request_queue_duration",),
    },
    health_path="/health",
    models_path="/v1/models",
)
