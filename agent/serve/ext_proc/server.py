"""The endpoint picker protocol for Envoy over gRPC: one port per pool, one session and one ticket per request.

The server decides nothing: it passes Envoy's messages to the session, performs the session's actions, and submits
scheduled requests to the pool's pipeline. The response never passes through here. Envoy keeps the call open until the
response ends, so the end of the call is the end of the request and costs no message however long the response is.

However a call ends (Envoy closes or resets it, the connection breaks, the agent stops or fails), `end` runs once: it
cancels a ticket without a decision and ends one with a pick, so in-flight counts never drift.

No call has a task of its own: a message is processed to its end before the next one. gRPC runs on the agent's own
HTTP/2 (`agent.serve.grpc`), because grpc.aio costs 300 us of CPU per request, five times the cost of the decision.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from agent.config.addresses import split_address
from agent.config.values import InvalidValue
from agent.events import Hook
from agent.events.objectives import FlowHeaderIgnored
from agent.events.requests import Abandoned, Refused, StreamBroken
from agent.pick.decision import Pick
from agent.requests.flow_headers import FlowHeaderRules
from agent.requests.pipeline import OnDecision
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket
from agent.serve.access_log import AccessLogService, AccessLogSink
from agent.serve.ext_proc.actions import (
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
    chunks,
)
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.headers import read_by
from agent.serve.ext_proc.holding import RENDERED, ProxyTimeouts
from agent.serve.ext_proc.messages import (
    CONTINUE,
    RouteCache,
    changed_response,
    dispatch,
    extended,
    immediate,
    replaced,
    streamed,
)
from agent.serve.ext_proc.session import Session, SessionConfig
from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.health import HealthService
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import BidiMethod, GrpcMethod, GrpcRouter
from agent.serve.grpc.status import StatusCode
from agent.serve.tls.server import ServerTls

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
_MESSAGE_SLACK: Final = 1 << 20  # bytes of headers and metadata around a body
_BODY_STAGE: Final = "body"  # what `Abandoned` names while the body is arriving


class PoolPort(AccessLogSink, Protocol):
    """What one picker port needs of its pool."""

    name: str

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        """Submit a request to the pool's pipeline."""
        ...

    def shut_down(self) -> None:
        """Decide on every request that is held: the port waits no longer."""
        ...

    @property
    def reports(self) -> bool:
        """Whether model servers are requested to send a load report with each response."""
        ...

    @property
    def flow_rules(self) -> FlowHeaderRules:
        """The flow headers that are believed: the same object until it changes."""
        ...

    def ready(self) -> bool:
        """Whether the proxy should send requests here."""
        ...


class ProcessCall:
    """The handler of one Process call: the session of its request, and the ticket once the request is scheduled."""

    __slots__ = ("_call", "_processor", "_submitting", "session", "ticket")

    def __init__(self, processor: ExternalProcessor, call: Call, session: Session) -> None:
        self._processor = processor
        self._call = call
        self._submitting = False
        self.session = session
        self.ticket: Ticket | None = None

    def on_message(self, message: bytes) -> None:
        """A message from Envoy."""
        try:
            self._do(dispatch(self.session, message))
        except DecodeError as error:
            self._fail("malformed", str(error))
        except Exception as error:  # noqa: BLE001  one request must not stop the port: it is counted and answered
            self._fail("error", repr(error))
        else:
            self._end_if_over()

    def on_half_close(self) -> None:
        """Envoy sends no more messages."""
        self.end("closed", StatusCode.OK)

    def on_close(self) -> None:
        """Envoy has reset the stream, or the connection has ended."""
        self.end("lost" if self._processor.stopping and self.session.routed else "closed", None)

    def decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        """The decision on the request, within `submit` or later."""
        self.ticket = ticket
        if self._submitting:
            self._do(self.session.decided(decision))
            return
        try:
            self._do(self.session.decided(decision))
        except Exception as error:  # noqa: BLE001  as in `on_message`
            self._fail("error", repr(error))
        else:
            self._end_if_over()

    def end(self, how: str, status: StatusCode | None) -> None:
        """End the stream, once; `status` is sent to Envoy, None where it has left."""
        processor, session, ticket = self._processor, self.session, self.ticket
        if self not in processor.calls:
            return
        processor.ended(self)
        self.ticket = None  # it is over, and refers to this call
        if session.undecided and how == "closed":
            processor.hook(Abandoned(processor.pool.name, _BODY_STAGE))
        session.closed()
        if ticket is not None and not ticket.cancel():
            ticket.end(how)
        if status is not None:
            self._call.finish(status, "" if status is StatusCode.OK else "the agent stops")

    def _do(self, actions: Actions) -> None:
        call, processor = self._call, self._processor
        for action in actions:
            if isinstance(action, Continue):
                call.send(CONTINUE[action.phase])
            elif isinstance(action, Route):
                call.send(processor.routes.route(action))
                if action.body is not None:
                    call.when_sent(self.session.body_sent)
            elif isinstance(action, SendBody):
                for chunk, last in chunks(action.body):
                    call.send(streamed(action.phase, chunk, end_of_stream=last and action.end_of_stream))
                if action.phase is Phase.REQUEST_BODY:
                    call.when_sent(self.session.body_sent)
            elif isinstance(action, BodyStarted):
                if self.ticket is not None:
                    self.ticket.body_started()
            elif isinstance(action, BodyEnded):
                if self.ticket is not None:
                    self.ticket.body_ended(action.size, action.usage, streamed=action.streamed)
            elif isinstance(action, Schedule):
                for header in action.ignored:
                    processor.hook(FlowHeaderIgnored(processor.pool.name, header.header, header.reason))
                self._submitting = True
                try:
                    ticket = self.ticket = processor.pool.submit(action.request, self.decided)
                finally:
                    self._submitting = False
                if ticket.held:
                    self._do(self.session.held(ticket.longest_wait))
            elif isinstance(action, ReplaceBody):
                call.send(replaced(action.body))
                call.when_sent(self.session.body_sent)
            elif isinstance(action, ChangeResponse):
                call.send(changed_response(action))
            elif isinstance(action, ExtendTimeout):
                call.send(extended(action.seconds))
            elif isinstance(action, Report):
                if self.ticket is not None:
                    self.ticket.report(action.report, action.served)
            elif isinstance(action, ResponseStarted):
                if self.ticket is not None:
                    self.ticket.respond(action.response)
            elif isinstance(action, Respond):
                processor.hook(_refused(processor.pool.name, self.ticket, action))
                call.send(immediate(action))
            elif isinstance(action, ProtocolViolation):
                processor.hook(StreamBroken(processor.pool.name, action.reason, action.detail))

    def _end_if_over(self) -> None:
        """End a stream on which nothing more is to be sent."""
        if self.session.over:
            self.end("closed", StatusCode.OK)
        elif self.session.routed:
            self._processor.decided(self)

    def _fail(self, reason: str, detail: str) -> None:
        """Count a failure of Envoy or the agent, answer the client where that is possible, and end the stream."""
        self._processor.hook(StreamBroken(self._processor.pool.name, reason, detail))
        self._do(self.session.failed())
        self.end("lost", StatusCode.OK)


def _refused(pool: str, ticket: Ticket | None, action: Respond) -> Refused:
    if ticket is None:
        return Refused(pool, "", action.status, action.reason)
    terms = ticket.terms
    names = (ticket.requested, terms.caller, terms.priority, terms.slo)
    return Refused(pool, ticket.model, action.status, action.reason, *names)


class ExternalProcessor:
    """The gRPC service of Envoy's external processing filter, for one pool.

    `max_body` and `max_buffered` in bytes: of one request body, and of all bodies that are buffered at a time.
    `assumed_mode` is that of a proxy that names none. `timeouts` are those of the proxy.
    """

    name = SERVICE

    def __init__(
        self,
        pool: PoolPort,
        hook: Hook,
        *,
        max_body: int,
        max_buffered: int,
        assumed_mode: Mode = Mode.FULL_DUPLEX,
        timeouts: ProxyTimeouts = RENDERED,
    ) -> None:
        self.pool = pool
        self.hook = hook
        self.routes = RouteCache()
        self.calls: set[ProcessCall] = set()
        self.stopping = False
        # Envoy sends a buffered body in one message, and its buffer may exceed the agent's limit: such a body must
        # arrive to be rejected as an OpenAI error.
        self._max_message_bytes = 2 * max_body + _MESSAGE_SLACK
        self._config = SessionConfig(max_body=max_body, default_mode=assumed_mode, timeouts=timeouts)
        self._config_with_reports = self._config._replace(reports=True)
        self._budget = BodyBudget(max_buffered)
        self._undecided: set[ProcessCall] = set()  # while the port stops: calls that it waits for
        self._drained: asyncio.Event | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of request bodies that are buffered now, here or in the proxy."""
        return self._budget.used

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {"Process": BidiMethod(self._begin, self._max_message_bytes)}

    def ended(self, call: ProcessCall) -> None:
        """A call has ended."""
        self.calls.discard(call)
        self.decided(call)

    def decided(self, call: ProcessCall) -> None:
        """A call is over, or its request is routed: a stop no longer waits for it."""
        if self._drained is not None:
            self._undecided.discard(call)
            if not self._undecided:
                self._drained.set()

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for the calls without a decision, have the pool decide on those that it holds, and
        end all calls.

        While some wait, the calls whose request is routed stay open: their ends show that there is room."""
        self._drained = asyncio.Event()
        self._undecided = {call for call in self.calls if not call.session.routed}
        try:
            if self._undecided and grace > 0:
                async with asyncio.timeout(grace):
                    await self._drained.wait()
        except TimeoutError:
            pass
        finally:  # a second stop cancels the wait of the first
            self.stopping = True
            self.pool.shut_down()
            for call in tuple(self.calls):
                call.end("lost", StatusCode.OK if call.session.routed else StatusCode.UNAVAILABLE)

    def _begin(self, call: Call) -> CallHandler:
        rules = self.pool.flow_rules
        if rules is not self._config.flow_rules:
            self._config = self._config._replace(flow_rules=rules, read=read_by(rules))
            self._config_with_reports = self._config._replace(reports=True)
        config = self._config_with_reports if self.pool.reports else self._config
        process = ProcessCall(self, call, Session(config, _new_id, self._budget))
        self.calls.add(process)
        return process


class ExtProcServer:
    """The picker port of one pool. `address` is `host:port`; port 0 takes a free one. With `tls` it serves TLS.

    `max_body`, `max_buffered`, `assumed_mode` and `timeouts` as those of ExternalProcessor.
    """

    def __init__(
        self,
        pool: PoolPort,
        hook: Hook,
        *,
        address: str,
        max_body: int = 16 << 20,
        max_buffered: int = 1 << 30,
        assumed_mode: Mode = Mode.FULL_DUPLEX,
        timeouts: ProxyTimeouts = RENDERED,
        tls: ServerTls | None = None,
    ) -> None:
        self._pool = pool
        self._hook = hook
        self._address = address
        self._processor = ExternalProcessor(
            pool,
            hook,
            max_body=max_body,
            max_buffered=max_buffered,
            assumed_mode=assumed_mode,
            timeouts=timeouts,
        )
        self._health = HealthService(pool.ready, (SERVICE,))
        # The services of the port: a new one is a class with a table of methods, and a name here.
        router = GrpcRouter((self._processor, self._health, AccessLogService(pool)), self._handler_failed)
        self._listener = GrpcListener(router, self._connection_failed, tls)
        self._started = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of request bodies that are buffered now."""
        return self._processor.buffered_bytes

    @property
    def open_streams(self) -> int:
        """Process calls that have begun and not ended."""
        return len(self._processor.calls)

    async def start(self) -> int:
        """Listen; returns the bound port. Raises OSError when the address is in use or not of this machine."""
        try:
            port = await self._listener.listen(*split_address(self._address))
        except (OSError, InvalidValue) as error:
            raise OSError(f"the picker port of pool {self._pool.name} cannot listen on {self._address}") from error
        self._started = True
        return port

    async def stop(self, grace: float) -> None:
        """Accept no more requests, wait up to `grace` seconds for those without a decision, and close.

        Requests that are at a model server continue undisturbed: their calls end with status OK, after which Envoy
        expects no more of the picker.
        """
        if not self._started:
            return
        self._started = False
        self._health.stop()
        self._listener.goaway()
        await self._processor.drain(grace)
        await self._listener.close()

    def _handler_failed(self, path: str, error: Exception) -> None:
        self._hook(StreamBroken(self._pool.name, "error", f"{path}: {error!r}"))

    def _connection_failed(self, detail: str) -> None:
        self._hook(StreamBroken(self._pool.name, "http2", detail))


def _new_id() -> str:
    return secrets.token_hex(16)
