"""The client of the demo: what is a complete answer, the messages of failures, and when requests are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from aiohttp import web

from agent.clock import SystemClock
from agent.demo import client
from agent.demo.workload import ChatMessage, ChatTurn

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
WHOLE = (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: [DO", b"NE]\n\n")


@asynccontextmanager
async def answering(respond: Respond) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client session, and the URL of a server that answers with `respond`."""
    app = web.Application()
    app.router.add_post("/", respond)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            yield session, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def streaming(*chunks: bytes, broken: bool = False) -> Respond:
    async def respond(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for chunk in chunks:
            await answer.write(chunk)
        if broken:
            assert request.transport is not None
            request.transport.close()
        return answer

    return respond


async def test_a_complete_stream_gives_the_time_to_its_first_data() -> None:
    async with answering(streaming(*WHOLE)) as (session, url):
        assert 0 < await client.send_chat(session, url, b"{}", SystemClock()) < 5


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (streaming(), "an empty stream"),
        (streaming(WHOLE[0]), "the stream ended before [DONE]"),
        (streaming(WHOLE[0], b'data: {"error": {"message": "x"}}\n\n', *WHOLE[1:]), "an error in the stream"),
        (streaming(WHOLE[0], broken=True), "the connection failed: ClientPayloadError"),
    ],
)
async def test_an_incomplete_answer_is_a_failure(respond: Respond, message: str) -> None:
    async with answering(respond) as (session, url):
        with pytest.raises(client.ChatFailed) as failed:
            await client.send_chat(session, url, b"{}", SystemClock())
    assert str(failed.value) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m", "code": "none_healthy"}}', "HTTP 503 none_healthy"),
        (b'{"error": {"message": "try later", "code": null}}', "HTTP 503 try later"),
        (b"<html>", "HTTP 503"),
        (b'{"error": "text"}', "HTTP 503"),
        (b"[]", "HTTP 503"),
    ],
)
async def test_an_error_answer_fails_with_its_status_and_code(body: bytes, message: str) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, body=body)

    async with answering(respond) as (session, url):
        with pytest.raises(client.ChatFailed) as failed:
            await client.send_chat(session, url, b"{}", SystemClock())
    assert str(failed.value) == message


async def test_a_refused_connection_is_a_failure() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(client.ChatFailed, match="the connection failed: ClientConnectorError"):
            await client.send_chat(session, "http://127.0.0.1:1/", b"{}", SystemClock())


async def test_every_turn_is_sent_once_regardless_of_failures() -> None:
    seen: list[str] = []
    whole = streaming(*WHOLE)

    async def respond(request: web.Request) -> web.StreamResponse:
        sent = orjson.loads(await request.read())
        assert (sent["model"], sent["stream"], sent["max_tokens"]) == ("m", True, 7)
        seen.append(sent["messages"][0]["content"])
        return web.Response(status=500) if sent["messages"][0]["content"] == "1" else await whole(request)

    turns = [ChatTurn(0.001 * number, 0, 0, 0, (ChatMessage("user", str(number)),), 1, 0) for number in range(4)]
    progresses: list[tuple[int, int]] = []
    async with answering(respond) as (session, url):
        run = await client.send(
            session,
            url,
            turns,
            "m",
            7,
            SystemClock(),
            lambda progress: progresses.append((progress.sent, progress.ended)),
        )
    assert sorted(seen) == ["0", "1", "2", "3"]
    assert (run.sent, run.ended, len(run.ttft_seconds), dict(run.errors)) == (4, 4, 3, {"HTTP 500": 1})
    assert progresses[-1] == (4, 4)
    assert run.late_seconds >= 0
