"""TLS of a port: the context with which new connections begin, and its replacement while the port serves.

Each change makes a new context: new connections use it, open ones keep the one with which they began. A change that
cannot be used leaves the port as it was; it is reported, counted, and tried again when the files change once more.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from agent.clock import Clock
from agent.config.tls import TlsConfig
from agent.events import Hook
from agent.events.tls import CertificateInvalid, CertificateLoaded, CertificateNotLoaded
from agent.serve.tls.files import CertificatePair, Fingerprint, TlsProblem, fingerprint, load_cas, load_pair, read
from agent.serve.tls.self_signed import RENEW_BEFORE_SECONDS, self_signed
from agent.serve.tls.validity import Malformed, Validity, first_certificate, validity

# RFC 9113 (9.2.2) excludes all other ciphers of TLS 1.2 from HTTP/2; those of TLS 1.3 have names of their own.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


class TlsPort(NamedTuple):
    """A port with TLS: its name in metrics and logs, the section that configures it, and its protocol (ALPN)."""

    name: str
    section: str
    alpn: str


PICKER: Final = TlsPort("ext_proc", "extProc.tls", "h2")
ADMIN: Final = TlsPort("admin", "admin.tls", "http/1.1")
KEDA: Final = TlsPort("keda", "keda.tls", "h2")
REPLICAS: Final = TlsPort("replicas", "replicas", "h2")
METRICS_API: Final = TlsPort("metrics_api", "metricsApi", "http/1.1")


class _Content(NamedTuple):
    """What a context is made of. `app_cas` and `app_required` come from `ServerTls.set_client_cas`."""

    pair: CertificatePair
    client_ca: bytes
    app_cas: bytes
    app_required: bool


class ServerTls:
    """The TLS of one port or several. `load` comes first. `hosts` are the names in a self-signed certificate."""

    def __init__(
        self, config: TlsConfig, port: TlsPort, *, hook: Hook, clock: Clock, hosts: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.port = port
        self.hook = hook
        self._clock = clock
        self._hosts = (socket.gethostname(), "localhost", "127.0.0.1", "::1", *hosts)
        self._context: ssl.SSLContext | None = None
        self._content = _Content(CertificatePair(b"", b""), b"", b"", app_required=False)
        self._validity = Validity(0.0, 0.0)
        self._invalid = ""  # what is wrong with the dates, as it was reported last
        self._seen: Fingerprint = ()
        self._failed: Fingerprint | None = None  # files that could not be used, once

    @property
    def context(self) -> ssl.SSLContext:
        """The context for a new connection. RuntimeError before `load`."""
        if self._context is None:
            raise RuntimeError("load() comes first")
        return self._context

    def load(self) -> None:
        """Read the certificate, once. Raises TlsProblem, with the option, the file and the remedy."""
        if self._context is not None:
            return
        try:
            self._seen = fingerprint(self._paths)
            self._use_files(self._read())
        except TlsProblem as problem:
            raise TlsProblem(f"{self.port.section}: {problem}") from problem

    async def check(self) -> None:
        """Take over files that have changed, renew a certificate of our own, report one that has expired.

        Files that cannot be used are reported at the second check that finds them so: the first may have come between
        the writing of one file and of the other.
        """
        if self._context is None:
            return
        found = fingerprint(self._paths)
        if found != self._seen:
            try:
                content = await asyncio.to_thread(self._read)
                self._use_files(content)
            except TlsProblem as problem:
                if self._failed == found:
                    self._seen = found
                    why = f"{self.port.section}: {problem}"
                    self.hook(CertificateNotLoaded(self.port.name, why))
                self._failed = found
            else:
                self._seen, self._failed = found, None
        elif self.config.self_signed and not self._lasts():
            self._use_files([])
        self._report_dates()

    def set_client_cas(self, pem: bytes, *, required: bool = False) -> None:
        """Accept client certificates of these CAs too, from the next connection on, instead of those of the call
        before; empty: of no more CAs. `required`: refuse clients without a certificate. Raises TlsProblem and keeps
        what was; before `load` nothing is checked.

        A client with a certificate of another CA is refused. Which of the CAs signed it, and whether it may do what it
        wants, is for the application to verify (`peer_certificate`).
        """
        content = self._content._replace(app_cas=pem, app_required=required)
        if self._context is not None:
            self._context = self._made(content)
        self._content = content

    @property
    def _paths(self) -> tuple[str, ...]:
        return (self.config.cert_file, self.config.key_file, self.config.client_ca_file)

    def _read(self) -> list[bytes]:
        return read(self._paths)

    def _use_files(self, files: list[bytes]) -> None:
        """Make a context of the files' content; empty: as they were. Raises TlsProblem and changes nothing."""
        content = self._content
        if files:
            certificate, key, client_ca = files
            content = content._replace(pair=CertificatePair(certificate, key), client_ca=client_ca)
        if self.config.self_signed:
            content = content._replace(pair=self_signed(self._hosts, self._clock.wall()))
        name = "the self-signed certificate" if self.config.self_signed else self.config.cert_file
        try:
            dates = validity(first_certificate(content.pair.certificate))
        except Malformed as malformed:
            raise TlsProblem(f"{name}: {malformed}; write a certificate in PEM format") from malformed
        self._context = self._made(content)
        self._content, self._validity = content, dates
        self.hook(CertificateLoaded(self.port.name, name, dates.begins, dates.ends))
        self._invalid = ""
        self._report_dates()

    def _made(self, content: _Content) -> ssl.SSLContext:
        config = self.config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = VERSIONS[config.min_version]
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        # No tickets: each would carry a client's certificate past a change of the CAs, and connections are long-lived.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols([self.port.alpn])
        load_pair(context, content.pair, config.cert_file, config.key_file)
        if content.client_ca:
            load_cas(context, content.client_ca, config.client_ca_file)
        if content.app_cas:
            load_cas(context, content.app_cas, "the CAs of clients")
        if content.client_ca or content.app_cas:
            required = content.app_required or (bool(content.client_ca) and config.client_certificate == "required")
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a file may have only the CA below the root
        return context

    def _lasts(self) -> bool:
        """Whether a self-signed certificate need not be renewed; the clock may have been set."""
        now = self._clock.wall()
        return self._validity.begins <= now < self._validity.ends - RENEW_BEFORE_SECONDS

    def _report_dates(self) -> None:
        """Report a certificate that is not valid now, once."""
        now = self._clock.wall()
        if now > self._validity.ends:
            invalid = "has expired"
        elif now < self._validity.begins:
            invalid = "is not valid yet"
        else:
            invalid = ""
        if invalid and invalid != self._invalid:
            name = self.config.cert_file or "the self-signed certificate"
            why = f"{self.port.section}: {name} {invalid}: replace it, or set the clock of this machine"
            self.hook(CertificateInvalid(self.port.name, why))
        self._invalid = invalid


def peer_certificate(transport: Any) -> bytes | None:
    """The certificate (DER) that the client of this transport sent and a CA of the port signed; None without one."""
    tls = transport.get_extra_info("ssl_object")
    found: bytes | None = tls.getpeercert(binary_form=True) if tls is not None else None
    return found
