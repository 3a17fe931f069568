"""One gRPC call on an HTTP/2 stream: message framing, status and trailers (grpc/doc/PROTOCOL-HTTP2.md). Pure.

A message is a 5-byte prefix (compressed or not, length) and its bytes; it may span DATA frames, and a frame may hold
several. Compressed messages are refused (UNIMPLEMENTED). `grpc-timeout` is ignored: a client cancels the call when its
deadline has passed, and that ends it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, Protocol
from urllib.parse import quote

from agent.serve.grpc.status import StatusCode, StatusError
from agent.serve.http2.connection import Connection, Stream
from agent.serve.http2.header_fields import STATUS_200, literal

MESSAGE_PREFIX: Final = Struct(">BI")  # compressed or not, length
_PREFIX_SIZE: Final = 5
_RESPONSE_HEADERS: Final = STATUS_200 + literal(b"content-type", b"application/grpc")
_MAX_STATUS_MESSAGE: Final = 1000  # bytes, encoded


class CallHandler(Protocol):
    """The server's side of one call. It answers through its `Call`, and must not block.

    A `StatusError` raised here ends the call with its status, any other exception with INTERNAL.
    """

    def on_message(self, message: bytes) -> None:
        """A message from the client."""
        ...

    def on_half_close(self) -> None:
        """The client sends no more messages, and waits for the status."""
        ...

    def on_close(self) -> None:
        """The call ended, and this handler did not finish it: it was cancelled, lost or refused, or an event raised."""
        ...


class CallOpener(Protocol):
    """Finds the handler of a new call."""

    def open(self, call: Call) -> None:
        """Set the call's `handler` and `max_message_bytes`, or finish the call."""
        ...

    def handler_failed(self, call: Call, error: Exception) -> None:
        """A handler raised an exception other than `StatusError`."""
        ...


class Call(Stream):
    """One call. `path` is `/package.Service/Method`."""

    __slots__ = ("_headers_sent", "_opener", "_partial", "handler", "max_message_bytes", "path")

    def __init__(self, connection: Connection, stream_id: int, send_window: int, opener: CallOpener) -> None:
        super().__init__(connection, stream_id, send_window)
        self._opener = opener
        self._headers_sent = False
        self._partial = bytearray()  # an incomplete message
        self.handler: CallHandler | None = None  # until the call is over
        self.max_message_bytes = 0
        self.path = ""

    # -- handlers call these -----------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a message, unless the call is over."""
        if not self.done:
            if not self._headers_sent:
                self._headers_sent = True
                self.connection.send_headers(self, _RESPONSE_HEADERS)
            self.connection.send_data(self, MESSAGE_PREFIX.pack(0, len(message)) + message)

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        """End the call with this status, unless it is over."""
        if not self.done:
            trailers = b"" if self._headers_sent else _RESPONSE_HEADERS
            trailers += literal(b"grpc-status", b"%d" % code)
            if message:
                trailers += literal(b"grpc-message", _percent_encoded(message))
            self._release()
            self.connection.end_stream(self, trailers)

    # -- the connection calls these ----------------------------------------------------------------------------------

    def on_headers(self, path: str) -> None:
        """Find the handler."""
        self.path = path
        try:
            self._opener.open(self)
        except Exception as error:  # noqa: BLE001  a handler's error ends its own call only
            self._fail(error)

    def on_data(self, data: bytes) -> None:
        """Hand on the messages that these bytes complete."""
        handler = self.handler
        if handler is None:
            return
        try:
            if not self._partial and len(data) >= _PREFIX_SIZE:
                compressed, length = MESSAGE_PREFIX.unpack_from(data)
                if len(data) == _PREFIX_SIZE + length and not compressed and length <= self.max_message_bytes:
                    handler.on_message(data[_PREFIX_SIZE:])
                    return
            for message in self._messages(data):
                handler.on_message(message)
        except Exception as error:  # noqa: BLE001  as above
            self._fail(error)

    def on_half_close(self) -> None:
        """Hand it on, unless the last message is incomplete."""
        if self._partial:
            self._fail(StatusError(StatusCode.INTERNAL, "the last message is incomplete"))
        elif self.handler is not None:
            try:
                self.handler.on_half_close()
            except Exception as error:  # noqa: BLE001  as above
                self._fail(error)

    def on_close(self) -> None:
        """Hand it on."""
        handler = self.handler
        self._release()
        self._close_handler(handler)

    # -- within ------------------------------------------------------------------------------------------------------

    def _messages(self, data: bytes) -> Iterator[bytes]:
        """The messages that these bytes complete, until the call is done. Raises `StatusError`."""
        partial = self._partial
        partial += data
        while len(partial) >= _PREFIX_SIZE and not self.done:
            compressed, length = MESSAGE_PREFIX.unpack_from(partial)
            if compressed:
                raise StatusError(StatusCode.UNIMPLEMENTED, "compressed messages are not supported")
            if length > self.max_message_bytes:
                raise StatusError(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"message of {length} bytes, over the limit of {self.max_message_bytes}",
                )
            if len(partial) < _PREFIX_SIZE + length:
                return
            message = bytes(partial[_PREFIX_SIZE : _PREFIX_SIZE + length])
            del partial[: _PREFIX_SIZE + length]
            yield message

    def _fail(self, error: Exception) -> None:
        """An event raised: end the call, unless its handler has finished it before."""
        code, message = StatusCode.INTERNAL, "the handler failed"
        if isinstance(error, StatusError):
            code, message = error.code, str(error)
        else:
            self._opener.handler_failed(self, error)
        if not self.done:
            handler = self.handler
            self.finish(code, message)
            self._close_handler(handler)

    def _close_handler(self, handler: CallHandler | None) -> None:
        if handler is not None:
            try:
                handler.on_close()
            except Exception as error:  # noqa: BLE001  as above
                self._opener.handler_failed(self, error)

    def _release(self) -> None:
        """Drop what refers back to this call, and the bytes that it holds."""
        self.handler = None
        self._partial = bytearray()


def _percent_encoded(text: str) -> bytes:
    """A `grpc-message`, cut to the limit and never within a `%XX`."""
    encoded = quote(text)[:_MAX_STATUS_MESSAGE]
    return (encoded[: encoded.rfind("%")] if "%" in encoded[-2:] else encoded).encode()
