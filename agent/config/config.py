"""The whole configuration: the top section of the file, and what the EPP part of the document defines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.config.admin import AdminConfig
from agent.config.envoy import EnvoySection
from agent.config.ext_proc import ExtProcConfig
from agent.config.flow_control import FlowControlConfig
from agent.config.keda import KedaConfig
from agent.config.kubernetes import KubernetesConfig
from agent.config.log import LogConfig
from agent.config.metrics_api import MetricsApiConfig
from agent.config.objectives import ObjectiveConfig
from agent.config.options import section, sections
from agent.config.outlier_detection import OutlierDetectionConfig
from agent.config.pools import PoolConfig
from agent.config.prefill_rate import PrefillRateConfig
from agent.config.prefix_index import PrefixIndexConfig
from agent.config.reload import ReloadConfig
from agent.config.replicas import ReplicasConfig
from agent.config.scrape import ScrapeConfig
from agent.config.state import StateConfig
from agent.engine_specs import ENGINE_LABELS, EngineSpec
from agent.profiles import ProfileSpec


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration. `source` is its file; `engines` are those that the file defines; `engine_labels` are the
    keys of the label that names an endpoint's engine; `notes` say which parts of the file have no effect, and why."""

    source: str
    profiles: Mapping[str, ProfileSpec]
    engines: tuple[EngineSpec, ...] = ()
    engine_labels: tuple[str, ...] = ENGINE_LABELS
    notes: tuple[str, ...] = ()
    pools: tuple[PoolConfig, ...] = sections(PoolConfig, "Pools of model servers.", identity="name")
    objectives: tuple[ObjectiveConfig, ...] = sections(
        ObjectiveConfig, "Objectives: the priorities of requests.", identity="key"
    )
    kubernetes: KubernetesConfig = section(KubernetesConfig, "The cluster of pools whose servers are pods.")
    scrape: ScrapeConfig = section(ScrapeConfig, "How the metrics of model servers are scraped.")
    state: StateConfig = section(StateConfig, "The routing state.")
    prefill_rate: PrefillRateConfig = section(PrefillRateConfig, "The prefill rate, in tokens per second.")
    outlier_detection: OutlierDetectionConfig = section(OutlierDetectionConfig, "Endpoints whose requests fail.")
    prefix_index: PrefixIndexConfig = section(PrefixIndexConfig, "The index of prompt prefixes.")
    ext_proc: ExtProcConfig = section(ExtProcConfig, "The ports that Envoy's ext_proc filter connects to.")
    flow_control: FlowControlConfig = section(FlowControlConfig, "Which requests wait, and which are refused.")
    envoy: EnvoySection = section(EnvoySection, "An Envoy that `igw render` configures.")
    admin: AdminConfig = section(AdminConfig, "The HTTP port for operators, Prometheus and gateways.")
    metrics_api: MetricsApiConfig = section(
        MetricsApiConfig, "The custom and external metrics APIs of Kubernetes, which autoscalers read."
    )
    keda: KedaConfig = section(KedaConfig, "The external scaler of KEDA.")
    replicas: ReplicasConfig = section(ReplicasConfig, "Several agents that serve the same pools.")
    reload: ReloadConfig = section(ReloadConfig, "How changes of the file and of DNS are noticed.")
    log: LogConfig = section(LogConfig, "The log on standard error.")

    @property
    def latest_scrape(self) -> float:
        """Seconds after a scrape by which the next must begin, so that a response that takes the whole time-out arrives
        before the last one is stale. Never less than the interval."""
        return max(self.scrape.interval, self.state.stale_after - self.scrape.timeout)

    @property
    def longest_interval(self) -> float:
        """The longest interval in seconds that a budget may set. The remaining tenth of `latest_scrape` is for waiting
        in the rate limiter."""
        return max(self.scrape.interval, 0.9 * self.latest_scrape)
