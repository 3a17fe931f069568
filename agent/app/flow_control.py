"""What the configuration says about the requests of one pool that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.config import flow_control as names
from agent.config.config import Config
from agent.config.flow_control import (
    BandTemplateConfig,
    NegativeBandTemplateConfig,
    PriorityBandConfig,
    SaturationDetectorConfig,
)
from agent.config.pools import PoolConfig
from agent.flow.control import BandLimits, FlowLimits
from agent.flow.ordering import EARLIEST_DEADLINE, FIRST_COME, WANTED_TOKEN
from agent.flow.request import FOREVER
from agent.flow.room import RoomLimits
from agent.requests.flow_headers import FlowHeaderRules
from agent.requests.held_requests import HoldingSettings

# The orders within a flow, by the names of their policies.
ORDERINGS: Final[Mapping[str, str]] = {
    names.FIRST_COME: FIRST_COME,
    names.EARLIEST_DEADLINE: EARLIEST_DEADLINE,
    names.WANTED_TOKEN: WANTED_TOKEN,
}


def header_rules(config: Config) -> FlowHeaderRules:
    """The flow headers that are believed."""
    flow = config.flow_control
    return FlowHeaderRules(flow.trust_headers != names.TRUST_NONE, flow.caller_header)


def holding_settings(config: Config, settings: PoolConfig) -> HoldingSettings:
    """The settings of a pool of the configuration."""
    flow = config.flow_control
    limits = FlowLimits(
        max_requests=float(flow.max_requests),
        max_bytes=float(flow.max_bytes),
        band=_band(flow.default_priority_band),
        bands={band.priority: _band(band) for band in flow.priority_bands},
        negative=_band(flow.default_negative_priority_band),
        empty_ttl=flow.no_endpoint_request_ttl if settings.scale_from_zero else 0.0,
        shed_from=flow.shed_from,
        quantum=flow.quantum,
        patience=flow.patience,
        hold=_unlimited(settings.hold_limit),
        callers=frozenset(flow.callers),
        max_flows=flow.max_flows,
    )
    detector = flow.saturation_detector
    return HoldingSettings(flow.enabled, limits, _room(detector), detector.type)


def _band(band: BandTemplateConfig | NegativeBandTemplateConfig | PriorityBandConfig) -> BandLimits:
    return BandLimits(
        max_requests=_unlimited(band.max_requests),
        max_bytes=_unlimited(band.max_bytes),
        ttl=band.default_request_ttl,
        by_caller=band.fairness_policy_ref == names.BY_CALLER,
        ordering=ORDERINGS[band.ordering_policy_ref],
    )


def _room(detector: SaturationDetectorConfig) -> RoomLimits:
    mode = detector.concurrency_mode
    return RoomLimits(
        slots=None if detector.slots is None else float(detector.slots),
        queued=detector.queued,
        max_wait_seconds=detector.max_wait,
        hold_from_seconds=detector.hold_from,
        # An endpoint without requests has room for one, whatever it is.
        blind_requests=0.0 if detector.staleness_policy == names.SATURATED else float(detector.blind_requests),
        queue_threshold=float(detector.queue_depth_threshold),
        kv_threshold=detector.kv_cache_util_threshold,
        max_requests=FOREVER if mode == names.TOKENS else float(detector.max_concurrency),
        max_tokens=FOREVER if mode == names.REQUESTS else float(detector.max_token_concurrency),
    )


def _unlimited(limit: float | None) -> float:
    return FOREVER if limit is None else float(limit)
