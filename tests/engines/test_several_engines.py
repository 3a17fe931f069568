"""Servers with several engines: sums, weighted means, and series that count once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import engine
from agent.engines.mapping import Extraction, Extractor
from agent.signals import (
    BLOCKS,
    KV_USAGE,
    LORA_MAX,
    MODEL_LOADED,
    PROMPT_TOKENS,
    RUNNING,
    SLOTS_USAGE,
    WAITING,
    WAITING_CAPACITY,
)

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"


def read(name: str, page: str, *, whole: bool = True) -> Extraction:
    return Extractor(engine(name)).extract(page.encode(), whole=whole)


def golden(name: str, file: str) -> str:
    return (PAGES / name / f"{file}.prom").read_text()


TWO_RANKS = golden("sglang", "written_0_5_23_two_ranks")


def test_processes_that_report_the_same_engine_count_once() -> None:
    lowest = "\n".join(
        line for line in TWO_RANKS.splitlines() if 'tp_rank="1"' not in line and 'tp_rank="3"' not in line
    )
    assert read("sglang", lowest + "\n") == read("sglang", TWO_RANKS)
    assert read("sglang", TWO_RANKS).readings[WAITING] == 3 + 1 + 11


def test_the_lowest_of_several_processes_that_report_one_engine_is_used() -> None:
    row = 'sglang:num_queue_reqs{{dp_rank="0",tp_rank="{}"}} {}\n'
    assert read("sglang", row.format(10, 1) + row.format(9, 5) + row.format(11, 2)).readings[WAITING] == 5


def test_a_duplicate_series_is_refused_even_if_it_is_of_a_copy() -> None:
    extraction = read("sglang", 'sglang:num_queue_reqs{tp_rank="0"} 1\n' * 2 + 'sglang:num_queue_reqs{tp_rank="1"} 1\n')
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(WAITING, "duplicate_series")]


def test_the_queue_lengths_by_priority_are_not_added_to_the_total() -> None:
    row = 'sglang:num_queue_reqs{{dp_rank="{}",priority="{}"}} {}\n'
    rows = [row.format(rank, priority, 1 if priority else 3) for rank in (0, 1) for priority in ("", "0", "5", "9")]
    assert read("sglang", "".join(rows)).readings[WAITING] == 6


def test_cache_usages_are_weighted_by_blocks_in_sample_values() -> None:
    assert read("sglang", TWO_RANKS).readings[KV_USAGE] == pytest.approx((0.5 * 512 + 0.875 * 768) / (512 + 768))
    models = golden("triton-tensorrt-llm", "written_two_models_before_waiting")
    assert read("triton-tensorrt-llm", models).readings[KV_USAGE] == pytest.approx((0.75 * 1000 + 0.25 * 3000) / 4000)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 10**6)), min_size=1, max_size=6))
def test_the_usage_of_several_caches_is_that_of_one_cache_with_all_their_blocks(caches: list[tuple[int, int]]) -> None:
    usages = [part / 1000 for part, _ in caches]
    rows = [f'sglang:token_usage{{dp_rank="{rank}"}} {usage}\n' for rank, usage in enumerate(usages)]
    rows += [f'sglang:num_pages{{dp_rank="{rank}"}} {blocks}\n' for rank, (_, blocks) in enumerate(caches)]
    readings = read("sglang", "".join(rows)).readings
    total = sum(blocks for _, blocks in caches)
    assert readings[BLOCKS] == total
    assert readings[KV_USAGE] == pytest.approx(
        sum(usage * blocks for usage, (_, blocks) in zip(usages, caches, strict=True)) / total
    )


@pytest.mark.parametrize("blocks", ["0", "NaN", "-1"])
def test_caches_with_an_invalid_number_of_blocks_have_equal_weights(blocks: str) -> None:
    page = (
        'sglang:token_usage{dp_rank="0"} 0.5\nsglang:token_usage{dp_rank="1"} 0.25\n'
        f'sglang:num_pages{{dp_rank="0"}} {blocks}\nsglang:num_pages{{dp_rank="1"}} 100\n'
    )
    extraction = read("sglang", page)
    assert extraction.readings[KV_USAGE] == 0.375
    assert BLOCKS not in extraction.readings


def test_a_cache_size_without_a_rank_is_that_of_each_engine() -> None:
    info = 'sglang:cache_config_info{num_pages="100",page_size="16"} 1\n'
    ranks = "".join(f'sglang:num_running_reqs{{dp_rank="{rank}"}} 0\n' for rank in range(4))
    assert read("sglang", info).readings[BLOCKS] == 100
    assert read("sglang", ranks + info).readings[BLOCKS] == 400
    other = info.replace("100", "200")
    extraction = read("sglang", ranks + info + other)
    assert (BLOCKS, "disagreement") in {(refusal.signal, refusal.reason) for refusal in extraction.refused}


def test_a_size_per_engine_is_refused_where_the_engines_may_be_cut_off() -> None:
    info = 'sglang:cache_config_info{num_pages="100",page_size="16"} 1\n# end\n'
    assert (BLOCKS, "cut_off") in {
        (refusal.signal, refusal.reason) for refusal in read("sglang", info, whole=False).refused
    }


def test_a_unique_value_that_differs_between_engines_is_refused() -> None:
    row = 'sglang:lora_pool_slots_total{{dp_rank="{}"}} {}\n'
    assert read("sglang", row.format(0, 8) + row.format(1, 8)).readings[LORA_MAX] == 8
    assert LORA_MAX not in read("sglang", row.format(0, 8) + row.format(1, 9)).readings


def test_slots_usage_is_never_read_as_kv_cache_usage() -> None:
    readings = read("jetstream", golden("jetstream", "written_two_engines")).readings
    assert readings[SLOTS_USAGE] == 0.5
    assert KV_USAGE not in readings


def test_a_sum_of_several_samples_needs_all_of_them() -> None:
    generate, transfer = "jetstream_generate_backlog_size 2\n", "jetstream_transfer_backlog_size 1\n"
    for page in map("".join, itertools.permutations((generate, transfer))):
        assert read("jetstream", page).readings[WAITING_CAPACITY] == 3
    for page in (generate, transfer):
        assert WAITING_CAPACITY in read("jetstream", page).missing


def test_a_partial_sum_is_refused_where_the_rest_may_be_cut_off() -> None:
    page = "llamacpp:prompt_tokens_total 5\n# HELP llamacpp:prompt_tokens_cached_total\n"
    extraction = read("llamacpp", page, whole=False)
    assert PROMPT_TOKENS not in extraction.readings
    assert (PROMPT_TOKENS, "cut_off") in {(refusal.signal, refusal.reason) for refusal in extraction.refused}
    assert read("llamacpp", page).readings[PROMPT_TOKENS] == 5


def test_a_page_without_type_and_help_is_read_like_any_other() -> None:
    for name, file in (("sglang", "written_0_5_23_two_ranks"), ("trtllm-serve", "written_main_2026")):
        page = golden(name, file)
        bare = "".join(f"{line}\n" for line in page.splitlines() if not line.startswith("#"))
        assert read(name, bare) == read(name, page)
    assert read("vllm", "vllm:num_requests_running 3\n").readings[RUNNING] == 3


@pytest.mark.parametrize(
    ("awake", "loaded"), [((1, 1), 1), ((1, 0), 0), ((0, 1), 0), ((0, 0), 0), ((1,), 1), ((0,), 0)]
)
def test_a_model_is_loaded_while_no_engine_of_its_server_sleeps(awake: tuple[int, ...], loaded: int) -> None:
    row = 'vllm:engine_sleep_state{{engine="{}",sleep_state="{}"}} {}\n'
    asleep = [row.format(rank, "weights_offloaded", 1 - one) for rank, one in enumerate(awake)]
    page = "".join([*(row.format(rank, "awake", one) for rank, one in enumerate(awake)), *asleep])
    assert read("vllm", page).readings[MODEL_LOADED] == loaded


def test_a_sleep_state_out_of_range_is_refused() -> None:
    extraction = read("vllm", 'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 2\n')
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(MODEL_LOADED, "out_of_range")]
