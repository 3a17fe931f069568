"""Load reports through a real Envoy: requested, attributed to the endpoint that answered, read, and removed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest

from agent.emulator.config import EmulatorConfig
from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.requests import Reported
from agent.signals import RUNNING, WAITING
from tests.app.live import running
from tests.emulator.running_emulator import run_emulator
from tests.envoy.gateway import MODES, chat, run_gateway
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, answer, chunk, chunked_head
from tests.waiting import eventually

REPORT = "TEXT named_metrics.num_requests_waiting=4.0, named_metrics.kv_cache_usage_perc=0.5"
REQUESTED_BY, HEADER = "endpoint-load-metrics-format", "endpoint-load-metrics"
both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


async def reporting(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The server's address as JSON, with a load report if the request has the header for it."""
    report = f"{HEADER}: {REPORT}\r\n" if REQUESTED_BY in server.requests[-1].headers else ""
    body = orjson.dumps({"server": server.address})
    writer.write(answer(body, headers=f"Content-Type: application/json\r\n{report}"))


@both
async def test_a_report_has_the_endpoint_that_answered_and_is_removed_from_the_response(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, reports=True) as gateway:
        for server in gateway.servers:
            server.behave = reporting
            gateway.pool.choose = lambda _, __, address=server.address: address  # type: ignore[misc]
            async with gateway.client.post(gateway.url(mode), json=chat()) as response:
                assert response.status == 200
                assert HEADER not in response.headers
            assert server.requests[-1].headers[REQUESTED_BY] == "TEXT"
        assert gateway.pool.load_reports == [(server.address, REPORT, server.address) for server in gateway.servers]
        await eventually(lambda: gateway.pool.ended_as == ["closed"] * 3)


@both
async def test_a_report_that_the_client_requested_is_read_and_kept(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, reports=True) as gateway:
        server = gateway.servers[0]
        server.behave = reporting
        async with gateway.client.post(gateway.url(mode), json=chat(), headers={REQUESTED_BY: "JSON"}) as response:
            assert response.headers[HEADER] == REPORT
        assert server.requests[-1].headers.getall(REQUESTED_BY) == ["JSON"]
        assert gateway.pool.load_reports == [(server.address, REPORT, server.address)]


async def test_a_report_of_another_endpoint_than_the_picked_one_is_attributed_to_it(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, reports=True) as gateway:
        dead, alive = gateway.servers[0], gateway.servers[1]
        alive.behave = reporting
        await dead.stop()
        gateway.pool.fallbacks = (alive.address,)
        async with gateway.client.post(gateway.url(PickMode.BUFFERED), json=chat()) as response:
            assert (await response.json())["server"] == alive.address
        assert gateway.pool.load_reports == [(dead.address, REPORT, alive.address)]


@both
async def test_a_stream_is_unchanged_and_its_end_is_reported(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, reports=True) as gateway:

        async def stream(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
            writer.write(chunked_head())
            for number in range(50):
                writer.write(chunk(b"%d\n" % number))
                await writer.drain()
            writer.write(chunk())

        gateway.servers[0].behave = stream
        async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
            assert (await response.read()).split() == [b"%d" % number for number in range(50)]
        await eventually(lambda: gateway.pool.ended_as == ["closed"])
        assert gateway.pool.load_reports == []


async def test_without_load_reports_none_is_requested(tmp_path: Path) -> None:
    async with run_gateway(tmp_path) as gateway:
        async with gateway.client.post(gateway.url(PickMode.BUFFERED), json=chat()) as response:
            assert response.status == 200
        assert REQUESTED_BY not in gateway.servers[0].requests[-1].headers


async def test_between_two_pages_a_response_reports_the_queue(tmp_path: Path) -> None:
    """One request at a time, five behind the first: their responses report a queue that was on no page."""
    slow = EmulatorConfig(max_num_seqs=1, num_blocks=200, block_size=32, max_model_len=2048, step_seconds=0.02)
    async with run_emulator(slow) as server:
        address = f"127.0.0.1:{server.port}"
        path = tmp_path / "igw.yaml"
        path.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nadmin: {address: '127.0.0.1:0'}\n"
            "scrape: {interval: 30m}\nstate: {staleAfter: 1h}\n"
            f"pools:\n- extProcAddress: 127.0.0.1:0\n  orca: true\n  endpoints: ['{address}']\n",
            encoding="utf-8",
        )
        async with running(path, healthy=1) as live:
            store, now = live.pool.store, live.clock.now
            (before,) = store.snapshot(now()).endpoints
            values: list[float | None] = []
            store.on_change.append(lambda: values.append(store.snapshot(now()).endpoints[0].fresh(WAITING, now())))
            pools = (EnvoyPool("pool", (address,), live.picker, reports=True),)
            config = EnvoyConfig(pools, (EnvoyListener("in", "127.0.0.1:0", "pool", PickMode.BUFFERED),))
            envoy = await process.start(bootstrap(config), tmp_path / "envoy")
            url = f"http://127.0.0.1:{envoy.ports['in']}{CHAT}"
            fields = {"model": "tiny", "messages": chat()["messages"], "max_tokens": 4}
            try:
                async with aiohttp.ClientSession() as client:
                    answers = await asyncio.gather(*(client.post(url, json=fields) for _ in range(6)))
                    assert [response.status for response in answers] == [200] * 6
            finally:
                await envoy.stop()
            assert [event.reason for event in live.recorder.of(Reported)] == [""] * 6
            assert max(value for value in values if value is not None) >= 1
            (after,) = store.snapshot(now()).endpoints
            assert after.page_at == before.page_at
            assert after.reading(RUNNING) == before.reading(RUNNING)
            assert after.reading(WAITING).at > before.reading(WAITING).at
