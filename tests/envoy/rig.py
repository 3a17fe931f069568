"""A real Envoy and our real picker port between a test's client, its model servers, and a pool told what to pick."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from agent.envoy import process
from agent.envoy.render import FailureMode, Listener, Pool, Settings, Way, bootstrap
from agent.events import Event
from agent.pick.decision import NoPick, Pick
from agent.pick.request import Prompt
from agent.requests.body import parse
from agent.requests.pipeline import OnDecision
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket
from agent.serve.ext_proc.server import ExtProcServer

WAYS = (Way.BUFFERED, Way.FULL_DUPLEX)
CHAT = "/v1/chat/completions"
Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


def chat(words: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": words}], **more}


class ToldPool:
    """A pool that picks what it is told, and keeps book of what was begun and ended."""

    name = "pool"

    def __init__(self, *endpoints: str) -> None:
        self.endpoints = endpoints
        self.choose: Callable[[Prompt, frozenset[str] | None], str | NoPick | Exception] = lambda _, __: self.endpoints[
            0
        ]
        self.asked: list[tuple[str, Prompt, frozenset[str] | None]] = []
        self.fallbacks: tuple[str, ...] = ()
        self.begun = 0
        self.ended_as: list[str] = []
        self.wrongly_ended = 0
        self.is_ready = True
        self.reports = False
        self.heard: list[tuple[str, str, str]] = []  # endpoint, report, served
        self._open: set[Ticket] = set()

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        ticket = Ticket(self, request, on_decision, 0.0)
        prompt = parse(request.body, request.path, request.encoding) if request.body is not None else Prompt("", b"")
        ticket.model = prompt.model
        self.asked.append((request.request_id, prompt, request.subset))
        chosen = self.choose(prompt, request.subset)
        if isinstance(chosen, Exception):
            raise chosen
        if isinstance(chosen, NoPick):
            ticket.decide(Rejection(chosen.reason, chosen.detail))
            return ticket
        self.begun += 1
        self._open.add(ticket)
        ticket.decide(Pick(request.request_id, chosen, self.fallbacks, 1, 0, 0, "tie", (chosen,), (0.0,), {}, 1))
        return ticket

    def cancelled(self, ticket: Ticket) -> None:
        raise AssertionError("every ticket is decided at once")

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        assert ticket in self._open
        assert ticket.pick is not None
        self.heard.append((ticket.pick.endpoint, report, served))

    def ended(self, ticket: Ticket, how: str) -> None:
        if ticket in self._open:
            self._open.remove(ticket)
        else:
            self.wrongly_ended += 1
        self.ended_as.append(how)

    def ready(self) -> bool:
        return self.is_ready


class ModelServer:
    """Answers with its own address, or as a test tells it; keeps what it was sent."""

    def __init__(self) -> None:
        self.address = ""
        self._port = 0
        self.seen: list[tuple[web.Request, bytes]] = []
        self.respond: Respond | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        self._port = port

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request, body))
        if self.respond is not None:
            return await self.respond(request)
        return web.json_response({"server": self.address})


class Rig:
    """What a test needs of it all."""

    def __init__(self, servers: list[ModelServer], pool: ToldPool, events: list[Event]) -> None:
        self.servers = servers
        self.pool = pool
        self.events = events
        self.picker: ExtProcServer
        self.envoy: process.Envoy
        self.client: aiohttp.ClientSession

    def port(self, way: Way) -> int:
        return self.envoy.ports[way.value]

    def url(self, way: Way, path: str = CHAT) -> str:
        return f"http://127.0.0.1:{self.port(way)}{path}"


def envoy_settings(servers: list[str], picker: str, *, reports: bool = False, **more: Any) -> Settings:
    listeners = tuple(Listener(way.value, "127.0.0.1:0", "pool", way) for way in Way)
    return Settings((Pool("pool", tuple(servers), picker, reports),), listeners, **more)


@contextlib.asynccontextmanager
async def a_rig(
    directory: Path,
    *,
    servers: int = 3,
    max_body: int = 16 << 20,
    failure_mode: FailureMode = FailureMode.CLOSE,
    max_buffered: int = 1 << 30,
    processing_mode: Mapping[str, str] | None = None,
    filter_options: Mapping[str, Any] | None = None,
    envoy_buffer: int = 0,
    reports: bool = False,
) -> AsyncIterator[Rig]:
    """Everything started, and everything ended afterwards.

    `processing_mode`, `filter_options` and `envoy_buffer` (bytes) stand in for what is rendered, as in an Envoy that
    somebody else configured.
    """
    async with contextlib.AsyncExitStack() as stack:
        started = [ModelServer() for _ in range(servers)]
        for server in started:
            await server.start()
            stack.push_async_callback(server.stop)
        addresses = [server.address for server in started]
        events: list[Event] = []
        rig = Rig(started, ToldPool(*addresses), events)
        rig.picker = ExtProcServer(
            rig.pool,
            events.append,
            address="127.0.0.1:0",
            max_body=max_body,
            max_buffered=max_buffered,
        )
        port = await rig.picker.start()
        stack.push_async_callback(rig.picker.stop, 0.0)
        rig.pool.reports = reports
        settings = envoy_settings(
            addresses, f"127.0.0.1:{port}", reports=reports, max_body=max_body, failure_mode=failure_mode
        )
        config = bootstrap(settings)
        for listener in config["static_resources"]["listeners"]:
            listener["per_connection_buffer_limit_bytes"] = (
                envoy_buffer or listener["per_connection_buffer_limit_bytes"]
            )
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            for one in manager["http_filters"][:-1]:
                one["typed_config"]["processing_mode"].update(processing_mode or {})
                one["typed_config"].update(filter_options or {})
        rig.envoy = await process.start(config, directory / "envoy")
        stack.push_async_callback(rig.envoy.stop)
        rig.client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield rig


async def raw(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a listener on which a test may misbehave."""
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 10)
