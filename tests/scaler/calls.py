"""The external scaler behind a real socket, with pools and metrics that a test sets, called by the library grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from agent.events import Event
from agent.scaling.activity import Activity
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import GrpcRouter
from agent.serve.keda.messages import CLASSES, RPCS, SERVICE, parse, serialise
from agent.serve.keda.service import ExternalScalerService
from tests.fakes.clock import ManualClock
from tests.waiting import eventually

WITHIN_SECONDS = 20.0  # bounds a failure
MAX_AGE = 15.0


class ScriptedPools:
    """Pools whose activity a test sets."""

    def __init__(self, *names: str) -> None:
        self.activities: dict[str, Activity | WithheldMetric] = dict.fromkeys(names, Activity.IDLE)
        self.waiting: dict[str, int] = dict.fromkeys(names, 0)

    def names(self) -> Collection[str]:
        return self.activities.keys()

    def activity(self, pool: str, max_age: float, now: float) -> Activity | WithheldMetric:
        return Activity.ACTIVE if self.waiting[pool] else self.activities[pool]

    def held(self, pool: str) -> int:
        return self.waiting[pool]


class ScriptedMetrics:
    """Metrics whose values a test sets, by pool and name, all of one age; the others are withheld."""

    def __init__(self) -> None:
        self.age = 0.0
        self.external: dict[tuple[str, str], float | WithheldMetric] = {}
        self.objects: dict[tuple[str, str], float | WithheldMetric] = {}

    def pod_metrics(self, pool: str, metric: str, now: float) -> Mapping[str, ServedValue | WithheldMetric]:
        raise AssertionError("KEDA reads no metrics of pods")

    def pool_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        return self._value(self.objects, pool, metric, now)

    def external_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        return self._value(self.external, pool, metric, now)

    def _value(
        self, values: Mapping[tuple[str, str], float | WithheldMetric], pool: str, metric: str, now: float
    ) -> ServedValue | WithheldMetric:
        found = values.get((pool, metric), WithheldMetric("none_fresh"))
        return found if isinstance(found, WithheldMetric) else ServedValue(found, now - self.age)


class Scaler:
    """The service, and KEDA's calls of it."""

    def __init__(self, *pools: str) -> None:
        self.pools = ScriptedPools(*pools)
        self.metrics = ScriptedMetrics()
        self.events: list[Event] = []
        self.failures: list[str] = []
        self.service = ExternalScalerService(self.pools, self.metrics, MAX_AGE, ManualClock().now, self.events.append)
        router = GrpcRouter((self.service,), lambda path, error: self.failures.append(f"{path}: {error!r}"))
        self.listener = GrpcListener(router, self.failures.append)
        self.channel: Any = None

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def hold(self, pool: str, requests: int = 1) -> None:
        """Requests are held for the pool."""
        self.pools.waiting[pool] += requests
        self.service.wake(pool)

    async def raw(self, rpc: str, request: bytes) -> bytes:
        """The response to a unary call."""
        response: bytes = await self.channel.unary_unary(f"/{SERVICE}/{rpc}")(request, timeout=WITHIN_SECONDS)
        return response

    async def call(self, rpc: str, metadata: Mapping[str, str], **fields: Any) -> Any:
        """The response to a unary call of the ScaledObject llm/chat, parsed."""
        return parse(RPCS[rpc].response, await self.raw(rpc, request(rpc, metadata, **fields)))

    def stream(self, rpc: str, metadata: Mapping[str, str]) -> Any:
        """An open stream."""
        return self.channel.unary_stream(f"/{SERVICE}/{rpc}")(request(rpc, metadata))


def reference(metadata: Mapping[str, str]) -> Any:
    """A ScaledObjectRef, with what KEDA adds to the metadata of a trigger."""
    added = {"scalerAddress": "igw.llm:9800", **metadata}
    return CLASSES["ScaledObjectRef"](name="chat", namespace="llm", scalerMetadata=added)


def request(rpc: str, metadata: Mapping[str, str], **fields: Any) -> bytes:
    """The request of a method."""
    if RPCS[rpc].request == "GetMetricsRequest":
        return serialise("GetMetricsRequest", scaledObjectRef=reference(metadata), **fields)
    data: bytes = reference(metadata).SerializeToString()
    return data


async def read(stream: Any, response: str = "IsActiveResponse") -> Any:
    """The next message of a stream."""
    data = await stream.read()
    assert data is not grpc.aio.EOF
    return parse(response, data)


async def opened(scaler: Scaler, streams: int) -> None:
    """Wait until so many streams of activity are open."""
    await eventually(lambda: len(scaler.service._streams) == streams, what=f"{streams} open streams")


@asynccontextmanager
async def scaler_of(*pools: str) -> AsyncIterator[Scaler]:
    """A listening scaler of these pools."""
    scaler = Scaler(*pools)
    port = await scaler.listener.listen("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        scaler.channel = channel
        yield scaler
    scaler.service.stop()
    scaler.listener.goaway()
    await scaler.listener.close()
    assert scaler.failures == []
