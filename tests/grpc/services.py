"""A service with one method of each kind, for the tests of the router and of the listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.router import BidiMethod, GrpcMethod, ServerStreamingMethod, UnaryMethod
from agent.serve.grpc.status import StatusCode, StatusError

MAX_MESSAGE_BYTES = 1000
ECHO = "igw.test.Echo"


class EchoService:
    """Unary reverses its request, ServerStream repeats its request, Bidi reverses each message."""

    name = ECHO

    def __init__(self) -> None:
        self.streams: list[Call] = []  # ServerStream calls without an end
        self.left: list[str] = []

    def methods(self) -> Mapping[str, GrpcMethod]:
        return {
            "Unary": UnaryMethod(self._unary, MAX_MESSAGE_BYTES),
            "ServerStream": ServerStreamingMethod(self._server_stream, MAX_MESSAGE_BYTES),
            "Bidi": BidiMethod(lambda call: EchoCall(self, call), 2 * MAX_MESSAGE_BYTES),
            "BidiFails": BidiMethod(self._fail, MAX_MESSAGE_BYTES),
        }

    def _unary(self, request: bytes) -> bytes:
        match request:
            case b"raise":
                raise ZeroDivisionError("division by zero")
            case b"refuse":
                raise StatusError(StatusCode.NOT_FOUND, "nothing here")
        return request[::-1]

    def _server_stream(self, call: Call, request: bytes) -> Callable[[], None]:
        for number in range(3):
            call.send(b"%s %d" % (request, number))
        match request:
            case b"raise":
                raise ZeroDivisionError("division by zero")
            case b"endless":
                self.streams.append(call)
            case _:
                call.finish()
        return lambda: self.left.append("ServerStream")

    def _fail(self, call: Call) -> CallHandler:
        raise ZeroDivisionError("division by zero")


class EchoCall:
    """The handler of one Bidi call."""

    def __init__(self, service: EchoService, call: Call) -> None:
        self._service = service
        self._call = call

    def on_message(self, message: bytes) -> None:
        if message == b"raise":
            raise ZeroDivisionError("division by zero")
        self._call.send(message[::-1])

    def on_half_close(self) -> None:
        self._call.finish()

    def on_close(self) -> None:
        self._service.left.append("Bidi")
