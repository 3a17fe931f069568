"""The gRPC router: the path of a call, `/package.Service/Method`, selects a method of a registered service. Pure.

A service is a class with a `name` and a table of `methods`; each method is one of three kinds:

    UnaryMethod            one request message -> one response message
    ServerStreamingMethod  one request message -> messages sent on the call until it is finished or the client leaves
    BidiMethod             an object for each call that receives the events of `CallHandler`

The handler is resolved once for each call. An unknown path is answered UNIMPLEMENTED. A unary or server-streaming call
with no request message, or with more than one, is answered UNIMPLEMENTED too ("request cardinality violation" in
grpc/doc/statuscodes.md); to know that, its request is handled when the client half-closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.status import StatusCode, StatusError


class GrpcMethod(Protocol):
    """How a method's calls are handled. A request message over `max_message_bytes` is answered RESOURCE_EXHAUSTED."""

    max_message_bytes: int

    def start(self, call: Call) -> CallHandler:
        """The handler of a new call."""
        ...


class GrpcService(Protocol):
    """A service: its full name, `package.Service`, and its methods by name."""

    name: str

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name, read once."""
        ...


class UnaryMethod:
    """`handle` returns the serialised response to a serialised request, or raises `StatusError`."""

    def __init__(self, handle: Callable[[bytes], bytes], max_message_bytes: int) -> None:
        self._handle = handle
        self.max_message_bytes = max_message_bytes

    def start(self, call: Call) -> CallHandler:
        """The handler of a new call."""
        return _SingleRequest(call, self._respond)

    def _respond(self, call: Call, request: bytes) -> None:
        call.send(self._handle(request))
        call.finish()


class ServerStreamingMethod:
    """`start_stream` begins the response to a serialised request, or raises `StatusError`.

    It sends on the call now or later and finishes it; what it returns is called if the client leaves before that.
    """

    def __init__(self, start_stream: Callable[[Call, bytes], Callable[[], None]], max_message_bytes: int) -> None:
        self._start_stream = start_stream
        self.max_message_bytes = max_message_bytes

    def start(self, call: Call) -> CallHandler:
        """The handler of a new call."""
        return _SingleRequest(call, self._start_stream)


class BidiMethod:
    """`start_call` returns the handler of one call."""

    def __init__(self, start_call: Callable[[Call], CallHandler], max_message_bytes: int) -> None:
        self._start_call = start_call
        self.max_message_bytes = max_message_bytes

    def start(self, call: Call) -> CallHandler:
        """The handler of a new call."""
        return self._start_call(call)


class _SingleRequest:
    """Takes the only request message of a call, and handles it when the client half-closes."""

    __slots__ = ("_call", "_handle", "_on_close", "_request")

    def __init__(self, call: Call, handle: Callable[[Call, bytes], Callable[[], None] | None]) -> None:
        self._call = call
        self._handle = handle
        self._request: bytes | None = None
        self._on_close: Callable[[], None] | None = None

    def on_message(self, message: bytes) -> None:
        """A message from the client."""
        if self._request is not None:
            raise StatusError(StatusCode.UNIMPLEMENTED, "more than one request message")
        self._request = message

    def on_half_close(self) -> None:
        """Handle the request."""
        if self._request is None:
            raise StatusError(StatusCode.UNIMPLEMENTED, "no request message")
        self._on_close = self._handle(self._call, self._request)

    def on_close(self) -> None:
        """The client left."""
        if self._on_close is not None:
            self._on_close()


class GrpcRouter:
    """The methods of these services by path. `failed` receives the path and the exception of a handler that raised.

    Raises ValueError where two services have one name.
    """

    def __init__(self, services: Iterable[GrpcService], failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self._methods: dict[str, GrpcMethod] = {}
        for service in services:
            for name, method in service.methods().items():
                path = f"/{service.name}/{name}"
                if path in self._methods:
                    raise ValueError(f"two handlers for {path}")
                self._methods[path] = method

    def open(self, call: Call) -> None:
        """Give the call its handler, or answer UNIMPLEMENTED."""
        method = self._methods.get(call.path)
        if method is None:
            call.finish(StatusCode.UNIMPLEMENTED, f"there is no method {call.path[:128]} here")
            return
        call.max_message_bytes = method.max_message_bytes
        call.handler = method.start(call)

    def handler_failed(self, call: Call, error: Exception) -> None:
        """A handler raised an exception other than `StatusError`."""
        self._failed(call.path, error)
