"""A load report that came with an answer: the header by which a server tells its load to whoever asked for that.

ORCA (Open Request Cost Aggregation), as model servers have it: a request with `endpoint-load-metrics-format: TEXT` is
answered with one line of named metrics, or with a JSON object where that was asked for:

    endpoint-load-metrics: TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0
    endpoint-load-metrics: JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}

Both seen of vLLM 0.32. Which named metric is which signal, the engine's table says. TEXT is what we ask for: a server
of several engines writes one entry for each of them, which JSON would merge into the last one. What an entry of several
stands for nobody says, so such a report is refused, as is one of which any wanted value cannot be true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from agent.signals import Refusal, Value, admit

ASKED_BY: Final = "endpoint-load-metrics-format"  # the request's header
ASKED_FOR: Final = "TEXT"
HEADER: Final = "endpoint-load-metrics"  # the answer's
MOST_CHARACTERS: Final = 4096  # vLLM's has 90

REASONS: Final[Mapping[str, str]] = {
    "too_long": f"it has more than {MOST_CHARACTERS} characters",
    "unknown_format": "it is neither TEXT nor JSON",
    "unreadable": "it is not what its format says",
    "nothing_known": "none of its metrics is one that the engine's table names",
    "several": "it has several values of one metric, as of a server of several engines",
    "not_finite": "a value is NaN or infinite",
    "out_of_range": "a value cannot be true for its signal",
    "unattributed": "the proxy did not tell which endpoint answered: have it send `upstream.address`",
    "another_server": "another endpoint answered than the one that was picked",
}
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NOT_FINITE: Final = re.compile(r"[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_NAMED: Final = "named_metrics"


class ReportRefused(Exception):
    """A report that is not believed; `reason` is one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read(report: str, signals: Mapping[str, str]) -> dict[str, Value]:
    """The values of a header by signal; `signals`: what the engine calls a named metric -> the signal.

    Raises ReportRefused, and nothing else.
    """
    if len(report) > MOST_CHARACTERS:
        raise ReportRefused("too_long")
    kind, _, rest = report.strip().partition(" ")
    if kind.upper() == "TEXT":
        told = _text(rest)
    elif kind.upper() == "JSON":
        told = _json(rest)
    else:
        raise ReportRefused("unknown_format")
    values: dict[str, Value] = {}
    for name, value in told:
        signal = signals.get(name)
        if signal is None:
            continue
        if signal in values:
            raise ReportRefused("several")
        admitted = admit(signal, _number(value))
        if isinstance(admitted, Refusal):
            raise ReportRefused(admitted.reason)
        values[signal] = admitted
    if not values:
        raise ReportRefused("nothing_known")
    return values


def _text(entries: str) -> list[tuple[str, Any]]:
    """Name and value, as text, of each named metric."""
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
