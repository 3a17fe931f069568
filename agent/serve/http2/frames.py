"""HTTP/2's frames and header fields as far as gRPC goes: numbers, limits, how they are packed (RFC 9113, RFC 7541)."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final, cast
from urllib.parse import quote

from hpack import Decoder, HPACKError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
(
    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION,
) = range(10)  # fmt: skip
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, HAS_PRIORITY = 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11
# Of gRPC's status codes those that a server of bytes gives; 0 is well.
OK, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 0, 5, 8, 12, 14

FRAME_BYTES: Final = 16_384  # HTTP/2's default: the largest frame that we take
MOST_WINDOW: Final = (1 << 31) - 1
FIRST_WINDOW: Final = 65_535  # HTTP/2's default, of connections always
CALL_WINDOW: Final = 4 << 20  # bytes of one call that may be under way to us
MOST_CALLS: Final = 1 << 17  # each answer that streams is one
MOST_ENDED: Final = 1024
HEADER_BYTES: Final = 64 << 10  # of one call's header fields, packed or not
MOST_CONTINUATIONS: Final = 64
_KNOWN_BLOCKS: Final = 64
_OF_REQUESTS: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

HEAD: Final = Struct(">HBBBI")  # length in two parts, kind, flags, stream
PREFIX: Final = Struct(">BI")  # of a gRPC message: compressed or not, its length
SETTING: Final = Struct(">HI")
WORD: Final = Struct(">I")


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that the peer's table takes no note of; both texts below 127 bytes."""
    return b"\x00%c%s%c%s" % (len(name), name, len(value), value)


ANSWER: Final = b"\x88" + literal(b"content-type", b"application/grpc")  # 0x88: `:status: 200` of the static table


class Broken(Exception):
    """The connection cannot go on; `code` is HTTP/2's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Malformed(Exception):
    """Header fields that are not those of a request: their call is refused, and no other (RFC 9113, 8.1.1)."""


class Fields:
    """The header fields of one connection's calls, of which the method is all that is looked at.

    Most blocks are the same few indexes. One of nothing but indexes changes no table, and means what it meant.
    """

    __slots__ = ("_decoder", "_known")

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._decoder.max_header_list_size = HEADER_BYTES
        self._known: dict[bytes, str] = {}

    def path(self, block: bytes) -> str:
        """The method that is called. Raises `Malformed`, and `Broken`."""
        plain = bool(block) and min(block) >= 0x80 and 0xFF not in block
        if plain:
            known = self._known.get(block)
            if known is not None:
                return known
        if not plain or len(self._known) >= _KNOWN_BLOCKS:
            self._known.clear()
        path = _called(self._decoded(block))
        if plain:
            self._known[block] = path
        return path

    def trailers(self, block: bytes) -> None:
        """Take note of fields at the end of a call. Raises `Malformed`, and `Broken`."""
        self._known.clear()
        if any(name.startswith(b":") for name, _ in self._decoded(block)):
            raise Malformed("a field of a request at its end")

    def _decoded(self, block: bytes) -> Iterable[tuple[bytes, bytes]]:
        try:
            return cast(list[tuple[Any, Any]], self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise Broken(COMPRESSION_ERROR, str(error)) from error


def _called(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The path of a request with these fields (RFC 9113, 8.2 and 8.3). Raises `Malformed`."""
    request: dict[bytes, bytes] = {}
    others = False
    for name, value in fields:
        if name.startswith(b":"):
            if others or name in request or name not in _OF_REQUESTS:
                raise Malformed(f"no place for {name!r}")
            request[name] = value
        else:
            others = True
            if name != name.lower() or name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
                raise Malformed(f"{name!r}: {value!r} is not for HTTP/2")
    if not (request.get(b":method") and request.get(b":scheme") and request.get(b":path")):
        raise Malformed("no method, scheme or path")
    return request[b":path"].decode("latin-1")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def sized(payload: bytes, size: int) -> None:
    """Raise `Broken` unless the payload has this size."""
    if len(payload) != size:
        raise Broken(FRAME_SIZE_ERROR, f"{len(payload)} bytes in place of {size}")


def unpadded(payload: bytes) -> bytes:
    """The payload without its padding. Raises `Broken`."""
    if not payload or payload[0] >= len(payload):
        raise Broken(PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]


def percent_encoded(text: str) -> bytes:
    """Words as gRPC writes them, so short that their length is one byte; none is cut within a character of `%XX`."""
    encoded = quote(text)[:120]
    return (encoded[: encoded.rfind("%")] if "%" in encoded[-2:] else encoded).encode()
