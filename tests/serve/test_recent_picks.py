"""`/v1/picks`: the last picks with their reasons, selected by request and pool."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from agent.flow.outcomes import STOLEN
from agent.instruments.hook import Instruments
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.profiles import LEAST_COST
from agent.requests.held_requests import ROOM
from agent.serve.admin.recent_picks import PICKS_KEPT, RecentPicks
from agent.serve.admin.server import AdminServer
from agent.signals import MODELS
from agent.state.health import Health
from tests.fakes.clock import ManualClock
from tests.fakes.schema import check
from tests.fakes.state_source import FakeStateSource
from tests.fakes.views import IDLE, FixedIndex, snapshot, view

EXPLAINED = Path(__file__).parents[2] / "docs" / "concepts" / "picking.md"


class PicksPage:
    """An admin server of two pools, and a client of its `/v1/picks`."""

    def __init__(self, clock: ManualClock, server: AdminServer, http: aiohttp.ClientSession) -> None:
        self.clock = clock
        self.picks = server.picks
        self._http = http

    async def get(self, query: str = "", status: int = 200) -> Any:
        async with self._http.get(f"/v1/picks{query}") as response:
            content = await response.json()
            assert response.status == status, content
            check(content, "Picks" if status == 200 else "Error")
            return content

    async def ids(self, query: str = "") -> list[str]:
        return [each["request_id"] for each in (await self.get(query))["picks"]]


@pytest.fixture
async def page() -> AsyncIterator[PicksPage]:
    clock = ManualClock()
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    server.set_pools([FakeStateSource("llama"), FakeStateSource("qwen")])
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield PicksPage(clock, server, http)
    await server.stop()


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


async def test_the_last_picks_are_shown_the_newest_first(page):
    page.picks.add("llama", a_pick("first"), 0.0)
    page.picks.add("llama", a_pick("second"), 0.0)
    assert await page.ids() == ["second", "first"]


async def test_a_pick_has_its_age_and_the_scores_of_every_candidate(page):
    page.picks.add("llama", a_pick("r"), page.clock.now())
    page.clock.advance(2.0)
    (shown,) = (await page.get())["picks"]
    assert (shown["age_seconds"], shown["time"]) == (2.0, "2026-09-21T14:13:20.000000Z")
    assert shown["left_warmest"]
    assert [(each["address"], each["total"], each["scores"]) for each in shown["candidates"]] == [
        ("b:1", 0.75, {"least-cost-scorer": 0.75}),
        ("a:1", 0.5, {"least-cost-scorer": 0.5}),
    ]


async def test_a_pick_shows_how_long_the_request_waited_and_why_it_went_when_it_did(page):
    page.picks.add("llama", a_pick("at once"), 0.0)
    page.picks.add("llama", a_pick("held")._replace(waited_seconds=2.5, dispatched=STOLEN, decided_by=ROOM), 0.0)
    held, at_once = (await page.get())["picks"]
    assert (held["waited_seconds"], held["dispatched"], held["decided_by"]) == (2.5, "stolen", "room")
    assert (at_once["waited_seconds"], at_once["dispatched"]) == (0.0, "")


async def test_limit_is_the_number_of_picks(page):
    for number in range(50):
        page.picks.add("llama", a_pick(str(number)), 0.0)
    assert len(await page.ids()) == 20
    assert await page.ids("?limit=3") == ["49", "48", "47"]


async def test_one_request_or_one_pool_can_be_selected(page):
    for number in range(100):
        page.picks.add("llama" if number % 2 else "qwen", a_pick(str(number)), 0.0)
    assert await page.ids("?request_id=3") == ["3"]
    assert await page.ids("?request_id=none") == []
    assert await page.ids("?pool=qwen&limit=2") == ["98", "96"]
    assert await page.ids("?pool=qwen&request_id=3") == []


@pytest.mark.parametrize("limit", ["0", "257", "-1", "many", "", "9" * 5000])
async def test_an_invalid_limit_is_refused_with_what_to_write(page, limit):
    refused = await page.get(f"?limit={limit}", 400)
    assert refused["error"]["message"].endswith("write a number from 1 to 256")


async def test_a_parameter_or_a_pool_that_does_not_exist_is_refused_by_name(page):
    refused = await page.get("?request=3", 400)
    assert (refused["error"]["code"], refused["error"]["param"]) == ("unknown_parameter", "request")
    refused = await page.get("?pool=lama", 404)
    assert refused["error"]["message"] == "there is no pool 'lama'; the pools are: llama, qwen"


def test_the_number_of_kept_picks_is_bounded():
    picks = RecentPicks(ManualClock(), list)
    for number in range(PICKS_KEPT + 10):
        picks.add("pool", a_pick(str(number)), 0.0)
    assert len(picks._picks) == PICKS_KEPT


def the_example() -> Pick:
    """The pick that docs/concepts/picking.md explains."""
    llama = {**IDLE, MODELS: frozenset({"llama-3.1-8b"})}
    fleet = snapshot(
        view("10.0.0.1:8000", llama, backlog_seconds=0.5, rate=10_000.0, requests=3),
        view("10.0.0.2:8000", llama, backlog_seconds=0.25, rate=10_000.0, requests=1),
        view("10.0.0.3:8000", llama, rate=10_000.0, foreign=6.0),
        view("10.0.0.4:8000", llama, health=Health.DOWN),
        view("10.0.0.5:8000", {**IDLE, MODELS: frozenset({"another-model"})}),
        pool="llama",
    )
    request = PickRequest("b3d1c9f0", "llama-3.1-8b", 6400, chain=range(100))
    found = pick(fleet, request, build(LEAST_COST), FixedIndex({"10.0.0.1:8000": 80}), 0.0)
    assert isinstance(found, Pick)
    return found


def rounded(content: Any) -> Any:
    """The content with at most three decimals."""
    if isinstance(content, dict):
        return {name: rounded(each) for name, each in content.items()}
    if isinstance(content, list):
        return [rounded(each) for each in content]
    return round(content, 3) if isinstance(content, float) else content


async def test_the_example_in_the_docs_is_what_the_agent_returns(page):
    page.picks.add("llama", the_example(), page.clock.now())
    page.clock.advance(1.25)
    shown = rounded(await page.get("?request_id=b3d1c9f0"))
    section = EXPLAINED.read_text(encoding="utf-8").split("\n## Why this endpoint?\n")[1]
    (example,) = re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert orjson.loads(example) == shown, orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()


def test_picks_of_many_candidates_are_kept_within_a_number_of_candidates_and_the_newest_always() -> None:
    kept = RecentPicks(ManualClock(), list, max_picks=10, max_candidates=7)
    for number in range(5):
        kept.add("llama", a_pick(str(number)), 0.0)
    assert [each.pick.request_id for each in kept._picks] == ["2", "3", "4"]  # two candidates each
    kept.add("llama", a_pick("large")._replace(addresses=[f"s{number}:1" for number in range(20)]), 0.0)
    assert [each.pick.request_id for each in kept._picks] == ["large"]
    kept.add("llama", a_pick("next"), 0.0)
    assert [each.pick.request_id for each in kept._picks] == ["next"]
