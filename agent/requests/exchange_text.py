"""One exchange as a line of text: what Envoy writes into an entry of its access log, and how it is read.

A custom tag of the entry has all numbers, because the fields of the entry for them cost three times as much to read.
Pure.
"""

from __future__ import annotations

from typing import Final

from agent.events.exchange import NO_USAGE, Exchange, TokenUsage

TAG: Final = "igw.exchange"
# The namespace and the keys of the dynamic metadata that have the token usage (agent.envoy.usage).
USAGE: Final = "igw.usage"
PROMPT_TOKENS: Final = "prompt_tokens"
COMPLETION_TOKENS: Final = "completion_tokens"
CACHED_TOKENS: Final = "cached_tokens"
# The parts in their order, separated by spaces. Envoy writes `-` for what it does not know. The type of the response is
# the last one, because it is a server's text and may have spaces.
FORMAT: Final = " ".join(
    (
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
        "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
        "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
        "%BYTES_RECEIVED%",
        "%BYTES_SENT%",
        *(f"%DYNAMIC_METADATA({USAGE}:{key})%" for key in (PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS)),
        "%RESP(CONTENT-TYPE)%",
    )
)
_PARTS: Final = 9
_STREAM: Final = "text/event-stream"
_MAX_DIGITS: Final = 15


def read_exchange(text: str, ended: float) -> Exchange | None:
    """The exchange of a line; None for a text of another form. `ended` is the duration in seconds of one that the
    client has not received to its end."""
    parts = text.split(" ", _PARTS - 1)
    if len(parts) != _PARTS:
        return None
    duration, first, last, received, sent, prompt, completion, cached, kind = parts
    first_us, last_us, duration_us = _number(first), _number(last), _number(duration)
    first_token = None if first_us is None else first_us / 1e6
    usage = NO_USAGE
    if prompt != "-" or completion != "-":
        usage = TokenUsage(_number(prompt), _number(completion), _number(cached))
    return Exchange(
        ended if duration_us is None else duration_us / 1e6,
        first_token,
        max(0.0 if last_us is None else last_us / 1e6, first_token or 0.0),
        _number(received) or 0,
        _number(sent) or 0,
        kind.startswith(_STREAM),
        usage,
    )


def _number(text: str) -> int | None:
    """A whole number from 0 on; None for anything else."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS else None
