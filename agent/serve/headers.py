"""The headers of a request that the endpoint picker reads, sets or takes away."""

from __future__ import annotations

from typing import Final

from agent.engines.report import ASKED_BY
from agent.serve.subset import SUBSET

DESTINATION: Final = "x-gateway-destination-endpoint"
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
REQUEST_ID: Final = "x-request-id"

# Headers by which a client steers the gateway or its sidecars. They are for us alone: a model server that trusted
# them would trust whoever sent the request.
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
# The only headers that a conversation reads: a wire need not hand over more.
READ: Final = CONTROL | {":path", ":method", "content-encoding", "content-length", REQUEST_ID, ASKED_BY}
