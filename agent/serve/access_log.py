"""Envoy's gRPC access log service on the picker port: how the response to each picked request ended.

An entry costs the agent nothing for each chunk of a response, and Envoy's worker does not wait for it. Envoy sends
entries in batches; `igw render` sets how often. Entries of requests that were not picked here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from envoy.data.accesslog.v3 import accesslog_pb2 as entries
from envoy.service.accesslog.v3 import als_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from agent.requests.exchange_text import TAG, read_exchange
from agent.requests.response import CONNECT_FAILURE, RESET, TIMEOUT, Response, broken_by
from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.router import BidiMethod, GrpcMethod
from agent.serve.grpc.status import StatusCode, StatusError

SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
RETRY_AFTER: Final = "retry-after"  # the only response header that the log has to contain

_MAX_MESSAGE_BYTES: Final = 4 << 20  # Envoy flushes at 16 KiB; an entry has headers of at most 60 KiB


class AccessLogSink(Protocol):
    """Takes the entries of one pool."""

    def log_opened(self) -> None:
        """A proxy begins to send its access log."""
        ...

    def log_closed(self) -> None:
        """A proxy has ended it."""
        ...

    def logged(self, request_id: str, response: Response) -> None:
        """One request is over."""
        ...


class AccessLogService:
    """The gRPC service, for one pool."""

    name = SERVICE

    def __init__(self, sink: AccessLogSink) -> None:
        self._sink = sink

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {"StreamAccessLogs": BidiMethod(self._begin, _MAX_MESSAGE_BYTES)}

    def _begin(self, call: Call) -> CallHandler:
        return _LogStream(call, self._sink)


class _LogStream:
    """One stream of a proxy; it counts as open until it ends."""

    __slots__ = ("_call", "_open", "_sink")

    def __init__(self, call: Call, sink: AccessLogSink) -> None:
        self._call = call
        self._sink = sink
        self._open = True
        sink.log_opened()

    def on_message(self, message: bytes) -> None:
        """A batch of entries."""
        try:
            batch = pb.StreamAccessLogsMessage.FromString(message)
        except DecodeError as error:
            raise StatusError(StatusCode.INVALID_ARGUMENT, f"not a StreamAccessLogsMessage: {error}") from error
        for entry in batch.http_logs.log_entry:
            if not entry.common_properties.intermediate_log_entry:
                self._sink.logged(entry.request.request_id, response_of(entry))

    def on_half_close(self) -> None:
        """The proxy sends no more entries."""
        self._call.send(pb.StreamAccessLogsResponse().SerializeToString())
        self._call.finish(StatusCode.OK)
        self.on_close()

    def on_close(self) -> None:
        """The stream has ended."""
        if self._open:
            self._open = False
            self._sink.log_closed()


def response_of(entry: entries.HTTPAccessLogEntry) -> Response:
    """What an entry of the access log says of a response."""
    common, response = entry.common_properties, entry.response
    flags = common.response_flags
    broken = ""
    if flags.upstream_connection_failure:
        broken = CONNECT_FAILURE
    elif flags.upstream_remote_reset or flags.upstream_connection_termination or flags.upstream_protocol_error:
        broken = RESET
    elif flags.upstream_request_timeout or flags.stream_idle_timeout or flags.upstream_max_stream_duration_reached:
        broken = TIMEOUT
    client_left = flags.downstream_connection_termination or flags.downstream_remote_reset
    if not broken and not client_left:
        broken = broken_by(response.response_code_details)
    line = common.custom_tags.get(TAG)
    return Response(
        response.response_code.value,
        broken,
        client_left,
        _address(common),
        max(1, common.upstream_request_attempt_count),
        RETRY_AFTER in response.response_headers,
        complete=True,
        body_bytes=response.response_body_bytes,
        exchange=None if line is None else read_exchange(line, _seconds(common.duration)),
    )


def _seconds(duration: Duration) -> float:
    return max(0.0, duration.seconds + duration.nanos / 1e9)


def _address(common: entries.AccessLogCommon) -> str:
    """The endpoint of the last try as `ip:port`; empty where there was none."""
    socket = common.upstream_remote_address.socket_address
    host = socket.address
    if not host:
        return ""
    return f"[{host}]:{socket.port_value}" if ":" in host else f"{host}:{socket.port_value}"
