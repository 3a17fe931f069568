"""A running agent computes the demand of its pools; it is in /v1/scaling, in the metrics, and explained."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.__main__ import main
from agent.events.process import Reloaded
from tests.app.live import document, running, servers
from tests.fakes.schema import check
from tests.waiting import eventually, found

DEMAND = "demand: {target: 0.5, capacity: 4}"


def configured(path: Path, addresses: list[str], demand: str = DEMAND) -> Path:
    """A configuration with a demand."""
    text = document(addresses)
    assert "pools:\n- " in text
    path.write_text(text.replace("pools:\n- ", f"pools:\n- {demand}\n  ", 1), encoding="utf-8")
    return path


async def get(admin: str, path: str) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{admin}{path}") as response:
        assert response.status == 200
        return await response.text()


async def test_the_demand_of_a_pool_is_published_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        servers(2) as started,
        running(configured(tmp_path / "igw.yaml", [each.address for each in started]), healthy=2) as live,
    ):

        async def scaling() -> Any:
            made = json.loads(await get(live.admin, "/v1/scaling"))
            check(made, "Scaling")
            return made["pools"]

        (pool,) = await found(scaling, lambda pools: pools and pools[0]["inputs"]["seen_replicas"] == 2)
        assert pool["pool"] == "default"
        assert pool["replicas"] is not None
        assert pool["settings"]["target"] == 0.5
        assert "igw_demand_replicas{" in await get(live.admin, "/metrics")
        picture = tmp_path / "hour.svg"
        address = f"http://{live.admin}"
        arguments = ["explain", "scaling", "--admin", address, "--svg", str(picture)]
        assert await asyncio.to_thread(main, arguments) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("pool default: ")
        assert "capacity: 4 requests/s a replica (declared)" in printed
        assert picture.read_text(encoding="utf-8").startswith("<svg")
        assert await asyncio.to_thread(main, ["explain", "scaling", "--admin", address, "--pool", "typo"]) == 1
        assert "there is no pool 'typo'; the pools are: default" in capsys.readouterr().err


def test_an_agent_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "scaling", "--admin", "http://127.0.0.1:9"]) == 1
    assert "igw explain: http://127.0.0.1:9: no answer" in capsys.readouterr().err
    assert main(["explain", "scaling", "--admin", "127.0.0.1:9"]) == 1
    assert "write the address as http://HOST:PORT" in capsys.readouterr().err


async def test_a_reload_with_a_demand_target_of_0_is_refused_and_counted_and_the_demand_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (server,), running(configured(path, [server.address]), healthy=1) as live:
        configured(path, [server.address], "demand: {target: 0, capacity: 4}")
        await eventually(lambda: live.recorder.of(Reloaded))
        (event,) = live.recorder.of(Reloaded)
        assert not event.ok
        assert "pools[0].demand.target: 0 is out of range; write a number from 0.05 to 1" in event.detail
        assert 'igw_reloads_total{result="failed"} 1.0' in await get(live.admin, "/metrics")
        (report,) = live.agent.demand.reports()
        assert report.settings.target == 0.5
        before = report.latest

        async def computed() -> bool:
            (now,) = live.agent.demand.reports()
            return now.latest != before

        assert await found(computed)


def test_a_demand_target_of_0_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path / "igw.yaml", ["127.0.0.1:8000"], "demand: {target: 0}")
    assert main(["check", os.fspath(path)]) == 1
    message = capsys.readouterr().err
    assert "pools[0].demand.target: 0 is out of range; write a number from 0.05 to 1" in message
