"""NVIDIA's Triton server: with the TensorRT-LLM backend, and with any other backend.

Source: the user guide of triton-inference-server/server (`metrics.md`), the README of tensorrtllm_backend with its
example page, and `custom_metrics_reporter.cc` of NVIDIA/TensorRT-LLM. The page has its own port, 8002 by default; 8000
is HTTP and 8001 gRPC. `/v2/health/ready`, at the HTTP port, answers 200 when the server and all its models can take
requests (`protocol/README.md`, and `--strict-readiness`).

The TensorRT-LLM backend takes requests off Triton's own queue at once, so `nv_inference_pending_request_count` is 0 on
its pages: a page with the backend's names is refused for the engine `triton`. The backend reports waiting requests
since 2025. Scheduled requests are those in the running batch; `active` ones are all requests at the backend, waiting
included.

With any other backend Triton reports its queues, one for each model, and little more. A model may be a step of an
ensemble or of a script that calls other models: a request then waits in one step after the other, and a decoupled model
sends one request to the next step for each token. The names of the steps are those of tensorrtllm_backend's model
repository; for others, `engineConfigs` can name the model whose queue counts.
 `nv_inference_exec_count` is not the number of running
requests: it counts executions since the start. Requests are counted per model, so one request to an ensemble counts
several times, and there is no counter of ended requests.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, EnginePorts, ModelSteps, SeriesCombination, SignalSource

_HEALTH: Final = "/v2/health/ready"
_PORTS: Final = EnginePorts(serving=(8000, 8001), page=8002, health=8000)
_REQUESTS: Final = "nv_trt_llm_request_metrics"
_CACHE: Final = "nv_trt_llm_kv_cache_block_metrics"
_STEPS: Final = ModelSteps(
    label="model",
    models=frozenset({"tensorrt_llm", "tensorrt_llm_bls"}),
    steps=frozenset({"preprocessing", "postprocessing", "multimodal_encoders"}),
    pipelines=frozenset({"ensemble"}),
)
_SILENT: Final = {
    **dict.fromkeys(signals.HISTOGRAMS, "the page has times as sums and summaries, without buckets"),
    signals.FINISHED: "requests are counted per model, so several times in an ensemble",
    signals.MODEL_LOADED: "the page has the load times of models, not whether they are loaded",
    signals.MODELS: "the list of models is only available by POST",
}
TRITON_TENSORRT_LLM: Final = Engine(
    name="triton-tensorrt-llm",
    prefixes=("nv_trt_llm_",),
    sources={
        signals.RUNNING: (SignalSource(_REQUESTS, where={"request_type": "scheduled"}),),
        signals.WAITING: (SignalSource(_REQUESTS, where={"request_type": "waiting"}),),
        signals.KV_USAGE: (
            SignalSource(_CACHE, SeriesCombination.MEAN_BY_BLOCKS, {"kv_cache_block_type": "fraction"}),
        ),
        signals.PROMPT_TOKENS: (SignalSource("nv_llm_input_token_len_sum"),),
        signals.GENERATION_TOKENS: (SignalSource("nv_llm_output_token_len_sum"),),
        signals.BLOCK_SIZE: (SignalSource(_CACHE, SeriesCombination.SAME, {"kv_cache_block_type": "tokens_per"}),),
        signals.BLOCKS: (SignalSource(_CACHE, where={"kv_cache_block_type": "max"}),),
    },
    silent=_SILENT,
    health_path=_HEALTH,
    models_path=None,
    ports=_PORTS,
    rank_labels=("model", "version"),
    hint="is this the port of Triton's metrics (8002), and is the TensorRT-LLM backend's model loaded?",
)

TRITON: Final = Engine(
    name="triton",
    prefixes=("nv_",),
    sources={signals.WAITING: (SignalSource("nv_inference_pending_request_count", steps=_STEPS),)},
    silent={
        **_SILENT,
        signals.RUNNING: "not on the page; nv_inference_exec_count counts executions since the start",
        signals.KV_USAGE: "Triton does not know the KV cache of the backend",
        signals.PROMPT_TOKENS: "Triton does not count tokens",
        signals.GENERATION_TOKENS: "Triton does not count tokens",
        signals.BLOCK_SIZE: "Triton does not know the KV cache of the backend",
        signals.BLOCKS: "Triton does not know the KV cache of the backend",
    },
    health_path=_HEALTH,
    models_path=None,
    ports=_PORTS,
    rank_labels=("model", "version"),
    foreign_samples={_REQUESTS: "triton-tensorrt-llm"},
    hint="is this the port of Triton's metrics (8002)?",
)
