"""Health probes: sent every interval, on the connection of the page, without delaying it (simulated time)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.engine_specs import AUTO
from agent.scrape import scraper
from agent.scrape.loop import ScrapeLoop
from agent.scrape.server_access import HttpClientConfig, ServerAccess
from agent.scrape.target import Target
from agent.signals import MODELS, RUNNING
from agent.state.health import DOWN_AFTER, HEALTH_REASONS
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
        engine = settings.pop("engine", "vllm")
        target = Target(self.server.address, engine, **{**defaults, **settings})
        self.store.set_endpoints({target.address: engine}, 0.0)
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


BAD_PAGES = [
    (hang, "timeout"),
    (raw(answer(b"", "500 Oops")), "status"),
    (raw(answer(b"", "404 Not Found")), "status"),
    (raw(answer(b"", "401 Unauthorized")), "status"),
    (raw(answer(b"<html>\n")), "not_metrics"),
    (raw(answer(PAGE.replace(b"vllm:", b"renamed_"))), "wrong_engine"),
    (raw(answer(PAGE, length=1 << 30)), "too_large"),
    (raw(close=True), "reset"),
]


@pytest.mark.parametrize(("behave", "reason"), BAD_PAGES)
async def test_a_server_with_a_good_health_path_and_no_pages_is_blind_with_the_reason(
    rig: HealthPathRig, behave: Behaviour, reason: str
) -> None:
    await rig.start(at_page(behave), timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("blind", reason))
    assert "healthy" in rig.store.order
    rig.server.behave = good
    await eventually(lambda: rig.store.verdict == ("healthy", ""))


@pytest.mark.parametrize(("behave", "reason"), BAD_PAGES)
async def test_a_page_that_is_lost_leaves_the_readings_until_the_third_failure_and_the_server_is_never_down(
    rig: HealthPathRig, behave: Behaviour, reason: str
) -> None:
    await rig.start(timeout=0.1)
    await rig.store.until_recorded("page", 5)
    seen: list[tuple[str, str]] = []

    def blind() -> bool:
        seen.append((str(rig.store.order.count(f"page: {reason}")), *rig.store.verdict[:1]))
        return rig.store.verdict == ("blind", reason)

    rig.server.behave = at_page(behave)
    await eventually(blind)
    assert {health for failed, health in seen if int(failed) < DOWN_AFTER} == {"healthy"}
    assert {health for _, health in seen} == {"healthy", "blind"}


@pytest.mark.parametrize("page", [b"", b"\n", b"# HELP vllm:x x\n# TYPE vllm:x gauge\n"])
async def test_a_server_that_has_counted_nothing_yet_is_healthy_without_any_reading(
    rig: HealthPathRig, page: bytes
) -> None:
    await rig.start(at_page(raw(answer(page))))
    await rig.store.until_recorded("page", 5)
    assert rig.store.verdict == ("healthy", "")
    assert not any(result.startswith("page:") for result in rig.store.order)
    assert set(rig.store.view.readings) <= {MODELS}
    rig.server.behave = good
    await eventually(lambda: RUNNING in rig.store.view.readings)


async def test_a_server_that_has_counted_nothing_yet_is_down_where_its_health_path_fails(rig: HealthPathRig) -> None:
    async def empty(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"") if path == "/metrics" else LOADING)

    await rig.start(empty)
    await rig.store.until_recorded("page", 3)
    assert rig.store.verdict == ("down", "loading")


async def test_a_blind_server_whose_health_path_fails_is_down_and_blind_again_when_it_answers(
    rig: HealthPathRig,
) -> None:
    async def broken(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", "404 Not Found" if path == "/metrics" else "500 Oops"))

    await rig.start(at_page(raw(answer(b"", "404 Not Found"))))
    await eventually(lambda: rig.store.verdict == ("blind", "status"))
    rig.server.behave = broken
    await eventually(lambda: rig.store.verdict == ("down", "health_status"))
    rig.server.behave = at_page(raw(answer(b"", "404 Not Found")))
    await eventually(lambda: rig.store.verdict == ("blind", "status"))
    await rig.server.stop()
    await eventually(lambda: rig.store.verdict[0] == "down")
    assert rig.store.verdict == ("down", "refused")


async def test_the_models_of_a_blind_server_are_requested(rig: HealthPathRig) -> None:
    await rig.start(at_page(raw(answer(b"", "404 Not Found"))), models_interval=0.1)
    await eventually(lambda: rig.server.paths.count("/v1/models") >= 3)
    assert rig.store.verdict == ("blind", "status")
    assert rig.store.view.names(MODELS)


# -- no health path is known -------------------------------------------------------------------------------------------


def at_paths(**behaviours: Behaviour) -> Behaviour:
    """These behaviours at `/metrics`, `/health` and `/v1/models`, 404 at any other path."""
    by_path = {"/metrics": "page", "/health": "health", "/v1/models": "models"}

    async def respond(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        behave = behaviours.get(by_path.get(path, ""), raw(answer(b"", "404 Not Found")))
        await behave(server, path, writer)

    return respond


OK = raw(answer(b""))
UNKNOWN_PAGE = raw(answer(b"my_own_queue 1\n"))


@pytest.mark.parametrize(
    ("page", "health", "verdict"),
    [
        (UNKNOWN_PAGE, OK, ("blind", "wrong_engine")),
        (hang, OK, ("blind", "timeout")),
        (UNKNOWN_PAGE, raw(LOADING), ("down", "loading")),
        (UNKNOWN_PAGE, raw(answer(b"", "500 Oops")), ("down", "health_status")),
        (UNKNOWN_PAGE, raw(answer(b"", "404 Not Found")), ("blind", "wrong_engine")),
        (UNKNOWN_PAGE, raw(answer(b"", "401 Unauthorized")), ("blind", "wrong_engine")),
        (UNKNOWN_PAGE, hang, ("blind", "wrong_engine")),
        (hang, hang, ("down", "timeout")),
        (hang, raw(answer(b"", "404 Not Found")), ("down", "timeout")),
        (raw(close=True), raw(close=True), ("down", "reset")),
        (OK, OK, ("healthy", "")),
        (OK, raw(LOADING), ("down", "loading")),
    ],
)
async def test_the_assumed_health_path_or_an_answer_in_place_of_a_page_shows_that_an_unknown_server_lives(
    rig: HealthPathRig, page: Behaviour, health: Behaviour, verdict: tuple[str, str]
) -> None:
    await rig.start(at_paths(page=page, health=health), engine=AUTO, timeout=0.1)
    await eventually(lambda: rig.store.verdict == verdict)
    failed = sum(result.startswith("page") for result in rig.store.order)
    await eventually(lambda: sum(result.startswith("page") for result in rig.store.order) >= failed + 5)
    assert rig.store.verdict == verdict


async def test_the_models_of_a_blind_server_of_an_unknown_engine_are_requested(rig: HealthPathRig) -> None:
    await rig.start(at_paths(page=UNKNOWN_PAGE, models=good), engine=AUTO, models_interval=0.1)
    await eventually(lambda: rig.server.paths.count("/v1/models") >= 3)
    assert rig.store.view.names(MODELS)


async def test_the_assumed_health_path_is_not_probed_any_more_once_there_is_a_page(rig: HealthPathRig) -> None:
    await rig.start(at_paths(page=hang, health=OK), engine="jetstream", timeout=0.1)
    await eventually(lambda: rig.store.verdict == ("blind", "timeout"))
    rig.server.behave = at_paths(page=raw(answer(b"jetstream_prefill_backlog_size 1\n")), health=raw(LOADING))
    await eventually(lambda: rig.store.verdict == ("healthy", ""))
    probes, pages = rig.server.paths.count("/health"), rig.store.order.count("page")
    await rig.store.until_recorded("page", pages + 10)
    assert rig.server.paths.count("/health") == probes
    assert rig.store.verdict == ("healthy", "")


async def test_no_health_path_is_assumed_where_the_configuration_switches_probes_off(rig: HealthPathRig) -> None:
    await rig.start(at_paths(page=UNKNOWN_PAGE, health=OK), engine=AUTO, health_path="")
    await rig.store.until_recorded("page: wrong_engine", 5)
    assert set(rig.server.paths) <= {"/metrics", "/v1/models"}
    assert rig.store.verdict == ("blind", "wrong_engine")


@pytest.mark.parametrize("health", [OK, raw(answer(b"", "401 Unauthorized")), raw(answer(b"", "403 Forbidden"))])
async def test_a_server_that_needs_a_token_which_the_agent_lacks_is_blind_if_it_answers(
    rig: HealthPathRig, tmp_path: Path, health: Behaviour
) -> None:
    access = ServerAccess(HttpClientConfig(token_file=str(tmp_path / "token")))
    await rig.start(at_paths(health=health), access=access)
    await eventually(lambda: rig.store.verdict == ("blind", "token_file"))
    assert set(rig.server.paths) == {"/health"}
    rig.server.behave = at_paths(health=raw(answer(b"", "500 Oops")))
    await eventually(lambda: rig.store.verdict == ("down", "health_status"))


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
