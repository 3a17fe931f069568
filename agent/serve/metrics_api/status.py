"""Refusals of the metrics APIs: `Status` objects of Kubernetes, and the table of their causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Reason of a Status by its HTTP status (metav1.StatusReason).
STATUS_REASONS: Final[Mapping[int, str]] = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    413: "RequestEntityTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}

BAD_PATH: Final = "bad_path"
BAD_SELECTOR: Final = "bad_selector"
UNKNOWN_METRIC: Final = "unknown_metric"
UNKNOWN_NAMESPACE: Final = "unknown_namespace"
UNKNOWN_OBJECT: Final = "unknown_object"
NO_MATCH: Final = "no_match"
AMBIGUOUS: Final = "ambiguous"
WITHHELD: Final = "withheld"
LOW_COVERAGE: Final = "low_coverage"
NOT_ACCEPTABLE: Final = "not_acceptable"
REFUSED: Final = "refused"
OK: Final = "ok"
# Every result of a request: a value of the label `result` of `igw_metrics_api_requests_total`.
RESULTS: Final[Mapping[str, str]] = {
    OK: "answered",
    BAD_PATH: "the path has another shape than any request of these APIs, or the method is not GET",
    BAD_SELECTOR: "a selector cannot be read, or has over 10 kB",
    UNKNOWN_METRIC: "no such metric is served for this kind of object",
    UNKNOWN_NAMESPACE: "no pool of the agent is in the namespace",
    UNKNOWN_OBJECT: "the pod is no endpoint, or the object no pool of the agent",
    NO_MATCH: "the selectors match no endpoint or pool",
    AMBIGUOUS: "a pod is an endpoint of two pools, and its values differ by the pool",
    WITHHELD: "the value is unknown now, and unknown is never 0",
    LOW_COVERAGE: "too few of the pods have a value, and an autoscaler would count the others at target",
    NOT_ACCEPTABLE: "the client accepts no JSON",
    REFUSED: "the sender is not known, or has not the right",
}


class RequestRefused(Exception):
    """A request is refused. `cause` is a key of RESULTS; the message says what to change."""

    def __init__(self, code: int, cause: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.cause = cause


def status_document(code: int, message: str) -> dict[str, Any]:
    """The Status object of a failure."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": STATUS_REASONS.get(code, "InternalError" if code >= 500 else "BadRequest"),
        "code": code,
    }
