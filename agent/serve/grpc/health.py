"""gRPC health of a picker port: may Envoy send requests here, and should Kubernetes restart us?

Three services say whether requests should come (the empty name, `readiness`, and the ext_proc service itself, which is
the one that Envoy's health check names): true while the pool is ready and we are not stopping. `liveness` is true as
long as we can answer at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from agent.serve.grpc.call import Call
from agent.serve.http2.frames import NOT_FOUND, OK, UNAVAILABLE

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"

_Status = health_pb2.HealthCheckResponse


class Health:
    """The health service; `stopping` turns it to NOT_SERVING for good."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._watching: dict[Call, tuple[str, int | None]] = {}  # what is watched, and what was told of it last
        self.stopping = False

    @property
    def watched(self) -> bool:
        """Whether anybody waits for a change."""
        return bool(self._watching)

    def asked(self, call: Call, message: bytes, *, watch: bool) -> None:
        """Answer a question: with the status now, and where it is to be watched, with each change.

        An unknown service is NOT_FOUND, or SERVICE_UNKNOWN where it is watched, as the health protocol has it.
        """
        try:
            service = health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError as error:
            call.finish(UNAVAILABLE, f"no question for health: {error}")
            return
        if watch:
            self._watching[call] = (service, None)
            self.tell()
            return
        status = self._status(service)
        if status == _Status.SERVICE_UNKNOWN:
            call.finish(NOT_FOUND, f"unknown service {service!r}")
            return
        call.send(_Status(status=status).SerializeToString())
        call.finish(OK)

    def tell(self) -> None:
        """Tell those who watch what has changed."""
        for call, (service, told) in list(self._watching.items()):
            status = self._status(service)
            if status != told:
                self._watching[call] = (service, status)
                call.send(_Status(status=status).SerializeToString())

    def leave(self, call: Call) -> None:
        """Somebody watches no more."""
        self._watching.pop(call, None)

    def stop(self) -> None:
        """We are stopping: nobody is told anything any more."""
        self.stopping = True
        for call in list(self._watching):
            call.finish(OK)
        self._watching.clear()

    def _status(self, service: str) -> int:
        if service == LIVENESS:
            status = _Status.SERVING
        elif service not in ("", SERVICE, READINESS):
            status = _Status.SERVICE_UNKNOWN
        else:
            status = _Status.SERVING if self._ready() and not self.stopping else _Status.NOT_SERVING
        return int(status)
