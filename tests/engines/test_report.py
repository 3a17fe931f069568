"""Load reports in response headers: values, and reports that are refused."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import engine
from agent.engines.report import MAX_CHARACTERS, REASONS, ReportRefused, read
from agent.signals import KV_USAGE, SIGNALS, WAITING

VLLM = engine("vllm").reports
# Recorded from vLLM 0.32, with other numbers.
TEXT = "TEXT named_metrics.num_requests_waiting=3.0, named_metrics.kv_cache_usage_perc=0.25"
JSON = 'JSON {"named_metrics": {"num_requests_waiting": 3.0, "kv_cache_usage_perc": 0.25}}'


def refusal(report: str) -> str:
    with pytest.raises(ReportRefused) as refused:
        read(report, VLLM)
    assert refused.value.reason in REASONS
    return refused.value.reason


@pytest.mark.parametrize("report", [TEXT, JSON, TEXT.lower(), f"  {JSON} "])
def test_both_formats_have_the_same_values(report: str) -> None:
    assert read(report, VLLM) == {WAITING: 3.0, KV_USAGE: 0.25}


def test_metrics_that_are_not_in_the_engines_table_are_ignored() -> None:
    more = "TEXT cpu_utilization=0.9, named_metrics.queue_bytes=x, named_metrics.num_requests_waiting=2, rps=nan"
    assert read(more, VLLM) == {WAITING: 2.0}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ("", "unknown_format"),
        ("BIN Cg1sb2Fk", "unknown_format"),
        ("named_metrics.num_requests_waiting=1", "unknown_format"),
        ("TEXT", "unreadable"),
        ("TEXT named_metrics.num_requests_waiting", "unreadable"),
        ("TEXT named_metrics.num_requests_waiting=", "unreadable"),
        ("TEXT named_metrics.num_requests_waiting=1_0", "unreadable"),
        ("TEXT named_metrics.num_requests_waiting=0x10", "unreadable"),
        ("JSON", "unreadable"),
        ("JSON []", "unreadable"),
        ('JSON {"named_metrics": 3}', "unreadable"),
        ('JSON {"named_metrics": {"num_requests_waiting": true}}', "unreadable"),
        ('JSON {"named_metrics": {"num_requests_waiting": null}}', "unreadable"),
        ('JSON {"named_metrics": {"num_requests_waiting": NaN}}', "unreadable"),
        ("JSON {}", "nothing_known"),
        ("TEXT cpu_utilization=0.3", "nothing_known"),
        ("TEXT num_requests_waiting=0.3", "nothing_known"),
        ("TEXT named_metrics.num_requests_waiting=nan", "not_finite"),
        ("TEXT named_metrics.num_requests_waiting=Inf", "not_finite"),
        ("TEXT named_metrics.num_requests_waiting=-1", "out_of_range"),
        ("TEXT named_metrics.kv_cache_usage_perc=1.5", "out_of_range"),
        ("TEXT named_metrics.num_requests_waiting=1, named_metrics.kv_cache_usage_perc=1.5", "out_of_range"),
        ("TEXT named_metrics.num_requests_waiting=1, named_metrics.num_requests_waiting=2", "several"),
        (f"{TEXT}\n{TEXT}", "unreadable"),
        ("TEXT " + "x=1," * MAX_CHARACTERS, "too_long"),
    ],
)
def test_an_invalid_report_is_refused_as_a_whole_with_the_reason(report: str, reason: str) -> None:
    assert refusal(report) == reason


def test_a_report_of_an_engine_without_reports_is_refused() -> None:
    with pytest.raises(ReportRefused, match="nothing_known"):
        read(TEXT, engine("tgi").reports)


@given(st.text(max_size=200), st.sampled_from(["", "TEXT ", "JSON ", "TEXT named_metrics.kv_cache_usage_perc=", JSON]))
def test_any_header_is_read_or_refused_with_a_known_reason(text: str, before: str) -> None:
    reason, values = "", {}
    try:
        values = read(before + text, VLLM)
    except ReportRefused as refused:
        reason = refused.reason
    assert bool(values) is not (reason in REASONS)
    assert all(SIGNALS[signal].low <= value <= SIGNALS[signal].high for signal, value in values.items())  # type: ignore[operator]


@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans())
def test_the_reported_values_are_read(waiting: int, usage: float, as_json: bool) -> None:
    if as_json:
        named = {"num_requests_waiting": float(waiting), "kv_cache_usage_perc": usage}
        report = f"JSON {orjson.dumps({'named_metrics': named}).decode()}"
    else:
        report = f"TEXT named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage!r}"
    assert read(report, VLLM) == {WAITING: float(waiting), KV_USAGE: usage}
