"""A fake of Cloud Monitoring's `projects.timeSeries.list`: a gRPC service with the documented limits.

Google's client sends its requests over a local channel. A request has a project, exactly one metric type, and an
interval that does not end before it starts. The points of a series are newest first, a response has pages, and a sample
is visible 120 seconds after it was taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
from google.cloud import monitoring_v3
from google.cloud.monitoring_v3.services.metric_service.transports import MetricServiceGrpcTransport

VISIBLE_AFTER_SECONDS = 120.0
SERIES_PER_PAGE = 2


class MonitoringSample(NamedTuple):
    """One point of one accelerator of one container; `taken` in seconds since 1970."""

    metric: str
    pod: str
    accelerator: str
    value: float
    taken: float
    cluster: str = "c"


class RpcError(Exception):
    """The status and message of a failed call."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Monitoring:
    """The service with these samples; `now` is the current time."""

    def __init__(self, *samples: MonitoringSample, now: float) -> None:
        self.samples = list(samples)
        self.now = now
        self.refusal: RpcError | None = None
        self.pages = 0
        self.types: list[str] = []
        self.channels: list[grpc.Channel] = []
        self.address = ""

    def load(self) -> Any:
        """`google.cloud.monitoring_v3` with a client for this service, without credentials."""
        return SimpleNamespace(
            ListTimeSeriesRequest=monitoring_v3.ListTimeSeriesRequest, MetricServiceClient=self._client
        )

    def _client(self) -> Any:
        channel = grpc.insecure_channel(self.address)
        self.channels.append(channel)
        return monitoring_v3.MetricServiceClient(transport=MetricServiceGrpcTransport(channel=channel))

    def answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One page of series."""
        self.pages += 1
        try:
            series = self._series(request)
        except RpcError as refusal:
            context.abort(refusal.code, str(refusal))
        start = int(request.page_token or 0)
        end = start + SERIES_PER_PAGE
        token = str(end) if end < len(series) else ""
        return monitoring_v3.ListTimeSeriesResponse(time_series=series[start:end], next_page_token=token)

    def _series(self, request: Any) -> list[Any]:
        if self.refusal is not None:
            raise self.refusal
        if not re.fullmatch(r"projects/[a-z][a-z0-9-]+", request.name):
            raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "name must be projects/PROJECT")
        types = re.findall(r'metric\.type = "([^"]+)"', request.filter)
        if len(types) != 1:
            raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "the filter must name a single metric type")
        self.types.append(types[0])
        start, end = (getattr(request.interval, f"{name}_time").timestamp() for name in ("start", "end"))
        if end < start or end > self.now:
            raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "the interval ends before it begins, or in the future")
        clusters = re.findall(r'resource\.labels\.cluster_name = "([^"]+)"', request.filter)
        found: dict[tuple[str, str], list[MonitoringSample]] = {}
        for sample in self.samples:
            visible = sample.taken + VISIBLE_AFTER_SECONDS <= self.now and start <= sample.taken <= end
            if sample.metric == types[0] and visible and [sample.cluster] == clusters:
                found.setdefault((sample.pod, sample.accelerator), []).append(sample)
        return [_written(*key, samples) for key, samples in found.items()]


def _written(pod: str, accelerator: str, samples: list[MonitoringSample]) -> Any:
    namespace, _, name = pod.partition("/")
    return monitoring_v3.TimeSeries(
        metric={"labels": {"accelerator_id": accelerator, "make": "nvidia", "model": "nvidia-l4"}},
        resource={"labels": {"namespace_name": namespace, "pod_name": name, "container_name": "vllm"}},
        points=[
            {"interval": {"end_time": {"seconds": int(sample.taken)}}, "value": _value(sample.value)}
            for sample in sorted(samples, key=lambda each: -each.taken)
        ],
    )


def _value(value: float) -> dict[str, Any]:
    return {"int64_value": int(value)} if float(value).is_integer() else {"double_value": value}


@contextmanager
def serving(*samples: MonitoringSample, now: float) -> Iterator[Monitoring]:
    """The service on a free port of this machine."""
    service = Monitoring(*samples, now=now)
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        service.answer,
        request_deserializer=monitoring_v3.ListTimeSeriesRequest.deserialize,
        response_serializer=monitoring_v3.ListTimeSeriesResponse.serialize,
    )
    name = "google.monitoring.v3.MetricService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ListTimeSeries": handler}),))
    service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield service
    finally:
        for channel in service.channels:
            channel.close()
        server.stop(0).wait()
