"""Requests to the metrics APIs, and the trust in the API server that sends them."""

from __future__ import annotations

from typing import NamedTuple


class MetricsRead(NamedTuple):
    """A request was answered or refused; `result` is a word of `agent.serve.metrics_api.status.RESULTS`, `detail` says
    why it was refused. `api` is `custom` or `external` and `age_seconds` the age of the oldest value in the answer,
    where it has values."""

    result: str
    detail: str = ""
    api: str = ""
    age_seconds: float | None = None


class MetricsAccessChecked(NamedTuple):
    """The sender of a request was checked; `method` and `result` are words of `agent.kube.authn`. `detail` has the
    reason of a refusal, without a secret."""

    method: str
    result: str
    detail: str = ""


class TrustProblem(NamedTuple):
    """The authorities of the API server's front proxy cannot be read, so that its requests are refused or checked
    against the last ones; `detail` says why."""

    detail: str
