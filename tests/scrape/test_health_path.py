"""Health probes: sent every interval, on the connection of the page, without delaying it (simulated time)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.scrape import scraper
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.health import HEALTH_REASONS
from tests.fakes.model_server import PAGE, Behaviour, ModelServer, answer, good, hang, raw
from tests.fakes.simulated import LoopClock, raise_broken
from tests.scrape.sinks import RecordingStore
from tests.waiting import eventually

pytestmark = pytest.mark.simulated

INTERVAL = 0.05
HEALTH_INTERVAL = 0.1
LOADING = answer(b'{"error":{"message":"Loading model"}}', "503 Service Unavailable")


class HealthPathRig:
    """One server, one loop, one store."""

    def __init__(self) -> None:
        clock = LoopClock(asyncio.get_running_loop())
        self.loop = ScrapeLoop(clock)
        self.store = RecordingStore(clock)
        self.server = ModelServer()

    async def start(self, behave: Behaviour = good, **settings: Any) -> ModelServer:
        self.server.behave = behave
        await self.server.start()
        self.scrape(**settings)
        return self.server

    def scrape(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {"interval": INTERVAL, "health_interval": HEALTH_INTERVAL, "models_interval": 1e9}
        target = Target(self.server.address, "vllm", **{**defaults, **settings})
        self.store.set_endpoints({target.address: "vllm"}, 0.0)
        self.loop.set_targets("pool", [target], self.store)


@pytest.fixture
async def rig() -> AsyncIterator[HealthPathRig]:
    made = HealthPathRig()
    yield made
    await made.loop.stop()
    await made.server.stop()
    raise_broken()


def at_health(behave: Behaviour) -> Behaviour:
    """Good except for its health path."""

    async def respond(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == "/health" else good)(server, path, writer)

    return respond


def after(event: asyncio.Event) -> Behaviour:
    """Good, after this event."""

    async def respond(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        await good(server, path, writer)

    return respond


def at_page(behave: Behaviour) -> Behaviour:
    """Good except for its page."""

    async def respond(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == "/metrics" else good)(server, path, writer)

    return respond


async def test_page_and_health_probes_share_one_connection_and_are_not_concurrent(rig: HealthPathRig) -> None:
    server = await rig.start()
    await rig.store.until_recorded("healthy", 5)
    assert server.connections == 1
    assert server.max_active == 1
    assert rig.store.verdict == ("healthy", "")


async def test_health_is_probed_at_its_interval_while_pages_are_more_frequent(rig: HealthPathRig) -> None:
    server = await rig.start()
    await rig.store.until_recorded("page", 21)
    span = rig.store.pages_at[-1] - rig.store.pages_at[0]
    assert server.paths.count("/health") <= span / HEALTH_INTERVAL + 2.5
    # Every second page has a probe; before a late one there may be two more pages.
    runs = [len(list(run)) for result, run in itertools.groupby(rig.store.order) if result == "page"]
    assert max(runs) <= 4


async def test_health_is_probed_between_rare_pages(rig: HealthPathRig) -> None:
    server = await rig.start(interval=3600)
    await rig.store.until_recorded("healthy", 4)
    assert server.paths.count("/metrics") == 1
    assert server.connections == 1


async def test_health_is_probed_before_the_first_page(rig: HealthPathRig) -> None:
    await rig.start(at_health(raw(LOADING)))
    await rig.store.until_recorded("page", 2)
    assert rig.store.order[:2] == ["health_unavailable", "page"]
    assert rig.store.verdict == ("down", "loading")


async def test_an_engine_without_a_health_path_is_healthy_by_its_page(rig: HealthPathRig) -> None:
    server = await rig.start(health_path="")
    await rig.store.until_recorded("page", 3)
    assert "/health" not in server.paths
    assert rig.store.verdict == ("healthy", "")


@pytest.mark.parametrize(
    ("behave", "reason", "detail"),
    [
        (raw(LOADING), "loading", "HTTP 503"),
        (raw(answer(b"", "500 Oops")), "health_status", "HTTP 500"),
        (raw(answer(b"", "404 Not Found")), "health_not_found", "no such path"),
        (hang, "health_timeout", "no complete response within"),
        (raw(b"SSH-2.0\r\n"), "health_broken", "not HTTP/1"),
    ],
    ids=["loading", "500", "404", "hang", "SSH"],
)
async def test_a_server_with_pages_and_a_failing_health_path_is_down_with_the_reason(
    rig: HealthPathRig, behave: Behaviour, reason: str, detail: str
) -> None:
    assert reason in HEALTH_REASONS
    await rig.start(at_health(behave), timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("down", reason))
    assert all(detail in found for found in rig.store.details)
    rig.server.behave = good
    await eventually(lambda: rig.store.verdict == ("healthy", ""))


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(hang, "health_only"), (raw(answer(b"", "500 Oops")), "status"), (raw(answer(b"")), "empty")],
)
async def test_a_server_with_a_good_health_path_and_no_pages_is_down_with_the_reason(
    rig: HealthPathRig, behave: Behaviour, reason: str
) -> None:
    await rig.start(at_page(behave), timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("down", reason))
    assert "healthy" in rig.store.order
    rig.server.behave = good
    await eventually(lambda: rig.store.verdict == ("healthy", ""))


@pytest.mark.source
async def test_a_health_path_that_hangs_delays_no_page(rig: HealthPathRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper, "PROBE_SECONDS", 20.0)
    held = asyncio.Event()
    server = await rig.start(timeout=20.0)
    await rig.store.until_recorded("healthy")
    server.behave = at_health(after(held))
    requested = server.paths.count("/health")
    await eventually(lambda: server.paths.count("/health") > requested)
    pages, probes = (rig.store.order.count(result) for result in ("page", "healthy"))
    await rig.store.until_recorded("page", pages + 20)
    assert server.paths.count("/health") == requested + 1
    assert rig.store.order.count("healthy") == probes
    held.set()
    await rig.store.until_recorded("healthy", probes + 1)
    assert set(rig.store.order) == {"page", "healthy"}


async def test_each_health_probe_that_hangs_costs_two_connections_at_most(rig: HealthPathRig) -> None:
    server = await rig.start(at_health(hang), health_interval=0.2)
    await rig.store.until_recorded("health_timeout", 3)
    assert not any(result.startswith("page:") for result in rig.store.order)
    # Two for each probe that hangs: its own is closed, the page has a new one.
    assert server.connections <= 2 + server.paths.count("/health")


async def test_a_page_that_hangs_delays_no_health_probe(rig: HealthPathRig) -> None:
    server = await rig.start(at_page(hang), timeout=20.0)
    await rig.store.until_recorded("healthy", 4)
    assert server.paths.count("/metrics") == 1


async def test_a_refused_connection_is_reported_once_and_not_once_per_path(rig: HealthPathRig, free_port: int) -> None:
    rig.server.port = free_port
    rig.scrape()
    await rig.store.until_recorded("page: refused", 3)
    assert set(rig.store.order) == {"page: refused"}
    assert rig.store.verdict == ("down", "refused")


async def test_any_2xx_is_healthy(rig: HealthPathRig) -> None:
    await rig.start(at_health(raw(b"HTTP/1.1 204 No Content\r\n\r\n")))
    await rig.store.until_recorded("healthy", 2)
    assert rig.store.verdict == ("healthy", "")


async def test_a_health_path_that_is_not_probed_any_more_has_no_effect(rig: HealthPathRig) -> None:
    await rig.start(at_health(raw(answer(b"", "500 Oops"))))
    await eventually(lambda: rig.store.verdict == ("down", "health_status"))
    rig.scrape(health_path="")
    await eventually(lambda: rig.store.verdict == ("healthy", ""))
    requested, pages = rig.server.paths.count("/health"), rig.store.order.count("page")
    await rig.store.until_recorded("page", pages + 5)
    assert rig.server.paths.count("/health") == requested
    assert rig.store.verdict == ("healthy", "")


async def test_there_is_one_request_for_a_page_at_a_time(rig: HealthPathRig) -> None:
    release = asyncio.Event()
    pages_before: list[int] = []

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics":
            pages_before.append(rig.store.order.count("page"))
            await release.wait()
        writer.write(answer(PAGE if path == "/metrics" else b""))

    await rig.start(slow, timeout=20.0)
    await rig.store.until_recorded("healthy", 5)
    release.set()
    await rig.store.until_recorded("page", 3)
    # Each was requested when all those before it were complete.
    assert pages_before == list(range(len(pages_before)))
