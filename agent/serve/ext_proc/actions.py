"""The actions that the ext_proc session of one request returns to its server.

`agent.serve.ext_proc.session` returns these. The server sends Route, Continue, ReplaceBody, ChangeResponse,
ExtendTimeout and Respond as one message each and SendBody as one or more; Schedule, Report, ResponseStarted,
BodyStarted, BodyEnded and ProtocolViolation become calls. `Mode` and `Phase` are the distinctions that Envoy's protocol
makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from agent.events.exchange import TokenUsage
from agent.requests.flow_headers import IgnoredHeader
from agent.requests.response import Response
from agent.requests.ticket import Request

CHUNK_BYTES: Final = 62_000  # Envoy accepts gRPC messages of up to 64 KiB; the rest is for what surrounds the body


class Mode(Enum):
    """How Envoy sends the request body."""

    NONE = "none"
    STREAMED = "streamed"
    HOLD = "hold"
    BUFFERED = "buffered"
    PARTIAL = "partial"
    FULL_DUPLEX = "full_duplex"


class Phase(Enum):
    """The message of Envoy that an action answers; the values are the field names of the answers."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"


class Schedule(NamedTuple):
    """Submit the request to the pool's pipeline; answer with `decided`. `ignored` are the flow headers of the request
    whose value is not used, to be counted."""

    request: Request
    ignored: tuple[IgnoredHeader, ...] = ()


class Route(NamedTuple):
    """Answer `phase`: send the request to `destination`, set and remove these headers. `body` replaces the buffered
    body that is answered. `waited` is for how many milliseconds the request was held, empty where it was not."""

    phase: Phase
    destination: str
    add: tuple[tuple[str, str], ...]
    remove: tuple[str, ...]
    body: bytes | None = None
    waited: str = ""


class Continue(NamedTuple):
    """Answer `phase` without a change."""

    phase: Phase


class ReplaceBody(NamedTuple):
    """Answer a chunk of the request body that Envoy keeps: send this on in its place."""

    body: bytes


class ChangeResponse(NamedTuple):
    """Answer the response headers: set these headers, and remove the one of this name."""

    add: tuple[tuple[str, str], ...]
    remove: str


class ExtendTimeout(NamedTuple):
    """Envoy waits so many seconds from now for the answer to its last message."""

    seconds: float


class Report(NamedTuple):
    """A load report arrived with the response of `served` (`ip:port`; empty: the proxy did not name it)."""

    report: str
    served: str


class ResponseStarted(NamedTuple):
    """The response headers arrived at the proxy."""

    response: Response


class SendBody(NamedTuple):
    """Send this body on, in `chunks`; `end_of_stream` goes with the last."""

    phase: Phase
    body: bytes
    end_of_stream: bool


class BodyStarted(NamedTuple):
    """The first bytes of the response's body have passed."""


class BodyEnded(NamedTuple):
    """The response's body is over: its size, the token usage in it, and whether it was a stream of events."""

    size: int
    usage: TokenUsage
    streamed: bool


class Respond(NamedTuple):
    """Answer the client in place of a model server. `reason` is a row of `agent.requests.rejections.REJECTIONS`."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ProtocolViolation(NamedTuple):
    """Envoy broke the order of the protocol; reported once per session."""

    reason: str
    detail: str


Action = (
    Schedule
    | Route
    | Continue
    | ReplaceBody
    | ChangeResponse
    | ExtendTimeout
    | Report
    | ResponseStarted
    | BodyStarted
    | BodyEnded
    | SendBody
    | Respond
    | ProtocolViolation
)
Actions = tuple[Action, ...]


def chunks(body: bytes) -> Iterator[tuple[bytes, bool]]:
    """The body in chunks of at most CHUNK_BYTES, each with whether it is the last; an empty body is one empty chunk."""
    last = max(0, len(body) - 1) // CHUNK_BYTES
    for number in range(last + 1):
        yield body[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES], number == last
