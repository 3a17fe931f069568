"""The engine of an endpoint, and engines that the file defines."""

from __future__ import annotations

import pytest

from agent.app.pool import targets_of
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.pools import EndpointConfig
from agent.discovery.endpoints import EndpointSet
from agent.engine_specs import ENGINE_LABELS, EngineSpec, MetricSpec
from agent.scrape.server_access import PLAIN
from agent.scrape.target import Target
from agent.signals import BLOCK_SIZE, BLOCKS, KV_USAGE, LORA_MAX, LORA_RUNNING, LORA_WAITING, RUNNING, WAITING

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
EXTRACTOR = HEAD + "plugins:\n- type: core-metrics-extractor\n  parameters:\n"
# The built-in engines of llm-d's router 0.10, by its own descriptions.
ENGINE_CONFIGS = """    engineConfigs:
    - {name: my-vllm, queuedRequestsSpec: "vllm:num_requests_waiting", runningRequestsSpec: "vllm:num_requests_running",
       kvUsageSpec: "vllm:kv_cache_usage_perc", loraSpec: "vllm:lora_requests_info",
       cacheInfoSpec: "vllm:cache_config_info"}
    - {name: my-sglang, queuedRequestsSpec: "sglang:num_queue_reqs", runningRequestsSpec: "sglang:num_running_reqs",
       kvUsageSpec: "sglang:token_usage", loraSpec: "", cacheInfoSpec: "sglang:cache_config_info",
       cacheBlockSizeLabelName: page_size, cacheNumBlocksLabelName: num_pages}
    - {name: my-triton, queuedRequestsSpec: "nv_trt_llm_request_metrics{request_type=waiting}",
       kvUsageSpec: "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
       cacheBlockSizeSpec: "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}",
       cacheNumBlocksSpec: "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}"}
"""


def engines(text: str) -> list[str]:
    return [endpoint.engine for pool in parse(text, "x", VOCABULARY).pools for endpoint in pool.endpoints]


def scraped(config: Config, engines: dict[str, str]) -> list[Target]:
    """The scrape targets of the first pool with these endpoints."""
    endpoints = {address: EndpointConfig(address, engine) for address, engine in engines.items()}
    return targets_of(config, config.pools[0], EndpointSet(endpoints, {}, {}), PLAIN, endpoints)


def test_engines_are_defined_as_in_llm_d_s_router() -> None:
    vllm, sglang, triton = parse(EXTRACTOR + ENGINE_CONFIGS, "x", VOCABULARY).engines
    assert vllm == EngineSpec(
        "my-vllm",
        (
            MetricSpec(WAITING, "vllm:num_requests_waiting"),
            MetricSpec(RUNNING, "vllm:num_requests_running"),
            MetricSpec(KV_USAGE, "vllm:kv_cache_usage_perc"),
            MetricSpec(LORA_MAX, "vllm:lora_requests_info", label="max_lora"),
            MetricSpec(LORA_RUNNING, "vllm:lora_requests_info", label="running_lora_adapters"),
            MetricSpec(LORA_WAITING, "vllm:lora_requests_info", label="waiting_lora_adapters"),
            MetricSpec(BLOCK_SIZE, "vllm:cache_config_info", label="block_size"),
            MetricSpec(BLOCKS, "vllm:cache_config_info", label="num_gpu_blocks"),
        ),
    )
    assert sglang.metrics[-2:] == (
        MetricSpec(BLOCK_SIZE, "sglang:cache_config_info", label="page_size"),
        MetricSpec(BLOCKS, "sglang:cache_config_info", label="num_pages"),
    )
    block = "nv_trt_llm_kv_cache_block_metrics"
    assert triton.metrics == (
        MetricSpec(WAITING, "nv_trt_llm_request_metrics", (("request_type", "waiting"),)),
        MetricSpec(KV_USAGE, block, (("kv_cache_block_type", "fraction"),)),
        MetricSpec(BLOCK_SIZE, block, (("kv_cache_block_type", "tokens_per"),)),
        MetricSpec(BLOCKS, block, (("kv_cache_block_type", "max"),)),
    )


def test_an_engine_of_the_file_can_be_an_endpoints_and_the_default() -> None:
    text = EXTRACTOR + "    defaultEngine: my-triton\n" + ENGINE_CONFIGS
    pools = "pools:\n- endpoints: [10.0.0.1:1, {address: 10.0.0.2:1, engine: my-sglang}]\n"
    assert engines(text + pools) == ["my-triton", "my-sglang"]
    config = parse(text + pools, "x", VOCABULARY)
    made = scraped(config, {"10.0.0.1:1": "my-triton", "10.0.0.3:1": "vllm"})
    tables = [target.engine_table() for target in made]
    assert [table.name for table in tables if table] == ["my-triton", "vllm"]
    assert [target.table is None for target in made] == [False, True]


@pytest.mark.parametrize(
    ("scrape", "path"), [("", "/prometheus/metrics"), ("scrape: {path: /stats}\n", "/stats")], ids=["default", "set"]
)
def test_the_path_is_the_engine_s_unless_the_file_sets_another(scrape: str, path: str) -> None:
    config = parse(HEAD + scrape + "pools:\n- {engine: trtllm-serve, endpoints: [10.0.0.1:1]}\n", "x", VOCABULARY)
    assert [target.path for target in scraped(config, {"10.0.0.1:1": "trtllm-serve"})] == [path]


def test_triton_is_scraped_and_probed_at_its_ports() -> None:
    config = parse(HEAD + "pools:\n- {engine: triton, endpoints: [10.0.0.1:8000]}\n", "x", VOCABULARY)
    (target,) = scraped(config, {"10.0.0.1:8000": "triton"})
    assert (target.page_address(), target.path) == ("10.0.0.1:8002", "/metrics")
    assert target.health_address(target.engine_table()) == "10.0.0.1:8000"


def test_an_endpoint_whose_engine_is_redefined_counts_as_another_server() -> None:
    pools = "pools:\n- {engine: m, endpoints: [10.0.0.1:1]}\n"
    one, other, same = (
        scraped(config, {"10.0.0.1:1": "m"})[0]
        for config in (
            parse(f"{EXTRACTOR}    engineConfigs: [{{name: m, queuedRequestsSpec: {name}}}]\n{pools}", "x", VOCABULARY)
            for name in ("a", "b", "a")
        )
    )
    assert one.same_server(same)
    assert not one.same_server(other)


@pytest.mark.parametrize("key", ENGINE_LABELS)
def test_a_label_names_the_engine_where_the_endpoint_does_not(key: str) -> None:
    text = (
        HEAD + "pools:\n- engine: tgi\n  endpoints:\n  - 10.0.0.1:1\n"
        f"  - {{address: 10.0.0.2:1, labels: {{{key}: sglang}}}}\n"
        f"  - {{address: 10.0.0.3:1, engine: vllm, labels: {{{key}: sglang}}}}\n"
        "  - {address: 10.0.0.4:1, labels: {runs: sglang}}\n"
    )
    assert engines(text) == ["tgi", "sglang", "vllm", "tgi"]


def test_engine_label_key_replaces_the_label() -> None:
    text = EXTRACTOR + "    engineLabelKey: runs\npools:\n- endpoints:\n"
    text += "  - {address: 10.0.0.4:1, labels: {runs: sglang, llm-d.ai/engine-type: tgi}}\n"
    assert engines(text) == ["sglang"]
    assert parse(text, "x", VOCABULARY).engine_labels == ("runs",)


def test_an_empty_list_and_an_empty_key_count_as_not_set() -> None:
    config = parse(EXTRACTOR + '    engineConfigs: []\n    engineLabelKey: ""\n', "x", VOCABULARY)
    assert config.engines == ()
    assert config.engine_labels == ENGINE_LABELS


def test_each_rank_of_a_data_parallel_server_can_be_an_endpoint_by_its_port() -> None:
    text = HEAD + "pools:\n- endpoints: [10.0.0.7:8000, 10.0.0.7:8001, '[fd00::7]:8000', '[fd00::7]:8001']\n"
    (pool,) = parse(text, "x", VOCABULARY).pools
    assert [endpoint.address for endpoint in pool.endpoints] == [
        "10.0.0.7:8000", "10.0.0.7:8001", "[fd00::7]:8000", "[fd00::7]:8001",
    ]  # fmt: skip
