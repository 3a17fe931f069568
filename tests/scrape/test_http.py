"""An HTTP answer from its bytes: heads and chunks, whole and broken, cut anywhere."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.http import BadAnswer, Chunks, Head, head, request

BODIES = st.lists(st.binary(min_size=1, max_size=50), max_size=6)


def encoded(pieces: list[bytes], *, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def fed(wire: bytes, cuts: list[int]) -> Chunks:
    chunks = Chunks(0)
    for end in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        # What lies behind `end` has not come in yet: the buffer is larger than what is filled.
        chunks.take(bytearray(wire[:end] + b"\0" * 8), end)
    return chunks


@given(BODIES, st.lists(st.integers(0, 1000), max_size=8), st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
def test_a_chunked_body_is_put_together_wherever_its_bytes_were_cut(
    pieces: list[bytes], cuts: list[int], trailer: bytes
) -> None:
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
def test_whatever_the_bytes_chunks_are_read_or_told_to_be_bad(wire: bytes) -> None:
    with contextlib.suppress(BadAnswer):
        assert fed(wire, []).size >= 0


@pytest.mark.parametrize("size", [b"-1", b"+5", b"0x5", b"5 5", b"", b"g", b"1_0", b"fffffffffffff"])
def test_a_chunk_size_that_is_no_hexadecimal_number_is_refused(size: bytes) -> None:
    with pytest.raises(BadAnswer, match="a chunk's size"):
        fed(size + b"\r\nhello\r\n0\r\n\r\n", [])


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("length", [1024, 1025])
@pytest.mark.parametrize("wire", [b"0;%s\r\n\r\n", b"0\r\n%s\r\n\r\n"], ids=["extension", "trailer"])
def test_a_line_between_chunks_is_too_long_or_not_however_it_comes_in(wire: bytes, length: int, step: int) -> None:
    line = wire % (b"x" * (length - 2 if wire.startswith(b"0;") else length))
    cuts = list(range(step, len(line), step))
    if length == 1024:
        assert fed(line, cuts).done
    else:
        with pytest.raises(BadAnswer, match="over 1024 bytes"):
            fed(line, cuts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", Head(200, 5, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 200\r\ncontent-length:5", Head(200, 5, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 200 OK\r\nConnection: close", Head(200, None, chunked=False, keep=False, encoding="")),
        (b"HTTP/1.0 200 OK", Head(200, None, chunked=False, keep=False, encoding="")),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", Head(200, None, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Head(200, None, chunked=True, keep=True, encoding="")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            Head(200, None, chunked=True, keep=True, encoding=""),
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip", Head(200, None, chunked=False, keep=True, encoding="gzip")),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: identity", Head(200, None, chunked=False, keep=True, encoding="")),
        (b"HTTP/1.1 204 No Content", Head(204, 0, chunked=False, keep=True, encoding="")),
    ],
)
def test_a_head_says_how_the_body_ends_and_whether_the_connection_stays(text: bytes, expected: Head) -> None:
    assert head(text) == expected


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
def test_a_head_that_is_none_is_refused(text: bytes) -> None:
    for _ in range(2):
        with pytest.raises(BadAnswer):
            head(text)


def test_a_head_that_comes_again_is_found_and_not_read_again() -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 5"
    assert head(text) is head(bytes(bytearray(text)))


def test_heads_that_differ_in_a_byte_are_told_apart() -> None:
    assert [head(b"HTTP/1.1 200 OK\r\nContent-Length: %d" % length).length for length in range(1000)] == [*range(1000)]


@given(st.binary(max_size=200))
def test_whatever_the_bytes_a_head_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(BadAnswer):
        assert 100 <= head(b"HTTP/1.1 " + text).status <= 999


def test_a_request_asks_for_plain_text_and_for_no_compression() -> None:
    lines = request("[::1]:8000", "/metrics", "text/plain").split(b"\r\n")
    assert lines[0] == b"GET /metrics HTTP/1.1"
    assert {b"Host: [::1]:8000", b"Accept: text/plain", b"Accept-Encoding: identity"} <= set(lines)
    assert lines[-2:] == [b"", b""]
