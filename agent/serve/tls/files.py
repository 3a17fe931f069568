"""Certificates and keys from files that are replaced while the process runs.

The files of a Kubernetes Secret are replaced together: they are symlinks through the symlink `..data`, which is then
exchanged. Other programs write one file after the other. So what was read counts only if no file changed meanwhile, and
OpenSSL gets the bytes that were read, not the paths.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAX_FILE_BYTES: Final = 1 << 20
_READ_ATTEMPTS: Final = 3

Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


class TlsProblem(Exception):
    """A certificate, key or CA cannot be used; the text has the file and the remedy."""


class CertificatePair(NamedTuple):
    """A certificate with those that signed it, and its key, as PEM."""

    certificate: bytes
    key: bytes


def fingerprint(paths: Sequence[str]) -> Fingerprint:
    """Identifies the content of the files without reading them; symlinks are followed. None: there is no file."""
    return tuple(map(_fingerprint, paths))


def read(paths: Sequence[str]) -> list[bytes]:
    """The content of the files, which belongs together; empty for an empty path. Raises TlsProblem."""
    for _ in range(_READ_ATTEMPTS):
        before = fingerprint(paths)
        found = [_read(path) if path else b"" for path in paths]
        if fingerprint(paths) == before:
            return found
    raise TlsProblem(f"{', '.join(filter(None, paths))}: being replaced; write them once, or exchange a symlink")


def load_pair(context: ssl.SSLContext, pair: CertificatePair, certificate_name: str, key_name: str) -> None:
    """Load a certificate and its key. The names are those of the files, for the message. Raises TlsProblem."""
    if b"-----BEGIN CERTIFICATE-----" not in pair.certificate:
        raise TlsProblem(f"{certificate_name}: there is no certificate in it; write it in PEM format")
    if b"PRIVATE KEY-----" not in pair.key:
        raise TlsProblem(f"{key_name}: there is no private key in it; write it in PEM format")
    if b"ENCRYPTED" in pair.key:
        raise TlsProblem(f"{key_name}: the key is encrypted; write it without a passphrase, readable by this user only")
    try:
        # The key is first: the certificate's file may have a key too.
        _load_chain(context, pair.key + b"\n" + pair.certificate)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsProblem(
                f"{certificate_name} and {key_name}: the key is not that of the first certificate; "
                "write the certificate of the server first, and the key that belongs to it"
            ) from error
        why = (error.reason or str(error)).lower().replace("_", " ")
        raise TlsProblem(f"{certificate_name} and {key_name}: OpenSSL refuses them: {why}") from error


def load_cas(context: ssl.SSLContext, pem: bytes, name: str) -> None:
    """Trust these CA certificates. Raises TlsProblem."""
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsProblem(f"{name}: there are no CA certificates in it; write them in PEM format") from error


def _fingerprint(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = Path(path).stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size) if found else None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TlsProblem(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise TlsProblem(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; write the certificates that are needed")
    return content


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """`load_cert_chain` for bytes: it takes only a path. The key never reaches a disk where the system allows that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("igw-tls")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name, password=_no_passphrase)


def _no_passphrase() -> str:
    """Without this OpenSSL would wait for a passphrase at the terminal."""
    return ""
