"""Load reports through a real Envoy: asked for, attributed to who answered, taken as readings, kept from the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.emulator.settings import Settings as Emulated
from agent.envoy import process
from agent.envoy.render import Listener, Pool, Settings, Way, bootstrap
from agent.events.requests import Reported
from agent.signals import RUNNING, WAITING
from tests.app.live import running
from tests.emulator.rig import serving
from tests.envoy.rig import CHAT, WAYS, a_rig, chat
from tests.waiting import eventually

REPORT = "TEXT named_metrics.num_requests_waiting=4.0, named_metrics.kv_cache_usage_perc=0.5"
REQUEST_HEADER, HEADER = "endpoint-load-metrics-format", "endpoint-load-metrics"
both = pytest.mark.parametrize("way", WAYS, ids=[way.value for way in WAYS])


def reporting(server: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def respond(request: web.Request) -> web.StreamResponse:
        headers = {HEADER: REPORT} if REQUEST_HEADER in request.headers else {}
        return web.json_response({"server": server}, headers=headers)

    return respond


@both
async def test_a_report_comes_with_who_answered_and_the_client_does_not_see_it(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, reports=True) as rig:
        for server in rig.servers:
            server.respond = reporting(server.address)
            rig.pool.choose = lambda _, __, address=server.address: address  # type: ignore[misc]
            async with rig.client.post(rig.url(way), json=chat()) as answer:
                assert answer.status == 200
                assert HEADER not in answer.headers
            assert server.seen[-1][0].headers[REQUEST_HEADER] == "TEXT"
        assert rig.pool.heard == [(server.address, REPORT, server.address) for server in rig.servers]
        await eventually(lambda: rig.pool.ended_as == ["closed"] * 3)


@both
async def test_a_client_s_own_question_is_answered_to_it_and_heard_by_us(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, reports=True) as rig:
        server = rig.servers[0]
        server.respond = reporting(server.address)
        async with rig.client.post(rig.url(way), json=chat(), headers={REQUEST_HEADER: "JSON"}) as answer:
            assert answer.headers[HEADER] == REPORT
        assert server.seen[-1][0].headers.getall(REQUEST_HEADER) == ["JSON"]
        assert rig.pool.heard == [(server.address, REPORT, server.address)]


async def test_an_answer_from_another_endpoint_than_the_picked_one_is_told_as_such(tmp_path: Path) -> None:
    async with a_rig(tmp_path, reports=True) as rig:
        dead, alive = rig.servers[0], rig.servers[1]
        alive.respond = reporting(alive.address)
        await dead.stop()
        rig.pool.fallbacks = (alive.address,)
        async with rig.client.post(rig.url(Way.BUFFERED), json=chat()) as answer:
            assert (await answer.json())["server"] == alive.address
        assert rig.pool.heard == [(dead.address, REPORT, alive.address)]
        await dead.start()


@both
async def test_a_stream_is_untouched_and_its_end_is_still_told(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, reports=True) as rig:

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for number in range(50):
                await response.write(b"%d\n" % number)
            return response

        rig.servers[0].respond = stream
        async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
            assert (await answer.read()).split() == [b"%d" % number for number in range(50)]
        await eventually(lambda: rig.pool.ended_as == ["closed"])
        assert rig.pool.heard == []


async def test_where_reports_are_off_nobody_is_asked_for_one(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        async with rig.client.post(rig.url(Way.BUFFERED), json=chat()) as answer:
            assert answer.status == 200
        assert REQUEST_HEADER not in rig.servers[0].seen[-1][0].headers


async def test_between_two_pages_an_answer_tells_of_the_queue_behind_it(tmp_path: Path) -> None:
    """One request at a time, five behind the first: their answers tell of a queue that was on no page."""
    slow = Emulated(max_num_seqs=1, num_blocks=200, block_size=32, max_model_len=2048, step_seconds=0.02)
    async with serving(slow) as server:
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
            seen: list[float | None] = []
            store.on_change.append(lambda: seen.append(store.snapshot(now()).endpoints[0].fresh(WAITING, now())))
            pools = (Pool("pool", (address,), live.picker, reports=True),)
            settings = Settings(pools, (Listener("in", "127.0.0.1:0", "pool", Way.BUFFERED),))
            envoy = await process.start(bootstrap(settings), tmp_path / "envoy")
            url = f"http://127.0.0.1:{envoy.ports['in']}{CHAT}"
            fields = {"model": "tiny", "messages": chat()["messages"], "max_tokens": 4}
            try:
                async with aiohttp.ClientSession() as client:
                    answers = await asyncio.gather(*(client.post(url, json=fields) for _ in range(6)))
                    assert [answer.status for answer in answers] == [200] * 6
            finally:
                await envoy.stop()
            assert [event.reason for event in live.recorder.of(Reported)] == [""] * 6
            assert max(value for value in seen if value is not None) >= 1
            (after,) = store.snapshot(now()).endpoints
            assert after.page_at == before.page_at
            assert after.reading(RUNNING) == before.reading(RUNNING)
            assert after.reading(WAITING).at > before.reading(WAITING).at
