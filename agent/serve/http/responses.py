"""Responses that handlers return, and the exception that refuses a request. All are JSON unless stated otherwise."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from agent.requests.rejections import error_body

_NO_STORE: Final = {"Cache-Control": "no-store"}


class HttpError(Exception):
    """A request is refused: raised by a handler, answered by the server with a JSON error object.

    `code` is a constant for programs, the message a sentence for people; `param` names the query parameter at fault.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    def response(self) -> web.Response:
        """The JSON error object of the OpenAI API (`agent.requests.rejections`)."""
        body = error_body(self.status, str(self), param=self.param, code=self.code)
        return json_bytes(body, self.status, self.headers)


def json_response(content: object, status: int = 200) -> web.Response:
    """`content` (structs, dicts, lists, numbers, text) as JSON that no cache stores."""
    return json_bytes(msgspec.json.encode(content), status)


def json_bytes(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """The same for a body that is JSON already."""
    return web.Response(
        body=body, status=status, content_type="application/json", headers={**_NO_STORE, **(headers or {})}
    )


def text_response(text: str) -> web.Response:
    """Plain text in UTF-8 that no cache stores."""
    return web.Response(text=text, content_type="text/plain", headers=_NO_STORE)
