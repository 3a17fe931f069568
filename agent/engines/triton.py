"""NVIDIA's Triton server: with the TensorRT-LLM backend, and with any other.

Read from the user guide of triton-inference-server/server (`metrics.md`), the README of tensorrtllm_backend with its
example page, and `custom_metrics_reporter.cc` of NVIDIA/TensorRT-LLM. The page is on a port of its own, 8002 by
default, beside 8000 for HTTP and 8001 for gRPC. `/v2/health/ready`, at the port for HTTP, answers 200 when the server
and every model in it can take requests (its `protocol/README.md`, and `--strict-readiness`).

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

from agent import signals
from agent.engines.table import Combine, Engine, Ports, Source

_HEALTH: Final = "/v2/health/ready"
_PORTS: Final = Ports(serving=(8000, 8001), page=8002, health=8000)
_REQUESTS: Final = "nv_trt_llm_request_metrics"
_CACHE: Final = "nv_trt_llm_kv_cache_block_metrics"
_SILENT_ALIKE: Final = {
    **dict.fromkeys(signals.HISTOGRAMS, "times are on the page as sums and summaries, which have no buckets"),
    signals.WAITING_CAPACITY: "the queue is not told by reason",
    signals.WAITING_DEFERRED: "the queue is not told by reason",
    signals.SLOTS_USAGE: "how many places a batch has is not on the page",
    signals.PREFIX_QUERIES: "the prefix cache is not on the page",
    signals.PREFIX_HITS: "the prefix cache is not on the page",
    signals.PREEMPTIONS: "preemptions are not on the page",
    signals.FINISHED: "requests are counted for each model, and so several times in an ensemble",
    signals.PREFILL_SECONDS: "the time of prefills is not on the page",
    signals.PREFILLS: "the time of prefills is not on the page",
    signals.LORA_MAX: "LoRA adapters are not on the page",
    signals.LORA_RUNNING: "LoRA adapters are not on the page",
    signals.LORA_WAITING: "LoRA adapters are not on the page",
    signals.START_TIME: "the time of the start is not on the page",
    signals.MODEL_LOADED: "the page tells how long models took to load and not whether they are",
    signals.MODELS: "the list of models is asked for by POST only",
}
TRITON_TENSORRT_LLM: Final = Engine(
    name="triton-tensorrt-llm",
    marks=("nv_trt_llm_",),
    sources={
        signals.RUNNING: (Source(_REQUESTS, where={"request_type": "scheduled"}),),
        signals.WAITING: (Source(_REQUESTS, where={"request_type": "waiting"}),),
        signals.KV_USAGE: (Source(_CACHE, Combine.MEAN_BY_BLOCKS, {"kv_cache_block_type": "fraction"}),),
        signals.PROMPT_TOKENS: (Source("nv_llm_input_token_len_sum"),),
        signals.GENERATION_TOKENS: (Source("nv_llm_output_token_len_sum"),),
        signals.BLOCK_SIZE: (Source(_CACHE, Combine.SAME, {"kv_cache_block_type": "tokens_per"}),),
        signals.BLOCKS: (Source(_CACHE, where={"kv_cache_block_type": "max"}),),
    },
    silent=_SILENT_ALIKE,
    health_path=_HEALTH,
    models_path=None,
    ports=_PORTS,
    rank=("model", "version"),
    hint="is this the port of Triton's metrics (8002), and is the TensorRT-LLM backend's model loaded?",
)

TRITON: Final = Engine(
    name="triton",
    marks=("nv_",),
    sources={signals.WAITING: (Source("nv_inference_pending_request_count"),)},
    silent={
        **_SILENT_ALIKE,
        signals.RUNNING: "not on the page; nv_inference_exec_count counts executions since the start",
        signals.KV_USAGE: "Triton knows of no KV cache",
        signals.PROMPT_TOKENS: "Triton knows of no tokens",
        signals.GENERATION_TOKENS: "Triton knows of no tokens",
        signals.BLOCK_SIZE: "Triton knows of no KV cache",
        signals.BLOCKS: "Triton knows of no KV cache",
    },
    health_path=_HEALTH,
    models_path=None,
    ports=_PORTS,
    rank=("model", "version"),
    unlike={_REQUESTS: "triton-tensorrt-llm"},
    hint="is this the port of Triton's metrics (8002)?",
)
