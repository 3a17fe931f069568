"""Metrics of the histograms that servers keep, exported where `scrape.histograms` names them.

The buckets are the server's own, so the rows have none.
"""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()


def _histogram(name: str, help: str) -> Metric:
    return ROWS.add(name, "histogram", "seconds", "pool server", "state", f"{help}, counted by the server")


FIRST_TOKEN: Final = _histogram(
    "igw_endpoint_time_to_first_token_seconds", "Time from a request's arrival at the server to its first token"
)
BETWEEN_TOKENS: Final = _histogram(
    "igw_endpoint_inter_token_latency_seconds", "Time between consecutive tokens of a response"
)
REQUEST_LATENCY: Final = _histogram(
    "igw_endpoint_request_latency_seconds", "Time from a request's arrival at the server to its last token"
)
QUEUE_TIME: Final = _histogram(
    "igw_endpoint_queue_time_seconds", "Time from a request's arrival at the server until it is first scheduled"
)
