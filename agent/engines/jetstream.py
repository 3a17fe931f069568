"""JetStream, which serves MaxText's models on TPUs: its metric names, the newest first.

Source: `jetstream/core/metrics/prometheus.py` and `docs/observability-prometheus-metrics-in-jetstream-server.md` of
AI-Hypercomputer/JetStream. The page is the only HTTP path, on the port `prometheus_port`; requests are gRPC, on another
port. `idx` identifies the engines of one server.

There is no KV cache usage. The fraction of decode slots in use is the nearest metric, with another meaning: a short
request takes a slot as a long one does. Its value is a ratio, despite its name. Until the middle of 2024
the page had the free fraction instead.
"""

from __future__ import annotations

from typing import Final

from agent import signals
from agent.engines.table import Engine, SeriesCombination, SignalSource

_NO_CACHE: Final = "the page reports slots, not the KV cache"
_NO_PREFILLS: Final = "the page has the prefill time per token, not per request"

JETSTREAM: Final = Engine(
    name="jetstream",
    prefixes=("jetstream_",),
    sources={
        signals.WAITING: (
            SignalSource(
                "jetstream_prefill_backlog_size",
                optional=(("jetstream_transfer_backlog_size",), ("jetstream_generate_backlog_size",)),
            ),
        ),
        signals.WAITING_CAPACITY: (
            SignalSource("jetstream_generate_backlog_size", added=("jetstream_transfer_backlog_size",)),
        ),
        signals.SLOTS_USAGE: (
            SignalSource("jetstream_slots_used_percentage", SeriesCombination.MEAN_BY_BLOCKS),
            SignalSource("jetstream_slots_available_percentage", SeriesCombination.MEAN_BY_BLOCKS, one_minus=True),
        ),
        signals.PROMPT_TOKENS: (SignalSource("jetstream_request_input_length_sum"),),
        signals.GENERATION_TOKENS: (SignalSource("jetstream_request_output_length_sum"),),
        signals.FINISHED: (
            SignalSource("jetstream_request_success_count_total"),
            SignalSource("jetstream_request_success_count"),
        ),
        signals.FIRST_TOKENS: (SignalSource("jetstream_time_to_first_token_count"),),
        signals.FIRST_TOKEN_WAIT: (SignalSource("jetstream_time_to_first_token_sum"),),
        signals.START_TIME: (SignalSource("process_start_time_seconds", SeriesCombination.MAX),),
    },
    silent={
        signals.BETWEEN_TOKENS_SECONDS: "the page has the mean time of each request's tokens",
        signals.REQUEST_SECONDS: "the documentation does not say whether the request time includes the wait",
        signals.RUNNING: "the page has the fraction of slots in use, not their number",
        signals.KV_USAGE: _NO_CACHE,
        signals.PREEMPTIONS: "requests are not preempted: each keeps its slot until it ends",
        signals.PREFILL_SECONDS: _NO_PREFILLS,
        signals.PREFILLS: _NO_PREFILLS,
        signals.BLOCK_SIZE: _NO_CACHE,
        signals.BLOCKS: _NO_CACHE,
        signals.MODEL_LOADED: "the page has the load time of the model, not whether it is loaded",
    },
    histograms={
        signals.FIRST_TOKEN_SECONDS: ("jetstream_time_to_first_token",),
        signals.QUEUE_SECONDS: ("jetstream_queue_duration",),
    },
    health_path=None,
    models_path=None,
    rank_labels=("idx",),
    hint="is this the server's prometheus_port?",
)
