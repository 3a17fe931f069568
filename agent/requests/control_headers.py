"""The headers by which a request steers the gateway or its sidecars, in one table.

They are for the gateway alone: a model server that believed them would believe the client. The endpoint picker removes
them from every request that it routes, whatever proxy is in front of it.

Some of them are the terms of the request (`ControlHeader.terms`): how it is served when requests wait. A client that
may write those chooses its own priority, so the configuration says whether they are believed.

Names: the endpoint picker of llm-d (pkg/epp/metadata), and the names that these headers had before. The TTL has no name
there.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class ControlHeader(NamedTuple):
    """A header, the name that it had before (empty: none), and what it says. `terms`: it belongs to the terms of the
    request."""

    name: str
    former: str
    meaning: str
    terms: bool = False


OBJECTIVE: Final = "x-llm-d-inference-objective"
OLD_OBJECTIVE: Final = "x-gateway-inference-objective"
FAIRNESS_ID: Final = "x-llm-d-inference-fairness-id"
OLD_FAIRNESS_ID: Final = "x-gateway-inference-fairness-id"
TTL: Final = "x-llm-d-inference-ttl"
TTFT: Final = "x-llm-d-slo-ttft-ms"
OLD_TTFT: Final = "x-slo-ttft-ms"
TPOT: Final = "x-llm-d-slo-tpot-ms"
OLD_TPOT: Final = "x-slo-tpot-ms"
SUBSET: Final = "x-gateway-destination-endpoint-subset"
REWRITE: Final = "x-llm-d-model-name-rewrite"
OLD_REWRITE: Final = "x-gateway-model-name-rewrite"

CONTROL_HEADERS: Final[tuple[ControlHeader, ...]] = (
    ControlHeader(OBJECTIVE, OLD_OBJECTIVE, "the objective, which has the priority", terms=True),
    ControlHeader(FAIRNESS_ID, OLD_FAIRNESS_ID, "the caller, which gets a fair share within its priority", terms=True),
    ControlHeader(TTL, "", "the longest wait, such as `30s`", terms=True),
    ControlHeader(TTFT, OLD_TTFT, "the wanted time to the first token, in milliseconds", terms=True),
    ControlHeader(TPOT, OLD_TPOT, "the wanted time per output token, in milliseconds", terms=True),
    ControlHeader(REWRITE, OLD_REWRITE, "the model that replaces the one in the body"),
    ControlHeader(SUBSET, "", "has no effect: the proxy sends the allowed endpoints as metadata"),
    ControlHeader("x-gateway-destination-endpoint-served", "", "has no effect in a request"),
    ControlHeader("x-prefiller-host-port", "", "for a sidecar of the model server; has no effect"),
    ControlHeader("x-encoder-hosts-ports", "", "for a sidecar of the model server; has no effect"),
    ControlHeader("x-data-parallel-host-port", "", "for a sidecar of the model server; has no effect"),
    ControlHeader("x-kv-cache-source-host-port", "", "for a sidecar of the model server; has no effect"),
    ControlHeader("epp-profile", "", "has no effect: each pool has one profile"),
)


def names(headers: tuple[ControlHeader, ...]) -> tuple[str, ...]:
    """The present and former names of these headers."""
    return tuple(name for header in headers for name in (header.name, header.former) if name)


CONTROL: Final = frozenset(names(CONTROL_HEADERS))
TERMS: Final = names(tuple(header for header in CONTROL_HEADERS if header.terms))
