"""A server that answers every completion with 500, beside a good page and a good health path, through a real Envoy."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.envoy.render import PickMode
from tests.journeys.bad_input.fleet import MODES, GatewayFleet, a_fleet, chat
from tests.waiting import found

POOL = "pool"
SHARED = "the same system prompt for everybody " * 200


async def send(fleet: GatewayFleet, mode: PickMode, number: int) -> int:
    status, _ = await fleet.send(POOL, mode, json=chat(f"{SHARED} {number}"))
    return status


async def busiest(fleet: GatewayFleet) -> str:
    picks = (await fleet.read("/v1/picks?limit=20"))["picks"]
    ((address, _),) = Counter(pick["endpoint"] for pick in picks).most_common(1)
    return str(address)


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
async def test_a_server_that_fails_is_ejected_tried_with_single_requests_and_admitted(
    tmp_path: Path, mode: PickMode
) -> None:
    async with a_fleet(tmp_path, 3, lambda healthy: {POOL: healthy}) as fleet:
        await found(fleet.counts, lambda seen: seen.of("igw_pool_endpoints_by_health", state="healthy") == 3)
        assert [await send(fleet, mode, number) for number in range(10)] == [200] * 10
        broken = await busiest(fleet)
        async with fleet.client.post(f"http://{broken}/emulator/faults", json={"completions": "error"}) as answer:
            assert answer.status == 200
        sent: list[int] = []

        async def state() -> Any:
            first = len(sent)
            sent.extend(await asyncio.gather(*(send(fleet, mode, number) for number in range(first, first + 4))))
            return await fleet.endpoint(POOL, broken)

        failing = await found(state, lambda endpoint: endpoint["health"] == "failing")
        assert failing["reason"] == "consecutive_failures"
        errors = failing["errors"]
        assert errors["consecutive_failures"] >= 3
        assert (errors["last_failure"], errors["ejected"]) == ("server_error", True)
        assert 0 < errors["trial_in_seconds"] <= 2
        counts = await found(
            fleet.counts,
            lambda seen: seen.of("igw_responses_total", server=broken, result="server_error") == sent.count(500),
        )
        assert counts.of("igw_endpoint_ejections_total", server=broken) == 1
        assert (await fleet.gauges(POOL, broken))["igw_endpoint_waiting_requests"]["withheld"] == "failing"
        async with fleet.client.delete(f"http://{broken}/emulator/faults") as answer:
            assert answer.status == 200
        sent.clear()
        await found(state, lambda endpoint: endpoint["health"] == "healthy")
        assert set(sent) == {200}
