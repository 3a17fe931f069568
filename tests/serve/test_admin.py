"""The admin address: GET and HEAD only, every error JSON, ready when the fleet was looked at once."""

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
from agent.pick.decision import Pick
from agent.serve.admin.server import PICKS_KEPT, AdminServer, CannotListen, RecentPicks
from agent.serve.state.watch import WatchLimits
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from tests.fakes.clock import ManualClock
from tests.fakes.schema import check
from tests.fakes.state_source import FakeSource
from tests.fakes.views import view
from tests.waiting import eventually

PATHS = [
    "/",
    "/healthz",
    "/metrics",
    "/readyz",
    "/runbooks/",
    "/v1/accelerators",
    "/v1/gauges",
    "/v1/openapi.json",
    "/v1/picks",
    "/v1/state",
    "/v1/state/watch",
]


def untried(address: str) -> EndpointView:
    return view(address, {}, health=Health.UNKNOWN)._replace(page_at=None)


class Served:
    """A running admin server and a client of it."""

    def __init__(self, server: AdminServer, port: int, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.port = port
        self.http = http

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(path) as response:
            return response.status, await response.json()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    clock = ManualClock()
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield Served(server, port, http)
    await server.stop()


async def test_it_lists_what_there_is(served):
    assert await served.get("/") == (200, {"paths": PATHS})


async def test_every_runbook_that_is_listed_is_there_and_no_other_file(served):
    _, listed = await served.get("/runbooks/")
    assert "InferencePoolBlind.md" in listed["runbooks"]
    for name in listed["runbooks"]:
        async with served.http.get(f"/runbooks/{name}") as response:
            assert (response.status, (await response.text())[:2]) == (200, "# ")
    for path in ("/runbooks/None.md", "/runbooks/..%2figw.rules.yaml", "/runbooks/%00"):
        status, refused = await served.get(path)
        assert (status, refused["error"]["code"]) == (404, "no_such_runbook")


async def test_it_is_alive_before_anything_is_known(served):
    assert await served.get("/healthz") == (200, {"status": "ok"})


async def test_it_is_ready_once_every_endpoint_was_asked_whatever_came_of_it(served):
    source = FakeSource("pool", untried("a:1"), untried("b:1"))
    served.server.set_pools([source])
    reasons = ["pool pool: 2 of 2 endpoints were not asked yet"]
    assert await served.get("/readyz") == (503, {"ready": False, "reasons": reasons})
    check((await served.get("/readyz"))[1], "Readiness")
    source.put(view("a:1"), untried("b:1")._replace(failures=1, health=Health.DOWN))
    assert await served.get("/readyz") == (200, {"ready": True, "reasons": []})


async def test_a_pool_that_was_ready_stays_ready_when_endpoints_come_or_die(served):
    source = FakeSource("pool", view("a:1"))
    served.server.set_pools([source])
    assert (await served.get("/readyz"))[0] == 200
    source.put(view("a:1", health=Health.DOWN), untried("new:1"))
    assert (await served.get("/readyz"))[0] == 200


@pytest.fixture
async def crowd() -> AsyncIterator[tuple[Served, list[Event]]]:
    """An agent with a state of many megabytes, and as many readers that take nothing as are answered at a time."""
    clock = ManualClock()
    events: list[Event] = []
    limits = WatchLimits(drain_seconds=3.0)
    server = AdminServer(
        "127.0.0.1:0", clock=clock, instruments=Instruments(clock), hook=events.append, limits=limits, answers=2
    )
    server.set_pools([FakeSource("pool", *(view(f"10.0.{n >> 8}.{n & 255}:8000") for n in range(5000)))])
    port = await server.start()
    silent = [socket.socket() for _ in range(2)]
    for one in silent:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(one, b"GET /v1/state HTTP/1.1\r\nHost: agent\r\n\r\n")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield Served(server, port, http), events
    for one in silent:
        one.close()
    await server.stop()


async def test_a_reader_that_does_not_take_its_document_is_let_go_and_meanwhile_others_are_told_to_come_back(crowd):
    served, events = crowd
    await eventually(lambda: served.server.answering == 2)
    async with served.http.get("/v1/state") as refused:
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "too_many_requests")
        assert refused.headers["Retry-After"] == "1"
    assert await served.get("/healthz") == (200, {"status": "ok"})
    await eventually(lambda: served.server.answering == 0)
    assert sorted(event.reason for event in events) == ["slow", "slow", "too_many"]
    assert (await served.get("/v1/state"))[0] == 200


async def test_a_reader_that_leaves_before_its_answer_is_no_error(served, caplog):
    served.server.set_pools([FakeSource("pool", *(view(f"10.0.{n >> 8}.{n & 255}:8000") for n in range(2000)))])
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /v1/state HTTP/1.1\r\nHost: agent\r\n\r\n")
    await eventually(lambda: served.server.answering == 1)
    writer.transport.abort()
    await eventually(lambda: served.server.answering == 0)
    assert await served.get("/healthz") == (200, {"status": "ok"})
    assert caplog.records == []


async def test_a_pool_that_comes_later_has_to_be_looked_at_too(served):
    old = FakeSource("old", view("a:1"))
    served.server.set_pools([old])
    await served.get("/readyz")
    served.server.set_pools([old, FakeSource("new", untried("b:1"))])
    assert await served.get("/readyz") == (
        503,
        {"ready": False, "reasons": ["pool new: 1 of 1 endpoints were not asked yet"]},
    )


async def test_others_may_have_reasons_not_to_be_ready_too():
    clock = ManualClock()
    reasons = ["the picker of pool x does not listen yet"]
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock), not_ready=lambda: reasons)
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, http.get("/readyz") as response:
        assert (response.status, await response.json()) == (503, {"ready": False, "reasons": reasons})
    await server.stop()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", PATHS)
async def test_only_get_and_head_are_offered(served, method, path):
    async with served.http.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        assert response.content_type == "application/json"


@pytest.mark.parametrize("path", [*PATHS, "/v1/state?pool=none", "/v1/picks?limit=x", "/nope"])
async def test_head_answers_as_get_does_without_a_body(served, path):
    served.server.set_pools([FakeSource("pool", untried("a:1"))])
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


async def test_a_handler_that_fails_answers_json_and_says_so_in_the_log(served, caplog, monkeypatch):
    source = FakeSource("pool")
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
        b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n",
    ],
    ids=["a path of 100 kB", "a header of 100 kB", "no HTTP"],
)
async def test_a_request_beyond_all_measure_is_refused_without_a_word_and_the_rest_goes_on(
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
        with pytest.raises(CannotListen, match=f"{address} is in use by another program: .* choose another"):
            await server.start()


async def test_an_address_that_is_not_ours_is_reported_by_name():
    clock = ManualClock()
    server = AdminServer("192.0.2.1:9090", clock=clock, instruments=Instruments(clock))
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:9090 is no address of this machine"):
        await server.start()


def a_pick(request_id: str) -> Pick:
    return Pick(
        request_id,
        "b:1",
        (),
        100,
        64,
        96,
        "least-cost-scorer",
        ["a:1", "b:1"],
        [0.5, 0.75],
        {"least-cost-scorer": [0.5, 0.75]},
        7,
    )


async def test_the_last_picks_are_explained_newest_first(served):
    served.server.picks.add("pool", a_pick("first"), 0.0)
    served.server.picks.add("pool", a_pick("second"), 0.0)
    _, content = await served.get("/v1/picks")
    assert [each["request_id"] for each in content["picks"]] == ["second", "first"]
    check(content, "Picks")
    assert content["picks"][0] == {
        "pool": "pool",
        "request_id": "second",
        "time": content["as_of"],
        "age_seconds": 0.0,
        "endpoint": "b:1",
        "decided_by": "least-cost-scorer",
        "left_warmest": True,
        "prompt_tokens": 100,
        "hit_tokens": 64,
        "best_hit_tokens": 96,
        "state_version": 7,
        "candidates": [
            {"address": "b:1", "total": 0.75, "scores": {"least-cost-scorer": 0.75}},
            {"address": "a:1", "total": 0.5, "scores": {"least-cost-scorer": 0.5}},
        ],
    }


async def test_so_many_picks_are_shown_as_are_asked_for(served):
    for number in range(50):
        served.server.picks.add("pool", a_pick(str(number)), 0.0)
    assert len((await served.get("/v1/picks"))[1]["picks"]) == 20
    shown = (await served.get("/v1/picks?limit=3"))[1]["picks"]
    assert [each["request_id"] for each in shown] == ["49", "48", "47"]


@pytest.mark.parametrize("limit", ["0", "257", "-1", "many", "", "9" * 5000])
async def test_a_limit_that_is_none_is_refused_with_what_to_write(served, limit):
    status, content = await served.get(f"/v1/picks?limit={limit}")
    assert status == 400
    assert content["error"]["message"].endswith("write a number from 1 to 256")


def test_picks_are_kept_within_a_bound():
    picks = RecentPicks(ManualClock())
    for number in range(PICKS_KEPT + 10):
        picks.add("pool", a_pick(str(number)), 0.0)
    assert len(picks._picks) == PICKS_KEPT


async def test_a_reader_that_asks_for_openmetrics_gets_it(served):
    async with served.http.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    ) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


async def test_answers_are_not_to_be_kept(served):
    for path in ("/metrics", "/v1/state", "/v1/gauges", "/readyz"):
        async with served.http.get(path) as response:
            assert response.headers["Cache-Control"] == "no-store"


async def test_it_can_be_stopped_while_a_connection_is_open(served):
    async with served.http.get("/healthz") as response:
        assert json.loads(await response.text()) == {"status": "ok"}
    async with asyncio.timeout(30):
        await served.server.stop()
