"""The HTTP server serves any list of routes; and implements each flag of a route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent.events import Event
from agent.events.process import WatcherDropped
from agent.serve.http.responses import HttpError, json_response
from agent.serve.http.server import HttpRoute, HttpServer, HttpStream
from tests.waiting import eventually


class ServedPages:
    """A server of a few pages; `/held` and `/stream` last until `released` is set."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.events: list[Event] = []
        routes = [
            HttpRoute("/any", self.page),
            HttpRoute("/none", self.page, ()),
            HttpRoute("/some", self.page, ("a", "b")),
            HttpRoute("/item/{name}", self.item),
            HttpRoute("/teapot", self.teapot),
            HttpRoute("/held", self.held),
            HttpRoute("/always", self.page, always_answered=True),
            HttpRoute("/stream", self.stream, streamed=True),
        ]
        self.server = HttpServer("127.0.0.1:0", routes, self.events.append, max_responses=1, on_stop=self.released.set)

    async def page(self, request: web.Request) -> web.Response:
        return json_response({"query": dict(request.query)})

    async def item(self, request: web.Request) -> web.Response:
        return json_response(request.match_info["name"])

    async def teapot(self, request: web.Request) -> web.Response:
        raise HttpError(418, "teapot", "this is a teapot", param="coffee", headers={"Retry-After": "7"})

    async def held(self, request: web.Request) -> web.Response:
        await self.released.wait()
        return json_response("released")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        stream = HttpStream(request, "text/plain", {}, 30.0)
        await stream.start()
        await stream.send(b"begin\n")
        await self.released.wait()
        return stream.response


class PagesClient:
    """The pages and a client of them."""

    def __init__(self, pages: ServedPages, http: aiohttp.ClientSession) -> None:
        self.pages = pages
        self.http = http

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(path) as response:
            return response.status, await response.json()


@pytest.fixture
async def client() -> AsyncIterator[PagesClient]:
    pages = ServedPages()
    port = await pages.server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield PagesClient(pages, http)
    await pages.server.stop()


async def test_the_index_lists_the_paths_without_variable_parts(client):
    paths = ["/", "/always", "/any", "/held", "/none", "/some", "/stream", "/teapot"]
    assert await client.get("/") == (200, {"paths": paths})
    assert await client.get("/item/x") == (200, "x")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/any?x=1", 200), ("/none?x=1", 400), ("/none", 200), ("/some?b=1", 200), ("/some?b=1&c=2", 400)],
)
async def test_a_route_accepts_its_own_parameters_or_any(client, path, status):
    found, content = await client.get(path)
    assert (found, content.get("error", {}).get("code")) == (status, "unknown_parameter" if status == 400 else None)


@pytest.mark.parametrize("path", ["/some?b=1&b=2", "/some?b=1&b=1"])
async def test_a_repeated_parameter_is_refused_by_name(client, path):
    error = {
        "message": "the parameter 'b' is repeated; write it once",
        "type": "invalid_request_error",
        "param": "b",
        "code": "repeated_parameter",
    }
    assert await client.get(path) == (400, {"error": error})


async def test_an_http_error_is_an_openai_error_object(client):
    async with client.http.get("/teapot") as response:
        assert (response.status, response.headers["Retry-After"]) == (418, "7")
        error = {"message": "this is a teapot", "type": "invalid_request_error", "param": "coffee", "code": "teapot"}
        assert await response.json() == {"error": error}


async def test_responses_over_the_limit_are_refused_except_for_routes_that_are_always_answered(client):
    held = asyncio.create_task(client.get("/held"))
    await eventually(lambda: client.pages.server.in_progress == 1)
    assert (await client.get("/any"))[0] == 503
    assert (await client.get("/always"))[0] == 200
    assert client.pages.events == [WatcherDropped("too_many")]
    client.pages.released.set()
    assert await held == (200, "released")
    assert (await client.get("/any"))[0] == 200


async def test_a_stream_is_not_counted_and_ends_when_the_server_stops(client):
    async with client.http.get("/stream") as response:
        assert await response.content.readline() == b"begin\n"
        assert client.pages.server.in_progress == 0
        assert (await client.get("/any"))[0] == 200
        async with asyncio.timeout(30):
            await client.pages.server.stop()
            assert await response.content.read() == b""
