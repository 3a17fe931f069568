"""`flowControl`: the field's sections load, what they set, and what is refused with what to write instead."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.app.flow_control import ORDERINGS, holding_settings
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.difference import differences
from agent.config.epp.names import INSTEAD, NOT_SUPPORTED
from agent.config.flow_control import DETECTORS, FAIRNESS_POLICIES, ORDERING_POLICIES, FlowControlConfig
from agent.config.nodes import BadConfig, ScalarNode
from agent.config.values import Bound, InvalidValue
from agent.flow import ordering, room
from agent.flow.control import BandLimits, FlowLimits
from agent.requests.held_requests import HoldingSettings

BAD_INPUT = (Path(__file__).resolve().parents[2] / "docs/reference/bad-input.md").read_text(encoding="utf-8")
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
POOL = "pools:\n- endpoints: [127.0.0.1:8001]\n"


def read(text: str) -> Config:
    return parse(HEAD + text, "file.yaml", VOCABULARY)


def settings(text: str) -> HoldingSettings:
    """The settings of the first pool."""
    config = read(text if "pools:" in text else text + POOL)
    return holding_settings(config, config.pools[0])


def complaints(text: str) -> list[str]:
    with pytest.raises(BadConfig) as refused:
        read(text)
    return [line.removeprefix("file.yaml:") for line in refused.value.lines()]


# -- what the options mean ---------------------------------------------------------------------------------------------


def test_without_a_section_requests_wait_for_a_minute_within_the_body_budget_and_none_at_an_empty_pool() -> None:
    found = settings("")
    band = BandLimits(ttl=60.0, by_caller=True, ordering=ordering.EARLIEST_DEADLINE)
    assert found == HoldingSettings(
        enabled=True,
        limits=FlowLimits(max_requests=20_000, max_bytes=512 << 20, band=band, negative=band, empty_ttl=0.0),
        room=room.RoomLimits(max_tokens=math.inf),
        detector="headroom",
    )


def test_the_default_of_the_section_in_code_is_that_of_a_file_without_it() -> None:
    assert read("").flow_control == FlowControlConfig()


def test_a_larger_body_budget_lets_more_bytes_wait() -> None:
    assert settings("extProc: {maxBufferedBytes: 4GiB}\n").limits.max_bytes == 2 << 30


def test_names_of_the_configuration_are_those_of_flow_control() -> None:
    assert tuple(room.DETECTORS) == DETECTORS
    assert tuple(ORDERINGS) == ORDERING_POLICIES
    assert sorted(ORDERINGS.values()) == sorted(ordering.ORDERINGS)


def test_every_option_of_the_section_reaches_flow_control() -> None:
    found = settings(
        "flowControl:\n  enabled: false\n  maxRequests: 7\n  maxBytes: 1Mi\n  defaultRequestTTL: 5s\n  shedFrom: 0.25\n"
        "  quantum: 4096\n  patience: 3\n  callers: [a, b]\n  maxFlows: 9\n"
        "  defaultPriorityBand: {maxRequests: 5, maxBytes: 3k, fairnessPolicyRef: global-strict-fairness-policy}\n"
        "  defaultNegativePriorityBand: {maxRequests: 2, defaultRequestTTL: 1s}\n"
        "  priorityBands:\n  - {priority: 10, orderingPolicyRef: slo-deadline-ordering-policy, defaultRequestTTL: 2s}\n"
        "  - {priority: -3, orderingPolicyRef: fcfs-ordering-policy, maxBytes: 2k}\n"
    )
    assert not found.enabled
    assert found.limits == FlowLimits(
        max_requests=7,
        max_bytes=1 << 20,
        band=BandLimits(5, 3000, 5.0, by_caller=False),
        negative=BandLimits(2, 3000, 1.0, by_caller=False),
        bands={
            10: BandLimits(ttl=2.0, ordering=ordering.WANTED_TOKEN),
            -3: BandLimits(max_bytes=2000, ttl=5.0, ordering=ordering.FIRST_COME),
        },
        shed_from=0.25,
        quantum=4096,
        patience=3.0,
        callers=frozenset({"a", "b"}),
        max_flows=9,
    )


def test_a_pool_that_scales_from_zero_holds_requests_for_the_ttl_or_the_one_without_endpoints() -> None:
    pool = POOL + "  scaleFromZero: true\n"
    assert settings(pool).limits.empty_ttl == 60.0
    assert settings("flowControl: {defaultRequestTTL: 9s}\n" + pool).limits.empty_ttl == 9.0
    assert settings("flowControl: {noEndpointRequestTTL: 10m}\n" + pool).limits.empty_ttl == 600.0


def test_a_file_that_sets_the_ttl_without_endpoints_holds_requests_there_unless_the_pool_says_otherwise() -> None:
    section = "flowControl: {noEndpointRequestTTL: 10m}\n"
    assert settings(section + POOL).limits.empty_ttl == 600.0
    assert settings(section + POOL + "  scaleFromZero: false\n").limits.empty_ttl == 0.0
    assert settings("featureGates: [flowControl=false]\n" + section).limits.empty_ttl == 0.0
    assert settings("flowControl: {enabled: false, noEndpointRequestTTL: 10m}\n").limits.empty_ttl == 0.0


def test_a_hold_limit_is_that_of_the_pool_and_eight_seconds_behind_gke() -> None:
    assert settings(POOL).limits.hold == math.inf
    assert settings(POOL + "  gateway: gke\n").limits.hold == 8.0
    assert settings(POOL + "  gateway: gke\n  holdLimit: 20s\n").limits.hold == 20.0
    assert settings(POOL + "  holdLimit: 4s\n").limits.hold == 4.0


@pytest.mark.parametrize(
    ("detector", "limits"),
    [
        ("{slots: 64, queued: 2, maxWait: 1s}", room.RoomLimits(slots=64, queued=2, max_wait_seconds=1.0)),
        ("{blindRequests: 4}", room.RoomLimits(blind_requests=4)),
        ("{stalenessPolicy: saturated}", room.RoomLimits(blind_requests=0)),
        (
            "{type: utilization, queueDepthThreshold: 9, kvCacheUtilThreshold: 0.5}",
            room.RoomLimits(queue_threshold=9, kv_threshold=0.5),
        ),
        ("{type: concurrency, maxConcurrency: 8}", room.RoomLimits(max_requests=8)),
        (
            "{type: concurrency, concurrencyMode: tokens}",
            room.RoomLimits(max_requests=math.inf, max_tokens=1_000_000),
        ),
        (
            "{type: concurrency, concurrencyMode: hybrid, maxTokenConcurrency: 5000}",
            room.RoomLimits(max_requests=100, max_tokens=5000),
        ),
    ],
)
def test_the_options_of_a_detector_are_its_limits(detector: str, limits: room.RoomLimits) -> None:
    assert settings(f"flowControl: {{saturationDetector: {detector}}}\n").room == limits


# -- the field's files -------------------------------------------------------------------------------------------------

# Written for this test with the keys and the values that the documentation of llm-d's router has.
FIELD = """\
featureGates: [flowControl]
plugins:
- {type: round-robin-fairness-policy, name: per-tenant}
- {type: slo-deadline-ordering-policy}
- type: utilization-detector
  name: busy
  parameters: {queueDepthThreshold: 7, kvCacheUtilThreshold: 0.9, stalenessPolicy: saturated}
- {type: static-usage-limit-policy, name: all, parameters: {threshold: 1.0}}
flowControl:
  maxBytes: "1Gi"
  maxRequests: "2k"
  defaultRequestTTL: 30s
  noEndpointRequestTTL: 5m0s
  usageLimitPolicyPluginRef: all
  enableEviction: false
  saturationDetector: {pluginRef: busy}
  defaultPriorityBand: {priority: 0, fairnessPolicyRef: global-strict-fairness-policy, maxBytes: 500M}
  defaultNegativePriorityBand: {maxRequests: "50"}
  priorityBands:
  - priority: 100
    maxBytes: 1e9
    fairnessPolicyRef: per-tenant
    orderingPolicyRef: slo-deadline-ordering-policy
"""


def test_a_section_of_llm_d_s_router_loads_unchanged_and_means_the_same() -> None:
    config = read(FIELD + POOL)
    found = holding_settings(config, config.pools[0])
    assert config.notes == ()
    assert found.enabled
    assert found.detector == "utilization"
    assert found.room == room.RoomLimits(blind_requests=0, queue_threshold=7, kv_threshold=0.9)
    assert found.limits == FlowLimits(
        max_requests=2000,
        max_bytes=1 << 30,
        band=BandLimits(max_bytes=500_000_000, ttl=30.0, by_caller=False),
        negative=BandLimits(50, 500_000_000, 30.0, by_caller=False),
        bands={100: BandLimits(max_bytes=1_000_000_000, ttl=30.0, ordering=ordering.WANTED_TOKEN)},
        empty_ttl=300.0,
    )


def test_the_names_of_policies_are_replaced_by_their_types() -> None:
    band = read(FIELD).flow_control.priority_bands[0]
    assert (band.fairness_policy_ref, band.ordering_policy_ref) == (FAIRNESS_POLICIES[0], ORDERING_POLICIES[2])


def test_another_type_behind_the_same_name_is_a_change() -> None:
    one, other = (
        read(f"plugins: [{{name: p, type: {type_}}}]\nflowControl: {{defaultPriorityBand: {{fairnessPolicyRef: p}}}}\n")
        for type_ in FAIRNESS_POLICIES
    )
    assert differences(one, other)[0] == (
        "flowControl.defaultPriorityBand.fairnessPolicyRef round-robin-fairness-policy -> global-strict-fairness-policy"
    )


@pytest.mark.parametrize(
    "text",
    [
        "saturationDetector: {pluginRef: utilization-detector}\n",
        "plugins: [{type: utilization-detector, name: u}]\nsaturationDetector: {pluginRef: u}\n",
        "plugins: [{type: utilization-detector, name: u}]\nflowControl: {saturationDetector: {pluginRef: u}}\n",
        "saturationDetector: {queueDepthThreshold: 5, kvCacheUtilThreshold: 0.8}\n",
        "plugins: [{type: utilization-detector}]\n",
        "plugins: [{type: utilization-detector}]\nsaturationDetector: {pluginRef: ''}\n",
        "flowControl: {saturationDetector: {type: utilization}}\n",
    ],
)
def test_every_way_to_select_a_detector_selects_it(text: str) -> None:
    assert settings(text).detector == "utilization"
    assert settings(text).room == room.RoomLimits()


def test_the_concurrency_detector_of_llm_d_s_router_has_the_same_limits() -> None:
    parameters = "{concurrencyMode: hybrid, maxConcurrency: 15, maxTokenConcurrency: 4000}"
    found = settings(
        f"plugins: [{{type: concurrency-detector, parameters: {parameters}}}]\n"
        "saturationDetector: {pluginRef: concurrency-detector}\n"
    )
    assert found.detector == "concurrency"
    assert found.room == room.RoomLimits(max_requests=15, max_tokens=4000)


def test_what_a_detector_or_its_parameters_do_not_do_here_is_noted() -> None:
    config = read(
        "plugins:\n- {type: queue-scorer}\n"
        "- {type: utilization-detector, parameters: {metricsStalenessThreshold: 200ms, headroom: 0.2}}\n"
        "- {type: concurrency-detector, parameters: {maxConcurrency: 9}}\n"
        "schedulingProfiles: [{name: x, plugins: [{pluginRef: queue-scorer}, {pluginRef: utilization-detector}]}]\n"
    )
    assert config.notes == (
        (
            "plugins[1].parameters.metricsStalenessThreshold of utilization-detector has no effect: state.staleAfter "
            "sets it for all readings"
        ),
        (
            "plugins[1].parameters.headroom of utilization-detector has no effect: an endpoint gets no request above "
            "its limits"
        ),
        "schedulingProfiles[0].plugins[1] has no effect: utilization-detector limits all profiles alike",
        "the parameters of concurrency-detector have no effect: no saturationDetector refers to it",
    )


def test_a_bound_above_the_budget_for_bodies_is_noted() -> None:
    assert read("flowControl: {maxBytes: 1Gi}\n").notes == ()
    (note,) = read("flowControl: {maxBytes: 10Gi}\n").notes
    assert note == (
        "flowControl.maxBytes is never reached: extProc.maxBufferedBytes (1GiB) bounds the bodies of a pool, and a "
        "request beyond is refused whatever its priority"
    )


def test_the_feature_gate_switches_flow_control() -> None:
    assert settings("").enabled
    assert settings("featureGates: [flowControl]\n").enabled
    assert settings("featureGates: [flowControl=true]\n").enabled
    assert not settings("featureGates: [flowControl=false]\n").enabled


# -- what is refused ---------------------------------------------------------------------------------------------------

NO_BOUND = "0 would let nothing wait, and is no bound in llm-d's router; leave it out, or write 1 or more"
NO_TTL = "would let nothing wait, and is no limit in llm-d's router; write the longest wait, from 1ms to 24h"
INT32 = "write a whole number from -2147483648 to 2147483647"
BAD = {
    # bounds of 0, TTLs of 0, negative and huge numbers
    "flowControl: {maxRequests: 0}\n": f"3: flowControl.maxRequests: {NO_BOUND}",
    'flowControl: {maxRequests: "0k"}\n': f"3: flowControl.maxRequests: {NO_BOUND}",
    "flowControl: {maxBytes: 0}\n": f"3: flowControl.maxBytes: {NO_BOUND}",
    'flowControl: {maxBytes: "0Gi"}\n': f"3: flowControl.maxBytes: {NO_BOUND}",
    "flowControl: {defaultPriorityBand: {maxRequests: 0}}\n": (
        f"3: flowControl.defaultPriorityBand.maxRequests: {NO_BOUND}"
    ),
    "flowControl: {defaultRequestTTL: 0s}\n": f"3: flowControl.defaultRequestTTL: 0s {NO_TTL}",
    "flowControl: {noEndpointRequestTTL: 0}\n": f"3: flowControl.noEndpointRequestTTL: 0 {NO_TTL}",
    "flowControl: {defaultRequestTTL: 48h}\n": "3: flowControl.defaultRequestTTL: 48h is too long; write 24h or less",
    "flowControl: {maxRequests: -5}\n": (
        "3: flowControl.maxRequests: '-5' is not a whole number; write one from 1, such as 500 or 5k"
    ),
    "flowControl: {maxRequests: 1.5}\n": (
        "3: flowControl.maxRequests: '1.5' is not a whole number; write one from 1, such as 500 or 5k"
    ),
    "flowControl: {maxRequests: 2000G}\n": (
        "3: flowControl.maxRequests: '2000G' is out of range; write a number from 1 to 1000000000000"
    ),
    "flowControl: {maxBytes: -1Gi}\n": (
        "3: flowControl.maxBytes: '-1Gi' is not a size; write a number with its unit, such as 512KiB or 16MiB"
    ),
    "flowControl: {defaultRequestTTL: -1s}\n": (
        "3: flowControl.defaultRequestTTL: '-1s' is not a duration; write a number with its unit, such as 500ms or 2m"
    ),
    "flowControl: {patience: -1}\n": ("3: flowControl.patience: -1 is out of range; write a number from 0 to 1000000"),
    "flowControl: {quantum: 0}\n": (
        "3: flowControl.quantum: 0 is out of range; write a whole number from 1 to 2147483648"
    ),
    "flowControl: {shedFrom: 2}\n": "3: flowControl.shedFrom: 2 is out of range; write a number from 0 to 1",
    "flowControl: {priorityBands: [{priority: 1099511627776}]}\n": (
        f"3: flowControl.priorityBands[0].priority: 1099511627776 is out of range; {INT32}"
    ),
    "flowControl: {priorityBands: [{priority: high}]}\n": (
        f"3: flowControl.priorityBands[0].priority: 'high' is not a number; {INT32}"
    ),
    "flowControl: {priorityBands: [{maxRequests: 5}]}\n": (
        "3: flowControl.priorityBands[0].priority: missing; write the band's priority, such as 10 or -1"
    ),
    f"{POOL}  holdLimit: 0s\n": (
        "5: pools[0].holdLimit: 0s would let nothing wait, and is no limit in llm-d's router; write the longest wait, "
        "from 100ms to 24h"
    ),
    f"{POOL}  gateway: gcp\n": "5: pools[0].gateway: 'gcp' is not valid; valid values: envoy, gke",
    # keys, names and kinds
    "flowControl: {maxReqests: 5}\n": "3: flowControl.maxReqests: unknown key; did you mean 'maxRequests'?",
    "flowControl: {defaultPriorityBand: {fairnessPolicyRef: round-robin}}\n": (
        "3: flowControl.defaultPriorityBand.fairnessPolicyRef: 'round-robin' is not a fairness policy; valid values: "
        "round-robin-fairness-policy, global-strict-fairness-policy"
    ),
    "flowControl: {priorityBands: [{priority: 1, orderingPolicyRef: round-robin-fairness-policy}]}\n": (
        "3: flowControl.priorityBands[0].orderingPolicyRef: 'round-robin-fairness-policy' is not an ordering policy; "
        "valid values: fcfs-ordering-policy, edf-ordering-policy, slo-deadline-ordering-policy"
    ),
    "flowControl: {defaultPriorityBand: {fairnessPolicyRef: program-aware-fairness}}\n": (
        "3: flowControl.defaultPriorityBand.fairnessPolicyRef: program-aware-fairness is not supported; write "
        "round-robin-fairness-policy, which shares by the tokens that callers use"
    ),
    "flowControl: {saturationDetector: {type: utilisation}}\n": (
        "3: flowControl.saturationDetector.type: 'utilisation' is not valid; did you mean 'utilization'?"
    ),
    "saturationDetector: {pluginRef: x}\n": (
        "3: saturationDetector.pluginRef: 'x' is not an entry of plugins; valid values: concurrency-detector, "
        "utilization-detector"
    ),
    "saturationDetector: {pluginRef: [x]}\n": (
        "3: saturationDetector.pluginRef: a list is not a name; write the name of an entry of plugins"
    ),
    "saturationDetector: {queueDepth: 5}\n": (
        "3: saturationDetector.queueDepth: unknown key; did you mean 'queueDepthThreshold'?"
    ),
    "saturationDetector: {kvCacheUtilThreshold: 80}\n": (
        "3: saturationDetector.kvCacheUtilThreshold: 80 is out of range; write a number from 0.01 to 1"
    ),
    "plugins: [{type: queue-scorer}]\nflowControl: {saturationDetector: {pluginRef: queue-scorer}}\n": (
        "4: flowControl.saturationDetector.pluginRef: queue-scorer is not a saturation detector; valid values: "
        "concurrency-detector, utilization-detector"
    ),
    "flowControl: {saturationDetector: {pluginRef: max-saturation-detector}}\n": (
        "3: flowControl.saturationDetector.pluginRef: max-saturation-detector is not supported; remove it: "
        "flowControl.saturationDetector with type: headroom limits requests, the wait and the KV cache of an endpoint "
        "together"
    ),
    "flowControl: {usageLimitPolicyPluginRef: fcfs-ordering-policy}\nplugins: [{type: fcfs-ordering-policy}]\n": (
        "3: flowControl.usageLimitPolicyPluginRef: fcfs-ordering-policy is not a usage limit policy; write "
        "static-usage-limit-policy, or remove it"
    ),
    "flowControl: {usageLimitPolicyPluginRef: mine}\n": (
        "3: flowControl.usageLimitPolicyPluginRef: 'mine' is not an entry of plugins; valid values: "
        "static-usage-limit-policy"
    ),
    "flowControl: {usageLimitPolicyPluginRef: {a: b}}\n": (
        "3: flowControl.usageLimitPolicyPluginRef: a mapping is not a name; write the name of an entry of plugins"
    ),
    "plugins: [{type: static-usage-limit-policy, parameters: {threshold: 0.8}}]\n": (
        "3: plugins[0].parameters.threshold: no part of an endpoint's room is held back; write 1 or leave it out: "
        "flowControl.saturationDetector has the limits of an endpoint"
    ),
    "plugins: [{type: concurrency-detector, parameters: {maxConcurrency: 0}}]\n": (
        "3: plugins[0].parameters.maxConcurrency: 0 is out of range; write a whole number from 1 to 1000000000000"
    ),
    "plugins: [{type: utilization-detector, parameters: {stalenessPolicy: open}}]\n": (
        "3: plugins[0].parameters.stalenessPolicy: 'open' is not valid; valid values: ignore, saturated"
    ),
    "flowControl: {enableEviction: maybe}\n": (
        "3: flowControl.enableEviction: text is neither true nor false; write false, or remove it"
    ),
    # two places that disagree
    "flowControl: {priorityBands: [{priority: 1}, {priority: 2}, {priority: 1}]}\n": (
        "3: flowControl.priorityBands[2].priority: a second band of priority 1, the first is "
        "flowControl.priorityBands[0]; keep one of them"
    ),
    "featureGates: [flowControl]\nflowControl: {enabled: false}\n": (
        "4: flowControl.enabled: also set by featureGates[0] on line 3; keep one of them"
    ),
    "saturationDetector: {pluginRef: utilization-detector}\n"
    "flowControl: {saturationDetector: {pluginRef: concurrency-detector}}\n": (
        "4: flowControl.saturationDetector.pluginRef: differs from saturationDetector.pluginRef on line 3, which sets "
        "the same; keep one of them"
    ),
    "saturationDetector: {pluginRef: utilization-detector}\nflowControl: {saturationDetector: {type: headroom}}\n": (
        "4: flowControl.saturationDetector.type: also set by saturationDetector.pluginRef on line 3; keep one of them"
    ),
    "plugins:\n- {type: utilization-detector, parameters: {queueDepthThreshold: 5}}\n"
    "flowControl: {saturationDetector: {pluginRef: utilization-detector, queueDepthThreshold: 9}}\n": (
        "5: flowControl.saturationDetector.queueDepthThreshold: also set by plugins[0].parameters.queueDepthThreshold "
        "on line 4; keep one of them"
    ),
    "flowControl: {saturationDetector: {maxConcurrency: 9}}\n": (
        "3: flowControl.saturationDetector.maxConcurrency: has no effect with type: headroom; write type: concurrency, "
        "or remove it"
    ),
    "flowControl: {saturationDetector: {stalenessPolicy: saturated, blindRequests: 9}}\n": (
        "3: flowControl.saturationDetector.blindRequests: has no effect with stalenessPolicy: saturated; remove one of "
        "the two"
    ),
    f"flowControl: {{enabled: false}}\n{POOL}  scaleFromZero: true\n": (
        "6: pools[0].scaleFromZero: has no effect with flowControl.enabled: false, as no request is held; remove one "
        "of the two"
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=[str(number) for number in range(len(BAD))])
def test_what_is_refused_is_named_with_what_to_write(text: str, expected: str) -> None:
    assert complaints(text) == [expected]


def test_eviction_of_running_requests_is_refused_with_the_reason() -> None:
    (found,) = complaints("flowControl: {enableEviction: true}\n")
    assert found == (
        "3: flowControl.enableEviction: a request that a model server has begun is not ended: its work would be lost, "
        "and its client would see an error; remove this, and give a negative priority to what may be refused: it is "
        "shed before it is sent"
    )


@pytest.mark.parametrize("type_", INSTEAD)
def test_a_plugin_with_a_substitute_is_refused_with_it(type_: str) -> None:
    assert type_ in NOT_SUPPORTED
    assert complaints(f"plugins: [{{type: {type_}}}]\n") == [
        f"3: plugins[0].type: {type_} is not supported; {INSTEAD[type_]}"
    ]


def test_every_bad_input_is_in_the_document() -> None:
    """Of the inputs that issue 15 names."""
    for named in ("a queue bound of 0", "a TTL of 0", "a priority of 2^40", "a negative number", "an unknown policy",
                  "a second band of a priority", "two sections that disagree", "eviction"):  # fmt: skip
        assert f"**{named}**" in BAD_INPUT, named


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", "k", "M", "G"]))
def test_a_bound_is_the_number_that_kubernetes_reads_or_is_refused(number: int, unit: str) -> None:
    value = number * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[unit]
    node = ScalarNode(1, f"{number}{unit}", True)
    if 1 <= value <= 10**12:
        assert Bound(1, 10**12).read(node) == value
    else:
        with pytest.raises(InvalidValue):
            Bound(1, 10**12).read(node)
