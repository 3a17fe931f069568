"""Metrics of flow control: the reference's names first, then what the reference does not export.

Requests that arrive while an endpoint has room, and while none waits, do not pass through flow control and are in none
of these. `fairness_id` is the caller.
"""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Alias, Metric, Rows, same_labels

ROWS: Final = Rows()
_counter: Final = ROWS.counter

_NAME: Final = "llm_d_epp_flow_control_"
_OLD: Final = "inference_extension_flow_control_"
# The reference's buckets.
_WAITS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEPS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def _old(name: str, labels: str) -> tuple[Alias, ...]:
    return (same_labels(_OLD + name, *labels.split()),)


def _histogram(name: str, labels: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return ROWS.add(_NAME + name, "histogram", "seconds", labels, "events", help, _old(name, labels), buckets)


def _gauge(name: str, unit: str, labels: str, help: str) -> Metric:
    return ROWS.gauge(_NAME + name, unit, labels, help, *_old(name, labels))


def _pool(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool", help)


def _band(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool priority", help)


QUEUE_DURATION: Final = _histogram(
    "request_queue_duration_seconds",
    "fairness_id priority outcome inference_pool model_name target_model_name",
    "Time for which flow control held a request until its outcome, by the reference's outcomes",
    _WAITS,
)
ENQUEUE_DURATION: Final = _histogram(
    "request_enqueue_duration_seconds",
    "fairness_id priority outcome",
    "Duration of the step that plans an arriving request; outcome is NotYetFinalized where it waits",
    _STEPS,
)
DISPATCH_CYCLE: Final = _histogram(
    "dispatch_cycle_duration_seconds",
    "",
    "Duration of a step that dispatches waiting requests after a page, the end of a request, or a time-out",
    _STEPS,
)
FIELD_REQUESTS: Final = _counter(
    _NAME + "requests_total",
    "requests",
    "outcome priority inference_pool",
    "Requests that flow control decided on, by the reference's outcomes",
    *_old("requests_total", "outcome priority inference_pool"),
)
_QUEUE_LABELS: Final = "fairness_id priority inference_pool model_name target_model_name"
QUEUE_SIZE: Final = _gauge("queue_size", "requests", _QUEUE_LABELS, "Requests that wait; the sum is never absent")
QUEUE_BYTES: Final = _gauge("queue_bytes", "bytes", _QUEUE_LABELS, "Bytes of the bodies of the requests that wait")
STALE_ENDPOINTS: Final = _gauge(
    "stale_endpoints",
    "endpoints",
    "detector",
    "Endpoints whose queue no fresh page shows, so that their room is a number of requests in flight",
)
BAND_REQUESTS: Final = _gauge(
    "capacity_utilization_requests",
    "ratio",
    "priority inference_pool",
    "Waiting requests of the band over its maxRequests; absent where it has none",
)
BAND_BYTES: Final = _gauge(
    "capacity_utilization_bytes",
    "ratio",
    "priority inference_pool",
    "Waiting bytes of the band over its maxBytes; absent where it has none",
)
ALL_REQUESTS: Final = _gauge(
    "global_capacity_utilization_requests",
    "ratio",
    "inference_pool",
    "Waiting requests of the pool over maxRequests; absent where it has none",
)
ALL_BYTES: Final = _gauge(
    "global_capacity_utilization_bytes",
    "ratio",
    "inference_pool",
    "Waiting bytes of the pool over maxBytes; absent where it has none",
)

# -- what the reference does not export -------------------------------------------------------------------------------

REQUESTS: Final = _counter(
    "igw_flow_requests_total",
    "requests",
    "pool priority outcome",
    "Requests that flow control decided on: direct, planned or stolen where they were dispatched, else why they were "
    "refused",
)
WAIT: Final = ROWS.add(
    "igw_flow_wait_seconds",
    "histogram",
    "seconds",
    "pool priority outcome",
    "events",
    "Time for which a request that had to wait did so, by the outcomes of igw_flow_requests_total",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
HELD: Final = _counter(
    "igw_flow_held_total", "requests", "pool priority", "Requests that had to wait when they arrived"
)
AT_ZERO: Final = _counter(
    "igw_flow_held_at_zero_total", "times", "pool", "Times that the first request was held for a pool without endpoints"
)
DISPATCHED_TOKENS: Final = _counter(
    "igw_flow_dispatched_tokens_total",
    "tokens",
    "pool priority fairness_id",
    "Prompt and expected output tokens of the requests that flow control dispatched, by which callers share a band",
)
HELD_REQUESTS: Final = _pool(
    "igw_flow_held_requests", "requests", "Requests that wait, for room or for the first endpoint; never absent"
)
HELD_AT_ZERO: Final = _pool(
    "igw_flow_held_at_zero_requests",
    "requests",
    "Those of them that wait because the pool has no endpoint that may be picked; never absent",
)
QUEUED_REQUESTS: Final = _band("igw_flow_queued_requests", "requests", "Requests of the priority that wait")
QUEUED_BYTES: Final = _band("igw_flow_queued_bytes", "bytes", "Bytes of the bodies of the requests that wait")
QUEUED_TOKENS: Final = _band(
    "igw_flow_queued_tokens", "tokens", "Prompt and expected output tokens of the requests that wait"
)
OLDEST: Final = _band(
    "igw_flow_oldest_wait_seconds", "seconds", "For how long the oldest request waits; 0 where none waits"
)
EXPECTED_WAIT: Final = _band(
    "igw_flow_expected_wait_seconds",
    "seconds",
    "Wait to expect of a request that arrives now: the backlog before it over the drain rate",
)
SHED_PROBABILITY: Final = _band(
    "igw_flow_shed_probability_ratio",
    "ratio",
    "Probability that a request that arrives now is shed, for priorities below 0",
)
OLDEST_OF_CALLER: Final = ROWS.gauge(
    "igw_flow_caller_oldest_wait_seconds",
    "seconds",
    "pool priority fairness_id",
    "For how long the oldest request of the caller waits",
)
DRAIN: Final = _pool(
    "igw_flow_drain_tokens_per_second",
    "tokens per second",
    "Prompt and expected output tokens per second that were dispatched while requests waited",
)
SATURATION: Final = _pool(
    "igw_flow_saturation_ratio",
    "ratio",
    "Mean saturation of the pool's endpoints by its detector: the used part of what is scarcest, such as slots",
)
WITH_ROOM: Final = _pool("igw_flow_endpoints_with_room", "endpoints", "Endpoints to which a request may be sent now")
