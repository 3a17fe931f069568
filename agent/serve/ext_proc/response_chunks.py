"""Chunks of a response body that are sent back as they came, by their bytes: protobuf messages for each chunk would
cost more than everything else that is done with it.

The wire format is that of Protocol Buffers (protobuf.dev/programming-guides/encoding), the field numbers are those of
envoy.service.ext_proc.v3. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_RESPONSE_BODY: Final = 0x2A  # field 5 of ProcessingRequest, with a length
_BODY: Final = 0x0A  # field 1 of HttpBody, with a length
_END: Final = 0x10  # field 2 of HttpBody, a number
_MAX_VARINT: Final = 5


class ResponseChunk(NamedTuple):
    """A chunk of a response body, and whether it is the last one."""

    body: bytes
    end_of_stream: bool


def read_chunk(message: bytes) -> ResponseChunk | None:
    """The chunk of a message of Envoy; None for a message of another kind, or with anything beside a chunk."""
    size = len(message)
    if size < 2 or message[0] != _RESPONSE_BODY:
        return None
    length, place = _varint(message, 1)
    if place < 0 or place + length != size:
        return None
    body, end = b"", False
    if place < size and message[place] == _BODY:
        length, place = _varint(message, place + 1)
        if place < 0 or place + length > size:
            return None
        body = message[place : place + length]
        place += length
    if place + 2 == size and message[place] == _END and message[place + 1] <= 1:
        end = message[place + 1] == 1
        place += 2
    return ResponseChunk(body, end) if place == size else None


def echo(chunk: ResponseChunk) -> bytes:
    """The message that sends the chunk back in full duplex."""
    body = chunk.body
    end = b"\x10\x01" if chunk.end_of_stream else b""
    head = b"\x0a" + _written(len(body)) if body else b""  # StreamedBodyResponse.body
    size = len(head) + len(body) + len(end)
    for tag in (b"\x1a", b"\x1a", b"\x0a", b"\x22"):  # streamed_response, body_mutation, response, response_body
        prefix = tag + _written(size)
        head = prefix + head
        size += len(prefix)
    return b"".join((head, body, end))


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and the place after it; that is -1 where there is none."""
    number = shift = 0
    for here in range(place, min(len(data), place + _MAX_VARINT)):
        byte = data[here]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, here + 1
        shift += 7
    return 0, -1


def _written(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
