"""Running agents that are replicas of each other, and peers that are not what they should be."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from envoy.service.accesslog.v3 import als_pb2

from agent.app.component import CannotStart
from agent.events.replicas import PeerChanged, PeerFailed, PeerRefused
from agent.events.requests import Responded
from agent.replicas import service as replica_service
from agent.replicas.report import (
    METHOD,
    PROTOCOL,
    SERVICE,
    Hello,
    PeerReport,
    PoolReport,
    StartedRequest,
    decode_hello,
    encode,
    encode_hello,
    prove,
)
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.access_log import SERVICE as LOG_SERVICE
from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import BidiMethod, GrpcMethod, GrpcRouter
from agent.serve.grpc.status import StatusCode
from agent.serve.keda.messages import SERVICE as KEDA
from agent.serve.keda.messages import parse
from tests.app.live import Live, document, running, servers
from tests.app.test_flow_views import hold
from tests.fakes.model_server import ModelServer, vllm_page
from tests.scaler.calls import read, request
from tests.scrape.authority import Authority
from tests.waiting import eventually, found

SECRET = "a secret of enough bytes"
NAME = "igw-replicas.test"


def free_port(*hosts: str) -> int:
    """A port that is free at all of these addresses."""
    while True:
        with socket.create_server((hosts[0], 0)) as first:
            port = int(first.getsockname()[1])
            try:
                for host in hosts[1:]:
                    socket.create_server((host, port)).close()
            except OSError:
                continue
            return port


class FakeDns:
    """DNS: the addresses of NAME."""

    def __init__(self) -> None:
        self.hosts: list[str] = []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> FakeDns:
    found = FakeDns()
    real = asyncio.BaseEventLoop.getaddrinfo

    async def look_up(self: Any, host: Any, port: Any, **more: Any) -> Any:
        if host != NAME:
            return await real(self, host, port, **more)
        if not found.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found.hosts]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    return found


class ReplicaFleet:
    """Replicas before the same model servers; each has a loopback address of its own and the port of all."""

    def __init__(self, folder: Path, stack: AsyncExitStack, started: Sequence[ModelServer]) -> None:
        self.folder = folder
        self.servers = started
        self.endpoints: Sequence[str] = [server.address for server in started]
        self.port = free_port("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
        self.token = folder / "token"
        self.token.write_text(SECRET)
        self._stack = stack
        self.of_pool = ""  # further lines of the pool
        self.more = ""  # further sections

    def config(self, host: str, peers: str, more: str = "") -> Path:
        path = self.folder / f"{host}.yaml"
        section = (
            f"replicas: {{address: '{host}:{self.port}', name: replica-{host[-1]}, staleAfter: 1.5s, {peers}{more}}}"
        )
        path.write_text(document(self.endpoints, f"{self.of_pool}{section}\n{self.more}"))
        return path

    def listed(self, *hosts: str, token: str = "") -> str:
        peers = ", ".join(f"'{host}:{self.port}'" for host in hosts)
        return f"peers: [{peers}], tokenFile: {token or self.token}"

    @property
    def service(self) -> str:
        return f"service: '{NAME}:{self.port}', tokenFile: {self.token}"

    async def start(self, host: str, peers: str, more: str = "") -> Live:
        config = self.config(host, peers, more)
        return await self._stack.enter_async_context(running(config, healthy=len(self.endpoints)))

    async def pair(self) -> tuple[Live, Live]:
        """Two replicas that know of each other."""
        peers = self.listed("127.0.0.1", "127.0.0.2")
        first, second = await self.start("127.0.0.1", peers), await self.start("127.0.0.2", peers)
        await complete(first)
        await complete(second)
        return first, second


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[ReplicaFleet]:
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(servers(2))
        yield ReplicaFleet(tmp_path, stack, started)


async def get(live: Live, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"http://{live.admin}{path}") as response:
        return await response.json()


async def complete(live: Live) -> None:
    """Wait until the replica knows what all its peers do."""

    async def read() -> Any:
        return await get(live, "/v1/replicas")

    await found(read, lambda view: view["complete"] and any(peer["state"] == "reporting" for peer in view["peers"]))


async def gauge(live: Live, name: str = "igw_pool_in_flight_requests") -> Any:
    return (await get(live, f"/v1/gauges?name={name}"))["gauges"][0]


async def known(live: Live, requests: int) -> None:
    """Wait until the replica publishes this sum over replicas."""

    async def read() -> Any:
        return await gauge(live)

    await found(read, lambda row: row["value"] == requests)


async def withheld(live: Live, why: str) -> None:
    """Wait until the sum over replicas is withheld for this reason."""

    async def read() -> Any:
        return await gauge(live)

    row = await found(read, lambda row: why in row.get("detail", ""), what=why)
    assert (row["value"], row["withheld"]) == (None, "replica_unknown")


def of_peers(live: Live) -> int:
    views = live.pool.store.snapshot(live.clock.now()).endpoints
    return sum(view.work.of_peers for view in views)


async def test_what_one_replica_has_in_flight_counts_at_the_other_until_it_ends(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()
    call, endpoint = await first.send_request()
    await eventually(lambda: of_peers(second) == 1)
    (view,) = [view for view in second.pool.store.snapshot(second.clock.now()).endpoints if view.address == endpoint]
    assert view.work.requests == 1
    await known(first, 1)
    await known(second, 1)
    assert (await gauge(second, "igw_pool_own_in_flight_requests"))["value"] == 0
    await call.done_writing()
    await eventually(lambda: of_peers(second) == 0)
    await known(second, 0)


async def test_what_one_replica_holds_is_the_same_number_at_both_and_in_the_demand_until_it_leaves(
    fleet: ReplicaFleet,
) -> None:
    fleet.more = "flowControl: {saturationDetector: {type: concurrency, maxConcurrency: 1}}"
    fleet.endpoints = fleet.endpoints[:1]
    first, second = await fleet.pair()

    def held(live: Live) -> float | str:
        found = live.agent.metrics_api.held_of("default", live.clock.now())
        return found.value if isinstance(found, ServedValue) else found.reason

    def demanded(live: Live) -> float | None:
        (report,) = live.agent.demand.reports()
        return None if report.latest is None else report.latest.decision.use.held

    busy, _ = await first.send_request("busy")
    held_call = await hold(first, "waits")
    await eventually(lambda: (held(first), held(second)) == (1.0, 1.0))
    await eventually(lambda: (demanded(first), demanded(second)) == (1.0, 1.0))
    assert first.pool.held == 1
    assert second.pool.held == 0  # the number is that of the other one
    await busy.done_writing()
    await eventually(lambda: (held(first), held(second)) == (0.0, 0.0))
    assert first.pool.held == 0
    held_call.cancel()


def capacity(live: Live) -> float | None:
    """The capacity in the last demand of a replica."""
    for report in live.agent.demand.reports():
        if report.latest is not None:
            return report.latest.decision.use.capacity.requests_per_second
    return None


async def test_a_capacity_that_one_replica_has_learnt_is_in_the_demand_of_both_also_after_it_has_stopped(
    fleet: ReplicaFleet,
) -> None:
    first, second = await fleet.pair()
    first.agent.demand.restore("default", 7.5, first.clock.now())
    await eventually(lambda: (capacity(first), capacity(second)) == (7.5, 7.5))
    assert second.agent.demand.own_capacity("default") is None  # the number is that of the other one
    await first.agent.stop(grace=0)
    await eventually(lambda: second.agent.demand.own_capacity("default") is not None)
    assert capacity(second) == 7.5
    again = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    await eventually(lambda: capacity(again) == 7.5)


class CutLine:
    """A line to a replica that can be cut: its peer then gets no goodbye, as from one that was killed."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int, at: str) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to, out = await asyncio.open_connection(host, port)
            self._writers += [writer, out]
            await asyncio.gather(_copy(reader, out), _copy(to, writer), return_exceptions=True)

        self._server = await asyncio.start_server(serve, at, port)

    def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()


async def test_a_replica_whose_peer_is_killed_answers_with_what_the_peer_has_learnt_and_withholds_its_part(
    fleet: ReplicaFleet,
) -> None:
    fleet.more = (
        "flowControl: {saturationDetector: {type: concurrency, maxConcurrency: 1}}\nkeda: {address: '127.0.0.1:0'}"
    )
    fleet.endpoints = fleet.endpoints[:1]
    line = CutLine()
    await line.open("127.0.0.1", fleet.port, "127.0.0.3")
    killed = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    left = await fleet.start("127.0.0.2", fleet.listed("127.0.0.2", "127.0.0.3"))
    await complete(killed)
    await complete(left)
    await killed.send_request("busy")
    held_call = await hold(killed, "waits")
    killed.agent.demand.restore("default", 7.5, killed.clock.now())
    metadata = {"metric": "igw_flow_held_requests", "threshold": "8"}
    async with grpc.aio.insecure_channel(left.agent.keda_address) as channel:

        async def value(of: dict[str, str]) -> float | str:
            call = channel.unary_unary(f"/{KEDA}/GetMetrics")
            try:
                answer = parse("GetMetricsResponse", await call(request("GetMetrics", of), timeout=20))
            except grpc.aio.AioRpcError as error:
                return error.details() or ""
            return float(answer.metricValues[0].metricValueFloat)

        async def held() -> float | str:
            return await value(metadata)

        await found(held, lambda answer: answer == 1.0)
        await eventually(lambda: capacity(left) == 7.5)
        line.cut()
        answer = await found(held, lambda answer: isinstance(answer, str))
        assert "igw_flow_held_requests of pool default is withheld (replica_unknown): replica-1 (silent" in str(answer)
        await found(lambda: value({}), lambda answer: answer == 1.0)  # the current replica, as too little is known
        assert capacity(left) == 7.5
        (report,) = left.agent.demand.reports()
        assert report.latest is not None
        assert report.latest.decision.use.unknown_peers
    held_call.cancel()


async def test_a_replica_that_starts_again_has_seen_what_the_other_one_has(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()

    def since(live: Live) -> float | None:
        """When the first level of the KV cache was seen."""
        history = live.agent.demand.history("default")
        return None if history is None or not history.kv else history.kv[0].at

    await eventually(lambda: since(first))
    await second.agent.stop(grace=0)
    began = second.clock.now()
    again = await fleet.start("127.0.0.2", fleet.listed("127.0.0.1", "127.0.0.2"))
    await eventually(lambda: (since(again) or began) < began - 1e-3)
    assert since(again) == pytest.approx(since(first), abs=0.1)  # both have the clock of this machine


READS = ("igw_demand_replicas", "igw_flow_held_requests", "igw_pool_waiting_requests", "igw_pool_running_requests")
# A number is made from pages of the last 100 ms, at most half a second ago; the machine may be busy.
AGE = 1.5


async def test_two_replicas_do_not_differ_by_more_than_the_age_of_their_numbers_while_the_load_changes(
    fleet: ReplicaFleet,
) -> None:
    fleet.more = "flowControl: {saturationDetector: {type: concurrency, maxConcurrency: 1}}\nscrape: {interval: 100ms}"
    fleet.of_pool = "  demand: {capacity: 0.01}\n"  # three requests that wait in the default horizon of 300 s
    fleet.endpoints = fleet.endpoints[:1]
    first, second = await fleet.pair()
    seen: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {name: ([], []) for name in READS}

    async def step() -> dict[str, tuple[float, ...]]:
        """What both answer at this moment."""
        answers = {}
        for name in READS:
            for live, kept in zip((first, second), seen[name], strict=True):
                now = live.clock.now()
                _, source = live.agent.metrics_api._view(now)
                answer = source.external_metric("default", name, now)
                assert isinstance(answer, ServedValue), (name, answer)
                kept.append((now, answer.value))
            answers[name] = tuple(kept[-1][1] for kept in seen[name])
        return answers

    def shows(name: str, value: float) -> Callable[[dict[str, tuple[float, ...]]], bool]:
        return lambda answers: answers[name] == pytest.approx((value, value))

    for running_requests, waiting, demand in ((4, 0, 0.25 / 0.9), (8, 12, 4.0), (8, 6, 2.0), (8, 3, 1.0)):
        for server in fleet.servers:
            server.page = vllm_page(running_requests, waiting)
        await found(step, shows("igw_pool_waiting_requests", float(waiting)))
        await found(step, shows("igw_pool_running_requests", float(running_requests)))
        await found(step, shows("igw_demand_replicas", demand))
    for server in fleet.servers:
        server.page = vllm_page()
    await found(step, shows("igw_pool_running_requests", 0.0))
    busy, _ = await first.send_request("busy")
    await eventually(lambda: of_peers(second) == 1)
    held = [await hold(first, "waits"), await hold(second, "waits-too")]
    await found(step, shows("igw_flow_held_requests", 2.0))
    for call in (busy, held[0], held[1]):
        await call.done_writing()
    await found(step, shows("igw_flow_held_requests", 0.0))
    await found(
        step, lambda answers: abs(answers[READS[0]][0] - answers[READS[0]][1]) < 0.05 and max(answers[READS[0]]) < 1
    )
    for name, (one, other) in seen.items():
        for kept, others in ((one, other), (other, one)):
            for at, value in kept:
                near = [each for when, each in others if abs(when - at) <= AGE]
                assert min(near) * 0.98 - 0.05 <= value <= max(near) * 1.02 + 0.05, (name, at, value, near)
    assert len({value for _, value in seen["igw_demand_replicas"][0]}) > 2


async def test_a_request_that_one_replica_holds_reaches_the_stream_that_keda_has_at_another(
    fleet: ReplicaFleet,
) -> None:
    fleet.endpoints = []
    fleet.of_pool, fleet.more = "  scaleFromZero: true\n", "keda: {address: '127.0.0.1:0'}"
    first, second = await fleet.pair()
    metadata = {"metric": "igw_flow_held_requests", "threshold": "8"}
    async with grpc.aio.insecure_channel(second.agent.keda_address) as channel:
        stream = channel.unary_stream(f"/{KEDA}/StreamIsActive")(request("StreamIsActive", metadata))
        assert (await read(stream)).result is False
        held_call = await hold(first, "first")
        assert (await read(stream)).result is True
        held_call.cancel()
        assert (await read(stream)).result is False


async def test_the_held_requests_of_all_are_withheld_while_a_replica_is_silent(fleet: ReplicaFleet) -> None:
    alone = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    await withheld(alone, f"127.0.0.2:{fleet.port}")
    found = alone.agent.metrics_api.held_of("default", alone.clock.now())
    assert isinstance(found, WithheldMetric)
    assert found.reason == "replica_unknown"
    assert f"127.0.0.2:{fleet.port}" in found.detail


async def test_a_prompt_goes_where_the_other_replica_sent_its_beginning(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()
    call, endpoint = await first.send_request()
    await eventually(lambda: of_peers(second) == 1)
    await call.done_writing()
    await eventually(lambda: of_peers(second) == 0)
    for number in range(5):
        call, again = await second.send_request(f"again-{number}")
        assert again == endpoint
        await call.done_writing()


async def test_the_log_of_a_request_reaches_the_replica_that_has_picked(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()
    log = second.channel.stream_unary(f"/{LOG_SERVICE}/StreamAccessLogs")()
    await log.write(als_pb2.StreamAccessLogsMessage().SerializeToString())
    await eventually(lambda: first.pool.outcomes.open_logs == 1)
    call, endpoint = await first.send_request("picked-by-the-first")
    batch = als_pb2.StreamAccessLogsMessage()
    entry = batch.http_logs.log_entry.add()
    entry.request.request_id = "picked-by-the-first"
    entry.response.response_code.value = 500
    host, _, port = endpoint.rpartition(":")
    entry.common_properties.upstream_remote_address.socket_address.address = host
    entry.common_properties.upstream_remote_address.socket_address.port_value = int(port)
    await log.write(batch.SerializeToString())
    await eventually(lambda: first.recorder.of(Responded))
    assert first.recorder.of(Responded)[0] == Responded("default", endpoint, "server_error")
    assert second.recorder.of(Responded) == []
    await call.done_writing()
    log.cancel()


async def test_a_replica_that_stops_says_goodbye_and_its_part_is_over(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()
    await second.send_request()
    await known(first, 1)
    await second.agent.stop(grace=0)
    await known(first, 0)  # published, not withheld: nothing is unknown
    view = await get(first, "/v1/replicas")
    (peer,) = [peer for peer in view["peers"] if peer["name"] == "replica-2"]
    assert (peer["state"], view["complete"], peer["in_flight"]) == ("left", True, None)


async def test_a_replica_that_comes_back_is_reported_at_once_under_another_instance(fleet: ReplicaFleet) -> None:
    first, second = await fleet.pair()
    before = (await get(first, "/v1/replicas"))["peers"][1]["instance"]
    await second.agent.stop(grace=0)
    await eventually(lambda: any(event.state == "left" for event in first.recorder.of(PeerChanged)))
    await first.send_request("while-it-is-away")
    again = await fleet.start("127.0.0.2", fleet.listed("127.0.0.1", "127.0.0.2"))
    await complete(again)
    await eventually(lambda: of_peers(again) == 1)
    assert len(again.pool.index) == len(first.pool.index) > 0  # and it knows the prompts
    await complete(first)
    assert (await get(first, "/v1/replicas"))["peers"][1]["instance"] != before
    await again.send_request()
    await known(first, 2)


async def test_a_replica_that_is_listed_and_never_reported_withholds_sums_and_is_named(fleet: ReplicaFleet) -> None:
    alone = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    await withheld(alone, f"127.0.0.2:{fleet.port}")
    assert (await gauge(alone, "igw_pool_own_in_flight_requests"))["value"] == 0
    assert (await gauge(alone, "igw_pool_endpoints"))["value"] == 2


async def test_a_replica_claims_all_free_slots_while_its_peers_report_and_its_part_of_them_otherwise(
    fleet: ReplicaFleet,
) -> None:
    def shares(live: Live) -> set[float]:
        report = live.pool.flow_report(live.clock.now(), inputs=True)
        return {endpoint.inputs.share for endpoint in report.endpoints}

    peers = fleet.listed("127.0.0.1", "127.0.0.2")
    first = await fleet.start("127.0.0.1", peers)
    await withheld(first, f"127.0.0.2:{fleet.port}")
    await eventually(lambda: shares(first) == {1 / 2})
    second = await fleet.start("127.0.0.2", peers)
    await complete(first)
    await complete(second)
    assert shares(first) == shares(second) == {1.0}  # what the other one sends is known
    await second.agent.stop(grace=0)
    await eventually(lambda: any(event.state == "left" for event in first.recorder.of(PeerChanged)))
    assert shares(first) == {1.0}  # it has said that it sends nothing more


async def test_the_replicas_of_a_service_find_each_other_and_one_that_leaves_the_name_is_over(
    fleet: ReplicaFleet, names: FakeDns
) -> None:
    names.hosts = ["127.0.0.1"]
    first = await fleet.start("127.0.0.1", fleet.service)
    names.hosts.append("127.0.0.2")
    second = await fleet.start("127.0.0.2", fleet.service)
    await complete(second)
    await complete(first)
    await second.send_request()
    await known(first, 1)
    names.hosts.remove("127.0.0.2")
    await eventually(lambda: of_peers(first) == 0)
    assert (await gauge(first))["value"] == 0


async def test_a_name_that_cannot_be_resolved_is_a_part_that_is_unknown(fleet: ReplicaFleet, names: FakeDns) -> None:
    first = await fleet.start("127.0.0.1", fleet.service)
    await withheld(first, NAME)
    assert [event.reason for event in first.recorder.of(PeerRefused)] == ["unresolved"]
    names.hosts = ["127.0.0.1"]
    await known(first, 0)


async def test_a_replica_that_is_followed_by_one_it_does_not_know_has_an_unknown_part(fleet: ReplicaFleet) -> None:
    first = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1"))
    await fleet.start("127.0.0.2", fleet.listed("127.0.0.1", "127.0.0.2"))
    await withheld(first, "replica-2 (it follows this replica and is not among its peers: list it)")
    assert (await get(first, "/v1/replicas"))["complete"] is False


async def test_another_token_is_refused_on_both_sides_and_says_what_to_change(
    fleet: ReplicaFleet, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("another secret of enough bytes")
    first = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    second = await fleet.start("127.0.0.2", fleet.listed("127.0.0.1", "127.0.0.2", token=str(other)))
    for live in (first, second):
        await eventually(lambda live=live: any(e.reason == "unauthenticated" for e in live.recorder.of(PeerFailed)))  # type: ignore[misc]
        await withheld(live, "give all replicas the same")
    await first.send_request()
    assert of_peers(second) == 0
    other.write_text(SECRET)  # it is read again
    await complete(second)
    await complete(first)


async def test_one_replica_under_two_addresses_is_counted_once_and_reported(fleet: ReplicaFleet) -> None:
    port = fleet.port
    peers = f"peers: ['127.0.0.2:{port}', 'localhost.localdomain:{port}', '127.0.0.1:{port}'], tokenFile: {fleet.token}"
    second = await fleet.start("127.0.0.2", fleet.listed("127.0.0.1"))
    relay = await asyncio.start_server(_relay("127.0.0.2", port), "127.0.0.3", port)
    first = await fleet.start("127.0.0.1", peers.replace("localhost.localdomain", "127.0.0.3"))
    await second.send_request()
    await eventually(lambda: of_peers(first) == 1)
    await eventually(lambda: any(e.reason == "duplicate" for e in first.recorder.of(PeerFailed)))
    await withheld(first, "list each replica once")
    assert of_peers(first) == 1
    relay.close()


# -- TLS ---------------------------------------------------------------------------------------------------------------


def tls(fleet: ReplicaFleet, authority: Authority, name: str, hosts: str, more: str = "") -> str:
    """The options of a replica with a certificate for these hosts, without a token."""
    certificate, key = authority.sign(name, hosts)
    peers = ", ".join(f"'{host}:{fleet.port}'" for host in ("127.0.0.1", "127.0.0.2"))
    return f"peers: [{peers}], caFile: {authority.file}, certFile: {certificate}, keyFile: {key}{more}"


async def test_replicas_with_certificates_of_one_authority_need_no_token(fleet: ReplicaFleet, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = await fleet.start("127.0.0.1", tls(fleet, authority, "one", "IP:127.0.0.1"))
    second = await fleet.start("127.0.0.2", tls(fleet, authority, "two", "IP:127.0.0.2"))
    await complete(first)
    await complete(second)
    await first.send_request()
    await known(second, 1)
    assert of_peers(second) == 1


async def test_peers_that_are_reached_by_their_addresses_may_have_certificates_for_a_name(
    fleet: ReplicaFleet, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    name = ", serverName: igw.example"
    first = await fleet.start("127.0.0.1", tls(fleet, authority, "one", "DNS:igw.example", name))
    second = await fleet.start("127.0.0.2", tls(fleet, authority, "two", "DNS:igw.example", name))
    await complete(first)
    await complete(second)
    assert not first.recorder.of(PeerRefused)


async def test_a_certificate_of_another_authority_is_refused_on_both_sides(fleet: ReplicaFleet, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "stranger")
    first = await fleet.start("127.0.0.1", tls(fleet, ours, "one", "IP:127.0.0.1"))
    second = await fleet.start("127.0.0.2", tls(fleet, other, "two", "IP:127.0.0.2"))
    for live in (first, second):
        await eventually(
            lambda live=live: any(  # type: ignore[misc]
                event.reason in {"unauthenticated", "unreachable"} for event in live.recorder.of(PeerFailed)
            )
        )
        await withheld(live, f"{fleet.port} (")
    await first.send_request()
    assert of_peers(second) == 0


async def test_a_renewed_certificate_is_used_for_the_next_connection(fleet: ReplicaFleet, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = await fleet.start("127.0.0.1", tls(fleet, authority, "one", "IP:127.0.0.1"))
    second = await fleet.start("127.0.0.2", tls(fleet, authority, "two", "IP:127.0.0.9"))  # not its own address
    await eventually(lambda: first.recorder.of(PeerFailed))
    authority.sign("two", "IP:127.0.0.2")
    await complete(first)
    await complete(second)
    assert (await gauge(first))["value"] == 0


async def test_tls_files_that_cannot_be_used_prevent_the_start(fleet: ReplicaFleet, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    options = tls(fleet, authority, "one", "IP:127.0.0.1")
    (tmp_path / "one.key").write_text("no key")
    with pytest.raises(CannotStart, match=r"one[.]key"):
        await fleet.start("127.0.0.1", options)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
    sink.close()


def _relay(host: str, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, out = await asyncio.open_connection(host, port)
        await asyncio.gather(_copy(reader, out), _copy(to, writer), return_exceptions=True)

    return serve


# -- peers that are not what they should be ----------------------------------------------------------------------------


class ScriptedPeer:
    """A peer at 127.0.0.2 that says hello and sends the given messages; nothing else, not even heartbeats."""

    name = SERVICE

    def __init__(self, hello: Hello | None = None, messages: Sequence[bytes] = ()) -> None:
        self.hello = hello
        self.messages = messages
        self.calls: list[Call] = []

    def methods(self) -> Mapping[str, GrpcMethod]:
        return {METHOD: BidiMethod(self._begin, 1 << 20)}

    def _begin(self, call: Call) -> CallHandler:
        self.calls.append(call)
        return _ScriptedCall(self, call)


class _ScriptedCall:
    def __init__(self, peer: ScriptedPeer, call: Call) -> None:
        self.peer, self.call, self.greeted = peer, call, False

    def on_message(self, message: bytes) -> None:
        if self.greeted:
            for each in self.peer.messages:
                self.call.send(each)
            return
        self.greeted = True
        client = decode_hello(message)
        nonce = secrets.token_hex(16)
        proof = prove(SECRET.encode(), "server", client.nonce, nonce)
        self.call.send(encode_hello(self.peer.hello or Hello(PROTOCOL, "an-instance", "odd", "9.9", nonce, proof)))

    def on_half_close(self) -> None:
        self.call.finish(StatusCode.OK)

    def on_close(self) -> None:
        pass


@asynccontextmanager
async def scripted(fleet: ReplicaFleet, service: Any) -> AsyncIterator[Live]:
    listener = GrpcListener(GrpcRouter((service,), lambda *_: None), lambda _: None)
    await listener.listen("127.0.0.2", fleet.port)
    try:
        yield await fleet.start("127.0.0.1", fleet.listed("127.0.0.1", "127.0.0.2"))
    finally:
        listener.goaway()
        await listener.close()


def good(*started: StartedRequest, sequence: int = 0, name: str = "default", address: str = "10.0.0.1:1") -> bytes:
    pools = [PoolReport(name, "", len(started), 0, [address], list(started))]
    return encode(PeerReport(sequence, full=sequence == 0, pools=pools))


async def test_a_peer_that_goes_silent_without_closing_is_unknown_and_its_requests_are_dropped(
    fleet: ReplicaFleet,
) -> None:
    address = fleet.endpoints[0]
    async with scripted(
        fleet, ScriptedPeer(messages=[good(StartedRequest(1, 0, 10, 0, 0, b""), address=address)])
    ) as live:
        await eventually(lambda: of_peers(live) == 1)
        await eventually(lambda: any(e.reason == "timeout" for e in live.recorder.of(PeerFailed)))
        await withheld(live, "odd (silent: no report within 1.5 s)")
        silent = [event for event in live.recorder.of(PeerChanged) if event.state == "silent"]
        assert silent[0].counts["silent"] == 1


async def test_a_peer_of_another_version_is_named_with_the_remedy_and_counted(fleet: ReplicaFleet) -> None:
    async with scripted(fleet, ScriptedPeer(Hello(PROTOCOL + 1, "next", "replica-9", "2.0"))) as live:
        await eventually(lambda: any(e.reason == "version" for e in live.recorder.of(PeerFailed)))
        remedy = f"it has protocol {PROTOCOL + 1} (2.0), this replica {PROTOCOL}: run one version"
        await withheld(live, f"127.0.0.2:{fleet.port} (refused: {remedy})")
        await live.send_request()  # the rest works
        assert (await gauge(live, "igw_pool_own_in_flight_requests"))["value"] == 1


async def test_a_caller_of_another_version_is_refused_and_counted(fleet: ReplicaFleet) -> None:
    import grpc.aio

    live = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{fleet.port}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        await call.write(encode_hello(Hello(PROTOCOL + 1, "next", "replica-9", "2.0")))
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        await call.write(b"\xff not a hello")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [(e.peer, e.reason) for e in live.recorder.of(PeerRefused)] == [("replica-9", "version"), ("", "malformed")]


async def test_a_caller_that_sends_no_hello_does_not_take_the_place_of_a_peer(
    fleet: ReplicaFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grpc.aio

    monkeypatch.setattr(replica_service, "HELLO_SECONDS", 0.05)
    live = await fleet.start("127.0.0.1", fleet.listed("127.0.0.1"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{fleet.port}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        await call.wait_for_connection()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ("", "timeout") in [(event.peer, event.reason) for event in live.recorder.of(PeerRefused)]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([b"\xc1garbage"], id="no report"),
        pytest.param([good(sequence=3)], id="not the first"),
        pytest.param([good(StartedRequest(1, 0, 1, 0, 0, b""), StartedRequest(1, 0, 1, 0, 0, b""))], id="starts twice"),
        pytest.param([good(StartedRequest(-4, 0, -1, 0, 0, b""))], id="negative"),
        pytest.param([good(StartedRequest(1, 0, float("nan"), 0, 0, b""))], id="not a number"),  # type: ignore[arg-type]
        pytest.param([good(), good(StartedRequest(1, 9, 1, 0, 0, b""), sequence=1)], id="unknown endpoint number"),
        pytest.param([b"x" * (9 << 20)], id="too large"),
    ],
)
async def test_a_peer_that_lies_is_refused_counted_and_named_and_the_rest_works(
    fleet: ReplicaFleet, messages: list[bytes]
) -> None:
    async with scripted(fleet, ScriptedPeer(messages=messages)) as live:
        reasons = {"malformed", "too_large"}
        await eventually(lambda: any(e.reason in reasons for e in live.recorder.of(PeerFailed)))
        await withheld(live, "odd (refused: ")
        refused = [event for event in live.recorder.of(PeerChanged) if event.state == "refused"]
        assert refused[0].address == f"127.0.0.2:{fleet.port}"
        assert of_peers(live) == 0
        _, endpoint = await live.send_request()
        assert endpoint in fleet.endpoints


async def test_requests_at_endpoints_and_in_pools_that_are_not_here_change_nothing(fleet: ReplicaFleet) -> None:
    messages = [
        good(StartedRequest(1, 0, 10, 0, 0, b"")),
        good(StartedRequest(2, 0, 5, 0, 0, b""), sequence=1, name="elsewhere"),
    ]
    async with scripted(fleet, ScriptedPeer(messages=messages)) as live:
        await complete(live)
        view = await get(live, "/v1/replicas")
        (peer,) = [peer for peer in view["peers"] if peer["name"] == "odd"]
        assert peer["in_flight"] == {"default": 1, "elsewhere": 1}
        assert of_peers(live) == 0


async def test_a_peer_that_accepts_no_more_peers_is_unknown_and_says_so(
    fleet: ReplicaFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_service, "MAX_STREAMS", 0)
    peers = fleet.listed("127.0.0.1", "127.0.0.2")
    first, second = await fleet.start("127.0.0.1", peers), await fleet.start("127.0.0.2", peers)
    for live, other in ((first, "replica-2"), (second, "replica-1")):
        await withheld(live, f"{other} (refused: 0 peers are connected already)")
        assert "too_many" in {event.reason for event in live.recorder.of(PeerFailed)}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("short", "a secret of 5 bytes; write 16 or more random ones")],
)
async def test_a_token_file_that_holds_no_secret_prevents_the_start(
    fleet: ReplicaFleet, content: str | None, message: str
) -> None:
    fleet.token.unlink()
    if content is not None:
        fleet.token.write_text(content)
    with pytest.raises(CannotStart, match=message):
        await fleet.start("127.0.0.1", fleet.listed("127.0.0.1"))


async def test_without_the_section_nothing_is_shared_and_no_sum_is_withheld(tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    async with servers(1) as started:
        path.write_text(document([started[0].address]))
        async with running(path, healthy=1) as live:
            view = await get(live, "/v1/replicas")
            assert (view["enabled"], view["complete"], view["peers"]) == (False, True, [])
            assert (await gauge(live))["value"] == 0
