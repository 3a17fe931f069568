"""Names of models in requests and in metrics, in a running agent: wrong names of clients displace no real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from agent.requests.ticket import Request
from tests.app.live import Live, document, running, servers
from tests.fakes.model_server import ModelServer, answer
from tests.waiting import eventually


def request(model: str) -> Request:
    return Request("r", "/v1/completions", orjson.dumps({"model": model, "prompt": "x"}))


def decided(live: Live, model: str) -> Any:
    """Submit a request that ends at its decision; the decision."""
    decisions: list[Any] = []
    ticket = live.pool.submit(request(model), lambda _, decision: decisions.append(decision))
    ticket.end("closed")
    return decisions[0]


async def page(live: Live) -> list[str]:
    async with aiohttp.ClientSession() as client, client.get(f"http://{live.admin}/metrics") as response:
        return (await response.text()).splitlines()


def requests_of(lines: list[str], model: str) -> list[float]:
    start = f'llm_d_epp_request_total{{fairness_id="default-flow",model_name="{model}",'
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]


async def test_a_thousand_wrong_names_share_a_series_and_a_model_that_is_requested_later_has_its_own(
    tmp_path: Path,
) -> None:
    async with servers(2) as started:
        path = tmp_path / "igw.yaml"
        path.write_text(document([server.address for server in started]))
        async with running(path, healthy=2) as live:
            await eventually(lambda: live.pool.store.snapshot(live.clock.now()) and live.pool.store.lists_models)
            before = len(await page(live))
            for number in range(1000):
                decided(live, f"no-such-{number}")
            for model in ("tiny", "lora-a"):
                decided(live, model)
            lines = await page(live)
            assert not any("no-such" in line for line in lines)
            assert [requests_of(lines, model) for model in ("other", "tiny", "lora-a")] == [[1000], [1], [1]]
            assert len(lines) - before < 3 * 130


async def without_a_list(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A server that has a page and no list of models."""
    writer.write(answer(b"", "404 Not Found") if path == "/v1/models" else answer(server.page))


async def test_a_declared_model_of_servers_that_list_none_has_its_own_label_after_a_thousand_wrong_names(
    tmp_path: Path,
) -> None:
    async with servers(1) as started:
        started[0].behave = without_a_list
        path = tmp_path / "igw.yaml"
        path.write_text(document([started[0].address], "  models: [declared]\n"))
        async with running(path, healthy=1) as live:
            for number in range(1000):
                decided(live, f"no-such-{number}")
            decided(live, "declared")
            path.write_text(document([started[0].address], "  models: [declared, added]\n"))
            assert await live.agent.reload()
            decided(live, "added")
            lines = await page(live)
            assert [requests_of(lines, model) for model in ("declared", "added")] == [[1], [1]]
            assert not any("no-such" in line for line in lines)
