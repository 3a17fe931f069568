"""The router behind a real socket, called by the library grpcio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.serve.grpc.listener import GrpcListener, GrpcProtocol
from agent.serve.grpc.router import GrpcRouter
from tests.fakes.late_transport import LateTransport
from tests.grpc.services import ECHO, MAX_MESSAGE_BYTES, EchoService
from tests.waiting import eventually


class EchoServer:
    """A listener that serves the echo service, and a channel to it."""

    def __init__(self) -> None:
        self.service = EchoService()
        self.failures: list[str] = []
        self.connection_failures: list[str] = []
        router = GrpcRouter((self.service,), lambda path, _: self.failures.append(path))
        self.listener = GrpcListener(router, self.connection_failures.append)
        self.port = 0
        self.channel: Any = None

    async def unary(self, request: bytes) -> bytes:
        response: bytes = await self.channel.unary_unary(f"/{ECHO}/Unary")(request, timeout=10)
        return response


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    server = EchoServer()
    server.port = await server.listener.listen("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        server.channel = channel
        yield server
    server.listener.goaway()
    await server.listener.close()


async def test_a_real_client_calls_each_kind_of_method(echo: EchoServer) -> None:
    assert await echo.unary(b"abc") == b"cba"
    stream = echo.channel.unary_stream(f"/{ECHO}/ServerStream")(b"n", timeout=10)
    assert [message async for message in stream] == [b"n 0", b"n 1", b"n 2"]
    bidi = echo.channel.stream_stream(f"/{ECHO}/Bidi")(timeout=10)
    for message in (b"ab", b"", b"cd"):
        await bidi.write(message)
        assert await bidi.read() == message[::-1]
    await bidi.done_writing()
    assert await bidi.read() is grpc.aio.EOF
    assert await bidi.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("Other", b"x", grpc.StatusCode.UNIMPLEMENTED),
        ("Unary", b"raise", grpc.StatusCode.INTERNAL),
        ("Unary", b"refuse", grpc.StatusCode.NOT_FOUND),
        ("Unary", bytes(MAX_MESSAGE_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_real_client_gets_the_status_and_its_connection_lives_on(
    method: str, request_: bytes, code: grpc.StatusCode, echo: EchoServer
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await echo.channel.unary_unary(f"/{ECHO}/{method}")(request_, timeout=10)
    assert failed.value.code() is code
    assert echo.failures == ([f"/{ECHO}/Unary"] if code is grpc.StatusCode.INTERNAL else [])
    assert await echo.unary(b"abc") == b"cba"
    assert (echo.connection_failures, len(echo.listener.protocols)) == ([], 1)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_real_client_that_sends_no_request_or_two_gets_unimplemented(count: int, echo: EchoServer) -> None:
    call = echo.channel.stream_stream(f"/{ECHO}/Unary")(iter([b"x"] * count), timeout=10)
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_real_client_that_cancels_ends_its_server_stream(echo: EchoServer) -> None:
    stream = echo.channel.unary_stream(f"/{ECHO}/ServerStream")(b"endless")
    assert [await stream.read() for _ in range(3)] == [b"endless 0", b"endless 1", b"endless 2"]
    echo.service.streams[0].send(b"later")
    assert await asyncio.wait_for(stream.read(), 10) == b"later"
    stream.cancel()
    await eventually(lambda: echo.service.left == ["ServerStream"])


async def test_a_connection_that_ends_ends_its_calls(echo: EchoServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{echo.port}") as channel:
        bidi = channel.stream_stream(f"/{ECHO}/Bidi")()
        await bidi.write(b"ab")
        assert await asyncio.wait_for(bidi.read(), 10) == b"ba"
    await eventually(lambda: echo.service.left == ["Bidi"])


async def test_after_goaway_open_calls_continue_and_new_connections_are_refused(echo: EchoServer) -> None:
    bidi = echo.channel.stream_stream(f"/{ECHO}/Bidi")()
    await bidi.write(b"ab")
    assert await asyncio.wait_for(bidi.read(), 10) == b"ba"
    echo.listener.goaway()
    await bidi.write(b"cd")
    assert await asyncio.wait_for(bidi.read(), 10) == b"dc"
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", echo.port)
    await bidi.done_writing()
    assert await bidi.code() is grpc.StatusCode.OK


async def test_a_connection_accepted_before_the_end_and_opened_after_it_is_aborted(echo: EchoServer) -> None:
    late = GrpcProtocol(echo.listener)
    echo.listener.goaway()
    transport = LateTransport()
    late.connection_made(transport)
    assert transport.aborted
    late.connection_lost(None)
    assert not echo.listener.protocols
