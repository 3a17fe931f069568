"""KEDA's calls of a running agent."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from agent.app.agent import Agent
from agent.app.component import CannotStart
from agent.app.vocabulary import VOCABULARY
from agent.clock import SystemClock
from agent.config.file import load
from agent.events.keda import ScalerCalled
from agent.events.tls import HandshakeFailed
from agent.serve.keda.messages import RPCS, SERVICE, parse
from tests.app.live import document, running, servers
from tests.app.test_flow_views import get, hold
from tests.fakes.ext_proc import finish
from tests.scaler.calls import read, request
from tests.scrape.authority import Authority
from tests.waiting import eventually, found

KEDA = "keda: {address: '127.0.0.1:0'}\n"
FROM_ZERO = "  scaleFromZero: true\n"
HELD = {"metric": "igw_flow_held_requests", "threshold": "8"}


async def call(channel: Any, rpc: str, metadata: dict[str, str], **fields: Any) -> Any:
    data = await channel.unary_unary(f"/{SERVICE}/{rpc}")(request(rpc, metadata, **fields), timeout=20)
    return parse(RPCS[rpc].response, data)


async def test_the_first_request_that_is_held_for_an_empty_pool_reaches_the_stream_of_keda(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([], FROM_ZERO + KEDA))
    async with running(path, 0) as live, grpc.aio.insecure_channel(live.agent.keda_address) as channel:
        stream = channel.unary_stream(f"/{SERVICE}/StreamIsActive")(request("StreamIsActive", HELD))
        assert (await read(stream)).result is False
        assert (await call(channel, "GetMetrics", HELD)).metricValues[0].metricValueFloat == 0.0
        held = await hold(live, "first")
        assert (await read(stream)).result is True
        assert (await call(channel, "IsActive", HELD)).result is True
        assert (await call(channel, "GetMetrics", HELD)).metricValues[0].metricValueFloat == 1.0
        page = await get(live, "/metrics")
        assert 'igw_keda_activations_total{pool="default"} 1.0' in page
        assert 'igw_keda_calls_total{pool="default",result="ok",rpc="IsActive"} 1.0' in page
        assert "igw_keda_streams 1.0" in page
        held.cancel()
        assert (await read(stream)).result is False


async def test_a_pool_is_active_until_its_last_request_has_ended_and_its_servers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (server,):
        path.write_text(document([server.address], KEDA))
        async with running(path, 1) as live, grpc.aio.insecure_channel(live.agent.keda_address) as channel:
            sent, _ = await live.send_request()
            assert (await call(channel, "IsActive", HELD)).result is True
            await finish(sent)
            await found(lambda: call(channel, "IsActive", HELD), lambda answer: not answer.result)
            waiting = {"metric": "igw_pool_waiting_requests", "threshold": "4"}
            (value,) = (await call(channel, "GetMetrics", waiting)).metricValues
            assert value.metricName == "igw_pool_waiting_requests"


async def test_a_value_that_is_older_than_the_limit_of_the_metrics_apis_is_an_error_to_keda_also_after_a_reload(
    tmp_path: Path,
) -> None:
    path = tmp_path / "igw.yaml"
    waiting = {"metric": "igw_pool_waiting_requests", "threshold": "4"}
    async with servers(1) as (server,):
        path.write_text(document([server.address], KEDA))
        async with running(path, 1) as live, grpc.aio.insecure_channel(live.agent.keda_address) as channel:
            assert (await call(channel, "GetMetrics", waiting)).metricValues[0].metricValueFloat == 0.0
            path.write_text(document([server.address], f"{KEDA}metricsApi: {{maxAge: 100ms}}\n"))

            async def refusal() -> str:
                try:
                    await call(channel, "GetMetrics", waiting)
                except grpc.aio.AioRpcError as error:
                    return f"{error.code().name}: {error.details()}"
                return ""

            message = await found(refusal, bool)
            assert message.startswith(
                "UNAVAILABLE: igw_pool_waiting_requests of pool default is withheld (stale): its age of"
            )
            assert message.endswith("is over metricsApi.maxAge (0.1 s)")
            page = await get(live, "/metrics")
            assert 'igw_keda_calls_total{pool="default",result="withheld",rpc="GetMetrics"}' in page


async def test_the_port_has_the_health_service_and_serves_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("keda")
    path = tmp_path / "igw.yaml"
    tls = f"keda: {{address: '127.0.0.1:0', tls: {{certFile: {certificate}, keyFile: {key}}}}}\n"
    path.write_text(document([], tls))
    async with running(path, 0) as live:
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        async with grpc.aio.secure_channel(live.agent.keda_address, credentials) as channel:
            assert (await call(channel, "GetMetricSpec", {})).metricSpecs[0].metricName == "igw_demand_replicas"
            wanted = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
            answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(wanted, timeout=20)
            assert health_pb2.HealthCheckResponse.FromString(answer).status == 1
        async with grpc.aio.insecure_channel(live.agent.keda_address) as plain:
            with pytest.raises(grpc.aio.AioRpcError):
                await call(plain, "GetMetricSpec", {})
        await eventually(lambda: [event.port for event in live.recorder.of(HandshakeFailed)])
        assert live.recorder.of(HandshakeFailed)[0].port == "keda"


async def test_a_connection_that_is_not_http2_is_counted_and_others_are_served(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([], KEDA))
    async with running(path, 0) as live:
        host, port = live.agent.keda_address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
            await eventually(lambda: live.recorder.of(ScalerCalled))
        assert live.recorder.of(ScalerCalled)[0].result == "broken"
        async with grpc.aio.insecure_channel(live.agent.keda_address) as channel:
            assert (await call(channel, "IsActive", {})).result is False


async def test_an_address_that_is_in_use_is_refused_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        path = tmp_path / "igw.yaml"
        path.write_text(document([], f"keda: {{address: '127.0.0.1:{port}'}}\n"))
        agent = Agent(load(path, VOCABULARY), SystemClock(), path=path)
        with pytest.raises(CannotStart, match=r"in use by another program; choose another with keda\.address"):
            await agent.start()
