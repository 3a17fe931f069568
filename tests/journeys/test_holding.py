"""An agent that holds requests behind a real Envoy while its process hangs, stops, or reads its file again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agent.envoy.render import PickMode
from tests.fakes.model_server import ModelServer, answer, good, vllm_page
from tests.journeys.bad_input.fleet import CHAT, GatewayFleet, a_fleet, chat
from tests.waiting import found

WAITED = "x-llm-d-flow-queue-duration-ms"
FREE = vllm_page()
FULL = vllm_page(running=4).replace(b"} 0.0", b"} 3.0")
REPLY = b'{"served": true}'


async def serve(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    if path == CHAT:
        writer.write(answer(REPLY, headers="Content-Type: application/json\r\n"))
    else:
        await good(server, path, writer)


class FullFleet:
    """An agent whose only model server is full until `free` is called."""

    def __init__(self, server: ModelServer, fleet: GatewayFleet) -> None:
        self._server = server
        self.fleet = fleet

    def free(self) -> None:
        self._server.page = FREE

    async def send(self) -> tuple[int, Any, Any]:
        """Status, headers and JSON of the answer to one request."""
        url = self.fleet.url("pool", PickMode.BUFFERED)
        async with self.fleet.client.post(url, json=chat()) as got:
            return got.status, got.headers, await got.json()

    async def hold(self, number: int) -> list[asyncio.Task[tuple[int, Any, Any]]]:
        """Send so many requests, all of which are held from now on."""
        answers = [asyncio.create_task(self.send()) for _ in range(number)]
        await found(self.held, lambda count: count == number)
        return answers

    async def held(self) -> float:
        """The requests that the agent holds."""
        return (await self.fleet.counts()).of("igw_flow_held_requests")

    async def answered(self, answers: list[asyncio.Task[tuple[int, Any, Any]]]) -> list[int]:
        """The status of each request, all of which have waited."""
        done = [await each for each in answers]
        assert all(int(headers[WAITED]) > 0 for _, headers, _ in done)
        return [status for status, _, _ in done]


@contextlib.asynccontextmanager
async def a_full_fleet(directory: Path, more: str = "", **envoy: Any) -> AsyncIterator[FullFleet]:
    server = ModelServer(serve, FULL)
    await server.start()
    try:
        pools = {"pool": [server.address]}
        async with a_fleet(directory, 0, lambda _: pools, more=more, envoy=envoy) as fleet:
            yield FullFleet(server, fleet)
    finally:
        await server.stop()


async def test_held_requests_are_dispatched_when_a_page_shows_room(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        answers = await full.hold(3)
        full.free()
        assert await full.answered(answers) == [200] * 3


async def test_a_stop_dispatches_held_requests_while_it_lasts(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        answers = await full.hold(3)
        full.fleet.agent.signal(signal.SIGTERM)
        await asyncio.to_thread(full.fleet.agent.wait_for, "stopping")
        full.free()
        assert await full.answered(answers) == [200] * 3
        assert await asyncio.to_thread(full.fleet.agent.wait) == 0


async def test_what_is_held_at_the_end_of_a_stop_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path, more="extProc: {drainTimeout: 500ms}\n") as full:
        answers = await full.hold(3)
        full.fleet.agent.signal(signal.SIGTERM)
        assert await full.answered(answers) == [503] * 3
        for each in answers:
            _, headers, body = await each
            assert body["error"]["code"] == "shutting_down"
            assert headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
            assert 1 <= int(headers["retry-after"]) <= 120
        assert await asyncio.to_thread(full.fleet.agent.wait) == 0


async def test_a_reload_loses_no_held_request(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        answers = await full.hold(3)
        fleet = full.fleet
        fleet.file.write_text(fleet.file.read_text().replace("staleAfter: 2s", "staleAfter: 3s"))
        fleet.agent.signal(signal.SIGHUP)
        await found(fleet.counts, lambda counts: counts.of("igw_reloads_total", result="ok") == 1)
        assert not any(each.done() for each in answers)
        full.free()
        assert await full.answered(answers) == [200] * 3


async def test_a_picker_that_hangs_is_noticed_after_the_message_timeout(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path, message_timeout=0.5, keepalive=3600.0) as full:
        full.fleet.agent.signal(signal.SIGSTOP)
        try:
            status, headers, body = await full.send()
            assert (status, body["error"]["code"]) == (503, "picker_unavailable")
            assert headers["retry-after"] == "1"
        finally:
            full.fleet.agent.signal(signal.SIGCONT)


async def test_a_picker_that_hangs_while_it_holds_requests_is_noticed_by_the_keepalive(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path, keepalive=0.2, keepalive_timeout=0.5) as full:
        answers = await full.hold(2)
        full.fleet.agent.signal(signal.SIGSTOP)
        try:
            for each in answers:
                status, _, body = await each
                assert (status, body["error"]["code"]) == (503, "picker_unavailable")
        finally:
            full.fleet.agent.signal(signal.SIGCONT)


async def test_a_client_that_leaves_while_it_waits_is_not_dispatched(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        leaving, staying = await full.hold(2)
        leaving.cancel()

        async def left() -> float:
            return (await full.fleet.counts()).of("igw_requests_abandoned_total", stage="pick")

        await found(left, lambda number: number == 1)
        full.free()
        assert await full.answered([staying]) == [200]
        assert (await full.fleet.counts()).of("igw_picks_total") == 1
