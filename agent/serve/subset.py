"""The subset hint of the endpoint picker protocol: the only endpoints that the proxy allows for a request."""

from __future__ import annotations

from typing import Final

SUBSET: Final = "x-gateway-destination-endpoint-subset"


def subset_of(hint: object) -> frozenset[str] | None:
    """The addresses of a subset hint: None when there is none, an empty set when it allows nothing.

    The hint is a list of addresses or a comma-separated string. IPv6 is `[addr]:port`; without its brackets the last
    colon is taken as the port's. What is no address is left out, so that a hint of nothing but nonsense allows nothing.
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
