"""The table of rejections: every request that the agent or Envoy answers in place of a model server.

Each row has the HTTP status, the code of the OpenAI error object, the value of `x-llm-d-request-dropped-reason`,
`Retry-After`, and whether the same request may succeed later. Every error has the shape that OpenAI clients parse:

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

`type` follows from the status as in the OpenAI API. OpenAI clients retry 408, 409, 429 and 5xx, after `Retry-After`
where that is at most 120 seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, NamedTuple

import orjson

DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
OLD_DROPPED_REASON: Final = "x-gateway-request-dropped-reason"
NO_ENDPOINTS: Final = "rejected-no-endpoints"
SATURATED: Final = "rejected-saturated"
EXPIRED: Final = "rejected-ttl-expired"
SHUTTING_DOWN: Final = "rejected-shutting-down"
WAITED_HEADER: Final = "x-llm-d-flow-queue-duration-ms"

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# The reference picker's names of errors in metrics, by HTTP status; a status without a name is its own label value.
_ERROR_CODES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    412: "PreconditionFailed",
    429: "ResourceExhausted",
    500: "Internal",
    503: "ServiceUnavailable",
}


class RejectionRow(NamedTuple):
    """One way to reject a request. `retry_after` is in seconds, 0 for no header; `retry`: a later try may succeed."""

    status: int
    code: str
    meaning: str
    dropped: str = ""
    retry_after: int = 0
    retry: bool = False


# Reason -> row. The reason is a label value of `igw_requests_rejected_total`, and ends Envoy's response code details.
REJECTIONS: Final[Mapping[str, RejectionRow]] = {
    "invalid_json": RejectionRow(400, "invalid_json", "the body is not a JSON object in UTF-8"),
    "invalid_encoding": RejectionRow(400, "invalid_encoding", "the body is not what its content-encoding says"),
    "model_required": RejectionRow(400, "model_required", "the body names no model"),
    "model_rewrite": RejectionRow(
        400, "model_rewrite_failed", "a header replaces the model, and the agent cannot change the body"
    ),
    "method": RejectionRow(405, "method_not_allowed", "the method is CONNECT"),
    "too_large": RejectionRow(413, "request_too_large", "the body, or what it unpacks to, exceeds extProc.maxBody"),
    "body_budget": RejectionRow(
        429, "overloaded", "the bodies that the port buffers exceed extProc.maxBufferedBytes", SATURATED, 1, retry=True
    ),
    "shed": RejectionRow(
        429,
        "overloaded",
        "its priority is negative, and requests of this priority wait too long",
        SATURATED,
        1,
        retry=True,
    ),
    "displaced": RejectionRow(
        429, "overloaded", "the queue is full, and it was the newest of the lowest priority", SATURATED, 1, retry=True
    ),
    "expired": RejectionRow(429, "queue_timeout", "it was held for as long as it may be", EXPIRED, 1, retry=True),
    "error": RejectionRow(500, "internal_error", "the agent failed on the request", retry=True),
    "protocol": RejectionRow(500, "internal_error", "the proxy sent its messages out of order"),
    "no_endpoints": RejectionRow(503, "no_endpoint", "the pool is empty", NO_ENDPOINTS, 1, retry=True),
    "none_healthy": RejectionRow(503, "no_endpoint", "no endpoint is healthy", NO_ENDPOINTS, 1, retry=True),
    "subset_empty": RejectionRow(503, "no_endpoint", "no allowed endpoint is healthy", NO_ENDPOINTS, 1, retry=True),
    "all_filtered": RejectionRow(503, "no_endpoint", "a filter removed all endpoints", NO_ENDPOINTS, 1, retry=True),
    "shutting_down": RejectionRow(503, "shutting_down", "the agent stops", SHUTTING_DOWN, 1, retry=True),
}


class ProxyReply(NamedTuple):
    """An error that Envoy answers itself and that the rendered configuration rewrites into an OpenAI error.

    `condition` is a CEL expression over Envoy's access log attributes; the first row that matches is applied.
    """

    code: str
    condition: str
    status: int
    message: str
    retry_after: int = 0
    replaces_status: bool = False


_LOCAL_REPLY_BODY: Final = "%LOCAL_REPLY_BODY%"
PICKER_UNAVAILABLE: Final = ProxyReply(
    "picker_unavailable",
    "response.code_details.startsWith('ext_proc_error')",
    503,
    "The gateway's endpoint picker does not answer.",
    retry_after=1,
    replaces_status=True,
)


def proxy_replies(max_body: int) -> tuple[ProxyReply, ...]:
    """Envoy's own errors in the order in which they are matched; `max_body` is the limit of a body in bytes."""
    return (
        PICKER_UNAVAILABLE,
        ProxyReply(
            "request_too_large",
            "response.code == 413",
            413,
            f"The body of your request is over the limit of {max_body} bytes.",
        ),
        ProxyReply("timeout", "response.code == 504 || response.code == 408", 504, _LOCAL_REPLY_BODY),
        ProxyReply(
            "not_found",
            "response.code == 404",
            404,
            "No route of the gateway fits this request: %RESPONSE_CODE_DETAILS%",
        ),
        ProxyReply("overloaded", "response.code == 429", 429, _LOCAL_REPLY_BODY),
        ProxyReply("upstream_unavailable", "response.code >= 500", 503, _LOCAL_REPLY_BODY),
        # The body of these replies is empty for a missing host or a refused upgrade; the details never are.
        ProxyReply(
            "bad_request",
            "response.code >= 400",
            400,
            "The gateway does not take this request: %RESPONSE_CODE_DETAILS%",
        ),
    )


class Rejection(NamedTuple):
    """A rejected request: `reason` is a key of `REJECTIONS`; `param` is the member of the body that is at fault.

    `retry_after` in seconds replaces that of the row, where it is not 0. `waited_seconds` is how long the request was
    held, None where it was not.
    """

    reason: str
    message: str
    param: str | None = None
    retry_after: int = 0
    waited_seconds: float | None = None

    @property
    def row(self) -> RejectionRow:
        """The row of the table. KeyError for a reason that the table lacks."""
        return REJECTIONS[self.reason]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.row.status

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The response header fields, without the request id."""
        row = self.row
        fields: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
        retry_after = self.retry_after or row.retry_after
        if retry_after:
            fields += (("retry-after", str(retry_after)),)
        if row.dropped:
            fields += ((DROPPED_REASON, row.dropped), (OLD_DROPPED_REASON, row.dropped))
        if self.waited_seconds is not None:
            fields += ((WAITED_HEADER, milliseconds(self.waited_seconds)),)
        return fields

    def body(self) -> bytes:
        """The OpenAI error object as JSON."""
        row = self.row
        return error_body(row.status, self.message, param=self.param, code=row.code)


def milliseconds(seconds: float) -> str:
    """Whole milliseconds, rounded up: 0 only where no time has passed."""
    return str(ceil(seconds * 1000))


def error_type(status: int) -> str:
    """The `type` of an error with this HTTP status: `invalid_request_error` for most of 4xx, `server_error` for 5xx."""
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")


def error_code(status: int) -> str:
    """The reference picker's label value of `error_code` for this HTTP status."""
    return _ERROR_CODES.get(status, str(status))


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON of an error, to be sent with `content-type: application/json`."""
    return orjson.dumps({"error": {"message": message, "type": error_type(status), "param": param, "code": code}})
