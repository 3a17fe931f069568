"""The engine's health path beside the page: asked every interval, on the same connection, and never in a page's way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.engines.mapping import Extraction
from agent.scrape import scraper
from agent.scrape.loop import ScrapeLoop, Target
from agent.state.health import HEALTH_REASONS
from agent.state.store import RoutingStore
from tests.scrape.model_server import PAGE, Behaviour, ModelServer, answer, good, hang, raw
from tests.waiting import eventually

INTERVAL = 0.05
HEALTH_INTERVAL = 0.1
LOADING = answer(b'{"error":{"message":"Loading model"}}', "503 Service Unavailable")


class Told:
    """A routing state, and what it was told in order: `page`, or what the health path said."""

    def __init__(self) -> None:
        self.store = RoutingStore("pool", stale_after=3.0)
        self.order: list[str] = []
        self.pages_at: list[float] = []
        self.details: list[str] = []

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        self.order.append("page")
        self.pages_at.append(at)
        return self.store.observed(address, extraction, at, took, size)

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self.order.append(f"page: {reason}")
        self.store.failed(address, reason, detail, at, took)

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:
        self.order.append(reason or "well")
        self.details.append(detail)
        self.store.health(address, answered, reason, detail, at, took)

    def set_endpoints(self, engines: dict[str, str], now: float) -> None:
        self.store.set_endpoints(engines, now)

    def recognised(self, address: str, engine: str) -> None:
        self.store.recognised(address, engine)

    def served_models(self, address: str, names: frozenset[str], at: float) -> None:
        self.store.served_models(address, names, at)

    @property
    def verdict(self) -> tuple[str, str]:
        return self.verdict_at(SystemClock().now())

    def verdict_at(self, now: float) -> tuple[str, str]:
        (view,) = self.store.snapshot(now).endpoints
        return view.health.value, view.reason


class Rig:
    """One server, one loop, one store."""

    def __init__(self) -> None:
        self.loop = ScrapeLoop(SystemClock())
        self.store = Told()
        self.server = ModelServer()

    async def start(self, behave: Behaviour = good, **settings: Any) -> ModelServer:
        self.server.behave = behave
        await self.server.start()
        self.scrape(**settings)
        return self.server

    def scrape(self, **settings: Any) -> None:
        usual: dict[str, Any] = {"interval": INTERVAL, "health_interval": HEALTH_INTERVAL, "models_interval": 1e9}
        target = Target(self.server.address, "vllm", **{**usual, **settings})
        self.store.set_endpoints({target.address: "vllm"}, 0.0)
        self.loop.set_targets("pool", [target], self.store)

    async def is_told(self, word: str, times: int = 1) -> None:
        await eventually(lambda: self.store.order.count(word) >= times, what=f"{times} times {word}")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    await made.loop.stop()
    await made.server.stop()


def at_health(behave: Behaviour) -> Behaviour:
    """Well but for its health path."""

    async def answers(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == "/health" else good)(server, path, writer)

    return answers


def after(event: asyncio.Event) -> Behaviour:
    """Well, once this has come."""

    async def answers(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        await good(server, path, writer)

    return answers


def at_page(behave: Behaviour) -> Behaviour:
    """Well but for its page."""

    async def answers(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == "/metrics" else good)(server, path, writer)

    return answers


async def test_page_and_health_path_share_one_connection_and_are_asked_one_after_the_other(rig: Rig) -> None:
    server = await rig.start()
    await rig.is_told("well", 5)
    assert server.connections == 1
    assert server.most_at_once == 1
    assert rig.store.verdict == ("healthy", "")


async def test_health_is_asked_at_its_interval_however_often_the_page_is(rig: Rig) -> None:
    server = await rig.start()
    await rig.is_told("page", 21)
    span = rig.store.pages_at[-1] - rig.store.pages_at[0]
    assert server.asked.count("/health") <= span / HEALTH_INTERVAL + 2.5
    # Every second page is next to it; one that is late may have two more before its time.
    runs = [len(list(run)) for word, run in itertools.groupby(rig.store.order) if word == "page"]
    assert max(runs) <= 4


async def test_health_is_asked_between_pages_that_are_rare(rig: Rig) -> None:
    server = await rig.start(interval=3600)
    await rig.is_told("well", 4)
    assert server.asked.count("/metrics") == 1
    assert server.connections == 1


async def test_a_server_is_asked_for_its_health_before_its_first_page_is_believed(rig: Rig) -> None:
    await rig.start(at_health(raw(LOADING)))
    await rig.is_told("page", 2)
    assert rig.store.order[:2] == ["health_unavailable", "page"]
    assert rig.store.verdict == ("down", "loading")


async def test_an_engine_without_a_health_path_is_healthy_by_its_page(rig: Rig) -> None:
    server = await rig.start(health_path="")
    await rig.is_told("page", 3)
    assert "/health" not in server.asked
    assert rig.store.verdict == ("healthy", "")


@pytest.mark.parametrize(
    ("behave", "reason", "detail"),
    [
        (raw(LOADING), "loading", "HTTP 503"),
        (raw(answer(b"", "500 Oops")), "health_status", "HTTP 500"),
        (raw(answer(b"", "404 Not Found")), "health_not_found", "no such path"),
        (hang, "health_timeout", "no whole answer within"),
        (raw(b"SSH-2.0\r\n"), "health_broken", "not HTTP/1"),
    ],
    ids=["loading", "500", "404", "hang", "SSH"],
)
async def test_a_server_that_gives_pages_and_is_not_well_is_down_with_the_reason(
    rig: Rig, behave: Behaviour, reason: str, detail: str
) -> None:
    assert reason in HEALTH_REASONS
    await rig.start(at_health(behave), timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("down", reason))
    assert all(detail in said for said in rig.store.details)
    rig.server.behave = good
    await eventually(lambda: rig.store.verdict == ("healthy", ""))


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(hang, "health_only"), (raw(answer(b"", "500 Oops")), "status"), (raw(answer(b"")), "empty")],
)
async def test_a_server_that_is_well_and_gives_no_pages_is_down_with_the_reason(
    rig: Rig, behave: Behaviour, reason: str
) -> None:
    await rig.start(at_page(behave), timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("down", reason))
    assert "well" in rig.store.order
    rig.server.behave = good
    await eventually(lambda: rig.store.verdict == ("healthy", ""))


@pytest.mark.source
async def test_a_health_path_that_hangs_holds_up_no_page(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper, "BESIDE_SECONDS", 20.0)
    held = asyncio.Event()
    server = await rig.start(timeout=20.0)
    await rig.is_told("well")
    server.behave = at_health(after(held))
    asked = server.asked.count("/health")
    await eventually(lambda: server.asked.count("/health") > asked)
    pages, wells = (rig.store.order.count(word) for word in ("page", "well"))
    await rig.is_told("page", pages + 20)
    assert server.asked.count("/health") == asked + 1
    assert rig.store.order.count("well") == wells
    held.set()
    await rig.is_told("well", wells + 1)
    assert set(rig.store.order) == {"page", "well"}


async def test_a_health_path_that_hangs_again_and_again_costs_two_connections_a_time(rig: Rig) -> None:
    server = await rig.start(at_health(hang), health_interval=0.2)
    await rig.is_told("health_timeout", 3)
    assert not any(word.startswith("page:") for word in rig.store.order)
    # Two for each time that it hangs: its own is given up, the page has a new one.
    assert server.connections <= 2 + server.asked.count("/health")


async def test_a_page_that_hangs_holds_up_no_health(rig: Rig) -> None:
    server = await rig.start(at_page(hang), timeout=20.0)
    await rig.is_told("well", 4)
    assert server.asked.count("/metrics") == 1


async def test_a_server_that_nobody_listens_at_is_told_once_and_not_once_for_each_path(
    rig: Rig, free_port: int
) -> None:
    rig.server.port = free_port
    rig.scrape()
    await rig.is_told("page: refused", 3)
    assert set(rig.store.order) == {"page: refused"}
    assert rig.store.verdict == ("down", "refused")


async def test_any_2xx_is_well(rig: Rig) -> None:
    await rig.start(at_health(raw(b"HTTP/1.1 204 No Content\r\n\r\n")))
    await rig.is_told("well", 2)
    assert rig.store.verdict == ("healthy", "")


async def test_a_health_path_that_is_asked_no_more_has_no_word_left(rig: Rig) -> None:
    await rig.start(at_health(raw(answer(b"", "500 Oops"))))
    await eventually(lambda: rig.store.verdict == ("down", "health_status"))
    rig.scrape(health_path="")
    await eventually(lambda: rig.store.verdict == ("healthy", ""))
    asked, pages = rig.server.asked.count("/health"), rig.store.order.count("page")
    await rig.is_told("page", pages + 5)
    assert rig.server.asked.count("/health") == asked
    assert rig.store.verdict == ("healthy", "")


async def test_a_page_is_never_asked_for_twice_at_a_time(rig: Rig) -> None:
    turn = asyncio.Event()
    asked: list[int] = []

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics":
            asked.append(rig.store.order.count("page"))
            await turn.wait()
        writer.write(answer(PAGE if path == "/metrics" else b""))

    await rig.start(slow, timeout=20.0)
    await rig.is_told("well", 5)
    turn.set()
    await rig.is_told("page", 3)
    # Each was asked for when all those before it were here.
    assert asked == list(range(len(asked)))
