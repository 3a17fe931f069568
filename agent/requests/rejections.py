"""The one shape of every error that we answer: the error object of the OpenAI API, which all its clients can read.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

`type` follows from the status as OpenAI's own does, so that a client's table of exceptions fits. A client retries 408,
409, 429 and 5xx, and waits as long as a `retry-after` of at most 120 seconds says.
"""

from __future__ import annotations

from typing import Final

import orjson

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    """The `type` of an error with this HTTP status: `invalid_request_error` for most of 4xx, `server_error` for 5xx."""
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON of an error, to be sent with `content-type: application/json`."""
    return orjson.dumps({"error": {"message": message, "type": error_type(status), "param": param, "code": code}})
