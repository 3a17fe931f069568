"""The emulated page has the families of the recorded one: names, types, labels, buckets, order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import JobSpec
from agent.emulator.metrics import HttpCounters, PageWriter, ProcessStats, number
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.exposition.page import PageRefused

PAGES = Path(__file__).resolve().parent.parent / "recordings" / "emulator"
WALL = 1_795_344_279.59

RECORDED = {
    "plain_idle": EmulatorConfig(num_blocks=16384, block_size=128, max_model_len=2048),
    "load_queue_limit12": EmulatorConfig(num_blocks=30, block_size=128, max_model_len=2048, max_loras=2),
    "lora_after_http_transcripts": EmulatorConfig(
        max_num_seqs=4, num_blocks=100, block_size=32, max_model_len=2048, max_loras=2, kv_cache_metrics=True
    ),
}


FIXED_VALUES = frozenset(
    "le engine model_name reason source finished_reason sleep_state max_lora generation implementation".split()
)


def used_http() -> HttpCounters:
    http = HttpCounters()
    http.add("/v1/models", "GET", 200, 0, 1333, 0.001, 1.0)
    http.add("/v1/completions", "POST", 200, 90, 668, 0.2, 2.0)
    http.add("/v1/completions", "POST", 404, 90, 129, 0.001, 3.0)
    return http


def emulated(name: str, model: str = "tiny") -> bytes:
    config = RECORDED[name]
    engine = EngineSimulation(config)
    writer = PageWriter(config, model, wall=WALL)
    if name == "plain_idle":
        return writer.page(engine, 5.0)
    for place in range(12):
        lora = ("", "lora-a", "lora-b")[place % 3]
        engine.submit(0.0, JobSpec(96, 60, range(place * 50, place * 50 + 4), lora, max_tokens=60))
    return writer.page(engine, 5.0, ProcessStats(), used_http())


def test_a_server_that_disables_its_stats_has_the_process_and_http_families_only() -> None:
    config = EmulatorConfig(disable_log_stats=True)
    page = PageWriter(config, "tiny").page(EngineSimulation(config), 5.0, ProcessStats(), used_http())
    names = {family.name for family in text_string_to_metric_families(page.decode())}
    assert {name.partition("_")[0] for name in names} == {"python", "process", "http"}
    with pytest.raises(PageRefused, match="--disable-log-stats"):
        Extractor(engine_table("vllm")).extract(page, whole=True)


def families(page: bytes) -> list[tuple[str, str, list[str]]]:
    """(name, type, samples) in the page's order; a sample is its name, its label names, and some label values.

    In families whose labels depend on the requests (adapters, handlers), equal samples are listed once.
    """
    found: list[tuple[str, str, list[str]]] = []
    for line in page.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            found.append((name, kind, []))
        elif not line.startswith("#"):
            match = re.fullmatch(r"([^{ ]+)(?:\{(.*)\})? (\S+)", line)
            assert match, line
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            shown = [f"{key}={value}" if key in FIXED_VALUES else key for key, value in labels]
            sample = f"{match[1]} {' '.join(shown)}"
            varies = found[-1][0].startswith(("http_", "vllm:lora_requests_info"))
            if not (varies and sample in found[-1][2]):
                found[-1][2].append(sample)
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_the_page_has_the_families_of_the_recorded_one_in_its_order(name):
    ours = families(emulated(name))
    recorded = families((PAGES / f"{name}.prom").read_bytes())
    assert [family[:2] for family in ours] == [family[:2] for family in recorded]
    for actual, expected in zip(ours, recorded, strict=True):
        assert actual == expected, actual[0]


@pytest.mark.parametrize("name", RECORDED)
def test_the_cache_config_has_the_recorded_labels(name):
    def labels(page: bytes) -> dict[str, str]:
        line = next(line for line in page.decode().splitlines() if line.startswith("vllm:cache_config_info{"))
        return dict(re.findall(r'(\w+)="([^"]*)"', line))

    ours, recorded = labels(emulated(name)), labels((PAGES / f"{name}.prom").read_bytes())
    assert list(ours) == list(recorded)
    # `plain_idle` was recorded without an override of the number of blocks; the number of bytes depends on the model.
    own = {"num_gpu_blocks_override", "user_specified_block_size", "kv_cache_memory_bytes", "prefix_caching_hash_algo"}
    assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in recorded.items() if k not in own}


@pytest.mark.parametrize("name", RECORDED)
def test_the_prometheus_parser_reads_the_page(name):
    found = {family.name: family for family in text_string_to_metric_families(emulated(name).decode())}
    assert found["vllm:num_requests_running"].type == "gauge"
    assert found["vllm:time_to_first_token_seconds"].type == "histogram"
    if name != "plain_idle":
        assert found["vllm:generation_tokens"].samples[0].value == 12 * 60
        assert found["vllm:request_success"].samples[1].value == 12


def test_a_histogram_on_the_page_is_cumulative_and_agrees_with_its_count():
    lines = [line for line in emulated("load_queue_limit12").decode().splitlines() if "request_prompt_tokens" in line]
    buckets = [float(line.split()[-1]) for line in lines if "_bucket{" in line]
    count = next(float(line.split()[-1]) for line in lines if "_count{" in line)
    assert buckets == sorted(buckets)
    assert buckets[-1] == count == 12
    assert next(float(line.split()[-1]) for line in lines if "_sum{" in line) == 12 * 96


def test_the_newest_adapter_set_is_the_current_one_and_old_ones_stay():
    config = EmulatorConfig(max_loras=2, max_num_seqs=1)
    engine = EngineSimulation(config)
    writer = PageWriter(config, "tiny", wall=WALL)
    for name in ("a", "b"):
        engine.submit(0.0, JobSpec(10, 10, lora=name))
    pattern = re.compile(r'running_lora_adapters="([^"]*)",waiting_lora_adapters="([^"]*)"\} (\S+)')
    names = []
    for now in (0.05, 0.15, 9.0):
        seen = sorted(pattern.findall(writer.page(engine, now).decode()), key=lambda found: float(found[2]))
        names.append(seen[-1][0])
        assert all(running == waiting for running, waiting, _ in seen)  # a copy, in the recorded version
    assert names == ["a", "b", ""]
    assert {running for running, _, _ in seen} == {"", "a", "b"}


def test_names_are_escaped():
    page = emulated("lora_after_http_transcripts", model='a"b\\c%d\n').decode()
    parsed = {family.name: family for family in text_string_to_metric_families(page)}
    assert parsed["vllm:num_requests_running"].samples[0].labels["model_name"] == 'a"b\\c%d\n'


@given(st.floats(allow_nan=False))
def test_a_written_number_reads_back_as_the_same_value(value):
    assert float(number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (20, "20.0"), (1795344279.59, "1.79534427959e+09"), (2.22164992e9, "2.22164992e+09"), (0.2, "0.2"),
     (999999.0, "999999.0"), (1000000.0, "1e+06"), (651030528, "6.51030528e+08")],
)  # fmt: skip
def test_numbers_have_the_recorded_format(value, text):
    assert number(value) == text
