"""TLS towards another server: the context of a client, whose certificate and CAs come from files that may change."""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

from agent.serve.tls.files import CertificatePair, Fingerprint, TlsProblem, fingerprint, load_cas, load_pair, read


class ClientFiles(NamedTuple):
    """PEM files. An empty text: no client certificate; the CAs of the system. `verify`: whether the server's
    certificate and its name are verified. `alpn`: the protocol of the connection, such as `h2`."""

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    verify: bool = True
    alpn: str = ""


class ClientTls:
    """The context for new connections to a server; `load` comes first."""

    def __init__(self, files: ClientFiles) -> None:
        self.files = files
        self._context: ssl.SSLContext | None = None
        self._seen: Fingerprint = ()

    @property
    def context(self) -> ssl.SSLContext:
        """The context for a new connection. RuntimeError before `load`."""
        if self._context is None:
            raise RuntimeError("load() comes first")
        return self._context

    def load(self) -> None:
        """Read the files. Raises TlsProblem."""
        seen = fingerprint(self._paths)
        self._context = self._made(read(self._paths))
        self._seen = seen

    async def check(self) -> None:
        """Take over files that have changed. Raises TlsProblem and keeps the old context."""
        found = fingerprint(self._paths)
        if found != self._seen:
            self._context = self._made(await asyncio.to_thread(read, self._paths))
            self._seen = found

    @property
    def _paths(self) -> tuple[str, ...]:
        return (self.files.cert_file, self.files.key_file, self.files.ca_file)

    def _made(self, content: list[bytes]) -> ssl.SSLContext:
        files = self.files
        certificate, key, ca = content
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.alpn:
            context.set_alpn_protocols([files.alpn])
        if not files.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ca:
            load_cas(context, ca, files.ca_file)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        else:
            context.load_default_certs()
        if certificate:
            load_pair(context, CertificatePair(certificate, key), files.cert_file, files.key_file)
        return context


__all__ = ["ClientFiles", "ClientTls", "TlsProblem"]
