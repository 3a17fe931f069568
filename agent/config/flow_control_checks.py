"""Checks of `flowControl`: policies by name, bands that are listed twice, options of another detector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from agent.config.config import Config
from agent.config.epp.names import NOT_SUPPORTED, refusal
from agent.config.flow_control import (
    CONCURRENCY,
    FAIRNESS_POLICIES,
    HEADROOM,
    ORDERING_POLICIES,
    SATURATED,
    UTILIZATION,
    BandTemplateConfig,
    FlowControlConfig,
    NegativeBandTemplateConfig,
    PriorityBandConfig,
)
from agent.config.reader import DocumentReader
from agent.config.values import quote, show_size, suggestion

# The types of detectors that read an option.
_READ_BY: Final[Mapping[str, str]] = {
    "slots": HEADROOM,
    "queued": HEADROOM,
    "maxWait": HEADROOM,
    "holdFrom": HEADROOM,
    "queueDepthThreshold": UTILIZATION,
    "kvCacheUtilThreshold": UTILIZATION,
    "concurrencyMode": CONCURRENCY,
    "maxConcurrency": CONCURRENCY,
    "maxTokenConcurrency": CONCURRENCY,
}


def check_flow_control(config: Config, reader: DocumentReader) -> None:
    """Add a problem for each combination that is not valid."""
    flow = config.flow_control
    seen: dict[int, str] = {}
    for number, entry in enumerate(flow.priority_bands):
        key = f"flowControl.priorityBands[{number}]"
        if entry.priority in seen:
            reader.problem_at(
                f"{key}.priority",
                f"a second band of priority {entry.priority}, the first is {seen[entry.priority]}; keep one of them",
            )
        seen.setdefault(entry.priority, reader.as_written(key))
    for key, band in _bands(flow):
        _policy(reader, f"{key}.fairnessPolicyRef", band.fairness_policy_ref, "a fairness policy", FAIRNESS_POLICIES)
        _policy(reader, f"{key}.orderingPolicyRef", band.ordering_policy_ref, "an ordering policy", ORDERING_POLICIES)
    _detector(flow, reader)
    if not flow.enabled:
        for number, pool in enumerate(config.pools):
            if pool.scale_from_zero:
                reader.problem_at(
                    f"pools[{number}].scaleFromZero",
                    "has no effect with flowControl.enabled: false, as no request is held; remove one of the two",
                )


def flow_control_notes(config: Config) -> tuple[str, ...]:
    """What of `flowControl` has no effect because of another option."""
    waiting, buffered = config.flow_control.max_bytes, config.ext_proc.max_buffered_bytes
    if waiting <= buffered:
        return ()
    what = f"extProc.maxBufferedBytes ({show_size(buffered)}) bounds the bodies of a pool"
    return (f"flowControl.maxBytes is never reached: {what}, and a request beyond is refused whatever its priority",)


def _bands(
    flow: FlowControlConfig,
) -> Iterator[tuple[str, BandTemplateConfig | NegativeBandTemplateConfig | PriorityBandConfig]]:
    """Every band with its key; the default one first, as the negative one follows it."""
    yield "flowControl.defaultPriorityBand", flow.default_priority_band
    yield "flowControl.defaultNegativePriorityBand", flow.default_negative_priority_band
    for number, band in enumerate(flow.priority_bands):
        yield f"flowControl.priorityBands[{number}]", band


def _policy(reader: DocumentReader, key: str, type_: str, what: str, valid: Sequence[str]) -> None:
    if type_ in valid or not reader.is_written(key):
        return
    if type_ in NOT_SUPPORTED:
        reader.problem_at(key, refusal(type_))
    else:
        reader.problem_at(key, f"{quote(type_)} is not {what}; {suggestion(type_, valid)}")


def _detector(flow: FlowControlConfig, reader: DocumentReader) -> None:
    detector, section = flow.saturation_detector, "flowControl.saturationDetector"
    for name, type_ in _READ_BY.items():
        if reader.is_written(f"{section}.{name}") and type_ != detector.type:
            reader.problem_at(
                f"{section}.{name}", f"has no effect with type: {detector.type}; write type: {type_}, or remove it"
            )
    if reader.is_written(f"{section}.blindRequests") and detector.staleness_policy == SATURATED:
        reader.problem_at(
            f"{section}.blindRequests", "has no effect with stalenessPolicy: saturated; remove one of the two"
        )
