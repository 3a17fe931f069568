"""Requests to the metrics APIs, and what is wrong between the agent and the API server that sends them."""

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


class MetricsApiProblem(NamedTuple):
    """The APIs cannot be served as configured: the authorities of the API server's front proxy, the own serving CA, or
    an APIService; `detail` says which, and what to change."""

    detail: str
