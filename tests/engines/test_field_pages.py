"""Pages of the kinds that users reported: series by process, sums of times, queues by role, steps, other spellings."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine_specs import EngineSpec, MetricSpec
from agent.engines import ENGINES, engine
from agent.engines.custom import custom
from agent.engines.mapping import NOTHING_COUNTED, Extraction, Extractor
from agent.engines.recognition import recognise
from agent.engines.spellings import spellings
from agent.exposition.page import PageRefused
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    KV_TOKENS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    MODEL_LOADED,
    PROMPT_TOKENS,
    RUNNING,
    START_TIME,
    TIME_MAX,
    WAITING,
)

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"


def read(name: str, *lines: str, whole: bool = True) -> Extraction:
    return Extractor(engine(name)).extract("".join(f"{line}\n" for line in lines).encode(), whole=whole)


def recorded(name: str, file: str) -> Extraction:
    return Extractor(engine(name)).extract((PAGES / name / f"reported_{file}.prom").read_bytes(), whole=True)


def reasons(found: Extraction) -> dict[str, str]:
    return {refusal.signal: refusal.reason for refusal in found.refused}


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("vllm", "api_servers_usage_by_pid", {KV_USAGE: 0.6530455880475035, RUNNING: 61, WAITING: 12, BLOCKS: 27190}),
        ("vllm", "api_servers_lora", {LORA_RUNNING: frozenset({"billing"}), LORA_WAITING: frozenset(), LORA_MAX: 4}),
        ("vllm", "hybrid_block_size", {KV_TOKENS: 1_514_496, BLOCKS: 23_911, BLOCK_SIZE: 4}),
        ("vllm", "through_ray", {RUNNING: 6, WAITING: 3, KV_USAGE: 0.44}),
        ("vllm", "underscore", {RUNNING: 61, WAITING: 12, KV_USAGE: 0.31, BLOCKS: 27190, PROMPT_TOKENS: 90211}),
        ("sglang", "decode_role", {WAITING: 42, RUNNING: 1, KV_USAGE: 0.02}),
        ("triton", "ensemble_decoupled", {WAITING: 0}),
        ("tgi", "first_request", {WAITING: 0, RUNNING: 1}),
    ],
)
def test_a_reported_page_has_the_right_values(name: str, file: str, expected: dict[str, object]) -> None:
    found = recorded(name, file)
    assert {signal: found.readings.get(signal) for signal in expected} == expected
    assert found.refused == ()


# -- series by process -----------------------------------------------------------------------------------------------

GAUGES = {
    "vllm": {
        RUNNING: "vllm:num_requests_running",
        WAITING: "vllm:num_requests_waiting",
        KV_USAGE: "vllm:kv_cache_usage_perc",
    },
    "sglang": {RUNNING: "sglang:num_running_reqs", WAITING: "sglang:num_queue_reqs", KV_USAGE: "sglang:token_usage"},
    "trtllm-serve": {RUNNING: "trtllm_num_requests_running", KV_USAGE: "trtllm_kv_cache_utilization"},
    "tgi": {RUNNING: "tgi_batch_current_size", WAITING: "tgi_queue_size"},
    "llamacpp": {RUNNING: "llamacpp:requests_processing", KV_USAGE: "llamacpp:kv_cache_usage_ratio"},
    "jetstream": {WAITING: "jetstream_prefill_backlog_size"},
}
EVERY_GAUGE = pytest.mark.parametrize(
    ("name", "signal"), [(name, signal) for name, samples in GAUGES.items() for signal in samples]
)
SHARES = st.lists(st.integers(0, 64).map(lambda part: part / 64), min_size=1, max_size=8)


@EVERY_GAUGE
@given(values=SHARES, zeros=st.integers(0, 4))
def test_of_the_series_of_processes_the_largest_counts_and_a_process_without_requests_changes_nothing(
    name: str, signal: str, values: list[float], zeros: int
) -> None:
    lines = [f'{GAUGES[name][signal]}{{pid="{pid}"}} {value}' for pid, value in enumerate([*values, *[0.0] * zeros])]
    assert read(name, *lines).readings[signal] == max(values)


@EVERY_GAUGE
def test_series_that_differ_in_an_unknown_label_are_refused_where_its_meaning_matters(name: str, signal: str) -> None:
    def values(*numbers: float) -> Extraction:
        return read(name, *(f'{GAUGES[name][signal]}{{shard="{at}"}} {each}' for at, each in enumerate(numbers)))

    assert reasons(values(0.25, 0.5)) == {signal: "ambiguous"}
    assert "shard" in values(0.25, 0.5).refused[0].text
    certain = (0.5, 0.5) if signal == KV_USAGE else (0.5, 0.0)
    assert values(*certain).readings[signal] == 0.5


def test_processes_of_several_engines_are_merged_before_the_engines_are_combined() -> None:
    lines = [
        f'vllm:{sample}{{engine="{rank}",pid="{pid}"}} {value if pid == rank else 0}'
        for sample, of_rank in (("kv_cache_usage_perc", (0.5, 0.25)), ("num_requests_waiting", (3, 4)))
        for rank, value in enumerate(of_rank)
        for pid in range(3)
    ]
    lines += [f'vllm:cache_config_info{{engine="{rank}",num_gpu_blocks="{300 - 200 * rank}"}} 1' for rank in (0, 1)]
    found = read("vllm", *lines)
    assert found.readings[KV_USAGE] == pytest.approx((0.5 * 300 + 0.25 * 100) / 400)
    assert found.readings[WAITING] == 7


def test_an_older_name_without_ambiguous_series_is_read_instead_of_a_newer_one_with_them() -> None:
    newer = [f'vllm:kv_cache_usage_perc{{engine="0",pid="{pid}"}} {pid / 10}' for pid in range(8)]
    older = 'vllm:gpu_cache_usage_perc{engine="0"} 0.65'
    for lines in ([*newer, older], [older, *newer]):
        assert read("vllm", *lines).readings[KV_USAGE] == 0.65
    assert read("vllm", *newer).readings[KV_USAGE] == 0.7


def test_counters_are_summed_over_every_label() -> None:
    lines = [f'vllm:prompt_tokens_total{{engine="0",source="{at}"}} {at}' for at in range(4)]
    assert read("vllm", *lines).readings[PROMPT_TOKENS] == 6


def test_a_process_that_does_not_know_the_state_of_the_model_does_not_put_it_to_sleep() -> None:
    line = 'vllm:engine_sleep_state{{engine="0",pid="{}",sleep_state="awake"}} {}'
    assert read("vllm", line.format(1, 1), line.format(2, 0)).readings[MODEL_LOADED] == 1
    assert read("vllm", line.format(1, 0), line.format(2, 0)).readings[MODEL_LOADED] == 0


def test_a_bad_value_of_one_process_spoils_the_reading() -> None:
    line = 'vllm:kv_cache_usage_perc{{pid="{}"}} {}'
    for bad, reason in (("NaN", "not_finite"), ("+Inf", "not_finite"), ("-1", "out_of_range"), ("2", "out_of_range")):
        for values in ((bad, "0.5"), ("0.5", bad)):
            found = read("vllm", *(line.format(pid, value) for pid, value in enumerate(values)))
            assert reasons(found) == {KV_USAGE: reason}


# -- times -----------------------------------------------------------------------------------------------------------

LORA = 'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{}",waiting_lora_adapters=""}} {}'


@pytest.mark.parametrize("value", ["3479115131.5", "5218673", "0", "1", "-1", "NaN", "+Inf", "1.7e12"])
def test_adapters_are_withheld_where_no_set_has_a_time(value: str) -> None:
    found = read("vllm", LORA.format("a", value), LORA.format("b", value))
    assert reasons(found) == {LORA_RUNNING: "not_a_time", LORA_WAITING: "not_a_time"}
    assert found.readings[LORA_MAX] == 4


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1_700_000_000, 1_900_000_000)), min_size=1, max_size=5)
)
def test_a_set_of_adapters_with_a_sum_of_times_never_wins(rows: list[tuple[str, int]]) -> None:
    lines = [LORA.format(name, time) for name, time in dict(rows).items()]
    lines += [LORA.format(f"sum-{number}", 2 * 1_700_000_000 + number) for number in range(3)]
    times = dict(rows)
    newest = max(times, key=lambda name: (times[name], name))
    assert read("vllm", *lines).readings[LORA_RUNNING] == frozenset({newest})


def test_adapters_without_an_engine_are_withheld_on_a_page_of_several() -> None:
    ranks = [f'vllm:num_requests_running{{engine="{rank}"}} 1' for rank in (0, 1)]
    found = read("vllm", *ranks, LORA.format("a", 1.7e9))
    assert reasons(found) == {LORA_RUNNING: "ambiguous", LORA_WAITING: "ambiguous"}
    assert found.readings[LORA_MAX] == 4
    assert read("vllm", ranks[0], LORA.format("a", 1.7e9)).readings[LORA_RUNNING] == frozenset({"a"})


def test_a_start_that_is_no_time_is_refused() -> None:
    line = "vllm:num_requests_running 1"
    assert reasons(read("vllm", line, f"process_start_time_seconds {2 * TIME_MAX}")) == {START_TIME: "out_of_range"}


# -- queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queues", "waiting"),
    [
        ({}, 1),
        ({"grammar": 2}, 3),
        ({"prefill_bootstrap": 5}, 6),
        ({"prefill_prealloc": 5}, 6),
        ({"prefill_bootstrap": 5, "prefill_prealloc": 5}, 6),  # one queue under two names
        ({"decode_prealloc": 7, "decode_transfer": 4}, 12),
        ({"prefill_inflight": 9, "decode_host_receive": 3}, 1),  # prefilled; a part of another queue
    ],
)
def test_what_waits_in_an_sglang_server_of_any_role_is_waiting(queues: dict[str, int], waiting: int) -> None:
    lines = [f"sglang:num_{name}_queue_reqs {count}" for name, count in {**queues}.items()]
    lines.append("sglang:num_queue_reqs 1")
    for order in (lines, lines[::-1]):
        assert read("sglang", *order).readings[WAITING] == waiting


def test_a_queue_that_may_be_cut_off_is_not_a_queue_that_is_not_there() -> None:
    lines = ['sglang:num_queue_reqs{tp_rank="0"} 0', "# end"]
    assert reasons(read("sglang", *lines, whole=False))[WAITING] == "cut_off"
    assert read("vllm", "vllm:num_requests_waiting 3", "vllm:kv_cache_usage_perc 0", whole=False).readings[WAITING] == 3


def test_preempted_requests_of_vllm_v0_are_waiting() -> None:
    assert read("vllm", "vllm:num_requests_waiting 0", "vllm:num_requests_swapped 12").readings[WAITING] == 12


def test_waiting_requests_by_reason_are_read_where_the_sum_is_not_on_the_page() -> None:
    rows = [f'vllm:num_requests_waiting_by_reason{{engine="0",reason="{r}"}} 4' for r in ("capacity", "deferred")]
    assert read("vllm", *rows).readings[WAITING] == 8
    assert read("vllm", *rows, 'vllm:num_requests_waiting{engine="0"} 9').readings[WAITING] == 9


@pytest.mark.parametrize(
    ("pending", "waiting"),
    [
        ({"ensemble": 0, "preprocessing": 1, "tensorrt_llm": 6, "postprocessing": 57}, 6),
        ({"tensorrt_llm": 6, "tensorrt_llm_bls": 2, "postprocessing": 57}, 8),
        ({"ensemble": 0, "preprocessing": 0, "my_llm": 9, "postprocessing": 57}, 9),
        ({"chat": 4}, 4),
        ({"tokenizer": 0, "chat": 0, "detokenizer": 0}, 0),
        ({"tokenizer": 0, "chat": 2, "detokenizer": 40}, None),
        ({"preprocessing": 0, "postprocessing": 3}, None),
    ],
)
def test_only_requests_that_wait_for_the_model_wait_for_triton(pending: dict[str, int], waiting: int | None) -> None:
    lines = [f'nv_inference_pending_request_count{{model="{model}",version="1"}} {n}' for model, n in pending.items()]
    for order in (lines, lines[::-1]):
        found = read("triton", *order)
        assert found.readings.get(WAITING) == waiting
        assert (reasons(found) == {WAITING: "ambiguous"}) is (waiting is None)


def test_versions_of_one_model_are_no_steps() -> None:
    line = 'nv_inference_pending_request_count{{model="chat",version="{}"}} {}'
    assert read("triton", line.format(1, 2), line.format(2, 3)).readings[WAITING] == 5


# -- capacity --------------------------------------------------------------------------------------------------------


def test_the_cache_sizes_of_several_engines_are_summed_and_of_one_engine_counted_once() -> None:
    row = 'vllm:cache_config_info{{engine="{}",num_gpu_blocks="{}",kv_cache_size_tokens="{}",pid="{}"}} 1'
    lines = [row.format(0, 10, 160, 1), row.format(0, 10, 160, 2), row.format(1, 20, 320, 1)]
    readings = read("vllm", *lines).readings
    assert (readings[BLOCKS], readings[KV_TOKENS]) == (30, 480)
    assert reasons(read("vllm", lines[0], row.format(0, 11, 160, 2))) == {BLOCKS: "disagreement"}


def test_a_setting_without_a_value_is_missing_and_not_a_bad_number() -> None:
    found = read("vllm", 'vllm:cache_config_info{engine="0",num_gpu_blocks="5",kv_cache_size_tokens="None"} 1')
    assert (found.refused, found.readings[BLOCKS], KV_TOKENS in found.missing) == ((), 5, True)


def test_a_cache_without_an_engine_is_withheld_on_a_page_of_several() -> None:
    ranks = [f'vllm:num_requests_running{{engine="{rank}"}} 1' for rank in (0, 1)]
    found = read("vllm", *ranks, 'vllm:cache_config_info{block_size="16",num_gpu_blocks="5"} 1')
    assert reasons(found) == {BLOCKS: "ambiguous"}
    assert found.readings[BLOCK_SIZE] == 16


# -- spellings -------------------------------------------------------------------------------------------------------


def respelt(page: bytes, own: str, other: str) -> bytes:
    """The page with this prefix of names replaced, in samples and in comments."""
    return re.sub(rb"(?m)^(# (?:HELP|TYPE) )?" + own.encode(), rb"\g<1>" + other.encode(), page)


ROOTS = {"vllm": "vllm:", "sglang": "sglang:", "llamacpp": "llamacpp:", "tgi": "tgi_", "trtllm-serve": "trtllm_",
         "triton": "nv_", "triton-tensorrt-llm": "nv_", "jetstream": "jetstream_"}  # fmt: skip
CASES = [
    (name, path, before + ROOTS[name][:-1] + separator)
    for name in sorted(ENGINES)
    for path in sorted((PAGES / name).glob("*.prom"))
    if b"\n" + ROOTS[name].encode() in path.read_bytes()
    for before in ("", "ray_")
    for separator in (":", "_")
]


@pytest.mark.parametrize(("name", "path", "other"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_a_page_with_its_names_in_another_spelling_gives_the_same_readings(name: str, path: Path, other: str) -> None:
    page = path.read_bytes()
    renamed = respelt(page, ROOTS[name], other)
    expected = Extractor(engine(name)).extract(page, whole=True)
    extractor = Extractor(engine(name))
    for _ in range(3):
        found = extractor.extract(renamed, whole=True)
        assert (found.readings, found.missing) == (expected.readings, expected.missing)
        assert reasons(found) == reasons(expected)
    assert recognise(renamed) == name
    assert extractor.extract(page, whole=True) == expected
    assert extractor.extract(renamed, whole=True).readings == expected.readings


def test_histograms_are_read_in_another_spelling_too() -> None:
    page = (PAGES / "vllm" / "load_three_loras_max2.prom").read_bytes()
    wanted = ("time_to_first_token_seconds",)
    expected = Extractor(engine("vllm"), histograms=wanted).extract(page, whole=True).histograms
    assert expected["time_to_first_token_seconds"] is not None
    for other in ("vllm_", "ray_vllm_", "ray_vllm:"):
        found = Extractor(engine("vllm"), histograms=wanted).extract(respelt(page, "vllm:", other), whole=True)
        assert found.histograms == expected


def test_names_that_every_server_has_keep_their_spelling() -> None:
    for table in spellings(engine("vllm")):
        assert [source.sample for source in table.sources[START_TIME]] == ["process_start_time_seconds"]


def test_a_page_with_both_spellings_is_read_by_the_engines_own() -> None:
    found = read(
        "vllm", "ray_vllm_num_requests_running 9", "vllm:num_requests_running 3", "vllm_num_requests_waiting 1"
    )
    assert (found.readings[RUNNING], WAITING in found.missing) == (3, True)


def test_an_engine_of_ones_own_has_no_other_spelling() -> None:
    table = custom(EngineSpec("mine", (MetricSpec(WAITING, "my_queue"),)))
    assert spellings(table) == ()
    with pytest.raises(PageRefused, match="wrong_engine"):
        Extractor(table).extract(b"ray_my_queue 3\n", whole=True)


# -- nothing was counted yet -----------------------------------------------------------------------------------------

NOTHING = [
    b"",
    b"\n",
    b"# HELP tgi_queue_size The queue.\n# TYPE tgi_queue_size gauge\n",
    b"# TYPE vllm:num_requests_running gauge\n",
]


@pytest.mark.parametrize("page", NOTHING)
@pytest.mark.parametrize("name", sorted(ENGINES))
def test_a_page_without_a_sample_is_empty_whatever_the_engine(name: str, page: bytes) -> None:
    reader = Extractor(engine(name))
    with pytest.raises(PageRefused) as refused:
        reader.read(page, whole=True)
    assert refused.value.reason == "empty"
    assert "has counted nothing yet" in refused.value.detail
    assert reader.extract(page, whole=True) == NOTHING_COUNTED


@pytest.mark.parametrize("page", NOTHING)
def test_a_server_that_has_counted_nothing_is_read_from_its_first_sample_on(page: bytes) -> None:
    extractor = Extractor(engine("tgi"))
    assert extractor.extract(page, whole=True) == NOTHING_COUNTED
    assert extractor.extract(b"tgi_queue_size 2\n", whole=True).readings == {WAITING: 2}


# -- the order of series ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [path for name in sorted(ENGINES) for path in sorted((PAGES / name).glob("*.prom"))],
    ids=lambda path: path.stem,
)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_the_lines_changes_no_reading(path: Path, seed: int) -> None:
    name = path.parent.name
    lines = path.read_bytes().splitlines(keepends=True)
    samples = [line for line in lines if not line.startswith(b"#")]
    comments = [line for line in lines if line.startswith(b"#")]
    random.Random(seed).shuffle(samples)
    expected = Extractor(engine(name)).extract(path.read_bytes(), whole=True)
    found = Extractor(engine(name)).extract(b"".join([*comments, *samples]), whole=True)
    assert found.readings == expected.readings
    assert reasons(found) == reasons(expected)
