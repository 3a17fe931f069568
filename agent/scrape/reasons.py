"""Why a scrape can fail: the closed list of words, each with what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# They are the values of a label, so the list is closed.
REASONS: Final[Mapping[str, str]] = {
    "refused": "nobody listens at the address",
    "unreachable": "there is no way to the address",
    "timeout": "no whole answer within the time-out",
    "reset": "the connection broke before an answer",
    "tls": "the server speaks no TLS, or none that we speak",
    "tls_untrusted": "nobody whom we trust vouches for the server's certificate",
    "tls_expired": "the server's certificate has expired, or is not valid yet",
    "tls_name": "the server's certificate is that of another server",
    "tls_client": "the server refuses our certificate, or misses one",
    "tls_files": "a file with certificates or a key cannot be read",
    "token_file": "the file with the token cannot be read, or holds none",
    "bad_http": "the answer is not HTTP",
    "status": "the answer's status is not 200",
    "too_large": "the page is over the size limit, or has too many wanted series",
    "truncated": "the answer ends before its announced end, or the page in the middle of a line",
    "empty": "the page has no bytes",
    "encoding": "the page is compressed, which was not asked for",
    "not_metrics": "the page is not in the Prometheus text format",
    "wrong_engine": "the page is of another engine, or has none of this engine's metrics",
}
