"""Envoy's side of ext_proc: the messages that it sends, and the calls of a proxy over grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc.aio
import orjson
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import json_format

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"
BUFFERED, FULL_DUPLEX = 2, 4  # values of envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode
CHAT = "/v1/chat/completions"
BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Describe the sea. " * 200}]})
_WITHIN_SECONDS = 20.0  # bounds a failure


def request_headers(
    mode: int = BUFFERED,
    *,
    request_id: str = "r",
    path: str = CHAT,
    end: bool = False,
    subset: Any = None,
    more: Mapping[str, str] | None = None,
) -> bytes:
    """The headers of a POST with a body in `mode`, of a GET where they `end` the request."""
    message = pb.ProcessingRequest()
    headers = {":method": "GET" if end else "POST", ":path": path, "x-request-id": request_id, **(more or {})}
    for name, value in headers.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    message.request_headers.end_of_stream = end
    message.protocol_config.request_body_mode = mode
    if subset is not None:
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({f"{DESTINATION}-subset": subset})
    data: bytes = message.SerializeToString()
    return data


def request_body(chunk: bytes = BODY, *, end: bool = True) -> bytes:
    """A part of the body, the last one where it is the `end`."""
    message = pb.ProcessingRequest(request_body=pb.HttpBody(body=chunk, end_of_stream=end))
    data: bytes = message.SerializeToString()
    return data


def picked(response: pb.ProcessingResponse) -> str:
    """The picked endpoint, which has to be in the headers and in the metadata."""
    common = getattr(response, response.WhichOneof("response")).response
    (option,) = [option for option in common.header_mutation.set_headers if option.header.key == DESTINATION]
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    assert common.clear_route_cache
    header = option.header.raw_value.decode()
    assert json_format.MessageToDict(response.dynamic_metadata) == {"envoy.lb": {DESTINATION: header}}
    return str(header)


async def read(call: Any) -> pb.ProcessingResponse:
    """The next message of the picker."""
    data = await asyncio.wait_for(call.read(), _WITHIN_SECONDS)
    assert data is not grpc.aio.EOF, await call.details()
    return pb.ProcessingResponse.FromString(data)


async def send_headers(channel: Any, request_id: str = "r") -> Any:
    """A new call whose headers are sent and answered, and whose buffered body is not sent yet."""
    call = channel.stream_stream(PROCESS)()
    await call.write(request_headers(request_id=request_id))
    await read(call)
    return call


async def send_body(call: Any, body: bytes = BODY) -> str:
    """Send the whole body; the picked endpoint, or the status of the rejection."""
    await call.write(request_body(body))
    response = await read(call)
    if response.HasField("immediate_response"):
        return str(response.immediate_response.status.code)
    return picked(response)


async def send_request(channel: Any, request_id: str = "r", body: bytes = BODY) -> tuple[Any, str]:
    """A whole request; the call, which stays open, and the picked endpoint or the status of the rejection."""
    call = await send_headers(channel, request_id)
    return call, await send_body(call, body)


async def wait_for_end(call: Any) -> None:
    """Wait until the picker has ended the call."""
    assert await asyncio.wait_for(call.read(), _WITHIN_SECONDS) is grpc.aio.EOF


async def finish(call: Any) -> None:
    """Half-close the call, as Envoy does at the end of the response, and wait for its end."""
    await call.done_writing()
    await wait_for_end(call)
