"""The gRPC health service, grpc.health.v1.Health, of a port that serves Envoy: Check, List and Watch.

The empty name, `readiness`, `inference-extension` and the port's own services (Envoy's health check names one) are
SERVING while the pool is ready and the server is not stopping. `liveness` is SERVING as long as the process can answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from agent.serve.grpc.call import Call
from agent.serve.grpc.router import GrpcMethod, ServerStreamingMethod, UnaryMethod
from agent.serve.grpc.status import StatusCode, StatusError

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
# The name in the readiness and liveness probes of the charts and manifests of the Gateway API inference extension.
INFERENCE_EXTENSION: Final = "inference-extension"
WATCH_SECONDS: Final = 1.0  # how often readiness is read for the watchers
_MAX_REQUEST_BYTES: Final = 64 << 10
_MAX_LISTED: Final = 100  # health.proto: a server may answer RESOURCE_EXHAUSTED over its limit; grpc-go's is 100

_Response = health_pb2.HealthCheckResponse


class HealthService:
    """The service. `ready` is read for each answer; `services` are the names that follow readiness."""

    name = "grpc.health.v1.Health"

    def __init__(self, ready: Callable[[], bool], services: Iterable[str] = ()) -> None:
        self._ready = ready
        self._readiness_names = ("", READINESS, INFERENCE_EXTENSION, *services)
        self._watchers: dict[Call, tuple[str, int]] = {}  # the service that each watches, and the status it has
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {
            "Check": UnaryMethod(self._check, _MAX_REQUEST_BYTES),
            "List": UnaryMethod(self._list, _MAX_REQUEST_BYTES),
            "Watch": ServerStreamingMethod(self._watch, _MAX_REQUEST_BYTES),
        }

    def stop(self) -> None:
        """Answer NOT_SERVING from now on, and finish every Watch."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self.publish()
        watchers, self._watchers = self._watchers, {}
        for call in watchers:
            call.finish(StatusCode.OK)

    def publish(self) -> None:
        """Send each watcher its status if it changed. A watcher that does not read gets the latest once it does."""
        readiness = self._readiness()
        for call, (service, sent) in self._watchers.items():
            status = self._status(service, readiness)
            if status != sent and not call.queue:
                self._watchers[call] = (service, status)
                call.send(_serialised(_Response(status=status)))

    def _check(self, data: bytes) -> bytes:
        service = _parsed(health_pb2.HealthCheckRequest, data).service
        status = self._status(service, self._readiness())
        if status == _Response.SERVICE_UNKNOWN:
            raise StatusError(StatusCode.NOT_FOUND, f"unknown service {service!r}")
        return _serialised(_Response(status=status))

    def _list(self, data: bytes) -> bytes:
        _parsed(health_pb2.HealthListRequest, data)
        names = (*self._readiness_names, LIVENESS)
        if len(names) > _MAX_LISTED:
            raise StatusError(StatusCode.RESOURCE_EXHAUSTED, f"{len(names)} services, over the limit of {_MAX_LISTED}")
        readiness = self._readiness()
        response = health_pb2.HealthListResponse()
        for name in names:
            response.statuses[name].status = self._status(name, readiness)
        return _serialised(response)

    def _watch(self, call: Call, data: bytes) -> Callable[[], None]:
        service = _parsed(health_pb2.HealthCheckRequest, data).service
        status = self._status(service, self._readiness())
        call.send(_serialised(_Response(status=status)))
        if self._stopping:
            call.finish(StatusCode.OK)
        else:
            self._watchers[call] = (service, status)
            if self._timer is None:
                self._schedule()
        return lambda: self._leave(call)

    def _leave(self, call: Call) -> None:
        self._watchers.pop(call, None)

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._watchers:  # first, so that an error of `publish` does not end the updates
            self._schedule()
        self.publish()

    def _readiness(self) -> int:
        return int(_Response.SERVING if self._ready() and not self._stopping else _Response.NOT_SERVING)

    def _status(self, service: str, readiness: int) -> int:
        if service == LIVENESS:
            return int(_Response.SERVING)
        return readiness if service in self._readiness_names else int(_Response.SERVICE_UNKNOWN)


def _parsed(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise StatusError(StatusCode.INTERNAL, f"the request cannot be parsed: {error}") from error


def _serialised(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
