"""Metrics of requests: the reference's names first, then what the reference does not export."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Alias, Rows, same_labels

ROWS: Final = Rows()
_counter: Final = ROWS.counter

_L: Final = "model_name target_model_name fairness_id priority"
_OBJECTIVE: Final = ("model_name", "target_model_name")


def _old(name: str, *labels: str) -> tuple[Alias, ...]:
    """The names under which the field knew a metric before: of InferenceModel, and of InferenceObjective."""
    return tuple(same_labels(f"{kind}_{name}", *labels) for kind in ("inference_objective", "inference_model"))


REQUESTS: Final = _counter(
    "llm_d_epp_request_total",
    "requests",
    _L,
    "Requests that the picker decided on, picked or rejected",
    *_old("request_total", *_OBJECTIVE),
)
REQUEST_ERRORS: Final = _counter(
    "llm_d_epp_request_error_total",
    "requests",
    f"{_L} error_code",
    "Requests that the agent answered with an error, by the reference's error names",
    *_old("request_error_total", *_OBJECTIVE, "error_code"),
)
REQUEST_DURATION: Final = ROWS.add(
    "llm_d_epp_request_duration_seconds",
    "histogram",
    "seconds",
    _L,
    "events",
    "Time from the pick of a request to its end at the proxy",
    _old("request_duration_seconds", *_OBJECTIVE),
    (
        *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45),
        *(60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600),
    ),
)
REQUESTS_RUNNING: Final = ROWS.add(
    "llm_d_epp_request_running",
    "gauge",
    "requests",
    _L,
    "events",
    "Requests that were assigned to an endpoint and have not ended",
    _old("running_requests", "model_name"),
)
DECISION: Final = ROWS.add(
    "llm_d_epp_scheduler_e2e_duration_seconds",
    "histogram",
    "seconds",
    "",
    "events",
    "Duration of the decision for one request",
    (),
    (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
)
PICKS: Final = _counter(
    "igw_picks_total", "requests", "pool profile server", "Requests that were assigned to the endpoint"
)
PICK_PROMPT_TOKENS: Final = _counter(
    "igw_pick_prompt_tokens_total", "tokens", "pool", "Prompt tokens of the picked requests, estimated from their bytes"
)
PICK_HIT_TOKENS: Final = _counter(
    "igw_pick_predicted_hit_tokens_total",
    "tokens",
    "pool",
    "Prompt tokens that the prefix index predicted to be in the picked endpoint's cache",
)
LEFT_WARMEST: Final = _counter(
    "igw_picks_left_warmest_total",
    "requests",
    "pool",
    "Picks that, because of load, did not go to the endpoint with the most prompt tokens in its cache",
)
ENCODED_BODIES: Final = _counter(
    "igw_encoded_bodies_total",
    "requests",
    "pool encoding result",
    "Requests whose body has a content-encoding: read, unread (picked without a prompt) or refused",
)
REJECTED: Final = _counter(
    "igw_requests_rejected_total",
    "requests",
    "pool status reason",
    "Requests that the agent rejected, by HTTP status and reason",
)
RESPONSES: Final = _counter(
    "igw_responses_total",
    "requests",
    "pool server result",
    "Responses to picked requests as the proxy reports them, by endpoint and result (docs/reference/errors.md)",
)
NOT_FOLLOWED: Final = _counter(
    "igw_picks_not_followed_total",
    "requests",
    "pool server",
    "Requests that the proxy sent to another endpoint than the picked one, which is the label",
)
EJECTIONS: Final = _counter(
    "igw_endpoint_ejections_total",
    "ejections",
    "pool server reason",
    "Ejections of endpoints whose requests failed, failed trials included",
)
ENDED: Final = _counter(
    "igw_requests_ended_total",
    "requests",
    "pool result",
    "Picked requests that ended: closed (by the proxy) or lost (the agent stopped following them)",
)
ABANDONED: Final = _counter(
    "igw_requests_abandoned_total",
    "requests",
    "pool stage",
    "Requests that ended before they were picked or rejected, by the stage that held them",
)
LOAD_REPORTS: Final = _counter(
    "igw_load_reports_total",
    "reports",
    "pool result reason",
    "Load reports in response headers, by result (ok, refused) and reason of the refusal",
)
STREAM_ERRORS: Final = _counter(
    "igw_stream_errors_total",
    "streams",
    "pool reason",
    "ext_proc streams that violated the protocol or failed on an error of the agent",
)
