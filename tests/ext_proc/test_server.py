"""The picker port behind a real socket: Envoy's messages, health, and broken connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import orjson
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.events import Event
from agent.events.objectives import FlowHeaderIgnored
from agent.events.requests import StreamBroken
from agent.requests.flow_headers import FlowHeaderRules
from agent.requests.flow_terms import FlowHeaders
from agent.serve.ext_proc.actions import CHUNK_BYTES
from agent.serve.ext_proc.server import ExtProcServer
from agent.serve.grpc import health as grpc_health
from agent.serve.grpc import listener as grpc_listener
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS, frame
from tests.fakes.ext_proc import BUFFERED, FULL_DUPLEX, PROCESS, picked, read, request_body, request_headers
from tests.fakes.scripted_pool import ScriptedPool
from tests.waiting import eventually

BODY = orjson.dumps({"model": "m", "messages": []})


class PickerPort:
    """A picker port that listens, its pool, and what it reported."""

    def __init__(self) -> None:
        self.pool = ScriptedPool("10.0.0.1:8000", "[fd00::1]:8000")
        self.events: list[Event] = []
        self.server = ExtProcServer(self.pool, self.events.append, address="127.0.0.1:0", max_body=1 << 20)
        self.number = 0
        self.channel: Any = None

    def converse(self) -> Any:
        return self.channel.stream_stream(PROCESS)()


@pytest.fixture
async def port() -> AsyncIterator[PickerPort]:
    one = PickerPort()
    one.number = await one.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{one.number}") as channel:
        one.channel = channel
        yield one
    await one.server.stop(0.0)


@pytest.mark.parametrize("endpoint", [0, 1])
async def test_header_and_metadata_name_the_same_endpoint_and_overwrite_what_was_there(
    port: PickerPort, endpoint: int
) -> None:
    port.pool.choose = lambda _, __: port.pool.endpoints[endpoint]
    more: dict[str, str]
    for more in ({}, {"x-gateway-inference-objective": "gold"}):
        conversation = port.converse()
        await conversation.write(request_headers(end=True, more=more))
        response = await read(conversation)
        assert response.WhichOneof("response") == "request_headers"
        assert picked(response) == port.pool.endpoints[endpoint]
        assert list(response.request_headers.response.header_mutation.remove_headers) == list(more)
        await conversation.done_writing()
        assert await conversation.read() is grpc.aio.EOF
        assert await conversation.code() is grpc.StatusCode.OK
    await eventually(lambda: port.pool.ended_as == ["closed"] * 2)


async def test_flow_headers_that_cannot_be_used_are_counted_and_the_rules_may_change(port: PickerPort) -> None:
    more = {"x-llm-d-inference-ttl": "0s", "x-llm-d-inference-objective": "high", "x-tenant": "team-b"}
    for rules in (FlowHeaderRules(), FlowHeaderRules(caller_header="x-tenant"), FlowHeaderRules(believed=False)):
        port.pool.flow_rules = rules
        conversation = port.converse()
        await conversation.write(request_headers(end=True, more=more))
        assert picked(await read(conversation))
        await conversation.done_writing()
    assert port.pool.flow_headers == [FlowHeaders("high"), FlowHeaders("high", "team-b"), FlowHeaders()]
    assert port.events == [FlowHeaderIgnored("pool", "x-llm-d-inference-ttl", "not_positive")] * 2


async def test_a_buffered_conversation_is_answered_message_by_message(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(request_headers(BUFFERED))
    assert (await read(conversation)).WhichOneof("response") == "request_headers"
    await conversation.write(request_body(BODY))
    response = await read(conversation)
    assert response.WhichOneof("response") == "request_body"
    assert picked(response) == "10.0.0.1:8000"
    assert port.pool.in_flight == 1
    conversation.cancel()
    await eventually(lambda: port.pool.in_flight == 0)
    assert port.pool.ended_as == ["closed"]


async def test_a_full_duplex_conversation_gets_its_body_back_in_pieces(port: PickerPort) -> None:
    text = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200_000}]})
    conversation = port.converse()
    await conversation.write(request_headers(FULL_DUPLEX))
    for start in range(0, len(text), 50_000):
        await conversation.write(request_body(text[start : start + 50_000], end=start + 50_000 >= len(text)))
    assert picked(await read(conversation)) == "10.0.0.1:8000"
    pieces, last = [], False
    while not last:
        streamed = (await read(conversation)).request_body.response.body_mutation.streamed_response
        pieces.append(streamed.body)
        last = streamed.end_of_stream
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= CHUNK_BYTES


@pytest.mark.parametrize(
    ("hint", "subset"),
    [
        (["10.0.0.1:8000", "[fd00::1]:8000"], frozenset({"10.0.0.1:8000", "[fd00::1]:8000"})),
        ("10.0.0.1:8000,[fd00::1]:8000", frozenset({"10.0.0.1:8000", "[fd00::1]:8000"})),
    ],
)
async def test_a_subset_hint_reaches_the_picker(port: PickerPort, hint: Any, subset: frozenset[str]) -> None:
    conversation = port.converse()
    await conversation.write(request_headers(end=True, subset=hint))
    await read(conversation)
    assert [requested[2] for requested in port.pool.requests] == [subset]
    conversation.cancel()


@pytest.mark.parametrize("hint", [[], "", 7.0])
async def test_a_subset_hint_that_allows_nothing_is_a_503(port: PickerPort, hint: Any) -> None:
    conversation = port.converse()
    await conversation.write(request_headers(end=True, subset=hint))
    response = await read(conversation)
    assert response.immediate_response.status.code == 503
    assert port.pool.requests == []


async def test_bytes_that_are_no_message_end_one_conversation_and_are_counted(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(b"\xff\xff\xff")
    response = await read(conversation)
    assert response.immediate_response.status.code == 500
    assert orjson.loads(response.immediate_response.body)["error"]["code"] == "internal_error"
    (event, _) = port.events
    assert isinstance(event, StreamBroken)
    assert event.reason == "malformed"
    conversation = port.converse()
    await conversation.write(request_headers(end=True))
    assert picked(await read(conversation))
    conversation.cancel()


async def test_a_body_without_headers_is_answered_with_the_setting_that_is_wrong(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(request_body(BODY))
    response = await read(conversation)
    assert b"request_header_mode" in response.immediate_response.body
    assert isinstance(port.events[0], StreamBroken)


async def test_a_message_that_says_nothing_is_passed_over(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(b"")
    await conversation.write(request_headers(end=True))
    assert picked(await read(conversation))
    conversation.cancel()


async def test_a_message_over_the_size_limit_ends_its_call_alone(port: PickerPort) -> None:
    conversation = port.converse()
    with contextlib.suppress(asyncio.InvalidStateError):
        await conversation.write(request_headers(FULL_DUPLEX))
        await conversation.write(request_body(bytes(4 << 20)))
    assert await conversation.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await eventually(lambda: port.server.open_streams == 0)
    conversation = port.converse()
    await conversation.write(request_headers(end=True))
    assert picked(await read(conversation))
    conversation.cancel()


async def test_health_follows_the_pool_and_liveness_does_not(port: PickerPort) -> None:
    stub = health_pb2_grpc.HealthStub(port.channel)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    async def status(service: str) -> Any:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

    readiness = ("", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor")
    assert [await status(service) for service in (*readiness, "liveness")] == [serving] * 5
    port.pool.is_ready = False
    assert [await status(service) for service in readiness] == [not_serving] * 4
    assert await status("liveness") == serving
    listed = (await stub.List(health_pb2.HealthListRequest())).statuses
    assert {name: response.status for name, response in listed.items()} == {
        **dict.fromkeys(readiness, not_serving), "liveness": serving,
    }  # fmt: skip
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await status("something else")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_change_of_readiness_is_sent_to_a_watcher(port: PickerPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "WATCH_SECONDS", 0.01)
    watching = health_pb2_grpc.HealthStub(port.channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    port.pool.is_ready = False
    assert (await asyncio.wait_for(watching.read(), 10)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watching.cancel()


async def test_a_port_in_use_is_named(port: PickerPort) -> None:
    second = ExtProcServer(port.pool, port.events.append, address=f"127.0.0.1:{port.number}")
    with pytest.raises(OSError, match=rf"pool pool cannot listen on 127\.0\.0\.1:{port.number}"):
        await second.start()


async def test_stopping_ends_every_pick_and_takes_no_more_requests(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(request_headers(end=True))
    await read(conversation)
    await asyncio.wait_for(port.server.stop(10.0), 5)
    assert (port.pool.ended_as, port.pool.ended_twice) == (["lost"], 0)
    assert await conversation.code() is grpc.StatusCode.OK
    late = port.converse()
    assert await late.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_request_that_is_being_read_when_we_stop_may_finish(port: PickerPort) -> None:
    conversation = port.converse()
    await conversation.write(request_headers(BUFFERED))
    await read(conversation)
    stopping = asyncio.ensure_future(port.server.stop(20.0))
    await asyncio.sleep(0)
    await conversation.write(request_body(BODY))
    assert picked(await read(conversation)) == "10.0.0.1:8000"
    await asyncio.wait_for(stopping, 10)
    assert (port.pool.ended_as, port.pool.in_flight) == (["lost"], 0)


# -- connections that are not gRPC, or break ---------------------------------------------------------------------------


async def answer_to(port: PickerPort, data: bytes) -> bytes:
    """What the port sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "PROTOCOL_ERROR: invalid connection preface"),
        (
            b"\x16\x03\x01\x00\x05hello" * 5,
            "the client uses TLS on a plaintext port: connect without TLS, or configure tls for this port",
        ),
    ],
    ids=["http-1.1", "tls"],
)
async def test_a_connection_that_is_not_http2_is_closed_and_counted_and_others_continue(
    port: PickerPort, data: bytes, detail: str
) -> None:
    conversation = port.converse()
    await conversation.write(request_headers())
    await read(conversation)
    await answer_to(port, data)
    (event,) = port.events
    assert isinstance(event, StreamBroken)
    assert (event.reason, event.detail) == ("http2", detail)
    await conversation.write(request_body(BODY))
    assert picked(await read(conversation)) == "10.0.0.1:8000"
    conversation.cancel()


async def test_an_unknown_method_is_unimplemented(port: PickerPort) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await port.channel.unary_unary("/envoy.service.ext_proc.v3.ExternalProcessor/Proces")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.source
async def test_requests_of_a_proxy_that_answers_no_ping_end(port: PickerPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_listener, "KEEPALIVE_SECONDS", 0.05)
    monkeypatch.setattr(grpc_listener, "KEEPALIVE_TIMEOUT_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    call = frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x44%c%s" % (len(PROCESS), PROCESS.encode()))
    message = request_headers(end=True)
    data = frame(DATA, 0, 1, b"\x00" + len(message).to_bytes(4, "big") + message)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + call + data)
    await eventually(lambda: port.pool.picks == 1)
    await eventually(lambda: port.pool.ended_as == ["closed"])
    assert frame(PING, 0, 0, bytes(8)) in await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.source
async def test_a_proxy_that_answers_pings_may_be_idle(port: PickerPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_listener, "KEEPALIVE_SECONDS", 0.01)
    monkeypatch.setattr(grpc_listener, "KEEPALIVE_TIMEOUT_SECONDS", 0.5)
    pinged: list[Connection] = []
    ping = Connection.ping

    def recorded(connection: Connection) -> None:
        pinged.append(connection)
        ping(connection)

    monkeypatch.setattr(Connection, "ping", recorded)
    conversation = port.converse()
    await conversation.write(request_headers(end=True))
    await read(conversation)
    await eventually(lambda: len(pinged) >= 3)
    assert port.pool.in_flight == 1
    conversation.cancel()


async def test_the_ipv6_wildcard_address_accepts_ipv4_too(port: PickerPort) -> None:
    every = ExtProcServer(port.pool, port.events.append, address="[::]:0")
    number = await every.start()
    for host in ("127.0.0.1", "[::1]"):
        async with grpc.aio.insecure_channel(f"{host}:{number}") as channel:
            conversation = channel.stream_stream(PROCESS)()
            await conversation.write(request_headers(end=True))
            assert picked(await read(conversation))
            conversation.cancel()
    await every.stop(0.0)
    await every.stop(0.0)
    assert every.open_streams == 0
