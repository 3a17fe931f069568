"""Header fields of HTTP/2 requests: HPACK (RFC 7541) and the rules of RFC 9113, section 8. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from hpack import Decoder, HPACKError

from agent.serve.http2.frames import MAX_HEADER_LIST_SIZE, ConnectionFailed, ErrorCode, StreamFailed

STATUS_200: Final = b"\x88"  # `:status: 200`, entry 8 of HPACK's static table
_MAX_KNOWN_BLOCKS: Final = 64
_REQUEST_PSEUDO_FIELDS: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


def literal(name: bytes, value: bytes) -> bytes:
    """A field in HPACK that is not added to the dynamic table; the name is shorter than 127 bytes."""
    length = len(value)
    if length < 127:
        return b"\x00%c%s%c%s" % (len(name), name, length, value)
    return b"\x00%c%s\x7f%s%s" % (len(name), name, _continued(length - 127), value)


def _continued(rest: int) -> bytes:
    """What follows a full prefix of an integer (RFC 7541, 5.1): seven bits a byte, the lowest first."""
    encoded = b""
    while rest >= 128:
        encoded += b"%c" % (rest % 128 + 128)
        rest //= 128
    return encoded + b"%c" % rest


class FieldDecoder:
    """Decodes the field blocks of one connection. Of a request only its `:path` is returned.

    Most requests of a connection have the same field block, a few indexes into the HPACK tables. Such a block does not
    change the dynamic table, so its path is cached until another block may have changed the table.
    """

    __slots__ = ("_decoder", "_known_paths")

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._decoder.max_header_list_size = MAX_HEADER_LIST_SIZE
        self._known_paths: dict[bytes, str] = {}

    def request_path(self, block: bytes) -> str:
        """The `:path` of a request. Raises `StreamFailed` and `ConnectionFailed`."""
        # Each byte from 0x80 to 0xfe is one whole indexed field (RFC 7541, 6.1).
        only_indexes = bool(block) and min(block) >= 0x80 and 0xFF not in block
        if only_indexes:
            known = self._known_paths.get(block)
            if known is not None:
                return known
        if not only_indexes or len(self._known_paths) >= _MAX_KNOWN_BLOCKS:
            self._known_paths.clear()
        path = _path(self._decode(block))
        if only_indexes:
            self._known_paths[block] = path
        return path

    def trailers(self, block: bytes) -> None:
        """Decode and discard trailers; they may change the dynamic table. Raises as `request_path` does."""
        self._known_paths.clear()
        if any(name.startswith(b":") for name, _ in self._decode(block)):
            raise StreamFailed("pseudo-header field in trailers")

    def _decode(self, block: bytes) -> Iterable[tuple[bytes, bytes]]:
        try:
            return cast(list[tuple[Any, Any]], self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise ConnectionFailed(ErrorCode.COMPRESSION_ERROR, str(error)) from error


def _path(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The `:path` of a well-formed request (RFC 9113, 8.2 and 8.3). Raises `StreamFailed`."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _REQUEST_PSEUDO_FIELDS:
                raise StreamFailed(f"unexpected pseudo-header field {name!r}")
            pseudo[name] = value
        else:
            regular = True
            if name != name.lower() or name in _CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
                raise StreamFailed(f"header field {name!r}: {value!r} is not allowed in HTTP/2")
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        raise StreamFailed("request without :method, :scheme or :path")
    return pseudo[b":path"].decode("latin-1")
