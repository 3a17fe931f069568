"""Fuzz target: one HTTP response as a connection reads it, in pieces of any size.

An input is the bytes of a response; its first byte is the size of the pieces. The result is compared with
`plain_response`, which is written for clarity and not for speed. For any bytes the connection reports exactly one
result of the GET.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from agent.scrape.http import ChunkedBody, MalformedResponse, parse_head
from agent.scrape.http_connection import BufferPool, FetchFailed, HttpConnection
from agent.scrape.reasons import REASONS

LIMIT = 4096


class Transport(asyncio.Transport):
    """A transport that only knows whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True

    def write(self, data: Any) -> None:
        pass


def one_input(data: bytes) -> None:
    """Fails where a response is misread, or a GET has no result or two."""
    if not data:
        return
    step, text = data[0] or 1, data[1:]
    at_once = result_of(text, len(text) or 1)
    in_pieces = result_of(text, step)
    assert kind(at_once) == kind(in_pieces), f"at once {at_once}, in pieces {in_pieces}"
    if isinstance(at_once, tuple):
        assert at_once == in_pieces
        body, whole = at_once
        assert (body, whole) == plain_response(text), "the connection and the plain reader differ"
    _head_is_sound(text)
    _chunks_are_equal(text, step)


def result_of(text: bytes, step: int) -> tuple[bytes, bool] | str:
    """The result of a GET whose response is these bytes, in pieces of `step`, followed by the end of the connection."""
    results: list[tuple[bytes, bool] | str] = []
    connection = HttpConnection(BufferPool(), lambda: None)
    transport = Transport()
    connection.connection_made(transport)

    def failed(failure: FetchFailed) -> None:
        assert failure.reason in REASONS
        assert failure.detail
        results.append(failure.reason)

    connection.get(b"GET / HTTP/1.1\r\n\r\n", LIMIT, lambda body, whole: results.append((body, whole)), failed)
    for piece in pieces(text, step):
        at = 0
        while at < len(piece) and not transport.aborted:
            buffer = connection.get_buffer(-1)
            taken = piece[at : at + len(buffer)]
            buffer[: len(taken)] = taken
            connection.buffer_updated(len(taken))
            at += len(taken)
    if not transport.aborted:
        connection.eof_received()
        connection.connection_lost(None)
    (result,) = results
    return result


def kind(result: tuple[bytes, bool] | str) -> str:
    return result if isinstance(result, str) else "body"


def pieces(text: bytes, step: int) -> Iterator[bytes]:
    yield from (text[at : at + step] for at in range(0, len(text), step))


def plain_response(text: bytes) -> tuple[bytes, bool]:
    """The body of a usable response, and whether its end is explicit."""
    start, _, rest = text.partition(b"\r\n\r\n")
    while start.split()[1].startswith(b"1"):
        start, _, rest = rest.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.")
    assert start.split()[1] == b"200"
    headers: dict[bytes, list[bytes]] = {}
    for line in start.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers.setdefault(name.lower(), []).append(value.split(b"\r")[0].strip())
    if headers.get(b"transfer-encoding", [b""])[-1].lower().endswith(b"chunked"):
        body = b""
        while True:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if size == 0:
                return body, True
            body += rest[:size]
            assert rest[size : size + 2] == b"\r\n"
            rest = rest[size + 2 :]
    if b"content-length" in headers:
        (length,) = {int(value) for value in headers[b"content-length"]}
        assert len(rest) >= length
        return rest[:length], True
    return rest, False


def _head_is_sound(text: bytes) -> None:
    try:
        found = parse_head(text.partition(b"\r\n\r\n")[0])
    except MalformedResponse:
        return
    assert 100 <= found.status <= 999
    assert found.length is None or found.length >= 0
    assert not (found.chunked and found.length is not None)


def _chunks_are_equal(text: bytes, step: int) -> None:
    at_once = _decoded(text, [len(text)])
    slowly = _decoded(text, [min(end, len(text)) for end in range(0, len(text) + step, step)])
    if at_once is None or slowly is None:
        assert at_once is slowly
        return
    assert (at_once.done, at_once.body(), at_once.at) == (slowly.done, slowly.body(), slowly.at)
    assert not at_once.done or at_once.size == len(at_once.body())


def _decoded(text: bytes, ends: list[int]) -> ChunkedBody | None:
    """The chunked body, fed up to each of these ends, or None where it is malformed."""
    chunks, buffer = ChunkedBody(0), bytearray(text)
    try:
        for end in ends:
            chunks.feed(buffer, end)
    except MalformedResponse:
        return None
    return chunks
