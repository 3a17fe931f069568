"""Which representation a client accepts. The APIs speak JSON only: protobuf has no definition of these kinds."""

from __future__ import annotations

from typing import Final

JSON: Final = "application/json"
_ACCEPTED: Final = frozenset({JSON, "application/*", "*/*"})
GZIP_BYTES: Final = 1024  # a shorter body is not compressed


def accepts_json(accept: str) -> bool:
    """Whether one of the alternatives of an Accept header (RFC 9110, 12.5.1) is plain JSON; empty: anything is.

    JSON as another kind (`as=Table`, `as=APIGroupDiscoveryList`) is none that is served: a client that accepts nothing
    else falls back to plain JSON when it is refused.
    """
    if not accept.strip():
        return True
    for alternative in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in alternative.split(";"))
        if media_type in _ACCEPTED and _acceptable(parameters):
            return True
    return False


def _acceptable(parameters: list[str]) -> bool:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "as":
            return False
        if name.strip() == "q" and not value.strip().strip("0."):
            return False
    return True


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header lists gzip without refusing it."""
    for alternative in accept_encoding.split(","):
        coding, *parameters = (part.strip().lower() for part in alternative.split(";"))
        if coding == "gzip":
            return not any(
                parameter.replace(" ", "").startswith("q=") and not parameter.partition("=")[2].strip().strip("0.")
                for parameter in parameters
            )
    return False
