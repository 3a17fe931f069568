"""GKE's own accelerator metrics from Cloud Monitoring: the only importer of `google.cloud.monitoring_v3`.

No exporter is needed: GKE samples `kubernetes.io/container/accelerator/duty_cycle` (percent), `memory_used` and
`memory_total` (bytes) every 60 seconds, and they are visible up to 120 seconds later (Google's list of GKE system
metrics). So each device has the time of its sample, and picking does not use it. `projects.timeSeries.list` takes one
metric type per request; the points of a series are ordered newest first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.accelerators.device import Device
from agent.accelerators.device_source import DeviceSourceFailed
from agent.accelerators.shares import shared_by_pods
from agent.accelerators.table import DEVICE_SIGNALS, MEMORY_TOTAL, MEMORY_USED, UTILIZATION

INSTALL: Final = "install it with: pip install 'inference-gateway-agent[gke]'"
METRICS: Final[Mapping[str, tuple[str, float]]] = {
    UTILIZATION: ("kubernetes.io/container/accelerator/duty_cycle", 100.0),
    MEMORY_USED: ("kubernetes.io/container/accelerator/memory_used", 1.0),
    MEMORY_TOTAL: ("kubernetes.io/container/accelerator/memory_total", 1.0),
}
# Sampled every 60 s and visible within 120 s: the window has at least one sample.
WINDOW_SECONDS: Final = 300


def library() -> Any:
    """The module `google.cloud.monitoring_v3`; DeviceSourceFailed where it is not installed."""
    try:
        from google.cloud import monitoring_v3
    except ImportError as error:
        raise DeviceSourceFailed("not_installed", f"the source gke needs google-cloud-monitoring; {INSTALL}") from error
    return monitoring_v3


class Gke:
    """The accelerators of one cluster, with the process's Application Default Credentials."""

    name = "gke"

    def __init__(
        self, project: str, location: str, cluster: str, timeout: float, load: Callable[[], Any] = library
    ) -> None:
        self._project = project
        self._where = f'resource.labels.location = "{location}" AND resource.labels.cluster_name = "{cluster}"'
        self._timeout = timeout
        self._load = load
        self._client: Any = None

    def devices(self, now: float, wall: float) -> list[Device]:
        """Every accelerator in use by a container of the cluster, each with the time of its oldest sample.

        Raises DeviceSourceFailed where the library is not installed, or it or the service returns an error.
        """
        monitoring = self._load()
        found: dict[tuple[str, str], Device] = {}
        until = int(wall)
        try:
            if self._client is None:
                self._client = monitoring.MetricServiceClient()
            for signal, (type_, per) in METRICS.items():
                request = {
                    "name": f"projects/{self._project}",
                    "filter": f'metric.type = "{type_}" AND {self._where}',
                    "interval": {"start_time": {"seconds": until - WINDOW_SECONDS}, "end_time": {"seconds": until}},
                    "view": monitoring.ListTimeSeriesRequest.TimeSeriesView.FULL,
                }
                # Without retries, which take up to 90 seconds: the next poll is the retry.
                for series in self._client.list_time_series(request=request, retry=None, timeout=self._timeout):
                    _take(found, series, signal, per, now - wall)
        except DeviceSourceFailed:
            raise
        except Exception as error:  # Google's client and its authentication raise exceptions of several families
            raise DeviceSourceFailed("client_error", f"Cloud Monitoring: {error}") from error
        return shared_by_pods(list(found.values()))

    def close(self) -> None:
        """Close the client."""
        client, self._client = self._client, None
        if client is not None:
            client.transport.close()


def _take(found: dict[tuple[str, str], Device], series: Any, signal: str, per: float, to_monotonic: float) -> None:
    """Add the newest point of a series to its device."""
    if not series.points:
        return
    point, labels, accelerator = series.points[0], series.resource.labels, series.metric.labels
    pod = f"{labels['namespace_name']}/{labels['pod_name']}"
    at = point.interval.end_time.timestamp() + to_monotonic
    number = point.value.int64_value or point.value.double_value
    row = DEVICE_SIGNALS[signal]
    value = number / per
    if not row.low <= value <= row.high:
        return
    name = accelerator["accelerator_id"]
    known = found.get((name, pod))
    if known is None:
        known = Device(
            name,
            name,
            {},
            model=accelerator.get("model", ""),
            pod=pod,
            container=labels.get("container_name", ""),
            at=at,
        )
    oldest = at if known.at is None else min(at, known.at)
    found[name, pod] = known._replace(values={**known.values, signal: value}, at=oldest)
