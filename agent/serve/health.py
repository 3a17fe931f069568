"""gRPC health of a picker port: may Envoy send requests here, and should Kubernetes restart us?

Three services say whether requests should come (the empty name, `readiness`, and the ext_proc service itself, which is
the one that Envoy's health check names): true while the pool is ready and we are not stopping. `liveness` is true as
long as we can answer at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS: Final = "liveness"
READINESS: Final = "readiness"

_WATCH_SECONDS: Final = 1.0  # how often a watcher is told of a change
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The health service; `stopping` turns it to NOT_SERVING for good."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self.stopping = False

    def _status(self, service: str) -> Any:
        if service == LIVENESS:
            return _Status.SERVING
        if service not in ("", SERVICE, READINESS):
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._ready() and not self.stopping else _Status.NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  the protocol's name
        """The status now; NOT_FOUND for an unknown service, as the health protocol has it."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802  the protocol's name
        """The status now and at each change; an unknown service is SERVICE_UNKNOWN."""
        told = None
        while not self.stopping:
            status = self._status(request.service)
            if status != told:
                await context.write(_Status(status=status))
                told = status
            await asyncio.sleep(_WATCH_SECONDS)
