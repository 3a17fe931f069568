"""NVIDIA's Triton server: with the TensorRT-LLM backend, and with any other.

Read from the user guide of triton-inference-server/server (`metrics.md`), the README of tensorrtllm_backend with its
example page, and `custom_metrics_reporter.cc` of NVIDIA/TensorRT-LLM. The page is on a port of its own, 8002 by
default.

The TensorRT-LLM backend takes requests off Triton's own queue at once, so `nv_inference_pending_request_count` is 0
beside its own numbers: a page that has these is refused to the table without them. It tells waiting requests since
2025; older releases have no number for them. Scheduled requests are those of the running batch; `active` ones are with
the backend, waiting or not.

Of any other backend Triton knows the queue and little more: `nv_inference_exec_count`, which some take for the
requests that run, counts executions since the start. Requests are counted for each model, so one request to an
ensemble counts several times, and what has ended is not told.
"""

from __future__ import annotations

from typing import Final

from agent.engines.table import Combine, Engine, Source
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

_REQUESTS: Final = "nv_trt_llm_request_metrics"
_CACHE: Final = "nv_trt_llm_kv_cache_block_metrics"
_SILENT_ALIKE: Final = {
    **dict.fromkeys(HISTOGRAMS, "times are on the page as sums and summaries, which have no buckets"),
    WAITING_CAPACITY: "the queue is not told by reason",
    WAITING_DEFERRED: "the queue is not told by reason",
    SLOTS_USAGE: "how many places a batch has is not on the page",
    PREFIX_QUERIES: "the prefix cache is not on the page",
    PREFIX_HITS: "the prefix cache is not on the page",
    PREEMPTIONS: "preemptions are not on the page",
    FINISHED: "requests are counted for each model, and so several times in an ensemble",
    PREFILL_SECONDS: "the time of prefills is not on the page",
    PREFILLS: "the time of prefills is not on the page",
    LORA_MAX: "LoRA adapters are not on the page",
    LORA_RUNNING: "LoRA adapters are not on the page",
    LORA_WAITING: "LoRA adapters are not on the page",
    START_TIME: "the time of the start is not on the page",
    MODEL_LOADED: "the page tells how long models took to load and not whether they are",
    MODELS: "the list of models is asked for by POST only",
}
TRITON_TENSORRT_LLM: Final = Engine(
    name="triton-tensorrt-llm",
    marks=("nv_trt_llm_",),
    sources={
        RUNNING: (Source(_REQUESTS, where={"request_type": "scheduled"}),),
        WAITING: (Source(_REQUESTS, where={"request_type": "waiting"}),),
        KV_USAGE: (Source(_CACHE, Combine.MEAN_BY_BLOCKS, {"kv_cache_block_type": "fraction"}),),
        PROMPT_TOKENS: (Source("nv_llm_input_token_len_sum"),),
        GENERATION_TOKENS: (Source("nv_llm_output_token_len_sum"),),
        BLOCK_SIZE: (Source(_CACHE, Combine.SAME, {"kv_cache_block_type": "tokens_per"}),),
        BLOCKS: (Source(_CACHE, where={"kv_cache_block_type": "max"}),),
    },
    silent=_SILENT_ALIKE,
    health_path=None,
    models_path=None,
    rank=("model", "version"),
    hint="is this the port of Triton's metrics (8002), and is the TensorRT-LLM backend's model loaded?",
)

TRITON: Final = Engine(
    name="triton",
    marks=("nv_",),
    sources={WAITING: (Source("nv_inference_pending_request_count"),)},
    silent={
        **_SILENT_ALIKE,
        RUNNING: "not on the page; nv_inference_exec_count counts executions since the start",
        KV_USAGE: "Triton knows of no KV cache",
        PROMPT_TOKENS: "Triton knows of no tokens",
        GENERATION_TOKENS: "Triton knows of no tokens",
        BLOCK_SIZE: "Triton knows of no KV cache",
        BLOCKS: "Triton knows of no KV cache",
    },
    health_path=None,
    models_path=None,
    rank=("model", "version"),
    unlike={_REQUESTS: "triton-tensorrt-llm"},
    hint="is this the port of Triton's metrics (8002)?",
)
