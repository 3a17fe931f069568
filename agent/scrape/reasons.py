"""The reasons for a failed scrape, with their meanings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Values of a metric label, so the list is closed.
REASONS: Final[Mapping[str, str]] = {
    "refused": "connection refused: no process listens at the address",
    "page_refused": "connection refused at the port of the page, which is another than that of the health path",
    "unreachable": "the address cannot be reached, or its name cannot be resolved",
    "timeout": "no complete response within the time-out",
    "reset": "the connection was closed before a complete response",
    "tls": "the server does not use TLS, or no common TLS version",
    "tls_untrusted": "certificate not signed by a trusted CA",
    "tls_expired": "the server's certificate has expired, or is not valid yet",
    "tls_name": "the server's certificate is for another name",
    "tls_client": "the server rejects the client certificate, or requires one",
    "tls_files": "a certificate or key file cannot be read",
    "token_file": "the token file cannot be read, or contains no token",
    "bad_http": "the response is not HTTP/1.1",
    "status": "the status of the response is not 200",
    "too_large": "the page is over the size limit, or has too many wanted series",
    "truncated": "the response ends before its announced end, or the page in the middle of a line",
    "empty": "the page has no sample: the server has counted nothing yet, or it is another page",
    "encoding": "the page is compressed, which was not requested",
    "not_metrics": "the page is not in the Prometheus text format",
    "wrong_engine": "the page is of another engine, or has none of this engine's metrics",
}
