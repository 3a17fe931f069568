"""A fleet that loses its metrics is served: Envoy, the agent and emulated servers, upgraded one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.envoy.render import PickMode
from tests.fakes.model_server import ModelServer, answer
from tests.journeys.bad_input.fleet import CHAT, MODES, GatewayFleet, a_fleet, chat
from tests.waiting import found

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOL = "upgraded"
SERVERS = 3
ROUNDS = 30
# After the first request, as text-generation-inference writes it.
TGI_PAGE = b"""# TYPE tgi_request_count counter
tgi_request_count 1

# TYPE tgi_queue_size gauge
tgi_queue_size 0

# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayFleet]:
    directory = tmp_path_factory.mktemp("a blind fleet")
    async with a_fleet(directory, SERVERS, lambda healthy: {POOL: healthy}) as fleet:
        yield fleet


async def fault(fleet: GatewayFleet, servers: Sequence[str], **fields: Any) -> None:
    """Set faults of these servers; without any, end all."""
    for address in servers:
        url = f"http://{address}/emulator/faults"
        request = fleet.client.post(url, json=fields) if fields else fleet.client.delete(url)
        async with request as done:
            assert done.status == 200


async def health(fleet: GatewayFleet) -> dict[str, str]:
    """The health of each endpoint."""
    (pool,) = (await fleet.read("/v1/state"))["pools"]
    shown = {endpoint["address"]: endpoint["health"] for endpoint in pool["endpoints"]}
    assert Counter(shown.values()) == Counter({name: count for name, count in pool["by_health"].items() if count})
    return shown


async def until_blind(fleet: GatewayFleet, blind: Sequence[str]) -> None:
    """Wait until exactly these endpoints are blind and the others healthy."""
    wanted = {address: "blind" if address in blind else "healthy" for address in fleet.healthy}
    await found(lambda: health(fleet), lambda shown: shown == wanted)


async def serve(fleet: GatewayFleet, way: PickMode = PickMode.BUFFERED) -> dict[str, float]:
    """Send requests, three at a time: all are served. Returns the number at each server."""
    await fleet.idle(POOL)
    before = (await fleet.counts()).by("server", "igw_picks_total", pool=POOL)
    for number in range(ROUNDS):
        words = [f"{number} {place} is a prompt without a common prefix" for place in range(SERVERS)]
        answers = await asyncio.gather(*(fleet.send(POOL, way, json=chat(each)) for each in words))
        assert [status for status, _ in answers] == [200] * SERVERS, answers
    after = (await fleet.counts()).by("server", "igw_picks_total", pool=POOL)
    picks = {address: after.get(address, 0) - before.get(address, 0) for address in fleet.healthy}
    assert sum(picks.values()) == ROUNDS * SERVERS
    return picks


def assert_none_starves(picks: dict[str, float]) -> None:
    assert min(picks.values()) > ROUNDS * 0.4, picks
    assert max(picks.values()) < ROUNDS * 1.8, picks


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize(
    "faults", [{"metrics": "renamed"}, {"metrics": "no_stats"}, {"metrics": "error", "metrics_status": 404}]
)
async def test_a_fleet_that_loses_its_metrics_at_once_serves_every_request(
    fleet: GatewayFleet, way: PickMode, faults: dict[str, Any]
) -> None:
    rejected = (await fleet.counts()).of("igw_requests_rejected_total", pool=POOL)
    await fault(fleet, fleet.healthy, **faults)
    while set((await health(fleet)).values()) != {"blind"}:  # no request is refused on the way
        assert (await fleet.send(POOL, way))[0] == 200
    assert_none_starves(await serve(fleet, way))
    counts = await fleet.counts()
    assert counts.of("igw_requests_rejected_total", pool=POOL) == rejected
    assert counts.of("igw_pool_blind_ratio", pool=POOL) == 1.0
    assert counts.by("name", "llm_d_epp_ready_endpoints") == {POOL: SERVERS}
    assert counts.by("signal", "igw_pool_coverage_ratio", pool=POOL) == {}
    assert counts.series("igw_pool_waiting_requests", "llm_d_epp_average_queue_size") == {}
    assert f"{SERVERS} of {SERVERS} endpoints are blind" in fleet.agent.output()
    await fault(fleet, fleet.healthy)
    await until_blind(fleet, ())


async def test_while_a_rolling_upgrade_renames_the_metrics_neither_half_starves(fleet: GatewayFleet) -> None:
    upgraded: list[str] = []
    for address in fleet.healthy:
        upgraded.append(address)
        await fault(fleet, [address], metrics="renamed")
        await until_blind(fleet, upgraded)
        assert_none_starves(await serve(fleet))
        counts = await fleet.counts()
        assert counts.of("igw_pool_blind_ratio", pool=POOL) == pytest.approx(len(upgraded) / SERVERS)
        gauges = await fleet.gauges(POOL, address)
        assert gauges["igw_endpoint_waiting_requests"]["withheld"] == "blind"
    while upgraded:  # and back
        await fault(fleet, [upgraded.pop()])
        await until_blind(fleet, upgraded)
        assert_none_starves(await serve(fleet))


# -- servers that report nothing from their start on -------------------------------------------------------------------


class QuietServer(ModelServer):
    """A server whose page is `page`, and `later` after its first request; its health path succeeds."""

    def __init__(self, page: bytes, later: bytes) -> None:
        super().__init__(self._respond, page)
        self._later = later

    async def _respond(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics":
            writer.write(answer(self.page))
        elif path == "/health":
            writer.write(answer(b""))
        elif path == CHAT:
            self.page = self._later
            writer.write(answer(b'{"object": "chat.completion"}', headers="Content-Type: application/json\r\n"))
        else:
            writer.write(answer(b"", "404 Not Found"))


@contextlib.asynccontextmanager
async def quiet_fleet(directory: Path, page: bytes, later: bytes, engine: str) -> AsyncIterator[GatewayFleet]:
    """Two such servers of this engine, an agent that starts beside them, and Envoy."""
    servers = [QuietServer(page, later) for _ in range(2)]
    for server in servers:
        await server.start()
    addresses = [server.address for server in servers]
    try:
        async with a_fleet(directory, 0, lambda _: {POOL: addresses}, engine) as fleet:
            yield fleet
    finally:
        for server in servers:
            await server.stop()


async def is_serving(fleet: GatewayFleet) -> None:
    """The agent is ready at both of its ports, and each of two servers gets requests."""

    async def ready() -> int:
        async with fleet.client.get(f"{fleet.admin}/readyz") as done:
            return done.status

    await found(ready, lambda status: status == 200)
    (picker,) = re.findall(r"ext_proc on (\S+),", fleet.agent.output())
    async with grpc.aio.insecure_channel(picker) as channel:
        checked = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    statuses = Counter([(await fleet.send(POOL, PickMode.BUFFERED))[0] for _ in range(20)])
    assert statuses == {200: 20}
    assert len((await fleet.counts()).by("server", "igw_picks_total", pool=POOL)) == 2


@pytest.mark.parametrize("engine", ["vllm", "auto"])
async def test_an_agent_that_starts_beside_a_blind_fleet_is_ready_and_serves(tmp_path: Path, engine: str) -> None:
    page = b"# TYPE other_queue gauge\nother_queue 1\n"
    async with quiet_fleet(tmp_path, page, page, engine) as fleet:
        await is_serving(fleet)
        assert set((await health(fleet)).values()) == {"blind"}


@pytest.mark.parametrize("engine", ["tgi", "auto"])
@pytest.mark.parametrize("page", [b"", b"# TYPE tgi_queue_size gauge\n"])
async def test_a_server_that_writes_its_first_sample_with_its_first_request_gets_that_request(
    tmp_path: Path, engine: str, page: bytes
) -> None:
    async with quiet_fleet(tmp_path, page, TGI_PAGE, engine) as fleet:
        assert set((await health(fleet)).values()) == {"healthy"}
        signals = (await fleet.read("/v1/state"))["pools"][0]["endpoints"][0]["signals"]
        assert (signals["waiting_requests"]["value"], signals["waiting_requests"]["reason"]) == (None, "not_reported")
        await is_serving(fleet)
        reported = lambda counts: counts.of("igw_pool_coverage_ratio", pool=POOL, signal="waiting_requests") == 1.0
        counts = await found(fleet.counts, reported)
        assert counts.of("igw_pool_waiting_requests", pool=POOL) == 0.0
        assert counts.of("igw_scrapes_total", pool=POOL, result="failed") == 0.0
