"""Undoes the content-encoding of a request body, within a bound.

    gzip, x-gzip   RFC 1952, several members too
    deflate        RFC 1950 (zlib), and the bare RFC 1951 that some clients send under this name
    zstd           RFC 8878, with windows of at most 8 MiB (RFC 9659)

No more than `limit` bytes and one input chunk are ever unpacked, whatever the body claims. A list of encodings was
applied in its order, and is undone from its end.
"""

from __future__ import annotations

import zlib
from typing import Final

import zstandard

# RFC 9659: an encoder must not use a larger window for a content-encoding.
_ZSTD_WINDOW: Final = 8 << 20
# More than one body has: each encoding, and each member of a gzip file, is a pass over the rest of the body.
_MAX_ENCODINGS: Final = 3
_MAX_MEMBERS: Final = 16
_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_BARE: Final = -zlib.MAX_WBITS


# The names of encodings in metrics; the last stands for all others, and for several at a time.
ENCODINGS: Final = ("gzip", "x-gzip", "deflate", "zstd", "other")


class UnknownEncoding(Exception):
    """The body has an encoding that is not undone here; the text is its name."""


class MalformedBody(Exception):
    """The body is not what its encoding says; the text says what is wrong."""


class BodyTooLarge(Exception):
    """The unpacked body is over the limit."""


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its encoding (the value of content-encoding), at most `limit` bytes.

    Raises UnknownEncoding, MalformedBody, BodyTooLarge, and nothing else.
    """
    names = [name for name in map(str.strip, encoding.lower().split(",")) if name and name != "identity"]
    if len(names) > _MAX_ENCODINGS:
        raise UnknownEncoding(encoding[:64])
    for name in reversed(names):
        if name in {"gzip", "x-gzip"}:
            body = _gunzip(body, limit)
        elif name == "deflate":
            body = _inflate(body, limit)
        elif name == "zstd":
            body = _unzstd(body, limit)
        else:
            raise UnknownEncoding(name[:64])
    return body


def label(encoding: str) -> str:
    """The name in metrics of this content-encoding: one of `ENCODINGS`."""
    name = encoding.strip().lower()
    return name if name in ENCODINGS else ENCODINGS[-1]


def _gunzip(body: bytes, limit: int) -> bytes:
    out: list[bytes] = []
    left = limit
    for _ in range(_MAX_MEMBERS):
        part, body = _zlib(body, _GZIP, left)
        out.append(part)
        left -= len(part)
        if not body:
            return out[0] if len(out) == 1 else b"".join(out)
    raise MalformedBody(f"it has more than {_MAX_MEMBERS} members")


def _inflate(body: bytes, limit: int) -> bytes:
    wrapped = len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    try:
        part, rest = _zlib(body, _ZLIB if wrapped else _BARE, limit)
    except MalformedBody as malformed:
        if not wrapped:
            raise
        try:  # the first two bytes of bare data may look like zlib's
            part, rest = _zlib(body, _BARE, limit)
        except MalformedBody:
            raise malformed from None
    if rest:
        raise MalformedBody("bytes follow the end of its data")
    return part


def _zlib(body: bytes, format: int, limit: int) -> tuple[bytes, bytes]:
    """One stream of data, unpacked, and what follows it."""
    stream = zlib.decompressobj(format)
    try:
        out = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedBody(str(error)) from None
    if len(out) > limit:
        raise BodyTooLarge
    if not stream.eof:
        raise MalformedBody("its data is cut off")
    return out, stream.unused_data


def _unzstd(body: bytes, limit: int) -> bytes:
    """A frame that is cut off gives what it holds so far: what reads the body notices that."""
    if not body:
        raise MalformedBody("its data is cut off")
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(body, read_across_frames=True)
    try:
        out: bytes = reader.read(limit + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise MalformedBody(str(error)) from None
    if len(out) > limit:
        raise BodyTooLarge
    return out
