"""The admin address: GET and HEAD only, every error JSON, and the pages of the agent itself."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agent.events import Event
from agent.instruments.hook import Instruments
from agent.serve.admin.server import AdminServer
from agent.serve.http.server import CannotListen
from agent.serve.state.watch import WatchLimits
from tests.fakes.clock import ManualClock
from tests.fakes.schema import check
from tests.fakes.state_source import FakeStateSource
from tests.fakes.views import view
from tests.waiting import eventually

PATHS = [
    "/",
    "/healthz",
    "/metrics",
    "/readyz",
    "/runbooks/",
    "/v1/accelerators",
    "/v1/flow",
    "/v1/gauges",
    "/v1/openapi.json",
    "/v1/picks",
    "/v1/replicas",
    "/v1/scaling",
    "/v1/state",
    "/v1/state/watch",
]


class AdminClient:
    """A running admin server and a client of it."""

    def __init__(self, server: AdminServer, port: int, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.port = port
        self.http = http

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(path) as response:
            return response.status, await response.json()


@pytest.fixture
async def served() -> AsyncIterator[AdminClient]:
    clock = ManualClock()
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield AdminClient(server, port, http)
    await server.stop()


async def test_the_index_lists_every_path(served):
    assert await served.get("/") == (200, {"paths": PATHS})


async def test_every_listed_runbook_is_served_and_no_other_file(served):
    _, listed = await served.get("/runbooks/")
    assert "InferencePoolBlind.md" in listed["runbooks"]
    for name in listed["runbooks"]:
        async with served.http.get(f"/runbooks/{name}") as response:
            assert (response.status, (await response.text())[:2]) == (200, "# ")
    for path in ("/runbooks/None.md", "/runbooks/..%2figw.rules.yaml", "/runbooks/%00"):
        status, refused = await served.get(path)
        assert (status, refused["error"]["code"]) == (404, "no_such_runbook")


async def test_it_is_alive_before_the_first_scrape(served):
    assert await served.get("/healthz") == (200, {"status": "ok"})


@pytest.fixture
async def overloaded() -> AsyncIterator[tuple[AdminClient, list[Event]]]:
    """An agent with a state of many megabytes, and as many readers that receive nothing as the limit of responses."""
    clock = ManualClock()
    events: list[Event] = []
    limits = WatchLimits(drain_seconds=3.0)
    server = AdminServer(
        "127.0.0.1:0", clock=clock, instruments=Instruments(clock), hook=events.append, limits=limits, max_responses=2
    )
    server.set_pools([FakeStateSource("pool", *(view(f"10.0.{n >> 8}.{n & 255}:8000") for n in range(5000)))])
    port = await server.start()
    silent = [socket.socket() for _ in range(2)]
    for one in silent:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(one, b"GET /v1/state HTTP/1.1\r\nHost: agent\r\n\r\n")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield AdminClient(server, port, http), events
    for one in silent:
        one.close()
    await server.stop()


async def test_a_reader_that_does_not_receive_its_document_is_dropped_and_other_requests_get_503_until_then(overloaded):
    served, events = overloaded
    await eventually(lambda: served.server.http.in_progress == 2)
    async with served.http.get("/v1/state") as refused:
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "too_many_requests")
        assert refused.headers["Retry-After"] == "1"
    assert await served.get("/healthz") == (200, {"status": "ok"})
    await eventually(lambda: served.server.http.in_progress == 0)
    assert sorted(event.reason for event in events) == ["slow", "slow", "too_many"]
    assert (await served.get("/v1/state"))[0] == 200


async def test_a_reader_that_leaves_before_its_response_is_not_an_error(served, caplog):
    served.server.set_pools([FakeStateSource("pool", *(view(f"10.0.{n >> 8}.{n & 255}:8000") for n in range(2000)))])
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /v1/state HTTP/1.1\r\nHost: agent\r\n\r\n")
    await eventually(lambda: served.server.http.in_progress == 1)
    writer.transport.abort()
    await eventually(lambda: served.server.http.in_progress == 0)
    assert await served.get("/healthz") == (200, {"status": "ok"})
    assert caplog.records == []


async def test_it_is_ready_while_there_is_no_reason_against_it():
    clock = ManualClock()
    reasons = ["the picker of pool x does not listen yet"]
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock), not_ready=lambda: list(reasons))
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/readyz") as response:
            content = await response.json()
        assert (response.status, content) == (503, {"ready": False, "reasons": reasons})
        check(content, "Readiness")
        reasons.clear()
        async with http.get("/readyz") as response:
            assert (response.status, await response.json()) == (200, {"ready": True, "reasons": []})
    await server.stop()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", PATHS)
async def test_only_get_and_head_are_allowed(served, method, path):
    async with served.http.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        assert response.content_type == "application/json"


@pytest.mark.parametrize("path", [*PATHS, "/v1/state?pool=none", "/v1/picks?limit=x", "/nope"])
async def test_head_returns_what_get_returns_without_a_body(served, path):
    served.server.set_pools([FakeStateSource("pool", view("a:1"))])
    async with served.http.get(path) as got:
        pass  # the stream has no end
    request = (
        f"HEAD {path} HTTP/1.1\r\nHost: agent\r\n\r\nGET /healthz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request.encode())
    head, _, rest = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(status.split()[1]) == got.status
    assert rest.startswith("HTTP/1.1 200 OK")
    for name in ("Content-Type", "Cache-Control"):
        assert headers[name] == got.headers[name]
    if path in ("/", "/healthz", "/readyz", "/nope"):
        assert headers["Content-Length"] == got.headers["Content-Length"]


@pytest.mark.parametrize("path", ["/nope", "/v1/state/", "/%00", "/v1/../metrics/x"])
async def test_a_path_that_does_not_exist_is_a_json_error(served, path):
    status, content = await served.get(path)
    assert status == 404
    check(content, "Error")
    assert content["error"]["code"] == "not_found"


async def test_a_handler_that_fails_returns_json_and_logs_the_reason(served, caplog, monkeypatch):
    source = FakeStateSource("pool")
    served.server.set_pools([source])
    monkeypatch.setattr(source, "snapshot", lambda _: 1 / 0)
    logger = logging.getLogger("igw")
    monkeypatch.setattr(logger, "propagate", True)
    status, content = await served.get("/v1/state")
    assert (status, content["error"]["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" in caplog.text
    assert (await served.get("/healthz"))[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-client\r\n\r\n",
    ],
    ids=["a path of 100 kB", "a header of 100 kB", "not HTTP"],
)
async def test_input_that_the_http_library_refuses_gets_400_and_is_not_logged(
    served, request_bytes, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("igw"), "propagate", True)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request_bytes)
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert answer.split(b"\r\n")[0].split()[1] == b"400"
    writer.close()
    assert caplog.records == []
    assert (await served.get("/healthz"))[0] == 200


async def test_a_port_in_use_is_reported_by_name():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        clock = ManualClock()
        server = AdminServer(address, clock=clock, instruments=Instruments(clock))
        with pytest.raises(
            CannotListen, match=f"{address} is in use by another program: .* choose another admin address"
        ):
            await server.start()


async def test_an_address_of_another_machine_is_reported_by_name():
    clock = ManualClock()
    server = AdminServer("192.0.2.1:9090", clock=clock, instruments=Instruments(clock))
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:9090 is not an address of this machine"):
        await server.start()


async def test_a_reader_that_accepts_openmetrics_gets_it(served):
    async with served.http.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    ) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


async def test_no_cache_stores_a_response(served):
    for path in ("/metrics", "/v1/state", "/v1/gauges", "/readyz"):
        async with served.http.get(path) as response:
            assert response.headers["Cache-Control"] == "no-store"


async def test_it_can_be_stopped_while_a_connection_is_open(served):
    async with served.http.get("/healthz") as response:
        assert json.loads(await response.text()) == {"status": "ok"}
    async with asyncio.timeout(30):
        await served.server.stop()
