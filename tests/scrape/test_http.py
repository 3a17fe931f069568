"""HTTP responses as bytes: heads and chunked bodies, valid and malformed, in any pieces."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.http import ChunkedBody, MalformedResponse, ResponseHead, get_request, parse_head

BODIES = st.lists(st.binary(min_size=1, max_size=50), max_size=6)


def encoded(pieces: list[bytes], *, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def fed(wire: bytes, cuts: list[int]) -> ChunkedBody:
    chunks = ChunkedBody(0)
    for end in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        # The buffer is larger than the bytes received so far, up to `end`.
        chunks.feed(bytearray(wire[:end] + b"\0" * 8), end)
    return chunks


@given(BODIES, st.lists(st.integers(0, 1000), max_size=8), st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
def test_a_chunked_body_in_any_pieces_is_decoded(pieces: list[bytes], cuts: list[int], trailer: bytes) -> None:
    wire = encoded(pieces, trailer=trailer)
    chunks = fed(wire, cuts)
    assert chunks.done
    assert chunks.body() == b"".join(pieces)
    assert chunks.at == len(wire)
    assert chunks.size == sum(map(len, pieces))


@given(BODIES, st.data())
def test_a_chunked_body_without_its_end_is_not_done(pieces: list[bytes], data: st.DataObject) -> None:
    wire = encoded(pieces)
    cut = data.draw(st.integers(0, len(wire) - 1))
    assert not fed(wire[:cut], []).done


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_as_malformed(wire: bytes) -> None:
    with contextlib.suppress(MalformedResponse):
        assert fed(wire, []).size >= 0


@pytest.mark.parametrize("size", [b"-1", b"+5", b"0x5", b"5 5", b"", b"g", b"1_0", b"fffffffffffff"])
def test_a_chunk_size_that_is_not_a_hexadecimal_number_is_refused(size: bytes) -> None:
    with pytest.raises(MalformedResponse, match="a chunk's size"):
        fed(size + b"\r\nhello\r\n0\r\n\r\n", [])


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("length", [1024, 1025])
@pytest.mark.parametrize("wire", [b"0;%s\r\n\r\n", b"0\r\n%s\r\n\r\n"], ids=["extension", "trailer"])
def test_the_limit_for_a_line_between_chunks_does_not_depend_on_the_pieces(wire: bytes, length: int, step: int) -> None:
    line = wire % (b"x" * (length - 2 if wire.startswith(b"0;") else length))
    cuts = list(range(step, len(line), step))
    if length == 1024:
        assert fed(line, cuts).done
    else:
        with pytest.raises(MalformedResponse, match="over 1024 bytes"):
            fed(line, cuts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", ResponseHead(200, 5, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 200\r\ncontent-length:5", ResponseHead(200, 5, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 200 OK\r\nConnection: close", ResponseHead(200, None, chunked=False, keep=False, encoding="")),
        (b"HTTP/1.0 200 OK", ResponseHead(200, None, chunked=False, keep=False, encoding="")),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", ResponseHead(200, None, chunked=False, keep=True, encoding="")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
            ResponseHead(200, None, chunked=True, keep=True, encoding=""),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            ResponseHead(200, None, chunked=True, keep=True, encoding=""),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip",
            ResponseHead(200, None, chunked=False, keep=True, encoding="gzip"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: identity",
            ResponseHead(200, None, chunked=False, keep=True, encoding=""),
        ),
        (b"HTTP/1.1 204 No Content", ResponseHead(204, 0, chunked=False, keep=True, encoding="")),
    ],
)
def test_a_head_has_the_framing_of_the_body_and_whether_the_connection_persists(
    text: bytes, expected: ResponseHead
) -> None:
    assert parse_head(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SSH-2.0-x",
        b" HTTP/1.1 200 OK",
        b"HTTP/2 200",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
    ],
)
def test_a_malformed_head_is_refused(text: bytes) -> None:
    for _ in range(2):
        with pytest.raises(MalformedResponse):
            parse_head(text)


def test_a_repeated_head_is_cached() -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
    assert parse_head(text) is parse_head(bytes(bytearray(text)))


def test_heads_that_differ_in_a_byte_are_distinguished() -> None:
    assert [parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: %d" % length).length for length in range(1000)] == [
        *range(1000)
    ]


@given(st.binary(max_size=200))
def test_any_head_is_parsed_or_refused(text: bytes) -> None:
    with contextlib.suppress(MalformedResponse):
        assert 100 <= parse_head(b"HTTP/1.1 " + text).status <= 999


def test_a_request_accepts_plain_text_without_compression() -> None:
    lines = get_request("[::1]:8000", "/metrics", "text/plain").split(b"\r\n")
    assert lines[0] == b"GET /metrics HTTP/1.1"
    assert {b"Host: [::1]:8000", b"Accept: text/plain", b"Accept-Encoding: identity"} <= set(lines)
    assert lines[-2:] == [b"", b""]
