"""Cloud Monitoring as far as `projects.timeSeries.list` goes: a gRPC service with the limits that Google documents.

It is asked by Google's own client, over a channel of our own instead of one to Google. A request names a project, asks
for exactly one metric type, and for an interval that does not end before it begins; the points of a series come newest
first; an answer comes in pages; a sample is shown up to 120 seconds after it was taken.
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

SHOWN_LATE_SECONDS = 120.0
SERIES_A_PAGE = 2


class Sample(NamedTuple):
    """One point of one accelerator of one container; `taken` in seconds since 1970."""

    metric: str
    pod: str
    accelerator: str
    value: float
    taken: float
    cluster: str = "c"


class Refusal(Exception):
    """The status and the words of an answer that is none."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class Monitoring:
    """The service with these samples, asked at `now`."""

    def __init__(self, *samples: Sample, now: float) -> None:
        self.samples = list(samples)
        self.now = now
        self.refusal: Refusal | None = None
        self.pages = 0
        self.types: list[str] = []
        self.channels: list[grpc.Channel] = []
        self.address = ""

    def load(self) -> Any:
        """`google.cloud.monitoring_v3`, whose client asks this service and needs nobody's credentials."""
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
        except Refusal as refusal:
            context.abort(refusal.code, str(refusal))
        start = int(request.page_token or 0)
        end = start + SERIES_A_PAGE
        token = str(end) if end < len(series) else ""
        return monitoring_v3.ListTimeSeriesResponse(time_series=series[start:end], next_page_token=token)

    def _series(self, request: Any) -> list[Any]:
        if self.refusal is not None:
            raise self.refusal
        if not re.fullmatch(r"projects/[a-z][a-z0-9-]+", request.name):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "name must be projects/PROJECT")
        types = re.findall(r'metric\.type = "([^"]+)"', request.filter)
        if len(types) != 1:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the filter must name a single metric type")
        self.types.append(types[0])
        start, end = (getattr(request.interval, f"{name}_time").timestamp() for name in ("start", "end"))
        if end < start or end > self.now:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the interval ends before it begins, or in the future")
        clusters = re.findall(r'resource\.labels\.cluster_name = "([^"]+)"', request.filter)
        found: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            shown = sample.taken + SHOWN_LATE_SECONDS <= self.now and start <= sample.taken <= end
            if sample.metric == types[0] and shown and [sample.cluster] == clusters:
                found.setdefault((sample.pod, sample.accelerator), []).append(sample)
        return [_written(*key, samples) for key, samples in found.items()]


def _written(pod: str, accelerator: str, samples: list[Sample]) -> Any:
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
def serving(*samples: Sample, now: float) -> Iterator[Monitoring]:
    """The service on a port of this machine."""
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
