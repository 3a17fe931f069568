"""A configuration of llm-d's router loads unchanged: plugins by type, their parameters imported, the rest noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.epp.names import API_VERSIONS, BUILT_IN, NOT_SUPPORTED
from agent.config.file import load
from agent.pick.profile import build
from agent.profiles import PRESETS

ROOT = Path(__file__).resolve().parents[2]
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
POOL = "pools:\n- endpoints: [127.0.0.1:8001]\n"


def read(text: str) -> Config:
    return parse(HEAD + text, "file.yaml", VOCABULARY)


def test_the_default_configuration_of_llm_d_s_router_becomes_a_profile_of_the_same_weights() -> None:
    config = load(ROOT / "deploy/examples/llm-d.yaml", VOCABULARY)
    profile = config.profiles["default"]
    assert [(spec.type, weight) for spec, weight in profile.scorers] == [
        ("queue-scorer", 2),
        ("kv-cache-utilization-scorer", 2),
        ("prefix-cache-scorer", 3),
    ]
    assert config.pools == ()


def test_the_flow_control_of_the_example_of_llm_d_s_router_is_the_agent_s() -> None:
    flow = load(ROOT / "deploy/examples/llm-d.yaml", VOCABULARY).flow_control
    assert (flow.enabled, flow.max_bytes, flow.saturation_detector.type) == (True, 1 << 30, "utilization")
    assert [(band.priority, band.max_requests) for band in flow.priority_bands] == [(-1, 500)]
    assert flow.default_priority_band.ordering_policy_ref == "fcfs-ordering-policy"


def test_the_profiles_written_out_in_the_full_example_are_the_built_in_ones() -> None:
    config = load(ROOT / "deploy/examples/full.yaml", VOCABULARY)
    assert dict(config.profiles) == dict(PRESETS)
    assert config.notes == ()


def test_the_full_example_shows_every_default() -> None:
    full, minimal = (load(ROOT / f"deploy/examples/{name}.yaml", VOCABULARY) for name in ("full", "minimal"))
    for section in (
        "scrape",
        "state",
        "prefill_rate",
        "prefix_index",
        "ext_proc",
        "flow_control",
        "envoy",
        "admin",
        "reload",
        "log",
    ):
        assert getattr(full, section) == getattr(minimal, section)


@pytest.mark.parametrize("version", API_VERSIONS)
def test_every_api_version_of_the_document_loads(version: str) -> None:
    assert parse(f"apiVersion: {version}\nkind: EndpointPickerConfig\n", "x", VOCABULARY).pools == ()


def test_no_type_is_both_supported_and_not_supported() -> None:
    ours = {*VOCABULARY.filters, *VOCABULARY.scorers}
    assert not ours & set(BUILT_IN)
    assert not ours & set(NOT_SUPPORTED)
    assert not set(BUILT_IN) & set(NOT_SUPPORTED)


@pytest.mark.parametrize("type_", [*VOCABULARY.scorers, *VOCABULARY.filters, *BUILT_IN])
def test_every_supported_type_loads_without_parameters(type_: str) -> None:
    assert read(f"plugins: [{{type: {type_}}}]\n").notes == ()


@pytest.mark.parametrize("name", PRESETS)
def test_a_built_in_profile_can_be_built(name: str) -> None:
    assert build(PRESETS[name]).name == name


def test_the_only_profile_of_a_file_is_the_pools_default() -> None:
    profile = "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: x, plugins: [{pluginRef: queue-scorer}]}]\n"
    assert read(profile + POOL).pools[0].profile == "x"
    assert read(profile + POOL + "  profile: blend\n").pools[0].profile == "blend"
    assert read(POOL).pools[0].profile == "least-cost"


def test_a_missing_weight_is_one() -> None:
    text = "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: x, plugins: [{pluginRef: queue-scorer}]}]\n"
    assert read(text).profiles["x"].scorers[0][1] == 1.0


def test_a_scorer_may_be_used_twice_under_two_names() -> None:
    config = read(
        "plugins: [{type: queue-scorer, name: a}, {type: queue-scorer, name: b}]\n"
        "schedulingProfiles: [{name: x, plugins: [{pluginRef: a}, {pluginRef: b, weight: 3}]}]\n"
    )
    assert [(spec.name, spec.type, weight) for spec, weight in config.profiles["x"].scorers] == [
        ("a", "queue-scorer", 1.0),
        ("b", "queue-scorer", 3.0),
    ]


def test_the_parameters_of_the_prefix_cache_producer_set_the_prefix_index() -> None:
    config = read(
        "plugins:\n- type: approx-prefix-cache-producer\n  parameters:\n    blockSizeTokens: 128\n"
        "    maxPrefixTokensToMatch: 65536\n    lruCapacityPerServer: 1000\n    autoTune: false\n"
    )
    index = config.prefix_index
    assert (index.block_tokens, index.max_tokens, index.capacity_blocks, index.auto_size) == (128, 65536, 1000, False)


def test_block_sizes_in_characters_are_converted_to_tokens_and_raised_to_the_minimum() -> None:
    config = read(
        "plugins: [{type: prefix-cache-scorer, parameters: {hashBlockSize: 64, maxPrefixBlocksToMatch: 256}}]\n"
    )
    assert config.prefix_index.block_tokens == 64
    assert [note.partition(":")[0] for note in config.notes] == [
        "plugins[0].parameters.hashBlockSize of prefix-cache-scorer",
        "plugins[0].parameters.maxPrefixBlocksToMatch of prefix-cache-scorer has no effect",
    ]


def test_the_engine_the_path_and_the_interval_of_the_data_layer_are_imported() -> None:
    config = read(
        "plugins:\n- {type: core-metrics-extractor, parameters: {defaultEngine: vllm}}\n"
        "- {type: metrics-data-source, parameters: {path: /stats}}\n"
        "dataLayer: {sources: [{pluginRef: metrics-data-source, interval: 200ms, "
        "extractors: [{pluginRef: core-metrics-extractor}]}]}\n" + POOL
    )
    assert (config.scrape.path, config.scrape.interval, config.pools[0].engine) == ("/stats", 0.2, "vllm")


def test_the_interval_of_models_is_raised_to_the_minimum() -> None:
    config = read(
        "plugins: [{type: models-data-source}]\n"
        "dataLayer: {sources: [{pluginRef: models-data-source, interval: 50ms}]}\n"
    )
    assert config.scrape.models_interval == 1
    assert config.notes == ("dataLayer.sources[0].interval: models change too rarely for this; 1s is used",)


def test_what_has_no_effect_is_noted() -> None:
    config = read("plugins: [{type: prefix-cache-affinity-filter, parameters: {peakPrefillThroughput: 15928}}]\n")
    assert config.notes == (
        (
            "plugins[0].parameters.peakPrefillThroughput of prefix-cache-affinity-filter has no effect: "
            "the prefill rate is estimated; prefillRate.fixed sets one"
        ),
    )


def test_the_limit_of_staleness_follows_a_long_interval() -> None:
    assert read("scrape: {interval: 50ms}\n").state.stale_after == 3
    assert read("scrape: {interval: 15s}\n").state.stale_after == 45
