"""HTTP/1.1 messages as bytes: a GET request, the head of a response, and a chunked body. No socket, no clock.

Only the parts that a scrape needs are parsed: the status, the framing of the body, and whether the connection persists.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 16 << 10  # a longer head is refused
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]")
# The header fields that are parsed.
_HEADER: Final = re.compile(
    rb"\n(content-length|content-encoding|connection|transfer-encoding):([^\r\n]*)", re.IGNORECASE
)
_LOCATION: Final = re.compile(rb"\nlocation:([^\r\n]*)", re.IGNORECASE)
_LOCATION_BYTES: Final = 200  # of a target, in a message
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# A fleet of one kind of server sends few distinct heads in a second: those of a health path only differ in their date.
# A cache hit costs a twentieth of parsing.
_CACHED_HEADS: Final = 256
_MAX_LINE_BYTES: Final = 1024  # of a line with a chunk size, and of a trailer line
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"


class MalformedResponse(Exception):
    """Bytes that are not an HTTP/1.1 response; the message has the reason."""


class ResponseHead(NamedTuple):
    """The parsed head of a response. `length`: bytes of the body; None: chunked, or until the connection closes.
    `keep`: the connection persists after the response. `encoding`: its content coding, empty for identity. `location`:
    the target of a redirect as the server wrote it, shortened; empty where there is none."""

    status: int
    length: int | None
    chunked: bool
    keep: bool
    encoding: str
    location: str = ""


def get_request(host: str, path: str, accept: str, headers: str = "") -> bytes:
    """A GET on a persistent connection, without compression; `headers` are further lines, each with CRLF."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nAccept-Encoding: identity\r\n"
        f"User-Agent: inference-gateway-agent\r\n{headers}\r\n"
    ).encode()


@lru_cache(_CACHED_HEADS)
def parse_head(text: bytes) -> ResponseHead:
    """Parse the bytes of a head, without the empty line at its end; MalformedResponse where it is not one."""
    first = text.partition(b"\r\n")[0]
    parts = first.split(None, 2)
    if len(parts) < 2 or not first.startswith(b"HTTP/1.") or not _STATUS.fullmatch(parts[1]):
        raise MalformedResponse(f"the response begins with {first[:60]!r}, which is not HTTP/1")
    length: int | None = None
    chunked = False
    keep = parts[0] != b"HTTP/1.0"
    encoding = ""
    for name, value in _HEADER.findall(text):
        name, value = name.lower(), value.strip()
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or (length is not None and length != int(value)):
                raise MalformedResponse(f"content-length is {value[:40]!r}")
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = value.lower().endswith(b"chunked")
        elif name == b"connection":
            keep = value.lower() == b"keep-alive" or (keep and value.lower() != b"close")
        elif name == b"content-encoding":
            encoding = "" if value.lower() == b"identity" else value.decode("latin-1")
    status = int(parts[1])
    if status in (204, 304):
        length, chunked = 0, False
    if chunked:
        length = None
    return ResponseHead(status, length, chunked, keep, encoding, _target(text) if status in REDIRECTS else "")


def _target(text: bytes) -> str:
    """The first `Location` of a head, shortened."""
    found = _LOCATION.search(text)
    return found[1].strip()[:_LOCATION_BYTES].decode("utf-8", "replace") if found else ""


class ChunkedBody:
    """Decodes a chunked body from a buffer that grows: `feed` after each read. `at`: offset of the next unread byte;
    `size`: bytes of the chunks begun so far; `done`: the last chunk and the trailers were read."""

    __slots__ = ("_left", "_parts", "at", "done", "size")

    def __init__(self, start: int) -> None:
        self.at = start
        self._left = -1  # bytes left of the current chunk; -1: a chunk size is next; -2: trailers are next
        self._parts: list[bytes] = []
        self.size = 0
        self.done = False

    def feed(self, buffer: bytearray, end: int) -> None:
        """Decode the new bytes of the buffer up to `end`; MalformedResponse where they are not chunked."""
        while not self.done:
            if self._left > 0:
                piece = bytes(buffer[self.at : min(end, self.at + self._left)])
                if not piece:
                    return
                self._parts.append(piece)
                self.at += len(piece)
                self._left -= len(piece)
                if self._left:
                    return
                self._left = 0
            line_end = buffer.find(b"\r\n", self.at, end)
            # The last byte of an incomplete line may be its `\r`, which does not count.
            if (end - self.at - 1 if line_end < 0 else line_end - self.at) > _MAX_LINE_BYTES:
                raise MalformedResponse(f"a line between chunks is over {_MAX_LINE_BYTES} bytes")
            if line_end < 0:
                return
            line = bytes(buffer[self.at : line_end])
            self.at = line_end + 2
            if self._left == 0:  # the line end after a chunk
                if line:
                    raise MalformedResponse("a chunk is longer than its size")
                self._left = -1
            elif self._left == -2:
                self.done = not line
            else:
                digits = line.partition(b";")[0].strip()
                if not digits or digits.strip(_HEXADECIMAL) or len(digits) > 12:
                    raise MalformedResponse(f"a chunk's size is {digits[:20]!r}")
                size = int(digits, 16)
                self.size += size
                self._left = size or -2

    def body(self) -> bytes:
        """The decoded body."""
        return b"".join(self._parts)
