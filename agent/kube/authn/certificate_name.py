"""What a verified client certificate says, and why one is refused. Pure, and without `cryptography`, which only those
need who configure certificates of clients."""

from __future__ import annotations

from typing import NamedTuple


class BadBundle(ValueError):
    """The text is no bundle of certificates; the message says what is wrong."""


class CertificateRefused(Exception):
    """The certificate proves nothing; the message says why, without its contents."""


class CertificateName(NamedTuple):
    """The subject of a verified certificate: its common name, which may be empty, and its organisations."""

    common_name: str
    organisations: tuple[str, ...]
