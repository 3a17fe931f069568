"""The endpoint picker protocol for Envoy on grpc.aio: one server per pool, one `Session` per request.

This wire carries and decides nothing: it hands what Envoy says to the session and does what the session answers. The
response never passes through here. Envoy keeps the stream open until the response is over, so the closing of the stream
is the request's end, and costs no message however long the answer is.

Whatever ends a conversation (the peer's close or reset, its death, a stop of ours, an error of ours) runs through one
`finally`, which gives the pick back: in-flight counts never drift.

grpcio spends some 300 us of CPU on each stream, of which protobuf is 5. So messages pass as bytes, with the answers
that many requests share made once, and nothing cleverer would show: less is a matter of another wire.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from agent.events import Abandoned, Hook, Refused, StreamBroken
from agent.pick.request import NoPick, Pick, Prompt
from agent.serve.actions import Actions, Ask, Broken, Continue, Echo, End, Phase, Refuse, Report, Route, Strip, pieces
from agent.serve.health import SERVICE, Health
from agent.serve.messages import CONTINUE, STRIP_REPORT, Answers, DecodeError, hear, immediate, streamed
from agent.serve.room import Room
from agent.serve.session import Session, Settings

_SLACK: Final = 1 << 20  # room for headers and metadata around a body


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
        self._on_their_way: set[asyncio.Task[Any]] = set()
        self.open_streams = 0  # conversations that have begun and not ended
        self._stopping = False
        self._server: grpc.aio.Server | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of request bodies that are held now."""
        return self._room.held

    async def start(self) -> int:
        """Serve; the port that was bound. Raises OSError when the address is taken or not ours."""
        server = grpc.aio.server(
            options=[
                # Envoy sends a buffered body in one message, and its buffer may be set above our limit: such a body
                # must still arrive to be refused by us, in JSON.
                ("grpc.max_receive_message_length", 2 * self._settings.max_body + _SLACK),
                ("grpc.so_reuseport", 0),  # a second server on this port is an error, not a silent half of the load
                # A proxy that vanished without a word is noticed within 40 seconds, and its requests are ended.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                # The proxy's own pings are welcome: by default one in five minutes is, and more are answered by GOAWAY.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ]
        )
        handler = grpc.stream_stream_rpc_method_handler(self._converse)  # no (de)serialiser: bytes in, bytes out
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            port: int = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"the picker port of pool {self._pool.name} cannot listen on {self._address}") from error
        await server.start()
        self._server = server
        return port

    async def stop(self, grace: float) -> None:
        """Take no more requests, let those being picked for finish within `grace` seconds, and close.

        Requests that are on their way to a model server are let go of at once and unharmed: their streams are closed in
        good order, which Envoy takes as "nothing more to say".
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping = True
        self._health.stopping = True
        stopped = asyncio.ensure_future(server.stop(grace))
        for task in tuple(self._on_their_way):
            task.cancel()
        await stopped

    async def _converse(self, _: AsyncIterator[bytes], context: Any) -> None:
        """One request, from its headers to the end of its answer."""
        session = Session(self._reporting if self._pool.reports else self._settings, _new_id, self._room)
        task = asyncio.current_task()
        how = "lost"
        self.open_streams += 1
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await self._do(session, hear(session, message), context)
                if session.over:
                    break
                if session.routed and task is not None:
                    if self._stopping:
                        return
                    self._on_their_way.add(task)
            how = "closed"
        except asyncio.CancelledError:
            if self._stopping:
                if session.routed:
                    return
            else:
                how = "closed"
            raise
        except DecodeError as error:
            await self._fail(session, context, "malformed", str(error))
        except Exception as error:  # noqa: BLE001  the server must outlive any one request: it is counted and answered
            await self._fail(session, context, "error", repr(error))
        finally:
            self.open_streams -= 1
            if task is not None:
                self._on_their_way.discard(task)
            if session.undecided and how == "closed":
                self._hook(Abandoned(self._pool.name))
            await self._do(session, session.closed(how), context)

    async def _do(self, session: Session, actions: Actions, context: Any) -> None:
        for action in actions:
            if isinstance(action, Continue):
                await context.write(CONTINUE[action.phase])
            elif isinstance(action, Route):
                await context.write(self._answers.route(action))
            elif isinstance(action, Echo):
                for piece, last in pieces(action.body):
                    await context.write(streamed(action.phase, piece, end_of_stream=last and action.end_of_stream))
                if action.phase is Phase.REQUEST_BODY:
                    session.sent()
            elif isinstance(action, Ask):
                answer = self._pool.pick(action.request_id, action.prompt, action.subset)
                more = session.picked(answer) if isinstance(answer, Pick) else session.not_picked(answer)
                await self._do(session, more, context)
            elif isinstance(action, Strip):
                await context.write(STRIP_REPORT)
            elif isinstance(action, Report):
                self._pool.reported(action.pick, action.report, action.served)
            elif isinstance(action, End):
                self._pool.ended(action.pick, action.how)
            elif isinstance(action, Refuse):
                self._hook(Refused(self._pool.name, session.model, action.status, action.reason))
                await context.write(immediate(action))
            elif isinstance(action, Broken):
                self._hook(StreamBroken(self._pool.name, action.reason, action.detail))

    async def _fail(self, session: Session, context: Any, reason: str, detail: str) -> None:
        self._hook(StreamBroken(self._pool.name, reason, detail))
        await self._do(session, session.failed(), context)


def _new_id() -> str:
    return secrets.token_hex(16)
