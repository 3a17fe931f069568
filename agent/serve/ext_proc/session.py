"""One ext_proc stream as a state machine: Envoy's messages go in as method calls, actions come out.

    request_headers --+-- no body ------------------------------------------+
                      +-- CONNECT, which has no end --------> Respond 405   |
                      +-- content-length over max_body -----> Respond 413   |
                      +-- a model to rewrite in no body ----> Respond 400   |
                      +-- a body follows                                    v
    request_body -----+-- over max_body --------------------> Respond 413   |
                      +-- over the port's body budget ------> Respond 429   |
                      +-- its end -----------------------------------> Schedule
    held -------------+-- where Envoy has a timer: ExtendTimeout
    decided ----------+-- pick: Route, then the answers that Envoy waits for
                      +-- rejection: Respond

Envoy's first message names the mode in which it sends the body:

    BUFFERED     Envoy waits for an answer to the headers, then sends the body in one message. The answer to the body
                 carries the destination.
    PARTIAL      As BUFFERED, but a body that exceeds Envoy's buffer arrives as its beginning only: the prompt is not
                 read.
    FULL_DUPLEX  Envoy sends the body in chunks and keeps none. The headers are answered after the last chunk, with the
                 destination; then the whole body is sent back (`SendBody`).
    HOLD         STREAMED with send_body_without_waiting_for_header_response: as FULL_DUPLEX, but Envoy keeps the body
                 and expects a plain answer per chunk. Envoy stops reading when its buffer is full, so a request is
                 scheduled without its prompt once HOLD_LIMIT bytes have arrived.
    STREAMED     Envoy waits for an answer to the headers and then for one per chunk: the request is scheduled at its
                 headers, without its prompt.
    NONE         Envoy sends no body: as STREAMED.

A WebSocket upgrade has no body that ends. It is scheduled at its headers, and in full duplex each chunk of its data is
sent back as it arrives. With BUFFERED and PARTIAL Envoy waits for the end: its configuration must set NONE for them.

A stream that names no mode (an older Envoy, another proxy) is processed as FULL_DUPLEX in both directions, which the
endpoint picker protocol requires of a proxy, or as the mode that is configured for such proxies.

A header may name a model that replaces the one in the body (`rewrite_of`). The body is changed before the request is
scheduled, so the pick is that for the new model, and the changed body is sent on in the way of the mode. Where the
agent does not have the whole body, such a request is rejected: to send it on unchanged would be another request.

No method raises, whatever arrives in whatever order. A body is released when the request is scheduled, unless it must
be sent back. It counts against the port's budget until the decision, because Envoy keeps it where the agent does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Final, NamedTuple

from agent.engines.report import HEADER, REQUEST_HEADER, REQUESTED_FORMAT
from agent.events.exchange import NO_USAGE
from agent.pick.decision import Pick
from agent.requests.control_headers import CONTROL
from agent.requests.flow_headers import DEFAULT_RULES, NOTHING_READ, FlowHeaderRules, read_flow_headers
from agent.requests.model_rewrite import rewrite_model
from agent.requests.rejections import WAITED_HEADER, Rejection, milliseconds
from agent.requests.response import Response
from agent.requests.ticket import Request
from agent.requests.usage_text import ResponseText
from agent.serve.ext_proc.actions import (
    Action,
    Actions,
    BodyEnded,
    BodyStarted,
    ChangeResponse,
    Continue,
    ExtendTimeout,
    Mode,
    Phase,
    ProtocolViolation,
    ReplaceBody,
    Report,
    Respond,
    ResponseStarted,
    Route,
    Schedule,
    SendBody,
)
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.headers import READ, REQUEST_ID, rewrite_of
from agent.serve.ext_proc.holding import RENDERED, ProxyTimeouts, hold_limit, override

HOLD_LIMIT: Final = 512 << 10  # half of Envoy's default buffer of 1 MiB

_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "CONNECT", "TRACE"})


class SessionConfig(NamedTuple):
    """What all sessions of a pool share.

    `max_body` in bytes; `default_mode`: the mode of a stream that names none, in both directions; `reports`: model
    servers are requested to send a load report with each response; `flow_rules`: the flow headers that are believed;
    `timeouts` are those of the proxy; `read`: the headers that a session reads by these rules (`read_by`).
    """

    max_body: int = 16 << 20
    default_mode: Mode = Mode.FULL_DUPLEX
    reports: bool = False
    flow_rules: FlowHeaderRules = DEFAULT_RULES
    timeouts: ProxyTimeouts = RENDERED
    read: frozenset[str] = READ


class _State(Enum):
    NEW = 0  # no message yet
    READING = 1  # the headers have arrived, the body has not
    SCHEDULED = 2
    ROUTED = 3
    ANSWERED = 4  # by the agent


class Session:
    """The stream of one request. Each method takes one event and returns the actions that follow, in order.

    `new_id` makes a request id for a client that sent none; `budget` is shared by the bodies of the port.
    """

    __slots__ = (
        "_add",
        "_answered",
        "_body_follows",
        "_budget",
        "_buffered",
        "_chunks",
        "_closed",
        "_config",
        "_content_type",
        "_echo",
        "_encoding",
        "_flow",
        "_has_length",
        "_method",
        "_mode",
        "_new_id",
        "_owed",
        "_path",
        "_remove",
        "_remove_report",
        "_replaced",
        "_request_id",
        "_response_echo",
        "_response_ended",
        "_response_size",
        "_response_text",
        "_rewrite",
        "_size",
        "_state",
        "_streamed",
        "_subset",
        "_trailers",
        "_tunnel",
        "_violated",
        "_waited",
    )  # fmt: skip

    def __init__(self, config: SessionConfig, new_id: Callable[[], str], budget: BodyBudget) -> None:
        self._config = config
        self._new_id = new_id
        self._budget = budget
        self._buffered = 0  # bytes acquired from the budget
        self._state = _State.NEW
        self._closed = False
        self._mode = config.default_mode
        self._response_echo = config.default_mode is Mode.FULL_DUPLEX
        self._response_ended = False
        self._response_size = 0  # of the body so far
        self._response_text: ResponseText | None = None  # of a body in which a usage may be
        self._streamed = False
        self._path = ""
        self._encoding = ""
        self._content_type = ""
        self._method = ""
        self._request_id = ""
        self._subset: frozenset[str] | None = None
        self._add: tuple[tuple[str, str], ...] = ()
        self._remove: tuple[str, ...] = ()
        self._remove_report = False  # the client did not request the load report
        self._chunks: list[bytes] = []
        self._echo: bytes | None = None  # the body to send back
        self._rewrite = ""  # the model that replaces the one in the body
        self._replaced: bytes | None = None  # the changed body, where Envoy keeps the one that it sent
        self._body_follows = False  # Envoy sends more of the body before the answer
        self._has_length = False  # the headers have a content-length
        self._size = 0
        self._trailers = False  # trailers ended the body
        self._tunnel = False  # a WebSocket upgrade: data instead of a body
        self._answered = Phase.REQUEST_HEADERS  # the message that the decision answers
        self._owed: list[Phase] = []  # messages whose answers wait for the decision
        self._flow = NOTHING_READ
        self._violated = False
        self._waited = ""  # milliseconds for which the request was held

    @property
    def undecided(self) -> bool:
        """True until the request is scheduled or answered."""
        return self._state in (_State.NEW, _State.READING)

    @property
    def routed(self) -> bool:
        """True once the request has been sent to an endpoint: no failure of the agent may affect it from here on."""
        return self._state is _State.ROUTED

    @property
    def read(self) -> frozenset[str]:
        """The headers of a request that it reads."""
        return self._config.read

    @property
    def over(self) -> bool:
        """True when the agent has answered the client: no action follows."""
        return self._state is _State.ANSWERED

    def request_headers(
        self,
        headers: Mapping[str, str],
        *,
        end_of_stream: bool,
        mode: Mode | None = None,
        subset: frozenset[str] | None = None,
        response_echo: bool | None = None,
        repeated: Callable[[], Collection[str]] = tuple,
    ) -> Actions:
        """The first message. `headers` need hold only those of `read`; `repeated` names those that came several times;
        `subset` as `subset_of` returns it.

        `mode` and `response_echo` are None where the proxy names no modes. `response_echo`: Envoy streams the response
        body through the agent in full duplex and expects it back.
        """
        if self._state is not _State.NEW:
            return self._violation("request headers a second time")
        self._state = _State.READING
        self._mode = mode or self._config.default_mode
        if response_echo is not None:
            self._response_echo = response_echo
        self._subset = subset
        self._path = headers.get(":path", "")
        self._encoding = headers.get("content-encoding", "")
        self._content_type = headers.get("content-type", "")
        self._request_id = headers.get(REQUEST_ID, "")
        if not self._request_id:
            self._request_id = self._new_id()
            self._add = ((REQUEST_ID, self._request_id),)
        if self._config.reports and REQUEST_HEADER not in headers:
            self._remove_report = True
            self._add += ((REQUEST_HEADER, REQUESTED_FORMAT),)
        if not CONTROL.isdisjoint(headers):
            self._remove = tuple(name for name in headers if name in CONTROL)
            self._rewrite = rewrite_of(headers)
            self._flow = read_flow_headers(headers, self._config.flow_rules, repeated())
        elif self._config.flow_rules.caller_header in headers:
            self._flow = read_flow_headers(headers, self._config.flow_rules, repeated())
        if subset is not None and not subset:
            return self._reject(Rejection("subset_empty", "The proxy allows no endpoint for this request."))
        length = headers.get("content-length", "")
        self._has_length = bool(length)
        if length.isdecimal() and len(length) < 20 and int(length) > self._config.max_body:
            return self._too_large()
        self._method = headers.get(":method", "")
        method = self._method or "GET"
        if end_of_stream:
            return self._schedule(None if method in _BODILESS else b"")
        if method == "CONNECT":  # a tunnel follows, whose end never comes
            message = "CONNECT is not offered: this is a gateway with paths of its own, not a proxy to other hosts."
            return self._reject(Rejection("method", message))
        if headers.get("upgrade", "").lower() == "websocket" and method == "GET":
            self._tunnel = True
            if self._mode in (Mode.FULL_DUPLEX, Mode.HOLD):
                return self._schedule(None)
        if self._mode in (Mode.BUFFERED, Mode.PARTIAL):
            self._answered = Phase.REQUEST_BODY
            return (Continue(Phase.REQUEST_HEADERS),)
        if self._mode in (Mode.NONE, Mode.STREAMED):
            return self._schedule_unread()
        return ()

    def request_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        """A chunk of the request body, or all of it where the mode is BUFFERED."""
        mode = self._mode
        if self._state is not _State.READING:
            return self._late_body(body, end_of_stream=end_of_stream)
        self._size += len(body)
        if self._size > self._config.max_body:
            return self._too_large()
        if not self._acquire(len(body)):
            return self._over_budget()
        self._chunks.append(body)
        if mode is Mode.HOLD:
            self._owed.append(Phase.REQUEST_BODY)
            if self._size > HOLD_LIMIT and not end_of_stream:
                self._body_follows = True
                return self._schedule_unread()
        # A buffered body is whole even where trailers follow and the flag is not set.
        if end_of_stream or mode is Mode.BUFFERED:
            return self._schedule(b"".join(self._chunks))
        return self._schedule_unread() if mode is Mode.PARTIAL else ()

    def request_trailers(self) -> Actions:
        """Trailers, which end a body whose last chunk had no end of stream."""
        match self._state:
            case _State.READING:
                self._trailers = True
                if self._mode in (Mode.BUFFERED, Mode.PARTIAL):
                    # The headers are answered and the body never came: no message is left to route with.
                    return self._fail("request trailers before the body")
                self._owed.append(Phase.REQUEST_TRAILERS)
                return self._schedule(b"".join(self._chunks))
            case _State.NEW:
                return self._no_headers("request trailers")
            case _State.SCHEDULED:
                self._owed.append(Phase.REQUEST_TRAILERS)
                return ()
            case _State.ROUTED:
                return (Continue(Phase.REQUEST_TRAILERS),)
            case _State.ANSWERED:
                return ()

    def held(self, longest_wait: float) -> Actions:
        """The scheduled request is held, for `longest_wait` seconds from now at most."""
        if self._state is not _State.SCHEDULED:
            return ()
        seconds = override(self._mode, self._config.timeouts, longest_wait, body_follows=self._body_follows)
        return () if seconds is None else (ExtendTimeout(seconds),)

    def decided(self, decision: Pick | Rejection) -> Actions:
        """The decision on a scheduled request."""
        if self._state is not _State.SCHEDULED or self._closed:
            return ()
        if isinstance(decision, Rejection):
            return self._reject(decision)
        self._state = _State.ROUTED
        destination = decision.endpoint
        if decision.fallbacks:
            destination = ",".join((decision.endpoint, *decision.fallbacks))
        if decision.waited_seconds > 0:
            self._waited = milliseconds(decision.waited_seconds)
        replaced, self._replaced = self._replaced, None
        held = self._mode is Mode.HOLD
        actions: list[Action] = [
            Route(self._answered, destination, self._add, self._remove, None if held else replaced, self._waited)
        ]
        if self._echo is None and replaced is None:
            self.body_sent()  # Envoy, which has kept the body, sends it on
        if self._echo is not None:
            actions.append(SendBody(Phase.REQUEST_BODY, self._echo, not (self._trailers or self._tunnel)))
            self._echo = None
        for phase in self._owed:
            if held and replaced is not None and phase is Phase.REQUEST_BODY:
                actions.append(ReplaceBody(replaced))
                replaced = b""  # all of it in place of the first chunk, nothing in place of the others
            else:
                actions.append(Continue(phase))
        self._owed = []
        return tuple(actions)

    def body_sent(self) -> None:
        """Envoy has taken the whole body back, or the one that replaces it, or sends on the one that it has kept."""
        self._budget.release(self._buffered)
        self._buffered = 0

    def response_headers(self, response: Response | None = None, report: str = "") -> Actions:
        """The response headers, where Envoy sends them: what they say of the response, and the load report in them."""
        if self.over:
            return ()
        answer: Action = Continue(Phase.RESPONSE_HEADERS)
        remove = HEADER if report and self._config.reports and self._remove_report else ""
        if remove or self._waited:
            answer = ChangeResponse(((WAITED_HEADER, self._waited),) if self._waited else (), remove)
        if self._state is not _State.ROUTED or response is None:
            return (answer,)
        self._streamed = response.streamed
        if response.readable:
            self._response_text = ResponseText()
        if report and self._config.reports:
            return (answer, ResponseStarted(response), Report(report, response.served))
        return (answer, ResponseStarted(response))

    def response_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        """A chunk of the response body, which passes as it is. Envoy should send its access log instead, where it can:
        each chunk costs both sides."""
        if self.over:
            return ()
        answer: Action = (
            SendBody(Phase.RESPONSE_BODY, body, end_of_stream) if self._response_echo else Continue(Phase.RESPONSE_BODY)
        )
        first = self._response_size == 0 and len(body) > 0
        self._response_size += len(body)
        if self._response_text is not None:
            self._response_text.add(body)
        if end_of_stream:
            return (answer, BodyStarted(), *self._end_response()) if first else (answer, *self._end_response())
        return (answer, BodyStarted()) if first else (answer,)

    def _end_response(self) -> Actions:
        """The body of the response is over."""
        if self._response_ended:
            return ()
        self._response_ended = True
        text, self._response_text = self._response_text, None
        usage = NO_USAGE if text is None else text.usage()
        return (BodyEnded(self._response_size, usage, self._streamed),)

    def response_trailers(self) -> Actions:
        """The response trailers, where Envoy sends them."""
        if self.over:
            return ()
        ended = self._end_response() if self._response_size else ()
        return (Continue(Phase.RESPONSE_TRAILERS), *ended)

    def closed(self) -> None:
        """The stream has ended, in whatever state."""
        self._closed = True
        self._release()

    def failed(self) -> Actions:
        """The agent failed: the client is answered, unless its request is already at an endpoint, or over."""
        if self._state in (_State.ROUTED, _State.ANSWERED):
            return ()
        return self._reject(Rejection("error", "The gateway's endpoint picker failed on this request."))

    def _schedule_unread(self) -> Actions:
        """Schedule a request whose body the agent has not read, or only in part."""
        if self._rewrite:
            return self._not_rewritten("the gateway does not send the whole body of this request to its picker")
        return self._schedule(None)

    def _schedule(self, body: bytes | None) -> Actions:
        requested = ""
        if self._rewrite and body:
            rewritten = rewrite_model(body, self._rewrite)
            if rewritten is None:
                encoded = self._encoding not in ("", "identity")
                return self._not_rewritten(
                    "the body of your request has a content-encoding"
                    if encoded
                    else "the body of your request is not a JSON object"
                )
            body, requested = rewritten
            if self._has_length:
                self._add += (("content-length", str(len(body))),)
            if self._mode is not Mode.FULL_DUPLEX:
                self._replaced = body
        self._state = _State.SCHEDULED
        # An empty body is sent back too, where Envoy sent an empty chunk; trailers alone end a body without chunks.
        if self._mode is Mode.FULL_DUPLEX and self._chunks and (self._size or not self._trailers):
            self._echo = body
        self._chunks = []
        if self._method in _BODILESS:  # such a body has no meaning, and is no prompt (RFC 9110, 9.3)
            body = None
        request = Request(
            self._request_id,
            self._path,
            body,
            self._encoding,
            self._subset,
            requested,
            self._content_type,
            self._method,
            self._flow.headers,
            hold_limit=hold_limit(self._mode, self._config.timeouts, body_follows=self._body_follows),
        )
        return (Schedule(request, self._flow.ignored),)

    def _late_body(self, body: bytes, *, end_of_stream: bool) -> Actions:
        if self._state is _State.NEW:
            return self._no_headers("a request body")
        if self._state is _State.ANSWERED:
            return ()
        if self._mode in (Mode.STREAMED, Mode.HOLD):
            if self._state is _State.ROUTED:
                return (Continue(Phase.REQUEST_BODY),)
            if not self._acquire(len(body)):
                return self._over_budget()
            self._owed.append(Phase.REQUEST_BODY)
            return ()
        if self._mode is Mode.FULL_DUPLEX and self._tunnel:
            return self._tunnel_data(body, end_of_stream=end_of_stream)
        if self._mode is Mode.FULL_DUPLEX and not body and end_of_stream:
            return ()  # some versions of Envoy send the end of a body twice (envoyproxy/envoy#46237)
        return self._violation("request body after its end")

    def _tunnel_data(self, body: bytes, *, end_of_stream: bool) -> Actions:
        """Data of an upgraded connection. A client sends none before the server's answer, and so before the pick."""
        if self._state is _State.ROUTED:
            return (SendBody(Phase.REQUEST_BODY, body, end_of_stream),)
        self._size += len(body)
        if self._size > self._config.max_body:
            return self._too_large()
        if not self._acquire(len(body)):
            return self._over_budget()
        self._echo = (self._echo or b"") + body
        return ()

    def _no_headers(self, what: str) -> Actions:
        return self._fail(f"{what} without request headers: set request_header_mode to SEND")

    def _fail(self, detail: str) -> Actions:
        rejection = Rejection("protocol", f"The gateway sent its endpoint picker {detail}.")
        return self._violation(detail) + self._reject(rejection)

    def _violation(self, detail: str) -> Actions:
        if self._violated:
            return ()
        self._violated = True
        return (ProtocolViolation("order", detail),)

    def _not_rewritten(self, why: str) -> Actions:
        return self._reject(Rejection("model_rewrite", f"A header replaces the model of this request, but {why}."))

    def _acquire(self, size: int) -> bool:
        """Count bytes of the body as buffered; False where the port buffers as many as it may."""
        if not self._budget.acquire(size):
            return False
        self._buffered += size
        return True

    def _over_budget(self) -> Actions:
        message = "The gateway buffers as many request bodies as it may at this moment."
        return self._reject(Rejection("body_budget", message))

    def _too_large(self) -> Actions:
        limit = self._config.max_body
        return self._reject(Rejection("too_large", f"The body of your request is over the limit of {limit} bytes."))

    def _reject(self, rejection: Rejection) -> Actions:
        self._state = _State.ANSWERED
        self._release()
        headers = rejection.headers()
        if self._request_id:
            headers = (*headers, (REQUEST_ID, self._request_id))
        return (Respond(rejection.status, rejection.reason, headers, rejection.body()),)

    def _release(self) -> None:
        self._chunks = []
        self._echo = None
        self._replaced = None
        self._owed = []
        self.body_sent()
