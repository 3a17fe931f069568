"""Cloud Monitoring as far as `projects.timeSeries.list` goes, with the limits that Google documents.

A request names a project, asks for exactly one metric type, and for an interval that does not end before it begins;
the points of a series come newest first; a sample is shown up to 120 seconds after it was taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

SHOWN_LATE_SECONDS = 120.0


class InvalidArgument(Exception):
    """400, as google.api_core.exceptions has it."""


class PermissionDenied(Exception):
    """403."""


class Sample(NamedTuple):
    """One point of one accelerator of one container; `taken` in seconds since 1970."""

    metric: str
    pod: str
    accelerator: str
    value: float
    taken: float
    cluster: str = "c"


class FakeMonitoring:
    """The module `google.cloud.monitoring_v3`, with these samples."""

    class ListTimeSeriesRequest:
        """Only its views."""

        class TimeSeriesView:
            """FULL is 0."""

            FULL = 0

    def __init__(self, *samples: Sample, now: float, denied: bool = False) -> None:
        self.samples = list(samples)
        self.now = now
        self.denied = denied
        self.requests: list[dict[str, Any]] = []
        self.closed = 0
        self.transport = self

    def close(self) -> None:
        self.closed += 1

    def MetricServiceClient(self) -> FakeMonitoring:  # noqa: N802
        return self

    def list_time_series(self, request: dict[str, Any], timeout: float) -> Iterator[Any]:
        """The series that the filter lets through."""
        self.requests.append(request)
        if self.denied:
            raise PermissionDenied("Permission monitoring.timeSeries.list denied")
        if not re.fullmatch(r"projects/[a-z][a-z0-9-]+", request["name"]):
            raise InvalidArgument("name must be projects/PROJECT")
        types = re.findall(r'metric\.type = "([^"]+)"', request["filter"])
        if len(types) != 1:
            raise InvalidArgument("the filter must name a single metric type")
        start, end = (request["interval"][f"{name}_time"]["seconds"] for name in ("start", "end"))
        if end < start or end > self.now:
            raise InvalidArgument("the interval ends before it begins, or in the future")
        clusters = re.findall(r'resource\.labels\.cluster_name = "([^"]+)"', request["filter"])
        found: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            shown = sample.taken + SHOWN_LATE_SECONDS <= self.now and start <= sample.taken <= end
            if sample.metric == types[0] and shown and [sample.cluster] == clusters:
                found.setdefault((sample.pod, sample.accelerator), []).append(sample)
        for (pod, accelerator), samples in found.items():
            namespace, _, name = pod.partition("/")
            points = [
                SimpleNamespace(
                    interval=SimpleNamespace(end_time=datetime.fromtimestamp(sample.taken, UTC)),
                    value=_value(sample),
                )
                for sample in sorted(samples, key=lambda each: -each.taken)
            ]
            yield SimpleNamespace(
                metric=SimpleNamespace(labels={"accelerator_id": accelerator, "make": "nvidia", "model": "nvidia-l4"}),
                resource=SimpleNamespace(
                    labels={"namespace_name": namespace, "pod_name": name, "container_name": "vllm"}
                ),
                points=points,
            )


def _value(sample: Sample) -> Any:
    whole = float(sample.value).is_integer()
    return SimpleNamespace(
        int64_value=int(sample.value) if whole else 0, double_value=0.0 if whole else float(sample.value)
    )
