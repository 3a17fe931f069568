"""How the servers of a pool are reached: plain or by TLS, as whom, and with which token. Files may change at any time.

Certificates and tokens are replaced while a process runs, so their files are looked at, at most once in
`LOOK_SECONDS`, and before the next question where a server has refused the token or the file held none (somebody may
have been writing it); a changed one is read when it is needed next. A new token goes with the next GET. New
certificates hold for new connections: one that is open was verified when it was opened.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from agent.scrape.fetch import FetchFailed

LOOK_SECONDS: Final = 1.0
_TOKEN: Final = re.compile(rb"[\x21-\x7e]{1,16384}")
# OpenSSL's numbers (X509_V_ERR_...) for why a certificate is not believed; all others are `tls_untrusted`.
_EXPIRED: Final = {9: "is not valid yet", 10: "has expired"}
_WRONG_NAME: Final = frozenset({62, 64})  # of a host, of an address


class ReachSettings(NamedTuple):
    """What the configuration says of a pool. Empty: none, or the usual."""

    https: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    token_file: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False


class Reach:
    """The way to the servers of one pool. `version` grows whenever `headers` says something else."""

    def __init__(self, settings: ReachSettings) -> None:
        self.settings = settings
        self.version = 0
        self._looked_at = float("-inf")
        self._seen: tuple[tuple[int, int, int] | None, ...] = ()
        self._context: ssl.SSLContext | None = None
        self._token = ""
        self._token_problem = ""

    def look(self, now: float) -> None:
        """See whether a file has changed, if the last look was long ago."""
        if now - self._looked_at < LOOK_SECONDS and not self._token_problem:
            return
        self._looked_at = now
        told = self.settings
        seen = tuple(map(_state, (told.ca_file, told.cert_file, told.key_file, told.token_file)))
        if seen == self._seen:
            return
        self._seen = seen
        self._context = None
        if told.token_file:
            self._read_token(told.token_file)
            self.version += 1

    def headers(self) -> str:
        """What every request says of who asks, each line with its end. Raises FetchFailed (`token_file`)."""
        if self._token_problem:
            raise FetchFailed("token_file", self._token_problem)
        return f"Authorization: Bearer {self._token}\r\n" if self._token else ""

    def understood(self, failure: FetchFailed) -> FetchFailed:
        """What a failure means to whoever wrote these settings: who refuses our token may know a newer one."""
        if failure.status not in (401, 403) or not self._token:
            return failure
        self._looked_at = float("-inf")
        told = f"HTTP {failure.status}: the server refuses the token in {self.settings.token_file}"
        return FetchFailed(failure.reason, told, status=failure.status)

    def context(self) -> ssl.SSLContext | None:
        """What to open a connection with, None for a plain one. Raises FetchFailed (`tls_files`)."""
        told = self.settings
        if not told.https:
            return None
        if self._context is None:
            try:
                made = ssl.create_default_context(cafile=told.ca_file or None)
                if told.cert_file:
                    made.load_cert_chain(told.cert_file, told.key_file)
            except OSError as error:  # ssl.SSLError is one: what is in a file is no certificate or no key
                files = " ".join(file for file in (told.ca_file, told.cert_file, told.key_file) if file)
                raise FetchFailed("tls_files", f"{files}: {error.strerror or error}") from error
            if told.insecure_skip_verify:
                made.check_hostname = False
                made.verify_mode = ssl.CERT_NONE
            self._context = made
        return self._context

    def server_name(self, name: str) -> str | None:
        """Whom to ask for and to verify at a server that the pool knows by this name or address."""
        return (self.settings.server_name or name) if self.settings.https else None

    def _read_token(self, path: str) -> None:
        self._token, self._token_problem = "", ""
        try:
            with Path(path).open("rb") as file:
                text = file.read(1 << 15).strip()
        except OSError as error:
            self._token_problem = f"{path} cannot be read: {error.strerror or error}"
            return
        if _TOKEN.fullmatch(text):
            self._token = text.decode()
        else:
            self._token_problem = f"{path} holds no token" if text else f"{path} is empty"


PLAIN: Final = Reach(ReachSettings())


def tls_failure(error: ssl.SSLError, address: str) -> FetchFailed:
    """What went wrong between us and a server when a connection was to be opened by TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message
        if error.verify_code in _EXPIRED:
            return FetchFailed("tls_expired", f"the certificate of {address} {_EXPIRED[error.verify_code]}")
        if error.verify_code in _WRONG_NAME:
            return FetchFailed("tls_name", f"the certificate of {address} is of another: {said}; write serverName")
        return FetchFailed("tls_untrusted", f"the certificate of {address} is not trusted: {said}; write caFile")
    if error.reason == "WRONG_VERSION_NUMBER":
        return FetchFailed("tls", f"{address} does not speak TLS; write scheme: http")
    if "ALERT" in (error.reason or ""):
        return FetchFailed("tls_client", f"{address} refuses us: {error.reason}; write certFile and keyFile")
    return FetchFailed("tls", f"no TLS with {address}: {error.reason or error}")


def _state(path: str) -> tuple[int, int, int] | None:
    """What tells one content of a file from another without reading it, None where there is none."""
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
