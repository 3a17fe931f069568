"""What we understand: every signal with its unit, kind and range, and the door at which a value is let in.

A signal is a quantity of a model server whatever its engine calls it. A reading is a signal's value with the time at
which the request that brought it was sent (monotonic seconds). Unknown is the absence of a reading, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

Value = float | frozenset[str]


class Kind(StrEnum):
    """How a signal's values behave over time."""

    GAUGE = "gauge"
    COUNTER = "counter"  # only grows, until its server restarts
    NAMES = "names"  # a set of names, such as LoRA adapters


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table of signals; `low` and `high` bound what a server can truly report, both included."""

    name: str
    unit: str
    kind: Kind
    low: float
    high: float
    help: str


class Reading(NamedTuple):
    """A signal's value, and when the request that brought it was sent (monotonic seconds)."""

    value: Value
    at: float


class Refusal(NamedTuple):
    """A value that was not let in: which signal, why (one word for a label), and the text as it stood."""

    signal: str
    reason: str
    text: str


RUNNING: Final = "running_requests"
WAITING: Final = "waiting_requests"
WAITING_CAPACITY: Final = "waiting_for_capacity_requests"
WAITING_DEFERRED: Final = "waiting_deferred_requests"
KV_USAGE: Final = "kv_usage_ratio"
SLOTS_USAGE: Final = "slots_usage_ratio"
PREFIX_QUERIES: Final = "prefix_query_tokens"
PREFIX_HITS: Final = "prefix_hit_tokens"
PREEMPTIONS: Final = "preemptions"
PROMPT_TOKENS: Final = "prompt_tokens"
GENERATION_TOKENS: Final = "generation_tokens"
FINISHED: Final = "finished_requests"
PREFILL_SECONDS: Final = "prefill_seconds"
PREFILLS: Final = "prefilled_requests"
BLOCK_SIZE: Final = "block_size_tokens"
BLOCKS: Final = "kv_blocks"
LORA_MAX: Final = "lora_max_adapters"
LORA_RUNNING: Final = "lora_running_adapters"
LORA_WAITING: Final = "lora_waiting_adapters"
START_TIME: Final = "start_time_seconds"
MODEL_LOADED: Final = "model_loaded"
MODELS: Final = "served_models"

_COUNT_MAX: Final = 1e7  # requests at one server; more is a broken page
_COUNTER_MAX: Final = 2.0**63  # what a 64-bit counter can hold

_ROWS: Final = (
    Signal(RUNNING, "requests", Kind.GAUGE, 0, _COUNT_MAX, "requests in the running batch"),
    Signal(WAITING, "requests", Kind.GAUGE, 0, _COUNT_MAX, "requests accepted and not yet scheduled"),
    Signal(WAITING_CAPACITY, "requests", Kind.GAUGE, 0, _COUNT_MAX, "waiting for room in the batch or the cache"),
    Signal(WAITING_DEFERRED, "requests", Kind.GAUGE, 0, _COUNT_MAX, "waiting for something else, such as a LoRA slot"),
    Signal(KV_USAGE, "ratio", Kind.GAUGE, 0, 1, "part of the KV cache held by running requests"),
    Signal(SLOTS_USAGE, "ratio", Kind.GAUGE, 0, 1, "part of the places in the running batch that are taken"),
    Signal(PREFIX_QUERIES, "tokens", Kind.COUNTER, 0, _COUNTER_MAX, "prompt tokens looked up in the prefix cache"),
    Signal(PREFIX_HITS, "tokens", Kind.COUNTER, 0, _COUNTER_MAX, "prompt tokens found in the prefix cache"),
    Signal(PREEMPTIONS, "preemptions", Kind.COUNTER, 0, _COUNTER_MAX, "requests thrown out of the batch for room"),
    Signal(PROMPT_TOKENS, "tokens", Kind.COUNTER, 0, _COUNTER_MAX, "prompt tokens processed, cached ones included"),
    Signal(GENERATION_TOKENS, "tokens", Kind.COUNTER, 0, _COUNTER_MAX, "tokens generated"),
    Signal(FINISHED, "requests", Kind.COUNTER, 0, _COUNTER_MAX, "requests ended, whatever the reason"),
    Signal(
        PREFILL_SECONDS, "seconds", Kind.COUNTER, 0, _COUNTER_MAX, "time from first scheduling to first token, summed"
    ),
    Signal(PREFILLS, "requests", Kind.COUNTER, 0, _COUNTER_MAX, "requests counted in prefill_seconds"),
    Signal(BLOCK_SIZE, "tokens", Kind.GAUGE, 1, 1 << 20, "tokens in one block of the KV cache"),
    Signal(BLOCKS, "blocks", Kind.GAUGE, 1, 1e10, "blocks of the KV cache"),
    Signal(LORA_MAX, "adapters", Kind.GAUGE, 0, 1e6, "LoRA adapters that fit into one batch"),
    Signal(LORA_RUNNING, "names", Kind.NAMES, 0, 0, "LoRA adapters of running requests"),
    Signal(LORA_WAITING, "names", Kind.NAMES, 0, 0, "LoRA adapters of waiting requests"),
    Signal(START_TIME, "seconds since 1970", Kind.GAUGE, 0, 1e11, "when the server process started: its identity"),
    Signal(MODEL_LOADED, "boolean", Kind.GAUGE, 0, 1, "1 while the model is loaded and can serve, 0 while it sleeps"),
    Signal(MODELS, "names", Kind.NAMES, 0, 0, "models and adapters that the server answers for"),
)

SIGNALS: Final[Mapping[str, Signal]] = {row.name: row for row in _ROWS}


class Histogram(NamedTuple):
    """How a quantity was spread since its server started.

    `counts` are cumulative and stand beside their upper `bounds`; the infinite one is left out, its count is `total`.
    `sum` is in the unit of the bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float
    sum: float


class HistogramSignal(NamedTuple):
    """One row of the table of histograms, which are read only where the configuration asks for them."""

    name: str
    unit: str
    help: str


FIRST_TOKEN_SECONDS: Final = "time_to_first_token_seconds"  # noqa: S105  no secret
BETWEEN_TOKENS_SECONDS: Final = "inter_token_latency_seconds"
REQUEST_SECONDS: Final = "request_latency_seconds"
QUEUE_SECONDS: Final = "queue_time_seconds"

_HISTOGRAM_ROWS: Final = (
    HistogramSignal(FIRST_TOKEN_SECONDS, "seconds", "from a request's arrival at the server to its first token"),
    HistogramSignal(BETWEEN_TOKENS_SECONDS, "seconds", "from one token of an answer to the next"),
    HistogramSignal(REQUEST_SECONDS, "seconds", "from a request's arrival at the server to its last token"),
    HistogramSignal(QUEUE_SECONDS, "seconds", "from a request's arrival at the server to its first scheduling"),
)
HISTOGRAMS: Final[Mapping[str, HistogramSignal]] = {row.name: row for row in _HISTOGRAM_ROWS}


def admit(signal: str, value: float, text: str = "") -> float | Refusal:
    """The value if it can be true for `signal`, else a refusal with the reason.

    Reasons: `not_finite` (NaN or infinite), `out_of_range` (outside the table's bounds). NaN is refused here and
    nowhere later: clamping it gives 0 or 1 depending on the order of the arguments.
    """
    row = SIGNALS[signal]
    if row.low <= value <= row.high:
        return value
    reason = "out_of_range" if math.isfinite(value) else "not_finite"
    return Refusal(signal, reason, text or repr(value))
