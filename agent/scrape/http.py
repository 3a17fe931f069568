"""One HTTP/1.1 answer from bytes: its head, and its body where it came in chunks. No socket, no clock.

Only what a scrape needs: a status, how the body ends, whether the connection can be used again.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

HEAD_BYTES: Final = 16 << 10  # more than this before the empty line is no answer to a scrape
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]")
# The headers that are read.
_HEADER: Final = re.compile(
    rb"\n(content-length|content-encoding|connection|transfer-encoding):([^\r\n]*)", re.IGNORECASE
)
# A fleet of one kind of server answers with few different heads in a second: that of a health path is the same from all
# but for its date. To find a head that was read before costs a twentieth of reading it.
_KEPT_HEADS: Final = 256
_LONGEST_LINE: Final = 1024  # of those with a chunk's size, and of those behind the last chunk
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"


class BadAnswer(Exception):
    """Bytes that are no HTTP answer; the message says what is wrong with them."""


class Head(NamedTuple):
    """What stands before the body. `length`: its bytes; None: chunked, or to the end of the connection."""

    status: int
    length: int | None
    chunked: bool
    keep: bool
    encoding: str


def request(host: str, path: str, accept: str, headers: str = "") -> bytes:
    """A GET that asks for no compression and for the connection to stay; `headers` are lines with their ends."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nAccept-Encoding: identity\r\n"
        f"User-Agent: inference-gateway-agent\r\n{headers}\r\n"
    ).encode()


@lru_cache(_KEPT_HEADS)
def head(text: bytes) -> Head:
    """The head from its bytes, without the empty line at the end; BadAnswer when it is none."""
    first = text.partition(b"\r\n")[0]
    parts = first.split(None, 2)
    if len(parts) < 2 or not first.startswith(b"HTTP/1.") or not _STATUS.fullmatch(parts[1]):
        raise BadAnswer(f"the answer begins with {first[:60]!r}, which is not HTTP/1")
    length: int | None = None
    chunked = False
    keep = parts[0] != b"HTTP/1.0"
    encoding = ""
    for name, value in _HEADER.findall(text):
        name, value = name.lower(), value.strip()
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or (length is not None and length != int(value)):
                raise BadAnswer(f"content-length is {value[:40]!r}")
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
    return Head(status, length, chunked, keep, encoding)


class Chunks:
    """The body of a chunked answer, as it comes in; `take` as often as there is more. `at`: how far it was read."""

    __slots__ = ("_left", "_parts", "at", "done", "size")

    def __init__(self, start: int) -> None:
        self.at = start
        self._left = -1  # bytes of the chunk that are still to come; -1: a size is next; -2: trailers are next
        self._parts: list[bytes] = []
        self.size = 0
        self.done = False

    def take(self, buffer: bytearray, end: int) -> None:
        """Read what is new in the buffer up to `end`; BadAnswer where it is not chunked."""
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
            # A line is as long as it is, however it comes in: of one that has no end yet the last byte may be `\r`.
            if (end - self.at - 1 if line_end < 0 else line_end - self.at) > _LONGEST_LINE:
                raise BadAnswer(f"a line between chunks is over {_LONGEST_LINE} bytes")
            if line_end < 0:
                return
            line = bytes(buffer[self.at : line_end])
            self.at = line_end + 2
            if self._left == 0:  # the line end behind a chunk
                if line:
                    raise BadAnswer("a chunk is longer than its size says")
                self._left = -1
            elif self._left == -2:
                self.done = not line
            else:
                digits = line.partition(b";")[0].strip()
                if not digits or digits.strip(_HEXADECIMAL) or len(digits) > 12:
                    raise BadAnswer(f"a chunk's size is {digits[:20]!r}")
                size = int(digits, 16)
                self.size += size
                self._left = size or -2

    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts)
