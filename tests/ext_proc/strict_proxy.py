"""A proxy's side of ext_proc for one HTTP exchange, written from the protocol's definition, not from the agent's code.

It sends what Envoy's filter sends in a mode, applies the answers as the filter applies them, and raises NotTheProtocol
where Envoy would fail the request: an answer to another message, a kind of mutation that the mode does not allow, an
answer too many, a body after its end. Source: the comments of `external_processor.proto` and `processing_mode.proto`,
as xds-protos has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc.aio
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services
from google.protobuf import json_format

MAX_MESSAGE_BYTES = 64 << 10  # the largest chunk of a streamed answer that Envoy's buffers take
_WITHIN_SECONDS = 20.0  # bounds a failure


class BodyMode(Enum):
    """`ProcessingMode.BodySendMode`; HOLD is STREAMED with `send_body_without_waiting_for_header_response`."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    HOLD = 5


class NotTheProtocol(AssertionError):
    """The picker sent what Envoy would not accept."""


@dataclass
class Message:
    """A request or a response: its headers, its body in the pieces in which it arrives, and its trailers if any."""

    headers: Mapping[str, str]
    pieces: Sequence[bytes] = ()
    trailers: Mapping[str, str] | None = None

    @property
    def body(self) -> bytes:
        """All pieces."""
        return b"".join(self.pieces)


@dataclass
class Passed:
    """What went on to the other side."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False


@dataclass
class Exchanged:
    """The end of an exchange: what the model server and the client received, and the pick; or the picker's answer."""

    request: Passed
    response: Passed
    destination: str = ""
    rejection: pb.ImmediateResponse | None = None


class _Rejected(Exception):
    """The picker answered the client itself."""


class StrictProxy:
    """One exchange through the picker on `channel`; `limit` is the buffer of BUFFERED_PARTIAL in bytes."""

    def __init__(
        self,
        channel: Any,
        request_mode: BodyMode,
        response_mode: BodyMode = BodyMode.NONE,
        *,
        names_modes: bool = True,
        limit: int = 1 << 20,
    ) -> None:
        self._call = services.ExternalProcessorStub(channel).Process()
        self._modes = {"request": request_mode, "response": response_mode}
        self._names_modes = names_modes
        self._limit = limit
        self._first = True
        self._done = Exchanged(Passed(), Passed())
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None

    async def exchange(self, request: Message, response: Message) -> Exchanged:
        """Pass a request to the model server and its response to the client."""
        done = self._done
        self._reading = asyncio.get_running_loop().create_task(self._read())
        try:
            await self._pass("request", request, done.request)
            if not done.destination:
                raise NotTheProtocol("the request went on without an endpoint")
            await self._pass("response", response, done.response)
            await self._call.done_writing()
        except _Rejected:
            pass
        await self._no_more()
        if done.rejection is None and await self._call.code() is not grpc.StatusCode.OK:
            raise NotTheProtocol(f"the stream ended with {await self._call.code()}")
        return done

    # -- one direction ---------------------------------------------------------------------------------------------

    async def _pass(self, side: str, message: Message, passed: Passed) -> None:
        mode = self._modes[side]
        passed.headers = dict(message.headers)
        bodiless = not message.pieces and message.trailers is None
        await self._send(**{f"{side}_headers": self._http_headers(message.headers, end=bodiless)})
        if bodiless:
            self._apply_headers(await self._answer(f"{side}_headers"), passed)
            passed.ended = True
        elif mode is BodyMode.FULL_DUPLEX_STREAMED:
            await self._full_duplex(side, message, passed)
        else:
            if mode is not BodyMode.HOLD:
                self._apply_headers(await self._answer(f"{side}_headers"), passed)
            await self._body(side, mode, message, passed)
            passed.ended = True
        length = passed.headers.get("content-length")
        if length is not None and int(length) != len(passed.body):
            raise NotTheProtocol(f"content-length {length} of a body of {len(passed.body)} bytes")

    async def _body(self, side: str, mode: BodyMode, message: Message, passed: Passed) -> None:
        """Every mode but full duplex: each message is answered by one, and the proxy keeps the body."""
        if mode is BodyMode.NONE:
            passed.body = message.body
        elif mode is BodyMode.BUFFERED:
            passed.body = await self._chunk(side, message.body, end=True, passed=passed)
        elif mode is BodyMode.BUFFERED_PARTIAL:
            whole = len(message.body) <= self._limit
            sent, rest = message.body[: self._limit], message.body[self._limit :]
            passed.body = await self._chunk(side, sent, end=whole, passed=passed) + rest
        elif mode is BodyMode.STREAMED:
            for number, piece in enumerate(message.pieces):
                passed.body += await self._chunk(side, piece, end=self._ends(message, number), passed=passed)
        else:
            for number, piece in enumerate(message.pieces):
                await self._send(**{f"{side}_body": pb.HttpBody(body=piece, end_of_stream=self._ends(message, number))})
            if message.trailers is not None:
                await self._send(**{f"{side}_trailers": self._http_trailers(message.trailers)})
            self._apply_headers(await self._answer(f"{side}_headers"), passed)
            for piece in message.pieces:
                passed.body += self._applied(await self._answer(f"{side}_body"), piece, passed)
            if message.trailers is not None:
                await self._answer(f"{side}_trailers")
            return
        if message.trailers is not None:
            await self._send(**{f"{side}_trailers": self._http_trailers(message.trailers)})
            await self._answer(f"{side}_trailers")

    async def _full_duplex(self, side: str, message: Message, passed: Passed) -> None:
        """The proxy keeps nothing: what goes on is what the picker sends back, headers first."""
        for number, piece in enumerate(message.pieces):
            await self._send(**{f"{side}_body": pb.HttpBody(body=piece, end_of_stream=self._ends(message, number))})
        if message.trailers is not None:
            await self._send(**{f"{side}_trailers": self._http_trailers(message.trailers)})
        self._apply_headers(await self._answer(f"{side}_headers"), passed)
        while message.pieces and not passed.ended:
            answer = await self._next()
            if message.trailers is not None and answer.WhichOneof("response") == f"{side}_trailers":
                passed.ended = True
                return
            common = self._common(answer, f"{side}_body")
            if common.body_mutation.WhichOneof("mutation") != "streamed_response":
                raise NotTheProtocol(f"a chunk in full duplex is answered with {common.body_mutation or 'no body'}")
            chunk = common.body_mutation.streamed_response
            if len(chunk.body) > MAX_MESSAGE_BYTES:
                raise NotTheProtocol(f"a chunk of {len(chunk.body)} bytes")
            if chunk.end_of_stream and message.trailers is not None:
                raise NotTheProtocol("the body ends although trailers follow")
            passed.body += chunk.body
            passed.ended = chunk.end_of_stream
        if message.trailers is not None and not passed.ended:
            await self._answer(f"{side}_trailers")
            passed.ended = True

    async def _chunk(self, side: str, piece: bytes, *, end: bool, passed: Passed) -> bytes:
        await self._send(**{f"{side}_body": pb.HttpBody(body=piece, end_of_stream=end)})
        return self._applied(await self._answer(f"{side}_body"), piece, passed, headers=side == "request")

    def _applied(self, common: Any, piece: bytes, passed: Passed, *, headers: bool = False) -> bytes:
        """The chunk that goes on instead of the one that was sent."""
        mode = self._modes["request"]
        if headers and mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
            self._apply_headers(common, passed)  # they are kept until the body is answered
        elif common.header_mutation.set_headers or common.header_mutation.remove_headers:
            raise NotTheProtocol("headers are changed that have gone on already")
        kind = common.body_mutation.WhichOneof("mutation")
        if kind == "streamed_response":
            raise NotTheProtocol("streamed_response outside of full duplex")
        if kind == "clear_body" and common.body_mutation.clear_body:
            return b""
        return bytes(common.body_mutation.body) if kind == "body" else piece

    # -- messages --------------------------------------------------------------------------------------------------

    @staticmethod
    def _ends(message: Message, number: int) -> bool:
        return number == len(message.pieces) - 1 and message.trailers is None

    @staticmethod
    def _http_headers(headers: Mapping[str, str], *, end: bool) -> pb.HttpHeaders:
        found = pb.HttpHeaders(end_of_stream=end)
        for name, value in headers.items():
            found.headers.headers.add(key=name, raw_value=value.encode())
        return found

    @staticmethod
    def _http_trailers(trailers: Mapping[str, str]) -> pb.HttpTrailers:
        found = pb.HttpTrailers()
        for name, value in trailers.items():
            found.trailers.headers.add(key=name, raw_value=value.encode())
        return found

    async def _send(self, **part: Any) -> None:
        message = pb.ProcessingRequest(**part)
        if self._first and self._names_modes:
            request, response = self._modes["request"], self._modes["response"]
            held = request is BodyMode.HOLD
            message.protocol_config.request_body_mode = BodyMode.STREAMED.value if held else request.value
            message.protocol_config.response_body_mode = response.value
            message.protocol_config.send_body_without_waiting_for_header_response = held
        self._first = False
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The picker may answer the client at any time, and ends the stream then: that is what comes next.
            await self._next()
            raise

    async def _read(self) -> None:
        """Take answers as they come, also while the proxy sends."""
        answer = None
        while answer is not grpc.aio.EOF:
            try:
                answer = await self._call.read()
            except grpc.aio.AioRpcError:  # a write found the stream ended
                answer = grpc.aio.EOF
            self._answers.put_nowait(answer)

    async def _next(self) -> pb.ProcessingResponse:
        answer = await asyncio.wait_for(self._answers.get(), _WITHIN_SECONDS)
        if answer is grpc.aio.EOF:
            raise NotTheProtocol("the stream ended before its answer")
        if answer.WhichOneof("response") == "immediate_response":
            self._done.rejection = answer.immediate_response
            raise _Rejected
        return answer

    async def _answer(self, kind: str) -> Any:
        return self._common(await self._next(), kind)

    def _common(self, answer: pb.ProcessingResponse, kind: str) -> Any:
        if answer.WhichOneof("response") != kind:
            raise NotTheProtocol(f"{answer.WhichOneof('response')} where {kind} is due")
        if answer.HasField("mode_override") or answer.HasField("override_message_timeout"):
            raise NotTheProtocol("an override that the filter does not allow")
        found = json_format.MessageToDict(answer.dynamic_metadata).get("envoy.lb", {})
        destination = found.get("x-gateway-destination-endpoint", "")
        if destination:
            if self._done.destination:
                raise NotTheProtocol("a second pick")
            self._done.destination = destination
        if kind.endswith("_trailers"):
            return getattr(answer, kind)
        common = getattr(answer, kind).response
        if common.status != pb.CommonResponse.CONTINUE:
            raise NotTheProtocol("CONTINUE_AND_REPLACE, which drops the body")
        return common

    def _apply_headers(self, common: Any, passed: Passed) -> None:
        for option in common.header_mutation.set_headers:
            header = option.header
            if bool(header.value) and bool(header.raw_value):
                raise NotTheProtocol(f"{header.key} has both a value and a raw value")
            if option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD:
                passed.headers[header.key] = header.raw_value.decode() or header.value
            else:
                raise NotTheProtocol(f"{header.key} would be appended to what the client sent")
        for name in common.header_mutation.remove_headers:
            if name.startswith(":") or name == "host":
                raise NotTheProtocol(f"{name} cannot be removed")
            passed.headers.pop(name, None)

    async def _no_more(self) -> None:
        answer = await asyncio.wait_for(self._answers.get(), _WITHIN_SECONDS)
        if answer is not grpc.aio.EOF:
            raise NotTheProtocol(f"an answer too many: {answer.WhichOneof('response')}")
