"""Text Generation Inference of Hugging Face: its names.

Read from `docs/source/reference/metrics.md` and the router's sources of huggingface/text-generation-inference.
Releases of 2023 write summaries where later ones write histograms; both have the sums. Tokens are the sums of lengths:
those of the prompt when a request was accepted, those of the answer when it has ended. Requests that failed are not
among the ended.

`/health` of this server says unhealthy while its queue is full.
"""

from __future__ import annotations

from typing import Final

from agent.engines.table import Engine, Source
from agent.signals import (
    BETWEEN_TOKENS_SECONDS,
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    FIRST_TOKEN_SECONDS,
    GENERATION_TOKENS,
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
    QUEUE_SECONDS,
    REQUEST_SECONDS,
    RUNNING,
    SLOTS_USAGE,
    START_TIME,
    WAITING,
    WAITING_CAPACITY,
    WAITING_DEFERRED,
)

_NO_CACHE: Final = "the page has the tokens that a batch may grow to, and neither the cache nor its size"

TGI: Final = Engine(
    name="tgi",
    marks=("tgi_",),
    sources={
        RUNNING: (Source("tgi_batch_current_size"),),
        WAITING: (Source("tgi_queue_size"),),
        PROMPT_TOKENS: (Source("tgi_request_input_length_sum"),),
        GENERATION_TOKENS: (Source("tgi_request_generated_tokens_sum"),),
        FINISHED: (Source("tgi_request_success"),),
    },
    silent={
        FIRST_TOKEN_SECONDS: "the page has the time of prefills, by batches",
        BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        WAITING_CAPACITY: "the queue is not told by reason",
        WAITING_DEFERRED: "the queue is not told by reason",
        KV_USAGE: _NO_CACHE,
        SLOTS_USAGE: "how many places a batch has is not on the page",
        PREFIX_QUERIES: "the prefix cache is not on the page",
        PREFIX_HITS: "the prefix cache is not on the page",
        PREEMPTIONS: "preemptions are not on the page",
        PREFILL_SECONDS: "the time of prefills is that of batches and not of requests",
        PREFILLS: "the time of prefills is that of batches and not of requests",
        BLOCK_SIZE: _NO_CACHE,
        BLOCKS: _NO_CACHE,
        LORA_MAX: "LoRA adapters are not on the page",
        LORA_RUNNING: "LoRA adapters are not on the page",
        LORA_WAITING: "LoRA adapters are not on the page",
        START_TIME: "the time of the start is not on the page",
        MODEL_LOADED: "whether the model is loaded is not on the page",
        MODELS: "not on the page; asked for at `/v1/models`",
    },
    histograms={
        REQUEST_SECONDS: ("tgi_request_duration",),
        QUEUE_SECONDS: ("tgi_request_queue_duration",),
    },
    health_path="/health",
    models_path="/v1/models",
)
