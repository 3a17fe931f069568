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

# The agent does what these plugins do: prefix index, in-flight load, scraping, parsing of bodies.
BUILT_IN: Final = (
    "anthropic-parser", "approx-prefix-cache-producer", "core-metrics-extractor", "inflight-load-producer",
    "max-score-picker", "metrics-data-source", "models-data-extractor", "models-data-source", "openai-parser",
    "passthrough-parser", "single-profile-handler", "token-producer", "vllmhttp-parser",
)  # fmt: skip
NOT_SUPPORTED: Final = (
    "active-request-scorer", "agent-identity", "always-disagg-multimodal-decider", "always-disagg-pd-decider",
    "burst-prefix-cache-producer", "by-label", "by-label-selector", "concurrency-detector", "context-length-aware",
    "data-parallel-profile-handler", "dcgm-data-source", "decode-filter", "disagg-headers-handler",
    "disagg-profile-handler", "disaggregatedset-rollout-screener", "edf-ordering-policy", "encode-filter",
    "endpoint-attribute-filter", "endpoint-attribute-scorer", "endpoint-notification-source", "fcfs-ordering-policy",
    "file-discovery", "global-strict-fairness-policy", "header-based-testing-filter", "header-label-affinity-scorer",
    "header-profile-handler", "k8s-notification-source", "label-selector-filter", "latency-scorer",
    "latency-slo-admitter", "load-aware-scorer", "mm-embeddings-cache-producer", "mm-embeddings-cache-scorer",
    "models-responder", "no-hit-lru-scorer", "p2p-source-producer", "pd-profile-handler",
    "precise-prefix-cache-producer", "precise-prefix-cache-scorer", "predicted-latency-producer",
    "prefill-filter", "prefill-header-handler", "prefix-based-pd-decider", "priority-holdback-policy",
    "probabilistic-admitter", "program-aware-fairness", "random-picker", "request-attribute-reporter",
    "round-robin-fairness-policy", "session-affinity-filter", "session-affinity-scorer", "session-id-producer",
    "sglanghttp-parser", "slo-deadline-ordering-policy", "slo-headroom-tier-filter", "soft-reflective-ceiling-policy",
    "static-usage-limit-policy", "topology-affinity-filter", "topology-affinity-scorer", "utilization-detector",
    "utilization-filter", "vertexai-parser", "vllmgrpc-parser", "weighted-random-picker",
)  # fmt: skip
RENAMED: Final = {"kv-cache-scorer": "kv-cache-utilization-scorer"}  # the name until GIE 1.0

FLOW_CONTROL_GATE: Final = "flowControl"
GATES_NOT_SUPPORTED: Final = ("HAPopulateNonLeaderDatastore",)
GATES_BUILT_IN: Final = ("dataLayer", FLOW_CONTROL_GATE, "prepareDataPlugins")
MIN_BLOCK_TOKENS: Final = 64  # llm-d's router raises smaller blocks to this
