"""The endpoint picker protocol for Envoy over gRPC: one port per pool, one session and one ticket per request.

The server decides nothing: it passes Envoy's messages to the session, performs the session's actions, and submits
scheduled requests to the pool's pipeline. The response never passes through here. Envoy keeps the stream open until the
response ends, so the end of the stream is the end of the request and costs no message however long the response is.

However a stream ends (Envoy closes or resets it, the connection breaks, the agent stops or fails), `_end` runs once: it
cancels a ticket without a decision and ends one with a pick, so in-flight counts never drift.

No stream has a task of its own: a message is processed to its end before the next one. gRPC runs on the agent's own
HTTP/2 (`agent.serve.http2`), because grpc.aio costs 300 us of CPU per request, five times the cost of the decision.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from agent.config.values import Wrong, split_address
from agent.events import Hook
from agent.events.requests import Abandoned, Refused, StreamBroken
from agent.pick.request import Pick
from agent.requests.pipeline import OnDecision
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket
from agent.serve.ext_proc.actions import (
    Actions,
    Continue,
    Phase,
    ProtocolViolation,
    RemoveHeader,
    Report,
    Respond,
    Route,
    Schedule,
    SendBody,
    chunks,
)
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.messages import CONTINUE, REMOVE_REPORT, RouteCache, dispatch, immediate, streamed
from agent.serve.ext_proc.session import Session, SessionConfig
from agent.serve.grpc.call import Call
from agent.serve.grpc.health import CHECK, SERVICE, WATCH, Health
from agent.serve.grpc.listener import Port
from agent.serve.http2.frames import OK, UNAVAILABLE, UNIMPLEMENTED

_MESSAGE_SLACK: Final = 1 << 20  # bytes of headers and metadata around a body
_WATCH_SECONDS: Final = 1.0  # how often a change of health is reported to those who watch it
_BODY_STAGE: Final = "body"  # what `Abandoned` names while the body is arriving
PROCESS: Final = f"/{SERVICE}/Process"


class PoolPort(Protocol):
    """What one picker port needs of its pool."""

    name: str

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        """Submit a request to the pool's pipeline."""
        ...

    @property
    def reports(self) -> bool:
        """Whether model servers are requested to send a load report with each response."""
        ...

    def ready(self) -> bool:
        """Whether the proxy should send requests here."""
        ...


class Stream:
    """The ext_proc stream of one request: its gRPC call, its session, and its ticket once it is scheduled."""

    __slots__ = ("_call", "_server", "_submitting", "session", "ticket")

    def __init__(self, server: ExtProcServer, call: Call, session: Session) -> None:
        self._server = server
        self._call = call
        self._submitting = False
        self.session = session
        self.ticket: Ticket | None = None

    def message(self, message: bytes) -> None:
        """A message of Envoy."""
        try:
            self._do(dispatch(self.session, message))
        except DecodeError as error:
            self._fail("malformed", str(error))
        except Exception as error:  # noqa: BLE001  one request must not stop the port: it is counted and answered
            self._fail("error", repr(error))
        else:
            self._end_if_over()

    def half_closed(self) -> None:
        """Envoy sends no more messages."""
        self.end("closed", OK)

    def gone(self) -> None:
        """Envoy has reset the stream, or the connection has ended."""
        self.end("lost" if self._server.stopping and self.session.routed else "closed", None)

    def decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        """The decision on the request, within `submit` or later."""
        self.ticket = ticket
        if self._submitting:
            self._do(self.session.decided(decision))
            return
        try:
            self._do(self.session.decided(decision))
        except Exception as error:  # noqa: BLE001  as in `message`
            self._fail("error", repr(error))
        else:
            self._end_if_over()

    def end(self, how: str, status: int | None) -> None:
        """End the stream, once; `status` is sent to Envoy, None where it has left."""
        server, session, ticket = self._server, self.session, self.ticket
        if self not in server.streams:
            return
        if session.undecided and how == "closed":
            server.hook(Abandoned(server.pool.name, _BODY_STAGE))
        session.closed()
        if ticket is not None and not ticket.cancel():
            ticket.end(how)
        if status is not None:
            self._call.finish(status, "" if status == OK else "the agent stops")
        server.ended(self)

    def _do(self, actions: Actions) -> None:
        call, server = self._call, self._server
        for action in actions:
            if isinstance(action, Continue):
                call.send(CONTINUE[action.phase])
            elif isinstance(action, Route):
                call.send(server.routes.route(action))
            elif isinstance(action, SendBody):
                for chunk, last in chunks(action.body):
                    call.send(streamed(action.phase, chunk, end_of_stream=last and action.end_of_stream))
                if action.phase is Phase.REQUEST_BODY:
                    call.then(self.session.body_sent)
            elif isinstance(action, Schedule):
                self._submitting = True
                self.ticket = server.pool.submit(action.request, self.decided)
                self._submitting = False
            elif isinstance(action, RemoveHeader):
                call.send(REMOVE_REPORT)
            elif isinstance(action, Report):
                if self.ticket is not None:
                    self.ticket.report(action.report, action.served)
            elif isinstance(action, Respond):
                model = "" if self.ticket is None else self.ticket.model
                server.hook(Refused(server.pool.name, model, action.status, action.reason))
                call.send(immediate(action))
            elif isinstance(action, ProtocolViolation):
                server.hook(StreamBroken(server.pool.name, action.reason, action.detail))

    def _end_if_over(self) -> None:
        """End a stream on which nothing more is to be sent."""
        if self.session.over:
            self.end("closed", OK)
        elif self._server.stopping and self.session.routed:
            self.end("lost", OK)

    def _fail(self, reason: str, detail: str) -> None:
        """Count a failure of Envoy or the agent, answer the client where that is possible, and end the stream."""
        self._server.hook(StreamBroken(self._server.pool.name, reason, detail))
        self._do(self.session.failed())
        self.end("lost", OK)


class ExtProcServer:
    """The picker port of one pool. `address` is `host:port`; port 0 takes a free one.

    `max_body` and `max_buffered` in bytes: of one request body, and of all bodies that are buffered at a time.
    """

    def __init__(
        self,
        pool: PoolPort,
        hook: Hook,
        *,
        address: str,
        max_body: int = 16 << 20,
        max_buffered: int = 1 << 30,
    ) -> None:
        self.pool = pool
        self.hook = hook
        self._address = address
        self._config = SessionConfig(max_body=max_body)
        self._config_with_reports = self._config._replace(reports=True)
        self._budget = BodyBudget(max_buffered)
        self.routes = RouteCache()
        self._health = Health(pool.ready)
        self._watch: asyncio.TimerHandle | None = None
        self.streams: set[Stream] = set()
        self.stopping = False
        self._drained: asyncio.Event | None = None
        # Envoy sends a buffered body in one message, and its buffer may exceed the agent's limit: such a body must
        # arrive to be rejected as an OpenAI error.
        self._port = Port(self, 2 * max_body + _MESSAGE_SLACK, self._broken)
        self._started = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of request bodies that are buffered now."""
        return self._budget.used

    @property
    def open_streams(self) -> int:
        """Streams that have begun and not ended."""
        return len(self.streams)

    async def start(self) -> int:
        """Listen; returns the bound port. Raises OSError when the address is in use or not of this machine."""
        try:
            port = await self._port.listen(*split_address(self._address))
        except (OSError, Wrong) as error:
            raise OSError(f"the picker port of pool {self.pool.name} cannot listen on {self._address}") from error
        self._started = True
        return port

    async def stop(self, grace: float) -> None:
        """Accept no more requests, wait up to `grace` seconds for those without a decision, and close.

        Requests that are at a model server continue undisturbed: their streams are closed with status OK, after which
        Envoy expects no more of the picker.
        """
        if not self._started:
            return
        self._started = False
        self.stopping = True
        self._drained = asyncio.Event()
        self._health.stop()
        if self._watch is not None:
            self._watch.cancel()
        self._port.go_away()
        for stream in tuple(self.streams):
            if stream.session.routed:
                stream.end("lost", OK)
        try:
            if self.streams and grace > 0:
                async with asyncio.timeout(grace):
                    await self._drained.wait()
        except TimeoutError:
            pass
        finally:  # a second stop cancels the wait of the first
            for stream in tuple(self.streams):
                stream.end("lost", UNAVAILABLE)
        await self._port.close()

    def ended(self, stream: Stream) -> None:
        """A stream has ended."""
        self.streams.discard(stream)
        if self._drained is not None and not self.streams:
            self._drained.set()

    # -- calls of the gRPC connection --------------------------------------------------------------------------------

    def began(self, call: Call, path: str) -> None:
        """A call of this method."""
        if path == PROCESS:
            config = self._config_with_reports if self.pool.reports else self._config
            call.of = stream = Stream(self, call, Session(config, _new_id, self._budget))
            self.streams.add(stream)
        elif path in (CHECK, WATCH):
            call.of = path
        else:
            call.finish(UNIMPLEMENTED, f"there is no method {path[:128]} here")

    def message(self, call: Call, message: bytes) -> None:
        """A message of the peer."""
        of = call.of
        if isinstance(of, Stream):
            of.message(message)
        else:
            self._health.asked(call, message, watch=of == WATCH)
            self._watch_health()

    def half_closed(self, call: Call) -> None:
        """The peer sends no more messages."""
        of = call.of
        if isinstance(of, Stream):
            of.half_closed()
        elif of == CHECK:
            call.finish(UNAVAILABLE, "no question for health")

    def gone(self, call: Call) -> None:
        """The peer has reset the call, or the connection has ended."""
        self._health.leave(call)
        of = call.of
        if isinstance(of, Stream):
            of.gone()

    # -- within ------------------------------------------------------------------------------------------------------

    def _broken(self, detail: str) -> None:
        """A connection ended with an HTTP/2 connection error."""
        self.hook(StreamBroken(self.pool.name, "http2", detail))

    def _watch_health(self) -> None:
        if self._watch is None and self._health.watched and not self.stopping:
            self._watch = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._tell_health)

    def _tell_health(self) -> None:
        self._watch = None
        self._health.tell()
        self._watch_health()


def _new_id() -> str:
    return secrets.token_hex(16)
