"""HTTP/2 frames (RFC 9113): types, flags, settings, error codes, limits, and their layout in bytes. Pure."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types (RFC 9113, 6).
DATA: Final = 0x00
HEADERS: Final = 0x01
PRIORITY: Final = 0x02
RST_STREAM: Final = 0x03
SETTINGS: Final = 0x04
PUSH_PROMISE: Final = 0x05
PING: Final = 0x06
GOAWAY: Final = 0x07
WINDOW_UPDATE: Final = 0x08
CONTINUATION: Final = 0x09

# Frame flags. The PRIORITY flag of HEADERS has a longer name here because a frame type has the same one.
END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
PRIORITY_FLAG: Final = 0x20

# Setting identifiers (RFC 9113, 6.5.2).
SETTINGS_HEADER_TABLE_SIZE: Final = 0x01
SETTINGS_ENABLE_PUSH: Final = 0x02
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 0x03
SETTINGS_INITIAL_WINDOW_SIZE: Final = 0x04
SETTINGS_MAX_FRAME_SIZE: Final = 0x05
SETTINGS_MAX_HEADER_LIST_SIZE: Final = 0x06

# Values that this server announces, and the limits that it enforces.
MAX_CONCURRENT_STREAMS: Final = 1 << 17  # an ext_proc stream lasts as long as the response, so there are many
INITIAL_WINDOW_SIZE: Final = 4 << 20  # bytes of one stream that may be in flight to this server
MAX_FRAME_SIZE: Final = 16_384  # the protocol's default
MAX_HEADER_LIST_SIZE: Final = 64 << 10  # of one stream, both compressed and decoded
MAX_CONTINUATION_FRAMES: Final = 64  # of one field block, its HEADERS frame included
MAX_RESET_STREAMS: Final = 1024  # streams that were reset here, and whose late frames are still ignored

# Values of the protocol.
DEFAULT_WINDOW_SIZE: Final = 65_535  # of a connection at its start, and of streams until SETTINGS change it
MAX_WINDOW_SIZE: Final = (1 << 31) - 1
MAX_MAX_FRAME_SIZE: Final = (1 << 24) - 1  # the largest SETTINGS_MAX_FRAME_SIZE

FRAME_HEADER: Final = Struct(">HBBBI")  # length in 16 and 8 bits, type, flags, stream identifier
FRAME_HEADER_SIZE: Final = 9
SETTING: Final = Struct(">HI")  # identifier, value
UINT32: Final = Struct(">I")


class ErrorCode(IntEnum):
    """Error codes of RST_STREAM and GOAWAY (RFC 9113, 7)."""

    NO_ERROR = 0x00
    PROTOCOL_ERROR = 0x01
    INTERNAL_ERROR = 0x02
    FLOW_CONTROL_ERROR = 0x03
    SETTINGS_TIMEOUT = 0x04
    STREAM_CLOSED = 0x05
    FRAME_SIZE_ERROR = 0x06
    REFUSED_STREAM = 0x07
    CANCEL = 0x08
    COMPRESSION_ERROR = 0x09
    CONNECT_ERROR = 0x0A
    ENHANCE_YOUR_CALM = 0x0B
    INADEQUATE_SECURITY = 0x0C
    HTTP_1_1_REQUIRED = 0x0D


class ConnectionFailed(Exception):
    """A connection error (RFC 9113, 5.4.1): the connection ends with GOAWAY and `code`."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code


class StreamFailed(Exception):
    """A malformed request or trailers (RFC 9113, 8.1.1): the stream ends with RST_STREAM and PROTOCOL_ERROR."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame in bytes."""
    size = len(payload)
    return FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def check_size(name: str, payload: bytes, size: int) -> None:
    """Raise `ConnectionFailed` unless the payload of this frame type has `size` bytes."""
    if len(payload) != size:
        raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"{name} with a payload of {len(payload)} bytes, not {size}")


def without_padding(payload: bytes) -> bytes:
    """The payload of a PADDED frame without its padding. Raises `ConnectionFailed`."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
