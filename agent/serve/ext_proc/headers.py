"""The headers of a request that the endpoint picker reads, sets or takes away."""

from __future__ import annotations

from typing import Final

from agent.engines.report import REQUEST_HEADER

SUBSET: Final = "x-gateway-destination-endpoint-subset"


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


DESTINATION: Final = "x-gateway-destination-endpoint"
REQUEST_ID: Final = "x-request-id"

# Headers by which a client steers the gateway or its sidecars. They are for us alone: a model server that trusted
# them would trust the client.
CONTROL: Final = frozenset(
    {
        SUBSET,
        "x-llm-d-inference-fairness-id",
        "x-gateway-inference-fairness-id",
        "x-llm-d-inference-objective",
        "x-gateway-inference-objective",
        "x-llm-d-model-name-rewrite",
        "x-gateway-model-name-rewrite",
        "x-gateway-destination-endpoint-served",
        "x-llm-d-slo-ttft-ms",
        "x-llm-d-slo-tpot-ms",
        "x-slo-ttft-ms",
        "x-slo-tpot-ms",
        "x-prefiller-host-port",
        "x-encoder-hosts-ports",
        "x-data-parallel-host-port",
        "x-kv-cache-source-host-port",
        "epp-profile",
    }
)
# The only headers that a session reads; the protocol need not pass others.
READ: Final = CONTROL | {
    ":path",
    ":method",
    "content-encoding",
    "content-length",
    "content-type",
    REQUEST_ID,
    REQUEST_HEADER,
}
