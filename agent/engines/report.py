"""Load reports: the response header in which a model server reports its load on request.

ORCA (Open Request Cost Aggregation), as model servers implement it: the response to a request with the header
`endpoint-load-metrics-format: TEXT` has one line of named metrics, with `JSON` a JSON object:

    endpoint-load-metrics: TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0
    endpoint-load-metrics: JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}

Both are recorded from vLLM 0.32. The engine's table maps named metrics to signals. The agent requests TEXT: a server
with several engines writes one entry for each of them, which JSON would merge into the last one. How to combine several
entries is not specified, so such a report is refused, and so is one with any wanted value out of range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from agent.signals import RefusedValue, Value, admit

REQUEST_HEADER: Final = "endpoint-load-metrics-format"
REQUESTED_FORMAT: Final = "TEXT"
HEADER: Final = "endpoint-load-metrics"  # of the response
MAX_CHARACTERS: Final = 4096  # vLLM's has 90

REASONS: Final[Mapping[str, str]] = {
    "too_long": f"it has more than {MAX_CHARACTERS} characters",
    "unknown_format": "it is neither TEXT nor JSON",
    "unreadable": "it is malformed",
    "nothing_known": "none of its metrics is in the engine's table",
    "several": "it has several values of one metric, as from a server with several engines",
    "not_finite": "a value is NaN or infinite",
    "out_of_range": "a value is outside the valid range of its signal",
    "unattributed": "the proxy did not report which endpoint responded: have it send `upstream.address`",
    "another_server": "another endpoint responded than the one that was picked",
}
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NOT_FINITE: Final = re.compile(r"[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_NAMED: Final = "named_metrics"


class ReportRefused(Exception):
    """A load report that is not used; `reason` is one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read(report: str, signals: Mapping[str, str]) -> dict[str, Value]:
    """The values in a header by signal; `signals`: the engine's name of a metric -> signal.

    Raises ReportRefused, and nothing else.
    """
    if len(report) > MAX_CHARACTERS:
        raise ReportRefused("too_long")
    kind, _, rest = report.strip().partition(" ")
    if kind.upper() == "TEXT":
        metrics = _text(rest)
    elif kind.upper() == "JSON":
        metrics = _json(rest)
    else:
        raise ReportRefused("unknown_format")
    values: dict[str, Value] = {}
    for name, value in metrics:
        signal = signals.get(name)
        if signal is None:
            continue
        if signal in values:
            raise ReportRefused("several")
        admitted = admit(signal, _number(value))
        if isinstance(admitted, RefusedValue):
            raise ReportRefused(admitted.reason)
        values[signal] = admitted
    if not values:
        raise ReportRefused("nothing_known")
    return values


def _text(entries: str) -> list[tuple[str, Any]]:
    """Name and value (as text) of each named metric."""
    found: list[tuple[str, Any]] = []
    for entry in entries.split(","):
        name, equals, value = entry.partition("=")
        if not equals:
            raise ReportRefused("unreadable")
        scope, _, metric = name.strip().partition(".")
        if scope == _NAMED:
            found.append((metric, value.strip()))
    return found


def _json(document: str) -> list[tuple[str, Any]]:
    try:
        whole = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise ReportRefused("unreadable") from None
    named = whole.get(_NAMED, {}) if isinstance(whole, dict) else None
    if not isinstance(named, dict):
        raise ReportRefused("unreadable")
    return list(named.items())


def _number(value: Any) -> float:
    if isinstance(value, str):
        if _NUMBER.fullmatch(value) or _NOT_FINITE.fullmatch(value):
            return float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ReportRefused("unreadable")
