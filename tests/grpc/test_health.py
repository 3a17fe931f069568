"""The health service without a socket; tests/serve/test_ext_proc.py has it on a picker port."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from agent.serve.grpc.health import HealthService
from agent.serve.grpc.router import GrpcRouter
from agent.serve.grpc.status import StatusCode
from tests.fakes.http2_client import Http2Client

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
CHECK, LIST, WATCH = (f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch"))


class HealthPort:
    """A client of a router that has the health service."""

    def __init__(self, *services: str) -> None:
        self.is_ready = True
        self.reads = 0
        self.health = HealthService(self._ready, services)
        self.client = Http2Client(GrpcRouter((self.health,), lambda _, __: None))

    def _ready(self) -> bool:
        self.reads += 1
        return self.is_ready

    def watch(self, service: str) -> int:
        return self.client.call(WATCH, request(service))

    def publish(self) -> None:
        self.health.publish()
        self.client.exchange()

    def statuses(self, stream: int) -> list[int]:
        return [health_pb2.HealthCheckResponse.FromString(data).status for data in self.client.responses(stream)]


def request(service: str) -> bytes:
    data: bytes = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return data


@pytest.fixture
async def port() -> Any:
    port = HealthPort("a.Service", "b.Service")
    yield port
    port.health.stop()


async def test_check_answers_each_name_that_list_has(port: HealthPort) -> None:
    for port.is_ready in (True, False):
        listed = health_pb2.HealthListResponse.FromString(port.client.responses(port.client.call(LIST, b""))[0])
        readiness = SERVING if port.is_ready else NOT_SERVING
        assert {name: response.status for name, response in listed.statuses.items()} == {
            "": readiness, "readiness": readiness, "inference-extension": readiness, "a.Service": readiness,
            "b.Service": readiness, "liveness": SERVING,
        }  # fmt: skip
        for name, response in listed.statuses.items():
            assert port.statuses(port.client.call(CHECK, request(name))) == [response.status]


async def test_check_of_an_unknown_service_is_not_found_and_watch_says_service_unknown(port: HealthPort) -> None:
    assert port.client.status(port.client.call(CHECK, request("other"))) == StatusCode.NOT_FOUND
    assert port.statuses(port.watch("other")) == [UNKNOWN]


@pytest.mark.parametrize("path", [CHECK, LIST, WATCH])
async def test_a_request_that_cannot_be_parsed_is_internal(path: str, port: HealthPort) -> None:
    assert port.client.status(port.client.call(path, b"\xff\xff\xff")) == StatusCode.INTERNAL


async def test_list_of_more_than_a_hundred_services_is_resource_exhausted() -> None:
    for count, status in ((96, StatusCode.OK), (97, StatusCode.RESOURCE_EXHAUSTED)):
        port = HealthPort(*(f"service{number}" for number in range(count)))
        assert port.client.status(port.client.call(LIST, b"")) == status


async def test_a_watcher_gets_the_status_now_and_each_change_once(port: HealthPort) -> None:
    stream, liveness = port.watch("readiness"), port.watch("liveness")
    port.publish()
    port.is_ready = False
    port.publish()
    port.publish()
    port.is_ready = True
    port.publish()
    assert port.statuses(stream) == [SERVING, NOT_SERVING, SERVING]
    assert port.statuses(liveness) == [SERVING]


async def test_a_new_watcher_is_answered_alone_and_a_change_is_broadcast_once(port: HealthPort) -> None:
    streams = [port.watch("readiness")]
    port.is_ready = False
    for count in range(2, 20):
        port.reads = 0
        streams.append(port.watch("readiness"))
        assert (port.reads, port.statuses(streams[-1])) == (1, [NOT_SERVING])
        assert [port.statuses(stream) for stream in streams[:1]] == [[SERVING]], count
    port.reads = 0
    port.publish()
    assert port.reads == 1
    assert [port.statuses(stream) for stream in streams] == [[SERVING, NOT_SERVING], *[[NOT_SERVING]] * 18]


async def test_a_watcher_between_two_changes_misses_none(port: HealthPort) -> None:
    port.is_ready = False
    stream = port.watch("readiness")
    port.is_ready = True
    port.publish()
    assert port.statuses(stream) == [NOT_SERVING, SERVING]


async def test_a_watcher_that_does_not_read_gets_only_the_latest_status(port: HealthPort) -> None:
    port.client.server.pause(paused=True)
    stream = port.watch("readiness")
    for port.is_ready in (False, True, False):
        port.publish()
    port.client.server.pause(paused=False)
    port.publish()
    assert port.statuses(stream) == [SERVING, NOT_SERVING]


async def test_watchers_get_not_serving_and_their_end_when_the_server_stops_and_later_answers_are_not_serving(
    port: HealthPort,
) -> None:
    stream = port.watch("readiness")
    port.health.stop()
    port.client.exchange()
    assert (port.statuses(stream), port.client.status(stream)) == ([SERVING, NOT_SERVING], StatusCode.OK)
    assert port.statuses(port.client.call(CHECK, request(""))) == [NOT_SERVING]
    assert port.statuses(port.client.call(CHECK, request("liveness"))) == [SERVING]
    assert port.client.status(port.watch("")) == StatusCode.OK


async def test_a_watcher_that_leaves_is_forgotten(port: HealthPort) -> None:
    stream = port.watch("readiness")
    port.client.h2.reset_stream(stream)
    port.client.exchange()
    port.is_ready = False
    port.publish()
    assert port.statuses(stream) == [SERVING]
    gc.collect()
    assert port.health._watchers == {}
