"""Metrics of requests and their responses as the proxy measures them: the reference's names, then our own.

They need a proxy that reports responses with these numbers (docs/reference/envoy.md). Of a response without a number
nothing is counted: unknown is not 0.
"""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows, same_labels

ROWS: Final = Rows()

_L: Final = "model_name target_model_name fairness_id priority"
_OBJECTIVE: Final = ("model_name", "target_model_name")
# The reference's buckets.
_TOKENS: Final = (1, *(8 << power for power in range(11)))  # to 8,192
_MANY_TOKENS: Final = (1, *(8 << power for power in range(18)))  # to 1,048,576
_TTFT: Final = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8),
    *(1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120),
)
_TPOT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_NTPOT: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def _histogram(name: str, unit: str, help: str, buckets: tuple[float, ...], *old: str, labels: str = _L) -> Metric:
    """A histogram; `old` are the names without prefix under which the field knew it before."""
    aliases = tuple(
        same_labels(f"{prefix}_{each}", *_OBJECTIVE)
        for each in old
        for prefix in ("inference_objective", "inference_model")
    )
    return ROWS.add(f"llm_d_epp_{name}", "histogram", unit, labels, "events", help, aliases, buckets)


REQUEST_BYTES: Final = _histogram(
    "request_size_bytes",
    "bytes",
    "Size of the body of a request",
    tuple(64 << power for power in range(25)),
    "request_sizes",
)
RESPONSE_BYTES: Final = _histogram(
    "response_size_bytes",
    "bytes",
    "Size of the body of a response",
    (1, *(8 << power for power in range(14))),
    "response_sizes",
)
INPUT_TOKENS: Final = _histogram(
    "request_input_tokens", "tokens", "Prompt tokens, as the response reports them", _MANY_TOKENS, "input_tokens"
)
OUTPUT_TOKENS: Final = _histogram(
    "request_output_tokens", "tokens", "Completion tokens, as the response reports them", _TOKENS, "output_tokens"
)
CACHED_TOKENS: Final = _histogram(
    "request_cached_tokens", "tokens", "Prompt tokens from the prefix cache, as the response reports them", _MANY_TOKENS
)
TTFT: Final = _histogram(
    "request_ttft_seconds",
    "seconds",
    "Time from the arrival of a request to the first byte of the response's body: the first token where it streams",
    _TTFT,
    labels=f"{_L} streaming",
)
TIME_PER_TOKEN: Final = _histogram(
    "request_streaming_tpot_seconds", "seconds", "Time per output token after the first one, of a stream", _TPOT
)
DURATION_PER_TOKEN: Final = _histogram(
    "request_ntpot_seconds",
    "seconds",
    "Duration of a request over its completion tokens",
    _NTPOT,
    "normalized_time_per_output_token_seconds",
)
RESULTS: Final = ROWS.counter(
    "igw_request_results_total",
    "requests",
    f"{_L} code result",
    "Picked requests whose end the proxy has reported, by HTTP status (0: none) and result (docs/reference/errors.md)",
)
SLO: Final = ROWS.counter(
    "igw_slo_requests_total",
    "requests",
    f"{_L} objective result",
    "Requests with a wanted time (ttft, tpot), by result: met, missed (by a failure or refusal too), unknown",
)
GOODPUT: Final = ROWS.counter(
    "igw_goodput_requests_total", "requests", _L, "Requests with objectives whose response met all of them"
)
GOODPUT_TOKENS: Final = ROWS.counter(
    "igw_goodput_output_tokens_total", "tokens", _L, "Completion tokens of the responses that met all objectives"
)
WITHOUT_USAGE: Final = ROWS.counter(
    "igw_responses_without_usage_total",
    "responses",
    _L,
    "Successful responses that report no token usage, such as a stream without `stream_options.include_usage`",
)
UNKNOWN_ENTRIES: Final = ROWS.counter(
    "igw_access_log_unknown_entries_total",
    "entries",
    "pool",
    "Entries of the proxy's access log of no request that was picked here: a peer's, repeated, or of a foreign proxy",
)
UNREPORTED: Final = ROWS.counter(
    "igw_requests_unreported_total",
    "requests",
    "pool",
    "Picked requests whose end the proxy's access log did not report",
)
