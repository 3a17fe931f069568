"""The difference of two configurations names every option that changes, and refuses what needs a restart."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.difference import NeedsRestart, differences
from agent.config.options import Option, all_options

POOL = {
    "name": "chat",
    "endpoints": [{"address": "a:1"}, {"address": "b:1"}],
    "scrape": {"scheme": "https"},
    "accelerators": [{"source": "dcgm", "address": "c:9400", "join": "node"}],
}
OTHER: dict[str, Any] = {
    "pools[].name": "code", "pools[].engine": "sglang", "pools[].profile": "blend", "pools[].orca": True,
    "pools[].models": ["m"], "pools[].inferencePool": "other", "pools[].selector": {"app": "code"},
    "pools[].targetPorts": [8001, 8000], "pools[].namespace": "llm", "kubernetes.kubeconfig": "kubeconfig",
    "kubernetes.namespace": "llm", "kubernetes.events": False, "kubernetes.autoscalers": True,
    "kubernetes.lease.name": "another", "kubernetes.lease.namespace": "another", "kubernetes.lease.duration": "30s",
    "pools[].extProcAddress": "127.0.0.1:9", "pools[].endpoints[].address": "c:1",
    "pools[].endpoints[].engine": "tgi", "pools[].endpoints[].labels": {"app": "chat"},
    "pools[].endpoints[].node": "gpu-1", "pools[].endpoints[].pod": "llm/chat-0",
    "pools[].endpoints[].devices": ["0"], "pools[].scrape.scheme": "http", "pools[].scrape.caFile": "ca.pem",
    "pools[].scrape.certFile": "c.pem", "pools[].scrape.keyFile": "c.key", "pools[].scrape.serverName": "c.example",
    "pools[].scrape.insecureSkipVerify": True, "pools[].scrape.tokenFile": "token", "pools[].scrape.metricsPort": 9,
    "pools[].scrape.metricsPath": "/m", "pools[].scrape.healthPort": 9, "pools[].scrape.healthPath": "none",
    "pools[].accelerators[].source": "amd", "pools[].accelerators[].address": "d:9400",
    "pools[].accelerators[].selector": {"app": "dcgm"}, "pools[].accelerators[].namespace": "gpu",
    "pools[].accelerators[].port": 9401, "pools[].accelerators[].path": "/m",
    "pools[].accelerators[].prefix": "amd", "pools[].accelerators[].join": "node",
    "pools[].accelerators[].interval": "4s", "pools[].accelerators[].timeout": "2s",
    "pools[].accelerators[].staleAfter": "20s", "pools[].accelerators[].fatalXids": [48],
    "pools[].accelerators[].devicesPerEndpoint": 2, "pools[].accelerators[].acknowledged[].device": "GPU-b",
    "pools[].accelerators[].acknowledged[].xid": 79,
    "objectives[].name": "batch", "objectives[].priority": -1, "objectives[].models": ["m"],
    "objectives[].pool": "chat", "objectives[].ttft": "1s", "objectives[].timePerOutputToken": "40ms",
    "flowControl.trustHeaders": "all", "flowControl.callerHeader": "x-tenant",
    "scrape.interval": "2s", "scrape.timeout": "500ms", "scrape.path": "/stats", "scrape.maxPageBytes": "1MiB",
    "scrape.modelsInterval": "20s", "scrape.healthInterval": "3s", "scrape.histograms": ["queue_time_seconds"],
    "scrape.budget.scrapesPerSecond": 50, "scrape.budget.cpu": 0.5, "state.staleAfter": "7s", "prefillRate.fixed": 9,
    "prefillRate.default": 999, "prefillRate.low": 9, "prefillRate.high": 99999, "outlierDetection.enabled": False,
    "outlierDetection.consecutiveFailures": 9, "outlierDetection.failureRatio": 0.9, "outlierDetection.minRequests": 9,
    "outlierDetection.baseEjectionTime": "9s", "outlierDetection.maxEjectionTime": "9m",
    "outlierDetection.maxEjectionPercent": 9, "prefixIndex.blockTokens": 32,
    "prefixIndex.bytesPerToken": 3, "prefixIndex.maxTokens": 999, "prefixIndex.capacityBlocks": 7,
    "prefixIndex.maxBlocks": 7, "prefixIndex.autoSize": False, "extProc.maxBody": "1MiB",
    "extProc.maxBufferedBytes": "16MiB", "extProc.fallbacks": 1, "extProc.drainTimeout": "1s",
    "extProc.assumedMode": "BUFFERED", "extProc.startTimeout": "2s",
    "admin.insecure": True, "admin.auth.mode": "kubernetes", "admin.auth.tokenFile": "tokens.csv",
    "admin.auth.audiences": ["igw"],
    "admin.address": "127.0.0.1:7", "admin.maxWatchers": 7, "admin.maxStateBytes": "1MiB", "reload.interval": "7s",
    "envoy.edsDirectory": "eds", "envoy.retryServerErrors": True, "envoy.retryBudget": 30, "envoy.usage": False,
    "envoy.pickerCaFile": "ca.pem", "envoy.pickerServerName": "igw.example", "envoy.pickerCertFile": "c.pem",
    "envoy.pickerKeyFile": "c.key",
    "envoy.pickerHosts": ["10.0.1.1", "igw.example"],
    "envoy.messageTimeout": "6s", "envoy.maxMessageTimeout": "5m", "envoy.streamIdleTimeout": "20m",
    "keda.address": "127.0.0.1:9800",
    "replicas.address": "127.0.0.1:8", "replicas.peers": ["10.0.1.1:9003"], "replicas.service": "igw.example:9004",
    "replicas.name": "igw-1", "replicas.tokenFile": "other", "replicas.caFile": "other.pem",
    "replicas.certFile": "other.pem", "replicas.keyFile": "other.key", "replicas.serverName": "other.example",
    "replicas.staleAfter": "9s",
    "metricsApi.address": "127.0.0.1:9", "metricsApi.custom": False, "metricsApi.external": False,
    "metricsApi.maxAge": "5s", "metricsApi.minCoverage": 0.5, "metricsApi.auth": "none",
    "metricsApi.certFile": "other.pem", "metricsApi.keyFile": "other.key",
    "metricsApi.service": "igw-metrics",
    "log.format": "json", "log.level": "error",
    "pools[].demand.target": 0.9, "pools[].demand.kvTarget": 0.8, "pools[].demand.startupTime": "4m",
    "pools[].demand.drainHorizon": "10m", "pools[].demand.capacity": 12, "pools[].demand.coverageFloor": 0.5,
    "pools[].demand.lookAhead": False,
    "pools[].gateway": "gke", "pools[].scaleFromZero": True, "pools[].holdLimit": "4s",
    "flowControl.enabled": False, "flowControl.maxRequests": "2k", "flowControl.maxBytes": "1Gi",
    "flowControl.defaultRequestTTL": "30s", "flowControl.noEndpointRequestTTL": "5m", "flowControl.shedFrom": 0.25,
    "flowControl.quantum": 4096, "flowControl.patience": 0, "flowControl.callers": ["team-a"],
    "flowControl.maxFlows": 9, "flowControl.priorityBands[].priority": 10,
}  # fmt: skip
TLS_SECTIONS = ("extProc.tls", "admin.tls", "keda.tls")
TLS: dict[str, Any] = {
    "certFile": "c.pem", "keyFile": "c.key", "selfSigned": True, "clientCaFile": "ca.pem",
    "clientCertificate": "optional", "minVersion": "TLSv1.3",
}  # fmt: skip
OTHER |= {f"{section}.{key}": value for section in TLS_SECTIONS for key, value in TLS.items()}
BAND: dict[str, Any] = {
    "maxRequests": 9, "maxBytes": "1Mi", "defaultRequestTTL": "9s",
    "fairnessPolicyRef": "global-strict-fairness-policy", "orderingPolicyRef": "fcfs-ordering-policy",
}  # fmt: skip
BANDS = ("defaultPriorityBand", "defaultNegativePriorityBand", "priorityBands[]")
OTHER |= {f"flowControl.{band}.{key}": value for band in BANDS for key, value in BAND.items()}
DETECTOR: dict[str, Any] = {
    "type": "concurrency", "slots": 9, "queued": 9, "maxWait": "9s", "holdFrom": "9s", "queueDepthThreshold": 9,
    "kvCacheUtilThreshold": 0.9, "concurrencyMode": "hybrid", "maxConcurrency": 9, "maxTokenConcurrency": 9,
    "stalenessPolicy": "saturated", "blindRequests": 9,
}  # fmt: skip
DETECTOR_SECTION = "flowControl.saturationDetector"
OTHER |= {f"{DETECTOR_SECTION}.{key}": value for key, value in DETECTOR.items()}
BESIDE_TLS: dict[str, dict[str, Any]] = {
    "certFile": {"keyFile": "c.key"},
    "keyFile": {"certFile": "c.pem"},
    **{key: {"selfSigned": True} for key in ("clientCaFile", "clientCertificate", "minVersion")},
}
# Set beside the option where it is not valid alone.
BESIDE: dict[str, dict[str, Any]] = {
    "objectives[].name": {"priority": -1},
    "objectives[].priority": {"name": "batch"},
    **{
        key: {"name": "batch", "priority": -1}
        for key in ("objectives[].models", "objectives[].pool", "objectives[].ttft", "objectives[].timePerOutputToken")
    },
    "pools[].scrape.certFile": {"keyFile": "c.key"},
    "pools[].scrape.keyFile": {"certFile": "c.pem"},
    "pools[].accelerators[].acknowledged[].xid": {"device": "GPU-b"},
    "admin.auth.tokenFile": {"mode": "tokenFile"},
    "admin.auth.audiences": {"mode": "kubernetes"},
    **{f"{section}.{key}": beside for section in TLS_SECTIONS for key, beside in BESIDE_TLS.items()},
    "envoy.pickerCertFile": {"pickerKeyFile": "c.key"},
    "envoy.pickerKeyFile": {"pickerCertFile": "c.pem"},
    **{f"flowControl.priorityBands[].{key}": {"priority": 10} for key in BAND},
    **{f"{DETECTOR_SECTION}.{key}": {"type": "utilization"} for key in ("queueDepthThreshold", "kvCacheUtilThreshold")},
    **{
        f"{DETECTOR_SECTION}.{key}": {"type": "concurrency"}
        for key in ("concurrencyMode", "maxConcurrency", "maxTokenConcurrency")
    },
}
# What both configurations have, because the option is not valid without it.
_PEERS = {"address": "127.0.0.1:9003", "peers": ["127.0.0.1:9003", "127.0.0.2:9003"]}
_TLS = {**_PEERS, "caFile": "ca.pem", "certFile": "c.pem", "keyFile": "c.key"}
_METRICS = {"address": "127.0.0.1:6443", "certFile": "c.pem", "keyFile": "c.key"}
AROUND: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("replicas.address", "replicas.peers", "replicas.name", "replicas.staleAfter"), _PEERS),
    **dict.fromkeys(("replicas.caFile", "replicas.certFile", "replicas.keyFile", "replicas.serverName"), _TLS),
    "replicas.tokenFile": _PEERS,
    "replicas.service": {"address": "127.0.0.1:9003", "service": "igw.example:9003"},
    **{
        f"metricsApi.{key}": _METRICS
        for key in ("address", "custom", "external", "maxAge", "minCoverage", "auth", "certFile", "keyFile")
    },
    "metricsApi.service": {"address": "127.0.0.1:6443"},
}
# The sources of endpoints and of accelerators of which these are options.
POD_SELECTOR = {"selector": {"app": "chat"}, "targetPorts": [8000]}
SOURCE: dict[str, dict[str, Any]] = {
    "pools[].inferencePool": {"inferencePool": "chat"},
    "pools[].namespace": {"inferencePool": "chat"},
    "pools[].selector": POD_SELECTOR,
    "pools[].targetPorts": POD_SELECTOR,
    **{
        f"pools[].accelerators[].{key}": {
            "endpoints": POOL["endpoints"],
            "accelerators": [{"source": "dcgm", "selector": {"app": "a"}, "port": 9400, "join": "node"}],
        }
        for key in ("selector", "namespace", "port")
    },
}
# Not valid beside `source: dcgm`, or the value of the document already.
NOT_CHANGED = {f"pools[].accelerators[].{key}" for key in ("join", "project", "location", "cluster")}


def config(
    path: str = "", value: object = None, source: str = "", around: str = "", *, tls: bool = False, **pool: object
) -> Config:
    """The configuration with one option set, or with other keys of its pool. `source`: the endpoints are from the
    source of this option; `around`: with what this option needs; `tls`: the picker ports have TLS."""
    document: dict[str, Any] = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    if around in AROUND:
        document[around.partition(".")[0]] = dict(AROUND[around])
    if around.startswith("keda.tls."):
        document["keda"] = {"address": "127.0.0.1:9801"}
    base = {key: value for key, value in POOL.items() if key != "endpoints"} | SOURCE[source] if source else POOL
    document["pools"] = [yaml.safe_load(yaml.safe_dump({**base, **pool}))]
    if tls:
        document["extProc"] = {"tls": {"selfSigned": True}}
    table: Any = document
    *sections, key = path.split(".")
    for section in sections:
        name = section.removesuffix("[]")
        table = table.setdefault(name, [{}] if section != name else {})
        table = table[0] if section != name else table
    if path:
        table |= {key: value, **BESIDE.get(path, {})}
    return parse(yaml.safe_dump(document), "x", VOCABULARY)


def shown(path: str) -> str:
    """How a change of the option is reported."""
    if ".accelerators[]" in path:
        return "pools[chat].accelerators changed"
    if path.startswith("objectives[]"):
        return "objectives +batch"
    if ".priorityBands[]" in path:
        return "flowControl.priorityBands +10"
    if path == "pools[].endpoints[].address":
        return "pools[chat].endpoints +c:1 -a:1"
    return (
        "pools +code -chat"
        if path == "pools[].name"
        else path.replace("pools[]", "pools[chat]").replace("endpoints[]", "endpoints[a:1]")
    )


@pytest.mark.parametrize(
    ("path", "option"), [(path, option) for path, option in all_options(Config) if path not in NOT_CHANGED]
)
def test_every_option_changes_in_place_or_is_refused_by_its_name(path: str, option: Option) -> None:
    source, tls = path if path in SOURCE else "", path.startswith("envoy.picker") and path != "envoy.pickerHosts"
    more = {"extProcAddress": "127.0.0.1:9"} if path == "pools[].name" else {}
    old = config(source=source, around=path, tls=tls)
    new = config(path, OTHER[path], source, path, tls=tls, **more)
    if option.live:
        assert any(line.startswith(shown(path)) for line in differences(old, new)), differences(old, new)
    else:
        with pytest.raises(NeedsRestart, match=f"^needs a restart: .*{re.escape(shown(path))} "):
            differences(old, new)


def test_equal_configurations_have_no_difference() -> None:
    assert differences(config(), config()) == []


def test_another_source_of_endpoints_is_a_change() -> None:
    assert differences(config(), config(source="pools[].inferencePool")) == [
        "pools[chat].inferencePool none -> chat",
        "pools[chat].endpoints -a:1 -b:1",
    ]
    assert differences(config(source="pools[].inferencePool"), config(source="pools[].selector")) == [
        "pools[chat].inferencePool chat -> none",
        "pools[chat].selector none -> {app: chat}",
        "pools[chat].targetPorts none -> [8000]",
    ]


def test_values_are_shown_as_the_file_has_them_and_a_default_without_a_value_in_words() -> None:
    assert differences(config(), config("scrape.budget.cpu", 0.5)) == ["scrape.budget.cpu unlimited -> 0.5"]
    assert differences(config("scrape.maxPageBytes", "1MiB"), config()) == ["scrape.maxPageBytes 1MiB -> 4MiB"]
    assert differences(config(), config("pools[].scrape.healthPath", "none")) == [
        "pools[chat].scrape.healthPath the engine's -> none"
    ]


def test_a_pool_that_is_renamed_on_its_port_needs_a_restart() -> None:
    message = "needs a restart: pools[code].extProcAddress is that of the removed pool chat; "
    with pytest.raises(NeedsRestart, match=f"^{re.escape(message)}"):
        differences(config(), config(name="code"))


def test_a_changed_profile_and_a_changed_engine_are_changes() -> None:
    def document(queue: int, metric: str) -> Config:
        return parse(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n"
            "- type: core-metrics-extractor\n  parameters:\n"
            f"    engineConfigs: [{{name: mine, queuedRequestsSpec: {metric}}}]\n"
            f"schedulingProfiles: [{{name: x, plugins: [{{pluginRef: queue-scorer, weight: {queue}}}]}}]\n",
            "x",
            VOCABULARY,
        )

    assert differences(document(1, "a"), document(2, "a")) == ["profiles[x] changed"]
    assert differences(document(1, "a"), document(1, "b")) == ["engines[mine] changed"]
    plain = parse("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n", "x", VOCABULARY)
    assert differences(document(1, "a"), plain) == ["profiles -x", "engines -mine"]
