"""The names of the field's document: what we do, what is built in, and what this version does not do yet.

Names: llm-d router v0.10, EndpointPickerConfig v1alpha1; older spellings: Gateway API Inference Extension 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

API_VERSIONS: Final = ("llm-d.ai/v1alpha1", "llm-d.ai/v1", "inference.networking.x-k8s.io/v1alpha1")
KIND: Final = "EndpointPickerConfig"
FIELD_KEYS: Final = (
    "apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "dataLayer", "data", "flowControl",
    "requestHandler", "parser", "saturationDetector",
)  # fmt: skip

# What these do is built in: the index of prefixes, the work in flight, the scrape, the reading of bodies.
BUILT_IN: Final = (
    "anthropic-parser", "approx-prefix-cache-producer", "core-metrics-extractor", "inflight-load-producer",
    "max-score-picker", "metrics-data-source", "models-data-extractor", "models-data-source", "openai-parser",
    "passthrough-parser", "single-profile-handler", "token-producer", "vllmhttp-parser",
)  # fmt: skip
NOT_YET: Final = (
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

GATES_NOT_YET: Final = ("flowControl", "HAPopulateNonLeaderDatastore")
GATES_BUILT_IN: Final = ("dataLayer", "prepareDataPlugins")
FIELD_MIN_BLOCK_TOKENS: Final = 64  # the field raises smaller blocks to this


class Vocabulary(NamedTuple):
    """The names that the parts above the configuration know, and how a plugin's parameters are checked.

    `check(type, parameters)` returns None or the name of a parameter and what is wrong with it.
    """

    engines: tuple[str, ...]
    accelerators: tuple[str, ...]
    filters: tuple[str, ...]
    scorers: tuple[str, ...]
    check: Callable[[str, Mapping[str, object]], tuple[str, str] | None]
