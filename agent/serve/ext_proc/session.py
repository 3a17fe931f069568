"""One ext_proc conversation as a state machine: what Envoy says goes in as calls, what to do comes out as actions.

No wire type appears here, so the same machine serves grpc.aio, another HTTP/2 server, or a test that feeds it anything.

    request_headers --+-- no body ------------------------------------------+
                      +-- CONNECT, which has no end ---------> Refuse 405   |
                      +-- too long by its content-length ----> Refuse 413   |
                      +-- body to come: hold it                             v
    request_body -----+-- over max_body ---------------------> Refuse 413   |
                      +-- no room for it beside the others --> Refuse 429   |
                      +-- the end: read it --- unreadable ---> Refuse 400   |
                                             + readable ------------------> Ask
    picked -------------> Route, then what Envoy waits for        |
    not_picked ---------> Refuse 503                              |
    closed -------------> End, if a pick was made  <--------------+

How the body comes is Envoy's setting (`Mode`), told in its first message:

    BUFFERED     Envoy waits for an answer to the headers, then sends the body in one message; the pick goes with the
                 answer to the body.
    PARTIAL      as BUFFERED, but of a body that Envoy's buffer does not hold we get the beginning: no prompt is read.
    FULL_DUPLEX  Envoy sends the body in chunks and forgets them: the headers are answered when the last chunk is here,
                 with the pick, and then the whole body is sent back (`Echo`).
    HOLD         STREAMED with send_body_without_waiting_for_header_response: as FULL_DUPLEX, but Envoy keeps the body
                 and wants a plain answer per chunk. It stops reading when its own buffer is full, so past
                 `HOLD_LIMIT` the pick is made without the prompt.
    STREAMED     Envoy waits for an answer to the headers and then for one per chunk: the pick is made at the headers,
                 without the prompt.
    NONE         Envoy sends no body: the pick is made at the headers, without the prompt.

A conversation without that setting (an older Envoy, another proxy) is taken as FULL_DUPLEX, which is what the endpoint
picker protocol asks of a proxy.

Whatever comes in, in whatever order, no method raises, and every pick handed in is given back by exactly one End.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple

from agent.engines.report import ASKED_BY, ASKED_FOR, HEADER
from agent.pick.request import NoPick, Pick, Prompt
from agent.requests.body import BodyRefused, parse
from agent.requests.rejections import error_body
from agent.serve.ext_proc.actions import (
    Action,
    Actions,
    Ask,
    Broken,
    Continue,
    Echo,
    End,
    Mode,
    Phase,
    Refuse,
    Report,
    Route,
    Strip,
)
from agent.serve.ext_proc.body_budget import Room
from agent.serve.ext_proc.headers import CONTROL, DROPPED_REASON, REQUEST_ID

HOLD_LIMIT: Final = 512 << 10  # half of Envoy's default buffer of 1 MiB, at which it stops reading

_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "CONNECT", "TRACE"})


class Settings(NamedTuple):
    """What is the same for every conversation of a pool.

    `max_body` in bytes; `assumed`: the mode if Envoy does not say. `reports`: model servers are asked for a load report
    with each answer.
    """

    max_body: int = 16 << 20
    assumed: Mode = Mode.FULL_DUPLEX
    reports: bool = False


class _State(Enum):
    NEW = 0  # nothing heard
    READING = 1  # headers heard, body to come
    ASKED = 2
    ROUTED = 3
    REFUSED = 4


class Session:
    """One conversation. Each method takes one thing that happened and returns what to do now, in order.

    `new_id` makes a request id for a client that sent none; `room` is what this port's bodies share.
    `model` is the request's model once its body was read.
    """

    __slots__ = (
        "_add", "_answered", "_broken", "_chunks", "_closed", "_encoding", "_held", "_mode", "_new_id", "_owed",
        "_path", "_pick", "_remove", "_request_id", "_response_echo", "_room", "_settings", "_size", "_state",
        "_strip", "_subset", "_trailers", "model",
    )  # fmt: skip

    def __init__(self, settings: Settings, new_id: Callable[[], str], room: Room) -> None:
        self.model = ""
        self._settings = settings
        self._new_id = new_id
        self._room = room
        self._held = 0  # bytes that we have taken of the room
        self._state = _State.NEW
        self._closed: str | None = None
        self._mode = settings.assumed
        self._response_echo = False
        self._path = ""
        self._encoding = ""
        self._request_id = ""
        self._subset: frozenset[str] | None = None
        self._add: tuple[tuple[str, str], ...] = ()
        self._remove: tuple[str, ...] = ()
        self._strip = False  # a load report is for us alone: the client did not ask for it
        self._chunks: list[bytes] = []
        self._size = 0
        self._trailers = False  # the body was ended by trailers
        self._answered = Phase.REQUEST_HEADERS  # the message that the pick will answer
        self._owed: list[Phase] = []  # messages that wait for a plain answer until the pick is made
        self._pick: Pick | None = None
        self._broken = False

    @property
    def routed(self) -> bool:
        """True from the moment the request was sent on its way: from here on nothing that we do may harm it."""
        return self._state is _State.ROUTED

    @property
    def reports(self) -> bool:
        """Whether a load report in the response's headers is of use."""
        return self._settings.reports

    @property
    def undecided(self) -> bool:
        """True until there was a pick or a refusal, or is a question for one."""
        return self._state in (_State.NEW, _State.READING)

    @property
    def over(self) -> bool:
        """True when the client has been answered by us: nothing more will be said."""
        return self._state is _State.REFUSED

    def request_headers(
        self,
        headers: Mapping[str, str],
        *,
        end_of_stream: bool,
        mode: Mode | None = None,
        subset: frozenset[str] | None = None,
        response_echo: bool = False,
    ) -> Actions:
        """The first message. `headers` need hold only those of READ; `subset` as `subset_of` gives it.

        `response_echo`: Envoy was told to stream the response's body through us in full duplex, and wants it back.
        """
        if self._state is not _State.NEW:
            return self._disorder("request headers a second time")
        self._state = _State.READING
        self._mode = mode or self._settings.assumed
        self._response_echo = response_echo
        self._subset = subset
        self._path = headers.get(":path", "")
        self._encoding = headers.get("content-encoding", "")
        self._request_id = headers.get(REQUEST_ID, "")
        if not self._request_id:
            self._request_id = self._new_id()
            self._add = ((REQUEST_ID, self._request_id),)
        if self._settings.reports and ASKED_BY not in headers:
            self._strip = True
            self._add += ((ASKED_BY, ASKED_FOR),)
        if not CONTROL.isdisjoint(headers):
            self._remove = tuple(name for name in headers if name in CONTROL)
        if subset is not None and not subset:
            return self._unavailable("subset_empty", "The proxy allows no endpoint for this request.")
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self._settings.max_body:
            return self._too_large()
        method = headers.get(":method", "GET")
        if end_of_stream:
            return self._ask(Prompt("", b"")) if method in _BODILESS else self._read(b"")
        if method == "CONNECT":  # what follows is no body and has no end: who waits for it waits for ever
            message = "CONNECT is not offered: this is a gateway with paths of its own, not a proxy to other hosts."
            return self._refuse(405, "method", message, code="method_not_allowed")
        if self._mode in (Mode.BUFFERED, Mode.PARTIAL):
            self._answered = Phase.REQUEST_BODY
            return (Continue(Phase.REQUEST_HEADERS),)
        if self._mode in (Mode.NONE, Mode.STREAMED):
            return self._ask(Prompt("", b""))
        return ()

    def request_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        """A chunk of the request's body, or all of it where the mode is BUFFERED."""
        mode = self._mode
        if self._state is not _State.READING:
            return self._late_body(body, end_of_stream=end_of_stream)
        self._size += len(body)
        if self._size > self._settings.max_body:
            return self._too_large()
        if not self._room.take(len(body)):
            return self._no_room()
        self._held += len(body)
        self._chunks.append(body)
        if mode is Mode.HOLD:
            self._owed.append(Phase.REQUEST_BODY)
            if self._size > HOLD_LIMIT and not end_of_stream:
                return self._ask(Prompt("", b""))
        # A buffered body is whole even where trailers follow and the flag is not set.
        if end_of_stream or mode is Mode.BUFFERED:
            return self._read(b"".join(self._chunks))
        return self._ask(Prompt("", b"")) if mode is Mode.PARTIAL else ()

    def request_trailers(self) -> Actions:
        """Trailers, which end a body whose last chunk did not say so."""
        match self._state:
            case _State.READING:
                self._trailers = True
                if self._mode in (Mode.BUFFERED, Mode.PARTIAL):
                    # Its headers have been answered and its body never came: there is no message left to route with.
                    return self._fail("request trailers before the body")
                self._owed.append(Phase.REQUEST_TRAILERS)
                return self._read(b"".join(self._chunks))
            case _State.NEW:
                return self._skipped("request trailers")
            case _State.ASKED:
                self._owed.append(Phase.REQUEST_TRAILERS)
                return ()
            case _State.ROUTED:
                return (Continue(Phase.REQUEST_TRAILERS),)
            case _State.REFUSED:
                return ()

    def picked(self, pick: Pick) -> Actions:
        """The picker's answer to Ask. The pick is ours from here on: an End gives it back."""
        if self._closed is not None:
            return (End(pick, self._closed),)
        if self._state is not _State.ASKED:
            return (End(pick, "lost"),)
        self._state = _State.ROUTED
        self._pick = pick
        destination = ",".join((pick.endpoint, *pick.fallbacks)) if pick.fallbacks else pick.endpoint
        actions: list[Action] = [Route(self._answered, destination, self._add, self._remove)]
        # Chunks there were, even if empty: their end is sent back too, unless trailers are the end.
        if self._mode is Mode.FULL_DUPLEX and self._chunks and (self._size or not self._trailers):
            actions.append(Echo(Phase.REQUEST_BODY, b"".join(self._chunks), not self._trailers))
        else:
            self.sent()
        actions += map(Continue, self._owed)
        self._forget_body()
        return tuple(actions)

    def sent(self) -> None:
        """The body of the request was sent back: its bytes are nobody's any more."""
        self._room.give(self._held)
        self._held = 0

    def not_picked(self, no_pick: NoPick) -> Actions:
        """The picker's other answer to Ask."""
        if self._state is not _State.ASKED or self._closed is not None:
            return ()
        return self._unavailable(no_pick.reason, f"No model server is available: {no_pick.detail}")

    def response_headers(self, report: str = "", served: str = "") -> Actions:
        """The response's headers, where Envoy is set to send them: the load report in them, and who answered."""
        if self.over:
            return ()
        if not report:
            return (Continue(Phase.RESPONSE_HEADERS),)
        answer = Strip(HEADER) if self._strip else Continue(Phase.RESPONSE_HEADERS)
        return (answer,) if self._pick is None else (answer, Report(self._pick, report, served))

    def response_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        """A chunk of the response's body: Envoy should not be set to send any, for each costs both of us."""
        if self.over:
            return ()
        return (
            (Echo(Phase.RESPONSE_BODY, body, end_of_stream),)
            if self._response_echo
            else (Continue(Phase.RESPONSE_BODY),)
        )

    def response_trailers(self) -> Actions:
        """The response's trailers, where Envoy is set to send them."""
        return () if self.over else (Continue(Phase.RESPONSE_TRAILERS),)

    def closed(self, how: str) -> Actions:
        """The conversation is over, in whatever state: `closed` by the peer, or `lost` when we let go of it."""
        if self._closed is None:
            self._closed = how
        pick, self._pick = self._pick, None
        self._forget_body()
        self.sent()
        return () if pick is None else (End(pick, self._closed),)

    def failed(self) -> Actions:
        """An error of ours: the client is told, unless its request is already on its way, or over."""
        if self._state in (_State.ROUTED, _State.REFUSED):
            return ()
        return self._refuse(
            500, "error", "The gateway's endpoint picker failed on this request.", code="internal_error"
        )

    def _read(self, body: bytes) -> Actions:
        try:
            prompt = parse(body, self._path, self._encoding)
        except BodyRefused as refused:
            return self._refuse(refused.status, refused.code, refused.message, param=refused.param, code=refused.code)
        self.model = prompt.model
        return self._ask(prompt)

    def _ask(self, prompt: Prompt) -> Actions:
        self._state = _State.ASKED
        return (Ask(self._request_id, prompt, self._subset),)

    def _late_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        if self._state is _State.NEW:
            return self._skipped("a request body")
        if self._state is _State.REFUSED:
            return ()
        if self._mode in (Mode.STREAMED, Mode.HOLD):
            if self._state is _State.ROUTED:
                return (Continue(Phase.REQUEST_BODY),)
            self._owed.append(Phase.REQUEST_BODY)
            return ()
        if self._mode is Mode.FULL_DUPLEX and not body and end_of_stream:
            return ()  # some versions of Envoy say twice that a body has ended (envoyproxy/envoy#46237)
        return self._disorder("request body after its end")

    def _skipped(self, what: str) -> Actions:
        return self._fail(f"{what} without request headers: set request_header_mode to SEND")

    def _fail(self, detail: str) -> Actions:
        refusal = self._refuse(
            500, "protocol", f"The gateway sent its endpoint picker {detail}.", code="internal_error"
        )
        return self._disorder(detail) + refusal

    def _disorder(self, detail: str) -> Actions:
        if self._broken:
            return ()
        self._broken = True
        return (Broken("order", detail),)

    def _too_large(self) -> Actions:
        limit = self._settings.max_body
        return self._refuse(
            413, "too_large", f"The body of your request is over the limit of {limit} bytes.", code="request_too_large"
        )

    def _no_room(self) -> Actions:
        return self._refuse(
            429,
            "no_room",
            "The gateway holds as many request bodies as it may at this moment.",
            code="overloaded",
            headers=(("retry-after", "1"), (DROPPED_REASON, "rejected-saturated")),
        )

    def _unavailable(self, reason: str, message: str) -> Actions:
        headers = (("retry-after", "1"), (DROPPED_REASON, "rejected-no-endpoints"))
        return self._refuse(503, reason, message, code="no_endpoint", headers=headers)

    def _refuse(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Actions:
        self._state = _State.REFUSED
        self._forget_body()
        self.sent()
        headers = (("content-type", "application/json"), (REQUEST_ID, self._request_id), *headers)
        return (
            Refuse(
                status,
                reason,
                tuple(pair for pair in headers if pair[1]),
                error_body(status, message, param=param, code=code),
            ),
        )

    def _forget_body(self) -> None:
        self._chunks = []
        self._owed = []
