"""From the headers of a request to its flow headers: objective, caller, longest wait, wanted time to the first token.

No value makes a request fail: one that cannot be used counts as absent, and is returned with the reason, so that it can
be counted. Of a header under two names the present name goes before the former one, and of one that was sent several
times the last value is used: a gateway that adds its own puts it last.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from agent.requests.control_headers import (
    FAIRNESS_ID,
    OBJECTIVE,
    OLD_FAIRNESS_ID,
    OLD_OBJECTIVE,
    OLD_TPOT,
    OLD_TTFT,
    TERMS,
    TPOT,
    TTFT,
    TTL,
)
from agent.requests.flow_terms import NO_FLOW_HEADERS, FlowHeaders

OBJECTIVE_LENGTH: Final = 253  # characters: the longest name of a Kubernetes object
CALLER_LENGTH: Final = 256  # bytes
_QUANTITY_LENGTH: Final = 32

TOO_LONG: Final = "too_long"
NOT_PRINTABLE: Final = "not_printable"
NOT_A_DURATION: Final = "not_a_duration"
NOT_A_NUMBER: Final = "not_a_number"
NOT_POSITIVE: Final = "not_positive"
REPEATED: Final = "repeated"
REASONS: Final[Mapping[str, str]] = {
    TOO_LONG: f"a name of over {OBJECTIVE_LENGTH} characters, or a caller of over {CALLER_LENGTH} bytes",
    NOT_PRINTABLE: "a name with control characters, or with characters that Unicode does not define",
    NOT_A_DURATION: "not a number with its unit, such as `30s`, `1m30s` or `500ms`",
    NOT_A_NUMBER: "not a decimal number",
    NOT_POSITIVE: "zero or negative: it was over when the request arrived",
    REPEATED: "sent several times; the last value is used",
}

# Go's time.ParseDuration, without the micro sign, which has several encodings.
_DURATION: Final = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")


class FlowHeaderRules(NamedTuple):
    """Which headers are believed: none where `believed` is false. `caller_header` names the caller where no fairness id
    does; empty: no header does."""

    believed: bool = True
    caller_header: str = ""


class IgnoredHeader(NamedTuple):
    """A header whose value is not used, by its present name, and why: a key of REASONS."""

    header: str
    reason: str


class ReadHeaders(NamedTuple):
    """The flow headers of a request, and what of them is not used."""

    headers: FlowHeaders
    ignored: tuple[IgnoredHeader, ...] = ()


NOTHING_READ: Final = ReadHeaders(NO_FLOW_HEADERS)
DEFAULT_RULES: Final = FlowHeaderRules()
_PRESENT: Final = {
    OLD_OBJECTIVE: OBJECTIVE,
    OLD_FAIRNESS_ID: FAIRNESS_ID,
    OLD_TTFT: TTFT,
    OLD_TPOT: TPOT,
}  # former name -> present


def read_flow_headers(
    headers: Mapping[str, str], rules: FlowHeaderRules, repeated: Collection[str] = ()
) -> ReadHeaders:
    """The flow headers among `headers`, whose names are in lower case and whose values are decoded as Latin-1.
    `repeated`: names of headers that were sent several times."""
    if not rules.believed:
        return NOTHING_READ
    caller_header = rules.caller_header
    ignored = [
        IgnoredHeader(_PRESENT.get(name, name), REPEATED) for name in repeated if name in TERMS or name == caller_header
    ]
    objective, caller = "", ""
    ttl: float | None = None
    text = headers.get(OBJECTIVE) or headers.get(OLD_OBJECTIVE)
    if text:
        objective = _name(text, OBJECTIVE_LENGTH, OBJECTIVE, ignored)
    text = headers.get(FAIRNESS_ID) or headers.get(OLD_FAIRNESS_ID)
    if text:
        caller = _name(text, CALLER_LENGTH, FAIRNESS_ID, ignored)
    elif caller_header and (text := headers.get(caller_header)):
        caller = _name(text, CALLER_LENGTH, caller_header, ignored)
    text = headers.get(TTL)
    if text:
        ttl = _positive(duration_seconds(text), NOT_A_DURATION, TTL, ignored)
    ttft = _milliseconds(headers.get(TTFT) or headers.get(OLD_TTFT), TTFT, ignored)
    tpot = _milliseconds(headers.get(TPOT) or headers.get(OLD_TPOT), TPOT, ignored)
    if not ignored and not objective and not caller and ttl is None and ttft is None and tpot is None:
        return NOTHING_READ
    return ReadHeaders(FlowHeaders(objective, caller, ttl, ttft, tpot), tuple(ignored))


def duration_seconds(text: str) -> float | None:
    """The seconds of a duration as Go writes it, such as `1m30.5s`; `0` needs no unit. None where it is none."""
    if text in ("0", "+0", "-0"):
        return 0.0
    if len(text) > _QUANTITY_LENGTH or not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def _milliseconds(text: str | None, header: str, ignored: list[IgnoredHeader]) -> float | None:
    """The seconds of a number of milliseconds; None of none."""
    if not text:
        return None
    found = _positive(_number(text), NOT_A_NUMBER, header, ignored)
    return None if found is None else found / 1000


def _utf_8(text: str) -> str:
    """The text of a header, which was decoded as Latin-1, as UTF-8 where it is."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _number(text: str) -> float | None:
    if len(text) > _QUANTITY_LENGTH or not _NUMBER.fullmatch(text):
        return None
    return float(text)


def _positive(value: float | None, otherwise: str, header: str, ignored: list[IgnoredHeader]) -> float | None:
    """The value where it is above zero."""
    if value is None:
        ignored.append(IgnoredHeader(header, otherwise))
        return None
    if value <= 0:
        ignored.append(IgnoredHeader(header, NOT_POSITIVE))
        return None
    return value


def _name(text: str, limit: int, header: str, ignored: list[IgnoredHeader]) -> str:
    """The name, of at most `limit` bytes; empty where it cannot be used."""
    if len(text) > limit:
        ignored.append(IgnoredHeader(header, TOO_LONG))
        return ""
    if not text.isascii():
        text = _utf_8(text)
    if not text.isprintable():
        ignored.append(IgnoredHeader(header, NOT_PRINTABLE))
        return ""
    return text
