"""What an ext_proc conversation may ask of the wire that carries it, in our own words.

`agent.serve.ext_proc.session` returns these. A wire turns each into one message of its protocol (Route, Continue,
Strip, Refuse, one or more for Echo), or into a call (Ask, Report, End, Broken). Mode and Phase are the protocol's own
distinctions, named once for every wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from agent.pick.request import Pick, Prompt

PIECE_BYTES: Final = 62_000  # Envoy takes gRPC messages of up to 64 KiB; the rest is room for what surrounds the body


class Mode(Enum):
    """How Envoy hands over the request's body."""

    NONE = "none"
    STREAMED = "streamed"
    HOLD = "hold"
    BUFFERED = "buffered"
    PARTIAL = "partial"
    FULL_DUPLEX = "full_duplex"


class Phase(Enum):
    """Which of Envoy's messages an action answers; the values are the names of the answers in its protocol."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"


class Ask(NamedTuple):
    """Ask the picker; answer with `picked` or `not_picked`."""

    request_id: str
    prompt: Prompt
    subset: frozenset[str] | None


class Route(NamedTuple):
    """Answer `phase`: send the request to `destination`, set and remove these headers."""

    phase: Phase
    destination: str
    add: tuple[tuple[str, str], ...]
    remove: tuple[str, ...]


class Continue(NamedTuple):
    """Answer `phase`: go on, nothing to change."""

    phase: Phase


class Strip(NamedTuple):
    """Answer the response's headers: go on, without the header of this name."""

    header: str


class Report(NamedTuple):
    """A load report came with the answer to what was picked, from `served` (`ip:port`; empty: nobody told whom)."""

    pick: Pick
    report: str
    served: str


class Echo(NamedTuple):
    """Send this body on, in `pieces`; `end_of_stream` goes with the last."""

    phase: Phase
    body: bytes
    end_of_stream: bool


class Refuse(NamedTuple):
    """Answer the client ourselves, with JSON; `reason` is one word for a count."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class End(NamedTuple):
    """A pick is over: `closed` by the peer, or `lost` when we let go of it."""

    pick: Pick
    how: str


class Broken(NamedTuple):
    """The peer broke the order of the protocol: to be counted, once per conversation."""

    reason: str
    detail: str


Action = Ask | Route | Continue | Strip | Report | Echo | Refuse | End | Broken
Actions = tuple[Action, ...]


def pieces(body: bytes) -> Iterator[tuple[bytes, bool]]:
    """The body cut for Envoy, each piece with whether it is the last; an empty body is one empty piece."""
    last = max(0, len(body) - 1) // PIECE_BYTES
    for number in range(last + 1):
        yield body[number * PIECE_BYTES : (number + 1) * PIECE_BYTES], number == last
