"""From when until when a certificate is valid, read from its DER encoding (RFC 5280, section 4.1).

Python's `ssl` shows the dates of a verified peer only, and the package `cryptography` is optional.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
from typing import Final, NamedTuple

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0], absent in certificates of version 1
_UTC_TIME: Final = 0x17  # two digits of the year: 1950 to 2049
_GENERALIZED_TIME: Final = 0x18
_TIME: Final = re.compile(rb"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")


class Malformed(ValueError):
    """Not a certificate."""


class Validity(NamedTuple):
    """Seconds since 1970; both ends are included."""

    begins: float
    ends: float


def first_certificate(pem: bytes) -> bytes:
    """The first certificate of a PEM file, as DER. Raises Malformed."""
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise Malformed("there is no CERTIFICATE block")
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise Malformed("its CERTIFICATE block is not base64") from error


def validity(der: bytes) -> Validity:
    """The dates of a certificate. Raises Malformed."""
    certificate, _ = _content(der, _SEQUENCE)
    fields, _ = _content(certificate, _SEQUENCE)
    if fields[:1] == bytes([_VERSION]):
        _, fields = _content(fields, _VERSION)
    for _ in range(3):  # serial number, signature algorithm, issuer
        _, fields = _content(fields, None)
    dates, _ = _content(fields, _SEQUENCE)
    begins, dates = _time(dates)
    ends, _ = _time(dates)
    return Validity(begins, ends)


def _content(data: bytes, tag: int | None) -> tuple[bytes, bytes]:
    """The content of the first element, and what follows it. `tag`: the one that it must have."""
    if len(data) < 2 or (tag is not None and data[0] != tag):
        raise Malformed("it is not an X.509 certificate")
    length, start = data[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(data[2:start], "big")
    if start > 6 or len(data) < start + length:  # longer than 4 GiB, or cut off
        raise Malformed("it is not an X.509 certificate")
    return data[start : start + length], data[start + length :]


def _time(data: bytes) -> tuple[float, bytes]:
    """The time at the start of `data` in seconds since 1970, and what follows it."""
    tag = data[0] if data else 0
    text, rest = _content(data, None)
    if tag == _UTC_TIME:
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    elif tag != _GENERALIZED_TIME:
        raise Malformed("it has no dates")
    found = _TIME.fullmatch(text)
    if found is None:
        raise Malformed("its dates are not in the format of RFC 5280")
    year, month, day, hour, minute, second = map(int, found.groups())
    try:
        return float(calendar.timegm((year, month, day, hour, minute, second))), rest
    except ValueError as error:
        raise Malformed("its dates are not in the calendar") from error
