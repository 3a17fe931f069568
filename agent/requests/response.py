"""What a proxy reports of the response to a picked request, and the table of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.events.exchange import Exchange

# A result of a picked request, as the proxy reports it.
OK: Final = "ok"
CLIENT_ERROR: Final = "client_error"
OVERLOADED: Final = "overloaded"
UNSUPPORTED: Final = "unsupported"
SERVER_ERROR: Final = "server_error"
CONNECT_FAILURE: Final = "connect_failure"
RETRIED: Final = "retried"
RESET: Final = "reset"
TIMEOUT: Final = "timeout"
CLIENT_LEFT: Final = "client_left"
PROXY: Final = "proxy"
CUT: Final = "cut"


class ResultRow(NamedTuple):
    """A result. `failure`: it counts against the endpoint."""

    meaning: str
    failure: bool = False


RESULTS: Final[Mapping[str, ResultRow]] = {
    OK: ResultRow("the server answered with 101, 2xx or 3xx"),
    CLIENT_ERROR: ResultRow("the server answered with 4xx other than 429"),
    OVERLOADED: ResultRow("the server answered with 429 or 529, or with 503 while its queue was full"),
    UNSUPPORTED: ResultRow("the server answered with 501 or 505: it does not offer what the request asks for"),
    SERVER_ERROR: ResultRow("the server answered with another 5xx", failure=True),
    CONNECT_FAILURE: ResultRow("the proxy could not connect to the server", failure=True),
    RETRIED: ResultRow(
        "the proxy tried another server after it: it could not connect, or got no response", failure=True
    ),
    RESET: ResultRow("the server broke off the connection or the stream", failure=True),
    TIMEOUT: ResultRow("the server did not answer within the proxy's time-out", failure=True),
    CLIENT_LEFT: ResultRow("the client left before the response was complete"),
    PROXY: ResultRow("the proxy answered itself, without a try at a server"),
    CUT: ResultRow("the response broke off, and the proxy does not say whether by its client or by its server"),
}

_OVERLOAD_STATUSES: Final = frozenset({429, 529})
_TIMEOUT_DETAILS: Final = frozenset(
    {"upstream_response_timeout", "response_timeout", "upstream_per_try_timeout", "upstream_per_try_idle_timeout"}
)
_UNSUPPORTED_STATUSES: Final = frozenset({501, 505})


class Response(NamedTuple):
    """What the proxy reports of the response to one request.

    `status` is the HTTP status, 0 where there was none. `broken` is how the exchange with the server failed: `""`,
    CONNECT_FAILURE, RESET, TIMEOUT or PROXY. `served` is the endpoint (`ip:port`) of the last try, empty where unknown;
    `attempts` the number of tries. `retry_after`: the response has that header. `complete`: no later report follows.
    `body_bytes` is the size of the response body so far, None where unknown. `exchange` is what the proxy measured,
    None where it measures nothing. `streamed`: the body is a stream of events; `readable`: it is JSON or such a stream,
    and not compressed. Both are of response headers alone.
    """

    status: int
    broken: str = ""
    client_left: bool = False
    served: str = ""
    attempts: int = 1
    retry_after: bool = False
    complete: bool = False
    body_bytes: int | None = None
    exchange: Exchange | None = None
    streamed: bool = False
    readable: bool = False


def broken_by(details: str) -> str:
    """How the exchange with the server failed, by Envoy's response code details: a value of `Response.broken`.

    Envoy's words: `via_upstream` is a response of the server; `upstream_reset_before_response_started{...}` has the
    cause in braces; details of another kind are a response that Envoy made without a server's. No details: another
    proxy, which reports nothing but the status.
    """
    if not details or details == "via_upstream":
        return ""
    if details.startswith("upstream_reset_"):
        return CONNECT_FAILURE if "connection_failure" in details else RESET
    if details in _TIMEOUT_DETAILS:
        return TIMEOUT
    return PROXY


def result_of(response: Response, *, queue_full: bool) -> str:
    """The key of `RESULTS` for a response. `queue_full`: a page shows that requests wait at this server."""
    status = response.status
    if response.broken:
        return response.broken
    if response.client_left:
        return CLIENT_LEFT
    if status in _OVERLOAD_STATUSES or (status == 503 and (response.retry_after or queue_full)):
        return OVERLOADED
    if status in _UNSUPPORTED_STATUSES:
        return UNSUPPORTED
    if status >= 500:
        return SERVER_ERROR
    if status >= 400:
        return CLIENT_ERROR
    return OK if status >= 100 else CLIENT_LEFT
