"""`pools`: pools of model servers, their endpoints, how these are scraped, and their accelerators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.addresses import Address, AddressTemplate, HostName
from agent.config.demand import DemandConfig
from agent.config.flow_control import LONGEST_WAIT
from agent.config.options import DefaultFrom, Scope, option, section, sections
from agent.config.scrape import MIN_INTERVAL, STALE_AFTER_INTERVALS
from agent.config.values import (
    Boolean,
    Duration,
    FilePath,
    HealthPath,
    InvalidValue,
    Labels,
    Name,
    NodeName,
    Number,
    NumberList,
    ObjectName,
    OneOf,
    PodName,
    Ports,
    Selector,
    UrlPath,
    WaitLimit,
    WordList,
)
from agent.engine_specs import engine_by_label
from agent.profiles import DEFAULT_PROFILE

DEFAULT_EXT_PROC_ADDRESS: Final = "127.0.0.1:9002"
ENVOY: Final = "envoy"
GKE: Final = "gke"
# Google's load balancers end a callout after its time-out, of at most 1 s or 10 s by the kind of extension
# (`ExtensionChain.Extension.timeout`, `AuthzExtension.timeout`); that of an InferencePool's picker is not documented,
# nor whether it can be extended. Below the longest of them; not proven on a real gateway.
GKE_HOLD_SECONDS: Final = 8.0


def _engine(scope: Scope) -> str:
    """The engine that the endpoint's label names, else the pool's."""
    by_label = engine_by_label(dict(scope.own["labels"]), scope.epp.engine_labels)
    pools: str = scope.around["engine"]
    return by_label[1] if by_label is not None else pools


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """A model server. The host of `address` may be a name that resolves to several addresses."""

    address: str = option(
        Address(), "where the server listens; a host name is resolved to all its addresses", required="write HOST:PORT"
    )
    engine: str = option(
        Name(),
        "the server's engine",
        default_from=_engine,
        default_text="the value of its label `llm-d.ai/engine-type`, else the pool's",
        vocabulary="engines",
    )
    labels: tuple[tuple[str, str], ...] = option(
        Labels(), "labels of the server, such as those of its pod", (), unset="none"
    )
    node: str = option(
        NodeName(), "the machine that it runs on, by the name that accelerator exporters use", "", unset="unknown"
    )
    pod: str = option(PodName(), "the pod that it runs in", "", unset="unknown")
    devices: tuple[str, ...] = option(
        WordList(),
        "the ids or numbers of its accelerators, where it shares its node or its pod with other servers",
        (),
        unset="all of its node or its pod",
    )


@dataclass(frozen=True, slots=True)
class PoolScrapeConfig:
    """How the servers of a pool are scraped and probed, where that is not plain HTTP at their addresses."""

    scheme: str = option(OneOf(("http", "https")), "the scheme of all requests to them", "http")
    ca_file: str = option(FilePath(), "trusted CA certificates (PEM)", "", unset="those of the system")
    cert_file: str = option(FilePath(), "the agent's client certificate (PEM)", "", unset="none")
    key_file: str = option(FilePath(), "the key of the client certificate (PEM)", "", unset="none")
    server_name: str = option(
        HostName(), "the host name to verify in a server's certificate", "", unset="the host of its address"
    )
    insecure_skip_verify: bool = option(Boolean(), "do not verify certificates", default=False)
    token_file: str = option(FilePath(), "a bearer token that is sent with all requests", "", unset="none")
    metrics_port: int = option(
        Number(0, 65535, whole=True), "port of the metrics", 0, unset="the engine's, or the address's"
    )
    metrics_path: str = option(UrlPath(), "path of the metrics", "", unset="`scrape.path`")
    health_port: int = option(
        Number(0, 65535, whole=True), "port of the health path", 0, unset="the engine's, or the address's"
    )
    health_path: str | None = option(
        HealthPath(), "path that is probed for health; `none`: no probes", None, unset="the engine's"
    )


def _default(otherwise: float, gke: float) -> DefaultFrom:
    """A default that is longer for Cloud Monitoring."""
    return lambda scope: gke if scope.own.get("source") == "gke" else otherwise


def _stale_after(scope: Scope) -> float:
    if scope.own.get("source") == "gke":
        return 300.0
    return max(15.0, STALE_AFTER_INTERVALS * float(scope.own["interval"]))


@dataclass(frozen=True, slots=True)
class AcknowledgedFaultConfig:
    """A fault of an accelerator that is known and shall have no effect. A fault that begins later has one again."""

    device: str = option(Name(), "the id of the accelerator or its card", required="write the id that /v1/state shows")
    xid: int = option(Number(0, 9999, whole=True), "the XID error", 0, unset="its faults other than XID errors")


@dataclass(frozen=True, slots=True)
class AcceleratorConfig:
    """A source of readings of the accelerators under a pool's endpoints. Cloud Monitoring (`gke`) samples once a minute
    and publishes up to two minutes later, hence its longer defaults."""

    source: str = option(
        Name(),
        "`amd`, `dcgm` or `tpu` (metrics of an exporter), `nvml` (this machine) or `gke` (Cloud Monitoring)",
        required="write the source of the readings, such as dcgm",
        vocabulary="accelerators",
    )
    address: str = option(
        AddressTemplate(),
        "where the exporter listens; `{node}` is the endpoint's node",
        "",
        default_text="required for an exporter without `selector`",
    )
    selector: tuple[tuple[str, str], ...] = option(
        Selector(),
        "labels of the exporter's pods; the pod on the endpoint's node is its exporter, instead of `address`",
        (),
        unset="none",
    )
    namespace: str = option(
        ObjectName("namespace"),
        "the namespace of these pods",
        "",
        unset="`kubernetes.namespace`, else that of the agent",
    )
    port: int = option(
        Number(0, 65535, whole=True), "the port of these pods", 0, default_text="required with `selector`"
    )
    path: str = option(UrlPath(), "path of the exporter's metrics", "/metrics")
    prefix: str = option(
        Name(), "a prefix that the exporter is configured to add to names of metrics", "", unset="none"
    )
    join: str = option(OneOf(("pod", "node")), "how devices are matched with endpoints", "pod")
    interval: float = option(
        Duration(MIN_INTERVAL, 3600),
        "time between two scrapes",
        5.0,
        default_from=_default(5.0, gke=60.0),
        default_text="`5s`; of `gke` `1m`",
    )
    timeout: float = option(
        Duration(0.01, 60),
        "time limit of a scrape",
        1.0,
        default_from=_default(1.0, gke=10.0),
        default_text="`1s`; of `gke` `10s`",
    )
    stale_after: float = option(
        Duration(0.1, 3600),
        "a reading of this age is withheld",
        15.0,
        default_from=_stale_after,
        default_text="`15s`, or three times `interval` if that is longer; of `gke` `5m`",
    )
    fatal_xids: tuple[int, ...] = option(
        NumberList(1, 9999),
        "NVIDIA XID errors that make an endpoint unhealthy",
        (48, 64, 74, 79, 94, 95, 119, 120),
    )
    devices_per_endpoint: int = option(
        Number(0, 1024, whole=True),
        "accelerators of each endpoint; with fewer, its sums are partial",
        0,
        unset="as many as it was seen with",
    )
    project: str = option(Name(), "`gke` only: the project", "", default_text="required for `gke`")
    location: str = option(Name(), "`gke` only: the cluster's zone or region", "", default_text="required for `gke`")
    cluster: str = option(Name(), "`gke` only: the cluster", "", default_text="required for `gke`")
    acknowledged: tuple[AcknowledgedFaultConfig, ...] = sections(
        AcknowledgedFaultConfig, "Faults that have no effect, until they begin again."
    )


def _profile(scope: Scope) -> str:
    """The file's profile when it defines exactly one; required when it defines several."""
    own = list(scope.epp.profiles)
    if len(own) > 1:
        raise InvalidValue(f"missing; the file has several profiles: write one of {', '.join(own)}")
    return own[0] if own else DEFAULT_PROFILE


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Model servers that can serve each other's requests, behind one ext_proc port."""

    name: str = option(Name(), "the pool's name in metrics, state and logs", "default")
    engine: str = option(Name(), "the engine of its servers, where an endpoint sets none", "vllm", vocabulary="engines")
    profile: str = option(
        Name(),
        "the profile that picks: a built-in one or one of `schedulingProfiles`",
        DEFAULT_PROFILE,
        default_from=_profile,
        default_text="the file's profile if it has exactly one, else `least-cost`",
    )
    models: tuple[str, ...] = option(
        WordList(),
        "models and adapters that its servers serve; needed in metrics for servers that do not list them",
        (),
        unset="those that the servers list",
    )
    orca: bool = option(
        Boolean(), "request a load report (ORCA) with each response, and take readings from it", default=False
    )
    ext_proc_address: str = option(
        Address(any_port=True),
        "where Envoy's ext_proc filter for this pool connects",
        DEFAULT_EXT_PROC_ADDRESS,
        live=False,
    )
    inference_pool: str = option(
        ObjectName("InferencePool"), "the InferencePool whose ready pods are its servers", "", unset="none"
    )
    selector: tuple[tuple[str, str], ...] = option(
        Selector(), "labels of the pods whose ready ones are its servers, without an InferencePool", (), unset="none"
    )
    target_ports: tuple[int, ...] = option(
        Ports(), "with `selector`: the ports of each pod, 1 to 8; each is a server", (), unset="none"
    )
    namespace: str = option(
        ObjectName("namespace"),
        "the namespace of the InferencePool or of the pods",
        "",
        unset="`kubernetes.namespace`, else that of the agent",
    )
    gateway: str = option(
        OneOf((ENVOY, GKE)), "the proxy in front of the pool, where its limits differ: `gke` ends callouts early", ENVOY
    )
    scale_from_zero: bool = option(
        Boolean(),
        "hold requests while the pool has no endpoint, for `flowControl.noEndpointRequestTTL`",
        default=False,
        default_text="`false`; `true` where `flowControl.noEndpointRequestTTL` is written",
    )
    hold_limit: float | None = option(
        WaitLimit(0.1, LONGEST_WAIT),
        "the longest time for which a request is held, whatever its TTL; below the proxy's own limit",
        None,
        default_from=lambda scope: GKE_HOLD_SECONDS if scope.own["gateway"] == GKE else None,
        default_text="none; with `gateway: gke` `8s`",
        unset="none",
    )
    endpoints: tuple[EndpointConfig, ...] = sections(
        EndpointConfig,
        "The model servers, each as `HOST:PORT` or as a mapping.",
        identity="address",
        shorthand="address",
    )
    scrape: PoolScrapeConfig = section(PoolScrapeConfig, "How its servers are scraped and probed.")
    demand: DemandConfig = section(DemandConfig, "How many replicas it needs.")
    accelerators: tuple[AcceleratorConfig, ...] = sections(
        AcceleratorConfig, "Sources of readings of its servers' accelerators."
    )

    @property
    def source(self) -> str:
        """What its endpoints come from: a key of `agent.discovery.SOURCES`."""
        return "kubernetes" if self.inference_pool or self.selector else "endpoints"

    @property
    def in_cluster(self) -> bool:
        """Whether its servers are pods that the API server lists."""
        return self.source == "kubernetes"

    def source_in_words(self) -> str:
        """Where its endpoints come from, for a person: `2 endpoints`, `InferencePool llm/chat`."""
        prefix = f"{self.namespace}/" if self.namespace else ""
        if self.inference_pool:
            return f"InferencePool {prefix}{self.inference_pool}"
        if self.selector:
            labels = ",".join(f"{key}={value}" for key, value in self.selector)
            return f"pods {prefix}{labels} at {', '.join(map(str, self.target_ports))}"
        return f"{len(self.endpoints)} endpoint{'' if len(self.endpoints) == 1 else 's'}"
