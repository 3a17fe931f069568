"""A picker port opens when there is something to pick: a restart rejects no request for lack of an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.app.endpoint_files import EndpointFiles
from agent.app.pool import FIRST_MODELS_SECONDS, PoolParts
from agent.app.pools import Pools
from agent.app.tasks import Tasks
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.events import Event
from agent.kube.cluster import Cluster
from agent.scrape.loop import ScrapeLoop
from tests.app.live import Live, document, servers
from tests.fakes.ext_proc import send_request
from tests.fakes.model_server import ModelServer, answer, good, hang
from tests.fakes.simulated import LoopClock, raise_broken
from tests.waiting import eventually


@asynccontextmanager
async def starting(path: Path) -> AsyncIterator[tuple[Live, asyncio.Task[Any]]]:
    """An agent whose start has begun."""
    live = Live(path)
    start = asyncio.get_running_loop().create_task(live.agent.start())
    try:
        yield live, start
    finally:
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await live.agent.stop(grace=0)


async def refuses_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_the_port_opens_when_every_endpoint_was_scraped_once(tmp_path: Path, free_port: int) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(2) as (one, other):
        other.pause()
        path.write_text(
            document([one.address, other.address]).replace("127.0.0.1:0\n  end", f"127.0.0.1:{free_port}\n  end")
        )
        async with starting(path) as (live, start):
            await eventually(lambda: live.agent.pools and one.address in live.healthy() and other.requests)
            assert await refuses_connections(free_port)
            assert "the agent is starting" in live.agent.readiness()
            other.resume()
            ports = await asyncio.wait_for(start, 20)
            assert live.healthy() == sorted([one.address, other.address])
            async with grpc.aio.insecure_channel(ports.pickers["default"]) as channel:
                call, decision = await send_request(channel)
                assert decision in (one.address, other.address)
                call.cancel()


async def test_the_port_opens_without_an_endpoint_that_never_answers(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(2) as (one, silent):
        silent.behave = hang
        path.write_text(
            document(
                [one.address, silent.address],
                "scrape: {timeout: 50s}\nstate: {staleAfter: 60s}\nextProc: {startTimeout: 300ms}\n",
            )
        )
        async with starting(path) as (live, start):
            ports = await asyncio.wait_for(start, 20)
            assert live.agent.readiness() == ["pool default: 1 of 2 endpoints were not scraped yet"]
            async with grpc.aio.insecure_channel(ports.pickers["default"]) as channel:
                call, decision = await send_request(channel)
                assert decision == one.address
                call.cancel()


async def test_a_failed_scrape_is_a_scrape(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document(["127.0.0.1:1"], "extProc: {startTimeout: 10m}\n"))
    async with starting(path) as (live, start):
        await asyncio.wait_for(start, 20)
        assert live.agent.readiness() == []


async def test_of_the_requests_around_a_restart_none_is_rejected_for_lack_of_an_endpoint(
    tmp_path: Path, free_port: int
) -> None:
    """The client sends one request after the other, as a proxy does that connects whenever the port is open."""
    path = tmp_path / "igw.yaml"
    decisions: list[str] = []

    async def send(address: str) -> None:
        while True:
            async with grpc.aio.insecure_channel(address) as channel:
                try:
                    call, decision = await send_request(channel, body=b'{"model":"m","messages":[]}')
                except (grpc.aio.AioRpcError, AssertionError, asyncio.InvalidStateError):
                    await asyncio.to_thread(lambda: None)  # not open: again
                    continue
                decisions.append(decision)
                call.cancel()

    def has(count: int) -> bool:
        return len(decisions) >= count

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        """A page that takes a moment, as under load."""
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        await good(server, path, writer)

    async with servers(3) as started:
        for server in started:
            server.behave = slow
        addresses = [server.address for server in started]
        path.write_text(document(addresses).replace("127.0.0.1:0\n  end", f"127.0.0.1:{free_port}\n  end"))
        client = asyncio.get_running_loop().create_task(send(f"127.0.0.1:{free_port}"))
        try:
            for _ in range(3):
                async with starting(path) as (_, start):
                    await asyncio.wait_for(start, 20)
                    wanted = len(decisions) + 30
                    await eventually(partial(has, wanted), what="requests after the start")
        finally:
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
    assert set(decisions) <= set(addresses)


# -- several pools -----------------------------------------------------------------------------------------------------


def pools_of(clock: LoopClock, *endpoints: str) -> tuple[Pools, Any]:
    """Pools of one endpoint each, which are given three seconds to be scraped."""
    listed = "".join(
        f"- {{name: p{number}, extProcAddress: '127.0.0.1:0', endpoints: ['{address}']}}\n"
        for number, address in enumerate(endpoints)
    )
    more = "scrape: {timeout: 50s, healthInterval: 1h}\nstate: {staleAfter: 60s}\nextProc: {startTimeout: 3s}\n"
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n{listed}{more}"
    events: list[Event] = []
    config = parse(text, "test", VOCABULARY)
    parts = PoolParts(
        clock,
        events.append,
        Tasks(clock, events.append),
        ScrapeLoop(clock),
        lambda _, __, ___: None,
        lambda: None,
        EndpointFiles(config, clock, events.append),
        Cluster("", clock),
        lambda *_: None,
    )
    return Pools(config, parts, lambda: None), config


async def stopped(pools: Pools) -> None:
    await pools.stop(0.0)
    await pools._parts.tasks.stop()
    await pools._parts.scrape_loop.stop()
    raise_broken()


@pytest.mark.simulated
async def test_pools_wait_for_their_first_scrapes_at_the_same_time() -> None:
    loop = asyncio.get_running_loop()
    silent = [ModelServer(hang) for _ in range(3)]
    for server in silent:
        await server.start()
    pools, _ = pools_of(LoopClock(loop), *(server.address for server in silent))
    before = loop.time()
    await pools.start()
    assert loop.time() - before == pytest.approx(3.0, abs=0.2)
    await stopped(pools)
    for server in silent:
        await server.stop()


@pytest.mark.simulated
async def test_pools_that_a_reload_adds_wait_at_the_same_time() -> None:
    loop = asyncio.get_running_loop()
    silent = [ModelServer(hang) for _ in range(4)]
    for server in silent:
        await server.start()
    clock = LoopClock(loop)
    pools, _ = pools_of(clock, silent[0].address)
    await pools.start()
    _, more = pools_of(clock, *(server.address for server in silent))
    before = loop.time()
    await pools.apply(more)
    assert loop.time() - before == pytest.approx(3.0, abs=0.2)
    assert all(pool.address for pool in pools.pools.values())
    await stopped(pools)
    for server in silent:
        await server.stop()


@pytest.mark.simulated
@pytest.mark.parametrize("listed", [True, False])
async def test_the_port_opens_with_the_lists_of_models_and_waits_for_them_no_longer_than_a_second(listed: bool) -> None:
    loop = asyncio.get_running_loop()

    async def late(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path != "/v1/models":
            await good(server, path, writer)
        elif listed:
            loop.call_later(0.3, writer.write, answer(b'{"data":[{"id":"m"}]}'))
        else:
            writer.write(answer(b"", "404 Not Found"))

    server = ModelServer(late)
    await server.start()
    pools, _ = pools_of(LoopClock(loop), server.address)
    before = loop.time()
    await pools.start()
    (pool,) = pools.pools.values()
    pool.store.snapshot(loop.time())
    assert pool.store.serves("m") is listed
    assert loop.time() - before == pytest.approx(0.3 if listed else FIRST_MODELS_SECONDS, abs=0.2)
    await stopped(pools)
    await server.stop()
