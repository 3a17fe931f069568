"""`flowControl`: which requests wait, in which order they leave, and which are refused; the keys of llm-d's router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from agent.config.header_name import CallerHeader
from agent.config.options import Scope, option, section, sections
from agent.config.values import (
    Boolean,
    Bound,
    Duration,
    Name,
    Number,
    OneOf,
    OptionType,
    SizeBound,
    WaitLimit,
    WordList,
)

# Policies of llm-d's router that the agent has, by the types of their plugins.
BY_CALLER: Final = "round-robin-fairness-policy"
ONE_FLOW: Final = "global-strict-fairness-policy"
FAIRNESS_POLICIES: Final = (BY_CALLER, ONE_FLOW)
FIRST_COME: Final = "fcfs-ordering-policy"
EARLIEST_DEADLINE: Final = "edf-ordering-policy"
WANTED_TOKEN: Final = "slo-deadline-ordering-policy"  # noqa: S105  the token is one of the response
ORDERING_POLICIES: Final = (FIRST_COME, EARLIEST_DEADLINE, WANTED_TOKEN)

HEADROOM: Final = "headroom"
UTILIZATION: Final = "utilization"
CONCURRENCY: Final = "concurrency"
DETECTORS: Final = (HEADROOM, UTILIZATION, CONCURRENCY)
REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
HYBRID: Final = "hybrid"
CONCURRENCY_MODES: Final = (REQUESTS, TOKENS, HYBRID)
IGNORE: Final = "ignore"
SATURATED: Final = "saturated"
STALENESS_POLICIES: Final = (IGNORE, SATURATED)

TRUST_GATEWAY: Final = "gateway"
TRUST_ALL: Final = "all"
TRUST_NONE: Final = "none"
TRUST: Final = (TRUST_GATEWAY, TRUST_ALL, TRUST_NONE)

LONGEST_WAIT: Final = 86_400.0  # seconds
MIN_PRIORITY: Final = -(1 << 31)  # those of InferenceObjective (int32)
MAX_PRIORITY: Final = (1 << 31) - 1
_COUNTS: Final = Bound(1, 10**12)
_SIZES: Final = SizeBound(1, 1 << 60)
_WAITS: Final = WaitLimit(0.001, LONGEST_WAIT)


# The default of an option of a band that follows another option, and that default in words.
_Default = tuple[Callable[[Scope], Any], str] | None
_TTL_OF_ALL: Final = (lambda scope: scope.around["default_request_ttl"], "`flowControl.defaultRequestTTL`")


def _band_option(type_: OptionType, meaning: str, default: Any, follows: _Default, unset: str = "") -> Any:
    default_from, text = (None, "") if follows is None else follows
    return option(type_, meaning, default, unset=unset, default_from=default_from, default_text=text)


def _max_requests(follows: _Default = None) -> Any:
    return _band_option(_COUNTS, "requests that may wait in the band", None, follows, "that of all bands")


def _max_bytes(follows: _Default = None) -> Any:
    return _band_option(_SIZES, "bytes of their bodies", None, follows, "that of all bands")


def _ttl(follows: _Default = _TTL_OF_ALL) -> Any:
    return _band_option(_WAITS, "the longest wait in the band", 60.0, follows)


def _fairness(follows: _Default = None) -> Any:
    meaning = (
        f"how callers share the band: `{BY_CALLER}` (evenly, in tokens), `{ONE_FLOW}` (as one), or the name of an "
        "entry of `plugins` of one of these types"
    )
    return _band_option(Name(), meaning, BY_CALLER, follows)


def _ordering(follows: _Default = None) -> Any:
    meaning = (
        f"which request of a caller is next: `{EARLIEST_DEADLINE}` (the earliest end of a TTL, or wanted first token), "
        f"`{WANTED_TOKEN}` (the earliest wanted first token, then those without one), `{FIRST_COME}`, or the name of "
        "an entry of `plugins` of one of these types"
    )
    return _band_option(Name(), meaning, EARLIEST_DEADLINE, follows)


@dataclass(frozen=True, slots=True)
class BandTemplateConfig:
    """The limits of the bands that have none of their own."""

    max_requests: int | None = _max_requests()
    max_bytes: int | None = _max_bytes()
    default_request_ttl: float = _ttl()
    fairness_policy_ref: str = _fairness()
    ordering_policy_ref: str = _ordering()


def _as_default_band(field: str) -> _Default:
    return lambda scope: getattr(scope.around["default_priority_band"], field), "that of `defaultPriorityBand`"


@dataclass(frozen=True, slots=True)
class NegativeBandTemplateConfig:
    """The limits of the bands of negative priorities that have none of their own."""

    max_requests: int | None = _max_requests(_as_default_band("max_requests"))
    max_bytes: int | None = _max_bytes(_as_default_band("max_bytes"))
    default_request_ttl: float = _ttl(_as_default_band("default_request_ttl"))
    fairness_policy_ref: str = _fairness(_as_default_band("fairness_policy_ref"))
    ordering_policy_ref: str = _ordering(_as_default_band("ordering_policy_ref"))


@dataclass(frozen=True, slots=True)
class PriorityBandConfig:
    """The limits of the band of one priority."""

    priority: int = option(
        Number(MIN_PRIORITY, MAX_PRIORITY, whole=True),
        "the priority of its requests; requests of a negative one are shed first",
        required="write the band's priority, such as 10 or -1",
    )
    max_requests: int | None = _max_requests()
    max_bytes: int | None = _max_bytes()
    default_request_ttl: float = _ttl()
    fairness_policy_ref: str = _fairness()
    ordering_policy_ref: str = _ordering()


@dataclass(frozen=True, slots=True)
class SaturationDetectorConfig:
    """How the room of an endpoint is found. An option of another type has no effect."""

    type: str = option(
        OneOf(DETECTORS),
        "`headroom`: free slots, the wait at the server, free KV cache; the others: the thresholds of llm-d's router",
        HEADROOM,
    )
    slots: int | None = option(
        Number(1, 1e6, whole=True),
        "`headroom`: requests that an endpoint runs at once",
        None,
        unset="those that its pages show",
    )
    queued: float = option(
        Number(0, 1e6), "`headroom`: requests that may wait at the server for a slot that becomes free", 1.0
    )
    max_wait: float = option(
        Duration(0.01, 60), "`headroom`: the longest wait at the server for its prefill, while requests are held", 0.15
    )
    hold_from: float = option(
        Duration(0, 3600), "`headroom`: requests begin to be held when each server has so much prefill to do", 1.0
    )
    queue_depth_threshold: float = option(
        Number(1, 1e6, whole=True), "`utilization`: with so many waiting requests an endpoint is saturated", 5
    )
    kv_cache_util_threshold: float = option(
        Number(0.01, 1), "`utilization`: with such a KV cache usage an endpoint is saturated", 0.8
    )
    concurrency_mode: str = option(OneOf(CONCURRENCY_MODES), "`concurrency`: what is counted; `hybrid`: both", REQUESTS)
    max_concurrency: int = option(_COUNTS, "`concurrency`: requests in flight at an endpoint", 100)
    max_token_concurrency: int = option(_COUNTS, "`concurrency`: prompt tokens in flight at an endpoint", 1_000_000)
    staleness_policy: str = option(
        OneOf(STALENESS_POLICIES),
        "an endpoint whose queue no fresh page shows: `ignore`: up to `blindRequests` of the agent's own requests; "
        "`saturated`: one",
        IGNORE,
    )
    blind_requests: int = option(
        Number(1, 1e6, whole=True), "with `ignore`: requests in flight at an endpoint whose queue is not seen", 16
    )


def _max_bytes_of_all(scope: Scope) -> int:
    """Below the budget of the port, so that a request of a higher band is still read when the queue is full."""
    buffered: int = scope.around["ext_proc"].max_buffered_bytes
    return max(1, buffered // 2)


@dataclass(frozen=True, slots=True)
class FlowControlConfig:
    """The limits of each pool's waiting requests."""

    enabled: bool = option(Boolean(), "off: no request waits, each is sent on at once", default=True)
    max_requests: int = option(_COUNTS, "requests of a pool that may wait, in all bands", 20_000)
    max_bytes: int = option(
        _SIZES,
        "bytes of their bodies",
        512 << 20,
        default_from=_max_bytes_of_all,
        default_text="half of `extProc.maxBufferedBytes`",
    )
    default_request_ttl: float = option(_WAITS, "the longest wait while the pool has endpoints", 60.0)
    no_endpoint_request_ttl: float = option(
        _WAITS,
        "the longest wait for the first endpoint of a pool with `scaleFromZero`; not counted as wait for room",
        60.0,
        default_from=lambda scope: scope.own["default_request_ttl"],
        default_text="`flowControl.defaultRequestTTL`",
    )
    shed_from: float = option(
        Number(0, 1), "the part of the TTL: from this expected wait on, requests of a negative priority are shed", 0.5
    )
    quantum: int = option(
        Number(1, 1 << 31, whole=True),
        "tokens that each caller of a band may have served before the next round",
        65_536,
    )
    patience: float = option(
        Number(0, 1e6),
        "a request waits for the endpoint with its cache for so many times the prefill that it saves there, and 10 s "
        "at most",
        20.0,
    )
    callers: tuple[str, ...] = option(WordList(), "callers that always have a flow of their own", (), unset="none")
    trust_headers: str = option(
        OneOf(TRUST),
        "who may set a request's objective, caller, TTL and deadline: `gateway`: `igw render` removes these headers "
        "from what clients send; `all`: clients too; `none`: these headers have no effect",
        TRUST_GATEWAY,
    )
    caller_header: str = option(
        CallerHeader(), "a header that names the caller of a request without a fairness id", "", unset="none"
    )
    max_flows: int = option(
        Number(0, 1e6, whole=True), "other callers with a flow of their own at a time; the rest share one", 1_000
    )
    default_priority_band: BandTemplateConfig = section(BandTemplateConfig, "The bands without limits of their own.")
    default_negative_priority_band: NegativeBandTemplateConfig = section(
        NegativeBandTemplateConfig, "The bands of negative priorities without limits of their own."
    )
    priority_bands: tuple[PriorityBandConfig, ...] = sections(
        PriorityBandConfig, "Bands with limits of their own.", identity="priority"
    )
    saturation_detector: SaturationDetectorConfig = section(
        SaturationDetectorConfig, "How the room of an endpoint is found."
    )


_AnyBand = TypeVar("_AnyBand", BandTemplateConfig, NegativeBandTemplateConfig, PriorityBandConfig)


def with_policies(config: FlowControlConfig, plugin_types: Mapping[str, str]) -> FlowControlConfig:
    """The section with the types of its policies, where it refers to entries of `plugins` by their names."""

    def typed(band: _AnyBand) -> _AnyBand:
        fairness, ordering = band.fairness_policy_ref, band.ordering_policy_ref
        return replace(
            band,
            fairness_policy_ref=plugin_types.get(fairness, fairness),
            ordering_policy_ref=plugin_types.get(ordering, ordering),
        )

    return replace(
        config,
        default_priority_band=typed(config.default_priority_band),
        default_negative_priority_band=typed(config.default_negative_priority_band),
        priority_bands=tuple(map(typed, config.priority_bands)),
    )
