"""The names of an EndpointPickerConfig document (EPP): which plugins are built in, and which are not supported yet.

Sources: llm-d router v0.10, EndpointPickerConfig v1alpha1; older spellings: Gateway API Inference Extension (GIE) 1.0.
"""

from __future__ import annotations

from typing import Final

API_VERSIONS: Final = ("llm-d.ai/v1alpha1", "llm-d.ai/v1", "inference.networking.x-k8s.io/v1alpha1")
KIND: Final = "EndpointPickerConfig"
EPP_KEYS: Final = (
    "apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "dataLayer", "data",
    "requestHandler", "parser", "saturationDetector",
)  # fmt: skip

# The agent does what these plugins do: prefix index, in-flight load, scraping, parsing of bodies, flow control.
BUILT_IN: Final = (
    "anthropic-parser", "approx-prefix-cache-producer", "concurrency-detector", "core-metrics-extractor",
    "edf-ordering-policy", "fcfs-ordering-policy", "global-strict-fairness-policy", "inflight-load-producer",
    "max-score-picker", "metrics-data-source", "models-data-extractor", "models-data-source", "openai-parser",
    "passthrough-parser", "round-robin-fairness-policy", "single-profile-handler", "slo-deadline-ordering-policy",
    "static-usage-limit-policy", "token-producer", "utilization-detector", "vllmhttp-parser",
)  # fmt: skip
NOT_SUPPORTED: Final = (
    "active-request-scorer", "agent-identity", "always-disagg-multimodal-decider", "always-disagg-pd-decider",
    "burst-prefix-cache-producer", "by-label", "by-label-selector", "context-length-aware",
    "data-parallel-profile-handler", "dcgm-data-source", "decode-filter", "disagg-headers-handler",
    "disagg-profile-handler", "disaggregatedset-rollout-screener", "encode-filter", "endpoint-attribute-filter",
    "endpoint-attribute-scorer", "endpoint-notification-source", "file-discovery", "header-based-testing-filter",
    "header-label-affinity-scorer", "header-profile-handler", "k8s-notification-source", "label-selector-filter",
    "latency-scorer", "latency-slo-admitter", "load-aware-scorer", "max-saturation-detector",
    "mm-embeddings-cache-producer", "mm-embeddings-cache-scorer", "models-responder", "no-hit-lru-scorer",
    "p2p-source-producer", "pd-profile-handler", "precise-prefix-cache-producer", "precise-prefix-cache-scorer",
    "predicted-latency-producer", "prefill-filter", "prefill-header-handler", "prefix-based-pd-decider",
    "priority-holdback-policy", "probabilistic-admitter", "program-aware-fairness", "program-score-ordering-policy",
    "random-picker", "request-attribute-reporter", "session-affinity-filter", "session-affinity-scorer",
    "session-id-producer", "sglanghttp-parser", "slo-headroom-tier-filter", "soft-reflective-ceiling-policy",
    "topology-affinity-filter", "topology-affinity-scorer", "utilization-filter", "vertexai-parser", "vllmgrpc-parser",
    "weighted-random-picker",
)  # fmt: skip
NOT_SUPPORTED_TEXT: Final = "is not supported yet; remove it"
_SHED: Final = "remove it: requests of a negative priority are shed from flowControl.shedFrom on"
_HIGHEST: Final = (
    "remove it: what an endpoint has room for goes to the highest band that waits, and flowControl.priorityBands "
    "bounds what may wait in the others"
)
_BY_TOKENS: Final = "write round-robin-fairness-policy, which shares by the tokens that callers use"
# What to write instead of some of them.
INSTEAD: Final = {
    "latency-slo-admitter": _SHED,
    "max-saturation-detector": (
        "remove it: flowControl.saturationDetector with type: headroom limits requests, the wait and the KV cache of "
        "an endpoint together"
    ),
    "priority-holdback-policy": _HIGHEST,
    "probabilistic-admitter": _SHED,
    "program-aware-fairness": _BY_TOKENS,
    "program-score-ordering-policy": f"{_BY_TOKENS}, and edf-ordering-policy",
    "soft-reflective-ceiling-policy": _HIGHEST,
}


def refusal(type_: str) -> str:
    """Why a plugin of a type that is not supported is refused, and what to write instead."""
    instead = INSTEAD.get(type_)
    return f"{type_} is not supported; {instead}" if instead else f"{type_} {NOT_SUPPORTED_TEXT}"


RENAMED: Final = {"kv-cache-scorer": "kv-cache-utilization-scorer"}  # the name until GIE 1.0

FLOW_CONTROL: Final = "flowControl"
GATES_NOT_SUPPORTED: Final = ("HAPopulateNonLeaderDatastore",)
GATES_BUILT_IN: Final = ("dataLayer", FLOW_CONTROL, "prepareDataPlugins")
MIN_BLOCK_TOKENS: Final = 64  # llm-d's router raises smaller blocks to this
