"""The picker against a second implementation of the proxy's side: every mode of both bodies, named or assumed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import orjson
import pytest

from agent.app.pool import MODES
from agent.events import Event
from agent.serve.ext_proc.actions import Mode
from agent.serve.ext_proc.server import ExtProcServer
from tests.ext_proc.strict_proxy import BodyMode, Exchanged, Message, StrictProxy
from tests.fakes.scripted_pool import ScriptedPool

ENDPOINT = "10.0.0.1:8000"
# Modes in which the picker has the body before it picks.
READ = (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL, BodyMode.FULL_DUPLEX_STREAMED, BodyMode.HOLD)
NAMED = list(itertools.product(BodyMode, [mode for mode in BodyMode if mode is not BodyMode.HOLD]))
# A proxy that names no modes has the assumed one in both directions, or sends no responses at all.
ASSUMED = [(mode, response) for mode in BodyMode if mode is not BodyMode.HOLD for response in {mode, BodyMode.NONE}]
CASES = [(*modes, True) for modes in NAMED] + [(*modes, False) for modes in ASSUMED]
every_mode = pytest.mark.parametrize(
    ("request_mode", "response_mode", "named"),
    CASES,
    ids=[f"{request.name}-{response.name}-{'named' if named else 'assumed'}" for request, response, named in CASES],
)
SIZES = (1, 61_999, 62_000, 62_001, 200_000)


class Picker:
    """A picker port, its pool, and a proxy's channel to it."""

    def __init__(self, assumed: Mode) -> None:
        self.events: list[Event] = []
        self.pool = ScriptedPool(ENDPOINT, hook=self.events.append)
        self.server = ExtProcServer(
            self.pool, self.events.append, address="127.0.0.1:0", max_body=4 << 20, assumed_mode=assumed
        )
        self.channel: Any = None

    @property
    def models(self) -> list[str]:
        """The models of the requests that were picked for."""
        return [prompt.model for _, prompt, _ in self.pool.requests]


@asynccontextmanager
async def picker(request_mode: BodyMode, *, named: bool) -> AsyncIterator[Picker]:
    """A picker port that assumes this mode where the proxy names none."""
    one = Picker(Mode.FULL_DUPLEX if named else MODES[request_mode.name])
    port = await one.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            one.channel = channel
            yield one
    finally:
        await one.server.stop(0.0)
    assert one.pool.in_flight == one.server.buffered_bytes == 0


def pieces(body: bytes, size: int = 40_000) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def completion(size: int = 0, **more: Any) -> bytes:
    return orjson.dumps({"model": "m", "prompt": "x" * size, **more})


def request(body: bytes, **headers: str) -> Message:
    head = {":method": "POST", ":path": "/v1/completions", "x-request-id": "r", "content-length": str(len(body))}
    return Message({**head, **headers}, pieces(body))


def response(body: bytes) -> Message:
    return Message({":status": "200"}, pieces(body, 30_000))


@every_mode
@pytest.mark.parametrize("size", SIZES)
async def test_request_and_response_pass_unchanged(
    request_mode: BodyMode, response_mode: BodyMode, named: bool, size: int
) -> None:
    async with picker(request_mode, named=named) as port:
        body, answer = completion(size), b"data: " + bytes(size)
        proxy = StrictProxy(port.channel, request_mode, response_mode, names_modes=named)
        done = await proxy.exchange(request(body), response(answer))
        assert (done.destination, done.rejection) == (ENDPOINT, None)
        assert (done.request.body, done.request.ended) == (body, True)
        assert (done.response.body, done.response.ended) == (answer, True)
        assert done.request.headers["x-gateway-destination-endpoint"] == ENDPOINT
        assert port.models == (["m"] if request_mode in READ else [""])
        assert port.events == []


@every_mode
async def test_an_exchange_without_bodies_passes(request_mode: BodyMode, response_mode: BodyMode, named: bool) -> None:
    async with picker(request_mode, named=named) as port:
        proxy = StrictProxy(port.channel, request_mode, response_mode, names_modes=named)
        done = await proxy.exchange(Message({":method": "GET", ":path": "/v1/models"}), Message({":status": "204"}))
        assert (done.destination, done.request.ended, done.response.ended) == (ENDPOINT, True, True)


@every_mode
async def test_an_event_stream_with_trailers_passes(
    request_mode: BodyMode, response_mode: BodyMode, named: bool
) -> None:
    async with picker(request_mode, named=named) as port:
        proxy = StrictProxy(port.channel, request_mode, response_mode, names_modes=named)
        streamed = Message({":status": "200"}, [b"data: 1\n\n", b"data: 2\n\n"], {"x-end": "1"})
        done = await proxy.exchange(request(completion(10)), streamed)
        assert (done.response.body, done.response.ended) == (streamed.body, True)


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.HOLD])
async def test_a_request_with_trailers_passes(mode: BodyMode) -> None:
    async with picker(mode, named=True) as port:
        body = completion(100_000)
        sent = Message({":method": "POST", ":path": "/v1/completions"}, pieces(body), {"x-end": "1"})
        done = await StrictProxy(port.channel, mode).exchange(sent, response(b"ok"))
        assert (done.request.body, done.request.ended, port.models) == (body, True, ["m"])


async def test_a_partly_buffered_body_passes_whole() -> None:
    async with picker(BodyMode.BUFFERED_PARTIAL, named=True) as port:
        body = completion(200_000)
        proxy = StrictProxy(port.channel, BodyMode.BUFFERED_PARTIAL, limit=100_000)
        done = await proxy.exchange(request(body), response(b"ok"))
        assert (done.request.body, port.models) == (body, [""])


# -- a rejection ---------------------------------------------------------------------------------------------------


def code_of(done: Exchanged) -> tuple[int, str]:
    assert done.rejection is not None
    return done.rejection.status.code, orjson.loads(done.rejection.body)["error"]["code"]


@pytest.mark.parametrize("mode", READ)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "invalid_json")),
        (b"[1]", (400, "invalid_json")),
        (b"{}", (400, "model_required")),
        (b'{"model":""}', (400, "model_required")),
        (b'{"model":7}', (400, "model_required")),
    ],
)
async def test_without_a_path_a_body_is_judged_as_json(mode: BodyMode, body: bytes, expected: tuple[int, str]) -> None:
    async with picker(mode, named=True) as port:
        sent = Message({":method": "POST"}, [body])
        assert code_of(await StrictProxy(port.channel, mode).exchange(sent, response(b""))) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "hello"},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"input": "hello"},
    ],
)
async def test_without_a_path_the_model_and_the_prompt_of_any_api_are_read(document: dict[str, Any]) -> None:
    async with picker(BodyMode.FULL_DUPLEX_STREAMED, named=False) as port:
        sent = Message({":method": "POST"}, [orjson.dumps({"model": "m", **document})])
        proxy = StrictProxy(port.channel, BodyMode.FULL_DUPLEX_STREAMED, names_modes=False)
        assert (await proxy.exchange(sent, response(b"ok"))).rejection is None
        assert port.models == ["m"]
        assert b"hello" in port.pool.requests[0][1].text


# -- another model -------------------------------------------------------------------------------------------------

NEW, OLD = "x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"


@pytest.mark.parametrize("mode", READ)
@pytest.mark.parametrize("headers", [{NEW: "canary"}, {OLD: "canary"}, {NEW: "canary", OLD: "older"}])
@pytest.mark.parametrize("size", [0, 200_000])
async def test_a_header_replaces_the_model_in_the_body_and_the_pick_is_for_that_model(
    mode: BodyMode, headers: dict[str, str], size: int
) -> None:
    async with picker(mode, named=True) as port:
        done = await StrictProxy(port.channel, mode).exchange(request(completion(size), **headers), response(b"ok"))
        assert orjson.loads(done.request.body) == {"model": "canary", "prompt": "x" * size}
        assert done.request.headers["content-length"] == str(len(done.request.body))
        assert not {NEW, OLD} & done.request.headers.keys()
        assert port.models == ["canary"]


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.STREAMED])
async def test_a_model_that_cannot_be_replaced_is_an_error_and_never_ignored(mode: BodyMode) -> None:
    async with picker(mode, named=True) as port:
        sent = request(completion(), **{NEW: "canary"})
        assert code_of(await StrictProxy(port.channel, mode).exchange(sent, response(b""))) == (
            400,
            "model_rewrite_failed",
        )


@pytest.mark.parametrize(("mode", "limit"), [(BodyMode.BUFFERED_PARTIAL, 1000), (BodyMode.HOLD, 0)])
async def test_nor_is_it_ignored_where_the_body_is_too_long_for_the_mode(mode: BodyMode, limit: int) -> None:
    async with picker(mode, named=True) as port:
        sent = request(completion(1 << 20), **{NEW: "canary"})
        done = await StrictProxy(port.channel, mode, limit=limit).exchange(sent, response(b""))
        assert code_of(done) == (400, "model_rewrite_failed")


@pytest.mark.parametrize("body", [b"no JSON", b'["model"]'])
async def test_nor_where_the_body_is_no_object(body: bytes) -> None:
    async with picker(BodyMode.BUFFERED, named=True) as port:
        sent = Message({":method": "POST", ":path": "/v1/audio/transcriptions", NEW: "canary"}, [body])
        done = await StrictProxy(port.channel, BodyMode.BUFFERED).exchange(sent, response(b""))
        assert code_of(done) == (400, "model_rewrite_failed")


async def test_a_request_without_a_body_has_no_model_to_replace() -> None:
    async with picker(BodyMode.BUFFERED, named=True) as port:
        sent = Message({":method": "GET", ":path": "/v1/models", NEW: "canary"})
        done = await StrictProxy(port.channel, BodyMode.BUFFERED).exchange(sent, response(b"ok"))
        assert (done.rejection, NEW in done.request.headers) == (None, False)
