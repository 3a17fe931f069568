"""The table of signals: name, unit, kind and valid range; and `admit`, which validates a value against it.

A signal is a quantity of a model server, independent of its engine's metric names. A reading is a signal's value and
the time at which the request for it was sent (monotonic seconds). An unknown value is a missing reading, never a
number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

Value = float | frozenset[str]


class SignalKind(StrEnum):
    """How a signal's values behave over time."""

    GAUGE = "gauge"
    COUNTER = "counter"  # increases until the server restarts
    NAMES = "names"  # a set of names, such as LoRA adapters


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table of signals; `low` and `high` are the valid range, inclusive."""

    name: str
    unit: str
    kind: SignalKind
    low: float
    high: float
    help: str


class Reading(NamedTuple):
    """A signal's value and the time at which the request for it was sent (monotonic seconds)."""

    value: Value
    at: float


class RefusedValue(NamedTuple):
    """A value that was refused: the signal, the reason (a label value), and the text on the page."""

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
PREFILLED_TOKENS: Final = "prefilled_tokens"
FIRST_TOKENS: Final = "first_tokens"
FIRST_TOKEN_WAIT: Final = "first_token_wait_seconds"  # noqa: S105  not a secret
BLOCK_SIZE: Final = "block_size_tokens"
BLOCKS: Final = "kv_blocks"
KV_TOKENS: Final = "kv_cache_tokens"
LORA_MAX: Final = "lora_max_adapters"
LORA_RUNNING: Final = "lora_running_adapters"
LORA_WAITING: Final = "lora_waiting_adapters"
START_TIME: Final = "start_time_seconds"
MODEL_LOADED: Final = "model_loaded"
MODELS: Final = "served_models"

# Seconds since 1970 that a time on a page can be: from 2001 to 2074. The sum of two processes' times is never in this
# range, because engines with such processes exist since 2023 (1.68e9).
TIME_MIN: Final = 1.0e9
TIME_MAX: Final = 3.3e9
_COUNT_MAX: Final = 1e7  # requests at one server; a larger value is an error of the page
_COUNTER_MAX: Final = 2.0**63  # the range of a 64-bit counter

_ROWS: Final = (
    Signal(RUNNING, "requests", SignalKind.GAUGE, 0, _COUNT_MAX, "requests in the running batch"),
    Signal(WAITING, "requests", SignalKind.GAUGE, 0, _COUNT_MAX, "requests accepted and not yet scheduled"),
    Signal(
        WAITING_CAPACITY,
        "requests",
        SignalKind.GAUGE,
        0,
        _COUNT_MAX,
        "waiting for capacity in the batch or the KV cache",
    ),
    Signal(
        WAITING_DEFERRED,
        "requests",
        SignalKind.GAUGE,
        0,
        _COUNT_MAX,
        "waiting for another resource, such as a LoRA slot",
    ),
    Signal(KV_USAGE, "ratio", SignalKind.GAUGE, 0, 1, "fraction of the KV cache used by running requests"),
    Signal(SLOTS_USAGE, "ratio", SignalKind.GAUGE, 0, 1, "fraction of the batch slots in use"),
    Signal(
        PREFIX_QUERIES, "tokens", SignalKind.COUNTER, 0, _COUNTER_MAX, "prompt tokens looked up in the prefix cache"
    ),
    Signal(PREFIX_HITS, "tokens", SignalKind.COUNTER, 0, _COUNTER_MAX, "prompt tokens found in the prefix cache"),
    Signal(PREEMPTIONS, "preemptions", SignalKind.COUNTER, 0, _COUNTER_MAX, "requests preempted (KV cache full)"),
    Signal(
        PROMPT_TOKENS, "tokens", SignalKind.COUNTER, 0, _COUNTER_MAX, "prompt tokens processed, including cached ones"
    ),
    Signal(GENERATION_TOKENS, "tokens", SignalKind.COUNTER, 0, _COUNTER_MAX, "tokens generated"),
    Signal(FINISHED, "requests", SignalKind.COUNTER, 0, _COUNTER_MAX, "requests finished, for any reason"),
    Signal(
        PREFILL_SECONDS,
        "seconds",
        SignalKind.COUNTER,
        0,
        _COUNTER_MAX,
        "time from first scheduling to first token, summed",
    ),
    Signal(PREFILLS, "requests", SignalKind.COUNTER, 0, _COUNTER_MAX, "requests counted in prefill_seconds"),
    Signal(
        PREFILLED_TOKENS,
        "tokens",
        SignalKind.COUNTER,
        0,
        _COUNTER_MAX,
        "uncached prompt tokens of the requests counted in prefill_seconds",
    ),
    Signal(FIRST_TOKENS, "requests", SignalKind.COUNTER, 0, _COUNTER_MAX, "requests that have had their first token"),
    Signal(
        FIRST_TOKEN_WAIT,
        "seconds",
        SignalKind.COUNTER,
        0,
        _COUNTER_MAX,
        "time from arrival to first token of the requests counted in first_tokens, summed",
    ),
    Signal(BLOCK_SIZE, "tokens", SignalKind.GAUGE, 1, 1 << 20, "tokens per block of the KV cache"),
    Signal(BLOCKS, "blocks", SignalKind.GAUGE, 1, 1e10, "blocks in the KV cache"),
    Signal(KV_TOKENS, "tokens", SignalKind.GAUGE, 1, 1e14, "tokens that fit into the KV cache, by the engine itself"),
    Signal(LORA_MAX, "adapters", SignalKind.GAUGE, 0, 1e6, "LoRA adapters that can run in one batch"),
    Signal(LORA_RUNNING, "names", SignalKind.NAMES, 0, 0, "LoRA adapters of running requests"),
    Signal(LORA_WAITING, "names", SignalKind.NAMES, 0, 0, "LoRA adapters of waiting requests"),
    Signal(
        START_TIME,
        "seconds since 1970",
        SignalKind.GAUGE,
        0,
        TIME_MAX,
        "start time of the server process, which identifies it",
    ),
    Signal(
        MODEL_LOADED, "boolean", SignalKind.GAUGE, 0, 1, "1 while the model is loaded and can serve, 0 while it sleeps"
    ),
    Signal(MODELS, "names", SignalKind.NAMES, 0, 0, "models and adapters that the server serves"),
)

SIGNALS: Final[Mapping[str, Signal]] = {row.name: row for row in _ROWS}


class Histogram(NamedTuple):
    """The distribution of a quantity since its server started.

    `counts` are cumulative, one for each upper bound in `bounds`; the bound +Inf is omitted, its count is `total`.
    `sum` is in the unit of the bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float
    sum: float


class HistogramSignal(NamedTuple):
    """One row of the table of histograms, which are read only if the configuration lists them."""

    name: str
    unit: str
    help: str


FIRST_TOKEN_SECONDS: Final = "time_to_first_token_seconds"  # noqa: S105  not a secret
BETWEEN_TOKENS_SECONDS: Final = "inter_token_latency_seconds"
REQUEST_SECONDS: Final = "request_latency_seconds"
QUEUE_SECONDS: Final = "queue_time_seconds"

_HISTOGRAM_ROWS: Final = (
    HistogramSignal(FIRST_TOKEN_SECONDS, "seconds", "from a request's arrival at the server to its first token"),
    HistogramSignal(BETWEEN_TOKENS_SECONDS, "seconds", "from one token of a response to the next"),
    HistogramSignal(REQUEST_SECONDS, "seconds", "from a request's arrival at the server to its last token"),
    HistogramSignal(QUEUE_SECONDS, "seconds", "from a request's arrival at the server to its first scheduling"),
)
HISTOGRAMS: Final[Mapping[str, HistogramSignal]] = {row.name: row for row in _HISTOGRAM_ROWS}


def admit(signal: str, value: float, text: str = "") -> float | RefusedValue:
    """The value if it is in the signal's range, else a RefusedValue.

    Reasons: `not_finite` (NaN or infinite), `out_of_range`. No later code checks for NaN: min() and max() with NaN
    return either argument, depending on their order.
    """
    row = SIGNALS[signal]
    if row.low <= value <= row.high:
        return value
    reason = "out_of_range" if math.isfinite(value) else "not_finite"
    return RefusedValue(signal, reason, text or repr(value))
