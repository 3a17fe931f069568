"""Replaces the model in a JSON body; every other byte stays as the client wrote it.

To read the body and write it again would change numbers, the order of repeated members and escapes, and a server that
logs or signs bodies would see another one. So only the value is cut out, of each top-level member `model` (readers of
JSON differ in which of two they take). A body without the member gets one.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import orjson

_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKENS: Final = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_VALUE: Final = re.compile(_STRING + rb"|[^\[\]{},\" \t\r\n]+", re.DOTALL)
_OPENING: Final = frozenset(b"[{")
_QUOTE: Final = ord('"')


class RewrittenBody(NamedTuple):
    """The body with another model, and the model that it named before (empty: none, or no string)."""

    body: bytes
    requested: str


def rewrite_model(body: bytes, model: str) -> RewrittenBody | None:
    """The body with this model, or None where it is not a JSON object in UTF-8."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    written = orjson.dumps(model)
    before = document.get("model")
    requested = before if isinstance(before, str) else ""
    places = _places(body)
    if not places:
        start = body.index(b"{") + 1
        return RewrittenBody(
            body[:start] + b'"model":' + written + (b"," if document else b"") + body[start:], requested
        )
    parts: list[bytes] = []
    end = 0
    for start, stop in places:
        parts += (body[end:start], written)
        end = stop
    parts.append(body[end:])
    return RewrittenBody(b"".join(parts), requested)


def _places(body: bytes) -> list[tuple[int, int]]:
    """Start and end of the value of each top-level member `model` of a valid JSON object."""
    found: list[tuple[int, int]] = []
    depth = 0
    start = -1  # of a value that is an array or an object
    for token in _TOKENS.finditer(body):
        first = body[token.start()]
        if first == _QUOTE:
            colon = _COLON.match(body, token.end()) if depth == 1 else None
            if colon is None or not _is_model(token.group()):
                continue
            value = _VALUE.match(body, colon.end())
            if value is None:
                start = colon.end()
            else:
                found.append((value.start(), value.end()))
        elif first in _OPENING:
            depth += 1
        else:
            depth -= 1
            if depth == 1 and start >= 0:
                found.append((start, token.end()))
                start = -1
    return found


def _is_model(key: bytes) -> bool:
    return key == b'"model"' or (b"\\" in key and bool(orjson.loads(key) == "model"))
