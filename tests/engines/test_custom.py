"""Engines from the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine_specs import ENGINE_LABELS, EngineSpec, MetricSpec, engine_by_label, parse_spec
from agent.engines import ENGINES, engine
from agent.engines.custom import custom
from agent.engines.mapping import Extraction, Extractor
from agent.engines.table import Engine, SeriesCombination
from agent.exposition.page import PageRefused
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    HISTOGRAMS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    RUNNING,
    SIGNALS,
    START_TIME,
    WAITING,
    SignalKind,
)

MINE = EngineSpec(
    "mine",
    (
        MetricSpec(WAITING, "my_requests", (("state", "queued"),)),
        MetricSpec(RUNNING, "my_requests", (("state", "running"),)),
        MetricSpec(KV_USAGE, "my_cache_ratio"),
        MetricSpec(BLOCK_SIZE, "my_cache_info", label="page"),
        MetricSpec(BLOCKS, "my_cache_info", label="pages"),
        MetricSpec(LORA_RUNNING, "my_adapters", label="running_lora_adapters"),
    ),
)


def read(table: Engine, page: str) -> Extraction:
    return Extractor(table).extract(page.encode(), whole=True)


def test_an_engine_from_the_configuration_reads_the_samples_that_it_names() -> None:
    page = (
        'my_requests{state="queued"} 3\nmy_requests{state="running"} 2\nmy_requests{state="done"} 99\n'
        'my_cache_ratio 0.5\nmy_cache_info{page="16",pages="100"} 1\n'
        'my_adapters{running_lora_adapters="a,b"} 1.7e9\nmy_adapters{running_lora_adapters="c"} 1.6e9\n'
    )
    assert read(custom(MINE), page).readings == {
        WAITING: 3,
        RUNNING: 2,
        KV_USAGE: 0.5,
        BLOCK_SIZE: 16,
        BLOCKS: 100,
        LORA_RUNNING: frozenset("ab"),
    }


def test_its_several_series_are_summed_and_its_cache_usages_weighted_by_blocks() -> None:
    page = (
        'my_requests{state="queued",dp_rank="0"} 3\nmy_requests{state="queued",dp_rank="1"} 4\n'
        'my_cache_ratio{dp_rank="0"} 0.5\nmy_cache_ratio{dp_rank="1"} 1\n'
        'my_cache_info{page="16",pages="100",dp_rank="0"} 1\nmy_cache_info{page="16",pages="300",dp_rank="1"} 1\n'
    )
    readings = read(custom(MINE), page).readings
    assert readings[WAITING] == 7
    assert readings[KV_USAGE] == pytest.approx((0.5 * 100 + 1 * 300) / 400)


def test_every_signal_has_a_source_or_a_reason_why_it_has_none() -> None:
    for table in (custom(MINE), *(custom(MINE._replace(name=name)) for name in ENGINES)):
        for signal in (*SIGNALS, *HISTOGRAMS):
            assert bool(table.why_silent(signal)) is not (signal in table.sources or signal in table.histograms)


def test_a_page_without_its_metrics_is_refused_and_the_pages_engine_named() -> None:
    with pytest.raises(PageRefused, match="this is a page of sglang, not of mine: write `engine: sglang`"):
        read(custom(MINE), "sglang:num_queue_reqs 1\n")
    with pytest.raises(PageRefused, match=r"no metrics of mine \(my_requests.*engineConfigs"):
        read(custom(MINE), "other 1\n")


def test_metrics_configured_for_a_built_in_engine_come_before_its_own() -> None:
    table = custom(EngineSpec("vllm", (MetricSpec(WAITING, "my_queue"),)))
    own = "vllm:num_requests_waiting 5\nvllm:num_requests_running 2\n"
    assert read(table, own).readings == {WAITING: 5, RUNNING: 2}
    assert read(table, "my_queue 1\n" + own).readings == {WAITING: 1, RUNNING: 2}
    assert table.health_path == engine("vllm").health_path


def test_a_number_of_adapters_without_a_label_is_read_as_a_number() -> None:
    table = custom(EngineSpec("mine", (MetricSpec(LORA_MAX, "my_slots"),)))
    assert read(table, 'my_slots{rank="0"} 4\nmy_slots{rank="1"} 4\n').readings == {LORA_MAX: 4}


@pytest.mark.parametrize(
    "signal", [name for name, row in SIGNALS.items() if row.kind in {SignalKind.GAUGE, SignalKind.COUNTER}]
)
def test_every_numeric_signal_can_be_configured(signal: str) -> None:
    table = custom(EngineSpec("mine", (MetricSpec(signal, "my_value"),)))
    assert read(table, "my_value 1\n").readings == {signal: 1}
    assert (table.sources[signal][0].combine is SeriesCombination.MAX) == (signal == START_TIME)


# -- metric specifications ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sample", "where"),
    [
        ("vllm:num_requests_waiting", "vllm:num_requests_waiting", {}),
        (" a ", "a", {}),
        ("nv_trt_llm_request_metrics{request_type=waiting}", "nv_trt_llm_request_metrics", {"request_type": "waiting"}),
        ('m{a="b c", d = e}', "m", {"a": "b c", "d": "e"}),
        ("m{a=b,}", "m", {"a": "b"}),
        ("m {a=}", "m", {"a": ""}),
        ('m{a="x\\"y\\\\z\\n,}"}', "m", {"a": 'x"y\\z\n,}'}),
    ],
)
def test_a_specification_is_read_in_the_syntax_of_llm_d(text: str, sample: str, where: dict[str, str]) -> None:
    assert parse_spec(text) == (sample, tuple(sorted(where.items())))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{a=b}",
        "1m",
        "m-n",
        "m{",
        "m}",
        "m{a=b",
        "m{}",
        "m{a}",
        "m{=b}",
        "m{a=b c}",
        "m{a=b;c=d}",
        "m{a='b'",
        "m" * 1001,
    ],
)
def test_an_invalid_specification_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        parse_spec(text)


NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,10}", fullmatch=True)
LABELS = st.dictionaries(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True), st.text(max_size=10), min_size=1, max_size=3
)


@given(NAMES, LABELS)
def test_any_labels_can_be_written_in_a_specification(name: str, labels: dict[str, str]) -> None:
    escaped = {
        label: text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for label, text in labels.items()
    }
    pairs = ",".join(f'{label}="{text}"' for label, text in escaped.items())
    assert parse_spec(f"{name}{{{pairs}}}") == (name, tuple(sorted(labels.items())))


@given(st.text(max_size=40))
def test_any_text_is_a_specification_or_is_refused(text: str) -> None:
    try:
        name, _ = parse_spec(text)
    except ValueError as error:
        name = str(error)
    assert name


# -- the label of a pod ----------------------------------------------------------------------------------------------

NEW, OLD = ENGINE_LABELS


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, None),
        ({"app": "sglang"}, None),
        ({NEW: "sglang"}, (NEW, "sglang")),
        ({OLD: "sglang"}, (OLD, "sglang")),
        ({OLD: "vllm", NEW: "sglang"}, (NEW, "sglang")),
        ({NEW: "", OLD: "vllm"}, (OLD, "vllm")),
    ],
)
def test_the_label_of_a_pod_names_its_engine(labels: dict[str, str], expected: tuple[str, str] | None) -> None:
    assert engine_by_label(labels) == expected


def test_another_label_can_be_asked_for() -> None:
    assert engine_by_label({NEW: "vllm", "runs": "tgi"}, ("runs",)) == ("runs", "tgi")
