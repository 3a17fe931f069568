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
from agent.serve.grpc.call import Call
from agent.serve.grpc.health import CHECK, SERVICE, WATCH, Health
from agent.serve.grpc.listener import Port
from agent.serve.http2.frames import OK, UNAVAILABLE, UNIMPLEMENTED

_SLACK: Final = 1 << 20  # room for headers and metadata around a body
_WATCH_SECONDS: Final = 1.0  # how often those who watch the health are told of a change
PROCESS: Final = f"/{SERVICE}/Process"


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


class ExtProcServer:
    """The picker port of one pool. `address` is `host:port`; port 0 takes a free one.

    `max_body` and `max_held` in bytes: of one request's body, and of all bodies that are held at a time.
    """

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
        self._settings = Settings(max_body=max_body)
        self._reporting = self._settings._replace(reports=True)
        self._room = Room(max_held)
        self._answers = Answers()
        self._health = Health(pool.ready)
        self._watch: asyncio.TimerHandle | None = None
        self._open: set[Call] = set()  # conversations that have begun and not ended
        self._stopping = False
        self._over: asyncio.Event | None = None
        # Envoy sends a buffered body in one message, and its buffer may be set above our limit: such a body must still
        # arrive to be refused by us, in JSON.
        self._port = Port(self, 2 * max_body + _SLACK, self._broken)
        self._started = False

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies that are held now."""
        return self._room.held

    @property
    def open_streams(self) -> int:
        """Conversations that have begun and not ended."""
        return len(self._open)

    async def start(self) -> int:
        """Serve; the port that was bound. Raises OSError when the address is taken or not ours."""
        try:
            port = await self._port.listen(*split_address(self._address))
        except (OSError, Wrong) as error:
            raise OSError(f"the picker port of pool {self._pool.name} cannot listen on {self._address}") from error
        self._started = True
        return port

    async def stop(self, grace: float) -> None:
        """Take no more requests, let those being picked for finish within `grace` seconds, and close.

        Requests that are on their way to a model server are let go of at once and unharmed: their calls are closed in
        good order, which Envoy takes as "nothing more to say".
        """
        if not self._started:
            return
        self._started = False
        self._stopping = True
        self._over = asyncio.Event()
        self._health.stop()
        if self._watch is not None:
            self._watch.cancel()
        self._port.go_away()
        for call in tuple(self._open):
            if call.of.routed:
                self._end(call, "lost", OK)
        if self._open and grace > 0:
            try:
                async with asyncio.timeout(grace):
                    await self._over.wait()
            except TimeoutError:
                pass
        for call in tuple(self._open):
            self._end(call, "lost", UNAVAILABLE)
        await self._port.close()

    # -- what the wire tells -----------------------------------------------------------------------------------------

    def began(self, call: Call, path: str) -> None:
        """A call of this method."""
        if path == PROCESS:
            call.of = Session(self._reporting if self._pool.reports else self._settings, _new_id, self._room)
            self._open.add(call)
        elif path in (CHECK, WATCH):
            call.of = path
        else:
            call.finish(UNIMPLEMENTED, f"there is no method {path[:128]} here")

    def message(self, call: Call, message: bytes) -> None:
        """A message of the peer's."""
        session = call.of
        if not isinstance(session, Session):
            self._health.asked(call, message, watch=session == WATCH)
            self._watch_health()
            return
        try:
            self._do(call, session, hear(session, message))
        except DecodeError as error:
            self._fail(call, session, "malformed", str(error))
        except Exception as error:  # noqa: BLE001  the port must outlive any one request: it is counted and answered
            self._fail(call, session, "error", repr(error))
        else:
            if session.over:
                self._end(call, "closed", OK)
            elif self._stopping and session.routed:
                self._end(call, "lost", OK)

    def half_closed(self, call: Call) -> None:
        """The peer says no more."""
        if call in self._open:
            self._end(call, "closed", OK)
        elif call.of == CHECK:
            call.finish(UNAVAILABLE, "no question for health")

    def gone(self, call: Call) -> None:
        """The peer has broken it off, or the connection has ended."""
        self._health.leave(call)
        if call in self._open:
            self._end(call, "lost" if self._stopping and call.of.routed else "closed", None)

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
                    call.then(session.sent)
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

    def _fail(self, call: Call, session: Session, reason: str, detail: str) -> None:
        """An error of theirs or ours: it is counted, the client is told where it can be, and the call is over."""
        self._hook(StreamBroken(self._pool.name, reason, detail))
        self._do(call, session, session.failed())
        self._end(call, "lost", OK)

    def _end(self, call: Call, how: str, status: int | None) -> None:
        """The one end of a conversation; `status` is what the peer is told, None where there is nobody to be told."""
        session: Session = call.of
        self._open.discard(call)
        if session.undecided and how == "closed":
            self._hook(Abandoned(self._pool.name))
        self._do(call, session, session.closed(how))
        if status is not None:
            call.finish(status, "" if status == OK else "the agent stops")
        if self._over is not None and not self._open:
            self._over.set()

    def _broken(self, detail: str) -> None:
        """A connection ended against HTTP/2: what spoke was no gRPC."""
        self._hook(StreamBroken(self._pool.name, "http2", detail))

    def _watch_health(self) -> None:
        if self._watch is None and self._health.watched and not self._stopping:
            self._watch = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._tell_health)

    def _tell_health(self) -> None:
        self._watch = None
        self._health.tell()
        self._watch_health()


def _new_id() -> str:
    return secrets.token_hex(16)
