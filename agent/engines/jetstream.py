"""JetStream, which serves MaxText's models on TPUs: its names, the newest first.

Read from `jetstream/core/metrics/prometheus.py` and `docs/observability-prometheus-metrics-in-jetstream-server.md` of
AI-Hypercomputer/JetStream. The page is on the port that `prometheus_port` names, and nothing else is: requests go to
another port by gRPC. `idx` tells the engines of one server apart.

There is no usage of the KV cache. The part of the decode slots that are taken is the nearest to it, and another thing:
a slot is taken by a short request as by a long one. Its name says percentage and its value is a ratio. Before the
middle of 2024 the page told the part that is free.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Combine, Engine, Source

_NO_CACHE: Final = "the page tells of slots and not of the KV cache"
_NO_PREFIXES: Final = "there is no prefix cache on the page"
_NO_PREFILLS: Final = "the time of a prefill is told for each token and not for the request"
_NO_ADAPTERS: Final = "LoRA adapters are not on the page"

JETSTREAM: Final = Engine(
    name="jetstream",
    marks=("jetstream_",),
    sources={
        signals.WAITING: (Source("jetstream_prefill_backlog_size"),),
        signals.WAITING_CAPACITY: (
            Source("jetstream_generate_backlog_size", added=("jetstream_transfer_backlog_size",)),
        ),
        signals.SLOTS_USAGE: (
            Source("jetstream_slots_used_percentage", Combine.MEAN_BY_BLOCKS),
            Source("jetstream_slots_available_percentage", Combine.MEAN_BY_BLOCKS, one_minus=True),
        ),
        signals.PROMPT_TOKENS: (Source("jetstream_request_input_length_sum"),),
        signals.GENERATION_TOKENS: (Source("jetstream_request_output_length_sum"),),
        signals.FINISHED: (Source("jetstream_request_success_count_total"), Source("jetstream_request_success_count")),
        signals.START_TIME: (Source("process_start_time_seconds", Combine.LATEST),),
    },
    silent={
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.REQUEST_SECONDS: "whether the time of a request on the page has its wait in it is not documented",
        signals.RUNNING: "the page tells which part of the slots is taken and not how many there are",
        signals.WAITING_DEFERRED: "the queue is not told by reason",
        signals.KV_USAGE: _NO_CACHE,
        signals.PREFIX_QUERIES: _NO_PREFIXES,
        signals.PREFIX_HITS: _NO_PREFIXES,
        signals.PREEMPTIONS: "a request keeps its slot to the end",
        signals.PREFILL_SECONDS: _NO_PREFILLS,
        signals.PREFILLS: _NO_PREFILLS,
        signals.BLOCK_SIZE: _NO_CACHE,
        signals.BLOCKS: _NO_CACHE,
        signals.LORA_MAX: _NO_ADAPTERS,
        signals.LORA_RUNNING: _NO_ADAPTERS,
        signals.LORA_WAITING: _NO_ADAPTERS,
        signals.MODEL_LOADED: "the page tells how long the model took to load and not whether it is",
        signals.MODELS: "there is no list of models beside the page",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("jetstream_time_to_first_token",),
        signals.QUEUE_SECONDS: ("jetstream_queue_duration",),
    },
    health_path=None,
    models_path=None,
    rank=("idx",),
    hint="is this the port that the server's prometheus_port names?",
)
