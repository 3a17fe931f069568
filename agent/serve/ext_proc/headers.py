"""The headers of a request that the endpoint picker reads, sets or takes away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.engines.report import REQUEST_HEADER
from agent.requests.control_headers import CONTROL, OLD_REWRITE, REWRITE
from agent.requests.flow_headers import FlowHeaderRules


def subset_of(hint: object) -> frozenset[str] | None:
    """The addresses of a subset hint: None when there is none, an empty set when it allows nothing.

    The hint is a list of addresses or a comma-separated string. IPv6 is `[addr]:port`; without its brackets the last
    colon is taken as the port's. Invalid addresses are left out: a hint without a valid address allows no endpoint.
    """
    if hint is None:
        return None
    entries = hint.split(",") if isinstance(hint, str) else hint if isinstance(hint, list | tuple) else ()
    addresses = (_address(entry) for entry in entries if isinstance(entry, str))
    return frozenset(address for address in addresses if address)


def _address(text: str) -> str:
    host, colon, port = text.strip().rpartition(":")
    if not (host and colon and port.isdecimal()):
        return ""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def rewrite_of(headers: Mapping[str, str]) -> str:
    """The model that replaces the one in the body, empty for none; llm-d's name of the header goes before the older."""
    text = headers.get(REWRITE) or headers.get(OLD_REWRITE) or ""
    try:
        return text.encode("latin-1").decode()  # header values are decoded as Latin-1, names of models are UTF-8
    except UnicodeError:
        return text


DESTINATION: Final = "x-gateway-destination-endpoint"
REQUEST_ID: Final = "x-request-id"

# The only headers that a session reads, beside the one that is configured to name the caller.
READ: Final = CONTROL | {
    ":path",
    ":method",
    "content-encoding",
    "content-length",
    "upgrade",
    "content-type",
    REQUEST_ID,
    REQUEST_HEADER,
}


def read_by(rules: FlowHeaderRules) -> frozenset[str]:
    """The headers that a session with these rules reads."""
    return READ | {rules.caller_header} if rules.caller_header else READ
