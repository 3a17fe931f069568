"""Reads the fields of a form: `multipart/form-data` (RFC 7578) and `application/x-www-form-urlencoded`.

A form is how audio is uploaded. Its model is a field, and its file is part of the prompt. Fields with a file name are
bytes, the others are text.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

URLENCODED: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"

_MAX_FIELDS: Final = 100
_MAX_HEAD: Final = 8192  # bytes of the header lines of one part
_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME: Final = re.compile(rb';\s*name="([^"]*)"', re.IGNORECASE)
_FILE: Final = re.compile(rb";\s*filename\*?=", re.IGNORECASE)

Fields = dict[str, str | bytes]


def is_form(content_type: str) -> bool:
    """Whether a body of this content-type is a form."""
    return content_type[:48].lower().startswith((MULTIPART, URLENCODED))


def fields_of(body: bytes, content_type: str) -> Fields:
    """The fields by name; of several with one name, the first. What cannot be read is left out."""
    if content_type[:48].lower().startswith(URLENCODED):
        return _urlencoded(body)
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return {}
    return _multipart(body, b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace"))


def _urlencoded(body: bytes) -> Fields:
    found: Fields = {}
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MAX_FIELDS)
    except ValueError:  # more fields than a request has
        return found
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def _multipart(body: bytes, delimiter: bytes) -> Fields:
    found: Fields = {}
    at = body.find(delimiter)
    for _ in range(_MAX_FIELDS):
        if at < 0:
            return found
        start = at + len(delimiter)
        at = body.find(b"\r\n" + delimiter, start)
        if at < 0 or body.startswith(b"--", start):
            return found
        end, at = at, at + 2
        head = body.find(b"\r\n\r\n", start, min(end, start + _MAX_HEAD))
        if head < 0:
            continue
        lines = body[start:head]
        name = _NAME.search(lines)
        if name is not None:
            value = body[head + 4 : end]
            is_file = _FILE.search(lines) is not None
            found.setdefault(name[1].decode("utf-8", "replace"), value if is_file else value.decode("utf-8", "replace"))
    return found
