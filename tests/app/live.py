"""A live agent over live model servers, and a proxy's side of a conversation with its picker port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import orjson
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from agent.app.agent import Agent
from agent.app.vocabulary import WORDS
from agent.clock import Clock, SystemClock
from agent.config.file import load
from agent.events import Event
from agent.instruments.hook import Instruments
from tests.app.model_servers import ModelServer
from tests.waiting import eventually

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"
BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Tell me of the sea. " * 200}]})
_BUFFERED = 2


class Recorder(Instruments):
    """Instruments that also remember what they were told."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        super().__call__(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def document(endpoints: Sequence[str], more: str = "") -> str:
    """A file for one pool on any free ports, which looks at itself ten times a second; `more` comes behind."""
    listed = "".join(f"\n  - '{address}'" for address in endpoints)
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "admin: {address: '127.0.0.1:0'}\nreload: {interval: 100ms}\n"
        f"pools:\n- extProcAddress: 127.0.0.1:0\n  endpoints:{listed or ' []'}\n{more}"
    )


class Live:
    """An agent that runs, by the system's clock or another; `channel` leads to its picker port."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.clock = clock = clock or SystemClock()
        self.recorder = Recorder(clock)
        self.agent = Agent(load(path, WORDS), clock, path=path, instruments=self.recorder)
        self.admin = ""
        self.picker = ""
        self.pickers: dict[str, str] = {}
        self.channel: Any = None

    @property
    def pool(self) -> Any:
        return self.agent.pools["default"]

    def healthy(self) -> list[str]:
        views = self.pool.store.snapshot(self.clock.now()).endpoints
        return [view.address for view in views if view.health == "healthy"]

    def readings(self, address: str) -> dict[str, Any]:
        """What is known of an endpoint now, by signal."""
        views = self.pool.store.snapshot(self.clock.now()).endpoints
        (view,) = [view for view in views if view.address == address]
        return {signal: reading.value for signal, reading in view.readings.items()}

    async def converse(self, request_id: str = "r", body: bytes = BODY) -> tuple[Any, str]:
        """Begin a request at this agent."""
        return await converse(self.channel, request_id, body)


async def converse(channel: Any, request_id: str, body: bytes = BODY) -> tuple[Any, str]:
    """Begin a request; the call, which stays open, and the picked endpoint (or the status of the rejection)."""
    conversation = await begin(channel, request_id)
    return conversation, await send_body(conversation, body)


async def send_body(conversation: Any, body: bytes = BODY) -> str:
    """Send the whole body; the picked endpoint, or the status of the rejection."""
    whole = pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    await conversation.write(whole.SerializeToString())
    answer = await _read(conversation)
    if answer.HasField("immediate_response"):
        return str(answer.immediate_response.status.code)
    (picked,) = (
        option.header.raw_value.decode()
        for option in answer.request_body.response.header_mutation.set_headers
        if option.header.key == DESTINATION
    )
    return picked


async def ended(conversation: Any) -> None:
    """Wait until the agent has ended the call."""
    assert await asyncio.wait_for(conversation.read(), 20) is grpc.aio.EOF


async def begin(channel: Any, request_id: str) -> Any:
    """The conversation of a request whose headers are there and whose body is not."""
    conversation = channel.stream_stream(PROCESS)()
    message = pb.ProcessingRequest()
    for name, value in ((":method", "POST"), (":path", "/v1/chat/completions"), ("x-request-id", request_id)):
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    message.protocol_config.request_body_mode = _BUFFERED
    await conversation.write(message.SerializeToString())
    await _read(conversation)
    return conversation


async def _read(conversation: Any) -> pb.ProcessingResponse:
    data = await asyncio.wait_for(conversation.read(), 20)
    assert data is not grpc.aio.EOF, await conversation.details()
    return pb.ProcessingResponse.FromString(data)


async def end(conversation: Any) -> None:
    """The proxy closes its side, as Envoy does when the answer is over, and waits for ours to end."""
    await conversation.done_writing()
    assert await asyncio.wait_for(conversation.read(), 20) is grpc.aio.EOF


@asynccontextmanager
async def running(path: Path, healthy: int) -> AsyncIterator[Live]:
    """The agent of a file, once so many of its endpoints are healthy."""
    live = Live(path)
    ports = await live.agent.start()
    live.admin, live.picker, live.pickers = ports.admin, ports.pickers["default"], ports.pickers
    try:
        async with grpc.aio.insecure_channel(live.picker) as channel:
            live.channel = channel
            await eventually(lambda: len(live.healthy()) == healthy, what=f"{healthy} healthy endpoints")
            yield live
    finally:
        await live.agent.stop(grace=0)


@asynccontextmanager
async def servers(count: int) -> AsyncIterator[list[ModelServer]]:
    """So many model servers that listen."""
    started = [await ModelServer().start() for _ in range(count)]
    try:
        yield started
    finally:
        for server in started:
            await server.stop()
