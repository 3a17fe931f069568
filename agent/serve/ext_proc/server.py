"""The endpoint picker protocol for Envoy over gRPC: one port per pool, one `Session` per request.

This module decides nothing: it hands what Envoy says to the session and does what the session answers. The response
never passes through here. Envoy keeps the call open until the response is over, so the closing of the call is the
request's end, and costs no message however long the answer is.

Whatever ends a conversation (the peer's close or reset, its death, a stop of ours, an error of ours) runs through one
`_end`, which gives the pick back: in-flight counts never drift.

Nothing in a conversation waits: a message is read, answered and forgotten before the next one is looked at, so there is
no task for each request. The wire is our own (`agent.serve.http2.connection`), because the one of grpc.aio costs 300 us
of CPU for each request, five times what deciding does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final, Protocol

from agent.config.values import Wrong, split_address
from agent.events import Hook
from agent.events.requests import Abandoned, Refused, StreamBroken
from agent.pick.request import NoPick, Pick, Prompt
from agent.serve.ext_proc.actions import (
    Actions,
    Ask,
    Broken,
    Continue,
    Echo,
    End,
    Phase,
    Refuse,
    Report,
    Route,
    Strip,
    pieces,
)
from agent.serve.ext_proc.body_budget import Room
from agent.serve.ext_proc.messages import CONTINUE, STRIP_REPORT, Answers, DecodeError, hear, immediate, streamed
from agent.serve.ext_proc.session import Session, Settings
from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.health import HealthService
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import BidiMethod, GrpcMethod, GrpcRouter
from agent.serve.grpc.status import StatusCode

_SLACK: Final = 1 << 20  # room for headers and metadata around a body
SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"


class PoolPort(Protocol):
    """What one picker port needs of its pool."""

    name: str

    def pick(self, request_id: str, prompt: Prompt, subset: frozenset[str] | None) -> Pick | NoPick:
        """An endpoint for this request, counted as in flight from now on, or the reason for none."""
        ...

    @property
    def reports(self) -> bool:
        """Whether model servers are to be asked for a load report with each answer."""
        ...

    def reported(self, pick: Pick, report: str, served: str) -> None:
        """A load report came with the answer to a pick that is not over; `served`: who answered, if that was told."""
        ...

    def ended(self, pick: Pick, how: str) -> None:
        """A pick is over: called exactly once for each."""
        ...

    def ready(self) -> bool:
        """Whether requests should be sent here."""
        ...


class ExternalProcessor:
    """The gRPC service of Envoy's external processing filter, for one pool.

    `max_body` and `max_held` in bytes: of one request's body, and of all bodies that are held at a time.
    """

    name = SERVICE

    def __init__(self, pool: PoolPort, hook: Hook, *, max_body: int, max_held: int) -> None:
        self._pool = pool
        self._hook = hook
        # Envoy sends a buffered body in one message, and its buffer may be set above our limit: such a body must still
        # arrive to be refused by us, in JSON.
        self._max_message_bytes = 2 * max_body + _SLACK
        self._settings = Settings(max_body=max_body)
        self._reporting = self._settings._replace(reports=True)
        self._room = Room(max_held)
        self._answers = Answers()
        self._open: set[ProcessCall] = set()  # calls that have begun and not ended
        self._stopping = False
        self._over: asyncio.Event | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies that are held now."""
        return self._room.held

    @property
    def open_streams(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._open)

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {"Process": BidiMethod(self._begin, self._max_message_bytes)}

    async def drain(self, grace: float) -> None:
        """End the calls whose request is routed now, and the others when they are, or after `grace` seconds."""
        self._stopping = True
        self._over = asyncio.Event()
        for process in tuple(self._open):
            if process.session.routed:
                self._end(process, "lost", StatusCode.OK)
        if self._open and grace > 0:
            try:
                async with asyncio.timeout(grace):
                    await self._over.wait()
            except TimeoutError:
                pass
        for process in tuple(self._open):
            self._end(process, "lost", StatusCode.UNAVAILABLE)

    # -- events of calls ---------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> CallHandler:
        settings = self._reporting if self._pool.reports else self._settings
        process = ProcessCall(self, call, Session(settings, _new_id, self._room))
        self._open.add(process)
        return process

    def message(self, process: ProcessCall, message: bytes) -> None:
        """A message from Envoy."""
        session = process.session
        try:
            self._do(process.call, session, hear(session, message))
        except DecodeError as error:
            self._fail(process, "malformed", str(error))
        except Exception as error:  # noqa: BLE001  the port must outlive any one request: it is counted and answered
            self._fail(process, "error", repr(error))
        else:
            if session.over:
                self._end(process, "closed", StatusCode.OK)
            elif self._stopping and session.routed:
                self._end(process, "lost", StatusCode.OK)

    def half_closed(self, process: ProcessCall) -> None:
        """Envoy sends no more messages."""
        self._end(process, "closed", StatusCode.OK)

    def closed(self, process: ProcessCall) -> None:
        """Envoy reset the call, or the connection ended."""
        self._end(process, "lost" if self._stopping and process.session.routed else "closed", None)

    # -- within ------------------------------------------------------------------------------------------------------

    def _do(self, call: Call, session: Session, actions: Actions) -> None:
        for action in actions:
            if isinstance(action, Continue):
                call.send(CONTINUE[action.phase])
            elif isinstance(action, Route):
                call.send(self._answers.route(action))
            elif isinstance(action, Echo):
                for piece, last in pieces(action.body):
                    call.send(streamed(action.phase, piece, end_of_stream=last and action.end_of_stream))
                if action.phase is Phase.REQUEST_BODY:
                    call.when_sent(session.sent)
            elif isinstance(action, Ask):
                answer = self._pool.pick(action.request_id, action.prompt, action.subset)
                more = session.picked(answer) if isinstance(answer, Pick) else session.not_picked(answer)
                self._do(call, session, more)
            elif isinstance(action, Strip):
                call.send(STRIP_REPORT)
            elif isinstance(action, Report):
                self._pool.reported(action.pick, action.report, action.served)
            elif isinstance(action, End):
                self._pool.ended(action.pick, action.how)
            elif isinstance(action, Refuse):
                self._hook(Refused(self._pool.name, session.model, action.status, action.reason))
                call.send(immediate(action))
            elif isinstance(action, Broken):
                self._hook(StreamBroken(self._pool.name, action.reason, action.detail))

    def _fail(self, process: ProcessCall, reason: str, detail: str) -> None:
        """An error of theirs or ours: it is counted, the client is told where it can be, and the call is over."""
        self._hook(StreamBroken(self._pool.name, reason, detail))
        self._do(process.call, process.session, process.session.failed())
        self._end(process, "lost", StatusCode.OK)

    def _end(self, process: ProcessCall, how: str, status: StatusCode | None) -> None:
        """The one end of a conversation; `status` is what the peer is told, None where there is nobody to be told."""
        session = process.session
        self._open.discard(process)
        if session.undecided and how == "closed":
            self._hook(Abandoned(self._pool.name))
        self._do(process.call, session, session.closed(how))
        if status is not None:
            process.call.finish(status, "" if status == StatusCode.OK else "the agent stops")
        if self._over is not None and not self._open:
            self._over.set()


class ProcessCall:
    """The handler of one Process call."""

    __slots__ = ("_processor", "call", "session")

    def __init__(self, processor: ExternalProcessor, call: Call, session: Session) -> None:
        self._processor = processor
        self.call = call
        self.session = session

    def on_message(self, message: bytes) -> None:
        """A message from Envoy."""
        self._processor.message(self, message)

    def on_half_close(self) -> None:
        """Envoy sends no more messages."""
        self._processor.half_closed(self)

    def on_close(self) -> None:
        """Envoy reset the call, or the connection ended."""
        self._processor.closed(self)


class ExtProcServer:
    """The picker port of one pool. `address` is `host:port`; port 0 takes a free one."""

    def __init__(
        self,
        pool: PoolPort,
        hook: Hook,
        *,
        address: str,
        max_body: int = 16 << 20,
        max_held: int = 1 << 30,
    ) -> None:
        self._pool = pool
        self._hook = hook
        self._address = address
        self._processor = ExternalProcessor(pool, hook, max_body=max_body, max_held=max_held)
        self._health = HealthService(pool.ready, (SERVICE,))
        router = GrpcRouter((self._processor, self._health), self._handler_failed)
        self._listener = GrpcListener(router, self._connection_failed)
        self._started = False

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies that are held now."""
        return self._processor.held_bytes

    @property
    def open_streams(self) -> int:
        """Process calls that have begun and not ended."""
        return self._processor.open_streams

    async def start(self) -> int:
        """Serve; the port that was bound. Raises OSError when the address is taken or not ours."""
        try:
            port = await self._listener.listen(*split_address(self._address))
        except (OSError, Wrong) as error:
            raise OSError(f"the picker port of pool {self._pool.name} cannot listen on {self._address}") from error
        self._started = True
        return port

    async def stop(self, grace: float) -> None:
        """Accept no more requests, let those being picked for finish within `grace` seconds, and close.

        Requests that are on their way to a model server continue undisturbed: their calls end with OK at once, after
        which Envoy sends no more messages.
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
