"""Access to the servers of a pool: the TLS context and the bearer token, read from files that may change at any time.

Certificates and tokens are replaced while the process runs. So their files are checked at most once in `CHECK_SECONDS`,
and before each request while the server rejects the token or the file has none (it may be incomplete). A changed file
is read on its next use. A new token is sent with the next GET. New certificates apply to new connections: an open
connection was verified when it was opened.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from agent.scrape.http_connection import FetchFailed

CHECK_SECONDS: Final = 1.0
_TOKEN: Final = re.compile(rb"[\x21-\x7e]{1,16384}")
# OpenSSL's codes (X509_V_ERR_...) of a failed verification; all others are `tls_untrusted`.
_EXPIRED: Final = {9: "is not valid yet", 10: "has expired"}
_WRONG_NAME: Final = frozenset({62, 64})  # of a host, of an address


class HttpClientConfig(NamedTuple):
    """How a pool's servers are accessed. An empty text: none, or the default."""

    https: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    token_file: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False


class ServerAccess:
    """TLS context and token for the servers of one pool. `version` increases whenever `headers` changes."""

    def __init__(self, config: HttpClientConfig) -> None:
        self.config = config
        self.version = 0
        self._checked_at = float("-inf")
        self._seen: tuple[tuple[int, int, int] | None, ...] = ()
        self._context: ssl.SSLContext | None = None
        self._token = ""
        self._token_problem = ""

    def refresh(self, now: float) -> None:
        """Check whether a file has changed, unless the last check was less than `CHECK_SECONDS` ago."""
        if now - self._checked_at < CHECK_SECONDS and not self._token_problem:
            return
        self._checked_at = now
        config = self.config
        seen = tuple(map(_fingerprint, (config.ca_file, config.cert_file, config.key_file, config.token_file)))
        if seen == self._seen:
            return
        self._seen = seen
        self._context = None
        if config.token_file:
            self._read_token(config.token_file)
            self.version += 1

    def headers(self) -> str:
        """The header lines with the credentials, each with CRLF. Raises FetchFailed (`token_file`)."""
        if self._token_problem:
            raise FetchFailed("token_file", self._token_problem)
        return f"Authorization: Bearer {self._token}\r\n" if self._token else ""

    def explained(self, failure: FetchFailed) -> FetchFailed:
        """The failure, with a detail that names the token file if the server rejects our token.

        Such a rejection also makes the files be checked before the next request: there may be a new token.
        """
        if failure.status not in (401, 403) or not self._token:
            return failure
        self._checked_at = float("-inf")
        detail = f"HTTP {failure.status}: the server rejects the token in {self.config.token_file}"
        return FetchFailed(failure.reason, detail, status=failure.status)

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context for a connection, None for plain HTTP. Raises FetchFailed (`tls_files`)."""
        config = self.config
        if not config.https:
            return None
        if self._context is None:
            try:
                made = ssl.create_default_context(cafile=config.ca_file or None)
                if config.cert_file:
                    made.load_cert_chain(config.cert_file, config.key_file)
            except OSError as error:  # ssl.SSLError, for a file without a certificate or key, is one
                files = " ".join(file for file in (config.ca_file, config.cert_file, config.key_file) if file)
                raise FetchFailed("tls_files", f"{files}: {error.strerror or error}") from error
            if config.insecure_skip_verify:
                made.check_hostname = False
                made.verify_mode = ssl.CERT_NONE
            self._context = made
        return self._context

    def server_name(self, name: str) -> str | None:
        """The name to verify, for a server with this name or address in the pool; None for plain HTTP."""
        return (self.config.server_name or name) if self.config.https else None

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
            self._token_problem = f"{path} contains no token" if text else f"{path} is empty"


PLAIN: Final = ServerAccess(HttpClientConfig())


def tls_failure(error: ssl.SSLError, address: str) -> FetchFailed:
    """The failure for a TLS connection that could not be opened."""
    if isinstance(error, ssl.SSLCertVerificationError):
        message = error.verify_message
        if error.verify_code in _EXPIRED:
            return FetchFailed("tls_expired", f"the certificate of {address} {_EXPIRED[error.verify_code]}")
        if error.verify_code in _WRONG_NAME:
            return FetchFailed(
                "tls_name", f"the certificate of {address} is for another name: {message}; write serverName"
            )
        return FetchFailed("tls_untrusted", f"the certificate of {address} is not trusted: {message}; write caFile")
    if error.reason == "WRONG_VERSION_NUMBER":
        return FetchFailed("tls", f"{address} does not use TLS; write scheme: http")
    if "ALERT" in (error.reason or ""):
        return FetchFailed(
            "tls_client", f"{address} rejects the connection: {error.reason}; write certFile and keyFile"
        )
    return FetchFailed("tls", f"no TLS connection with {address}: {error.reason or error}")


def _fingerprint(path: str) -> tuple[int, int, int] | None:
    """Inode, modification time and size of a file, which change with its content; None where there is no file."""
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
