"""The client of the demo: what is a complete answer, the messages of failures, and when requests are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from agent.clock import SystemClock
from agent.demo import client
from agent.demo.workload import ChatMessage, ChatTurn
from tests.fakes.model_server import Behaviour, ModelServer, answer, chunk, chunked_head, raw

EVENTS = (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: [DO", b"NE]\n\n")


@asynccontextmanager
async def answering(behave: Behaviour) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client session, and the URL of a server with this behaviour."""
    server = ModelServer(behave)
    await server.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            yield session, f"http://{server.address}/"
    finally:
        await server.stop()


def streaming(*chunks: bytes, cut: bool = False) -> Behaviour:
    """A chunked response; with `cut` the connection is closed before its end."""
    pieces = [chunked_head(), *map(chunk, chunks)]
    return raw(*pieces, close=True) if cut else raw(*pieces, chunk())


async def test_a_complete_stream_gives_the_time_to_its_first_data() -> None:
    async with answering(streaming(*EVENTS)) as (session, url):
        assert 0 < await client.send_chat(session, url, b"{}", SystemClock()) < 5


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (streaming(), "an empty stream"),
        (streaming(EVENTS[0]), "the stream ended before [DONE]"),
        (streaming(EVENTS[0], b'data: {"error": {"message": "x"}}\n\n', *EVENTS[1:]), "an error in the stream"),
        (streaming(EVENTS[0], cut=True), "the connection failed: ClientPayloadError"),
    ],
)
async def test_an_incomplete_answer_is_a_failure(behave: Behaviour, message: str) -> None:
    async with answering(behave) as (session, url):
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
    async with answering(raw(answer(body, "503 Service Unavailable"))) as (session, url):
        with pytest.raises(client.ChatFailed) as failed:
            await client.send_chat(session, url, b"{}", SystemClock())
    assert str(failed.value) == message


async def test_a_refused_connection_is_a_failure() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(client.ChatFailed, match="the connection failed: ClientConnectorError"):
            await client.send_chat(session, "http://127.0.0.1:1/", b"{}", SystemClock())


async def test_every_turn_is_sent_once_regardless_of_failures() -> None:
    seen: list[str] = []
    complete = streaming(*EVENTS)

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        sent = orjson.loads(server.requests[-1].body)
        assert (sent["model"], sent["stream"], sent["max_tokens"]) == ("m", True, 7)
        content = sent["messages"][0]["content"]
        seen.append(content)
        if content == "1":
            writer.write(answer(b"", "500 Internal Server Error"))
        else:
            await complete(server, path, writer)

    turns = [ChatTurn(0.001 * number, 0, 0, 0, (ChatMessage("user", str(number)),), 1, 0) for number in range(4)]
    progresses: list[tuple[int, int]] = []
    async with answering(behave) as (session, url):
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
