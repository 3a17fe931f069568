"""The counter of requests that empty a cache is read from every page, as a plain reading of all its lines gives it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.engines.cache_resets import CacheResetReader, ResetCounter
from agent.engines.mapping import Extractor
from agent.engines.sglang import SGLANG
from agent.engines.vllm import VLLM

RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "emulator"
COUNTER = ResetCounter("http_requests_total", "handler", "status", ("/sleep", "/reset_prefix_cache"))

handlers = st.sampled_from(["/sleep", "/reset_prefix_cache", "/v1/completions", "/health", "none"])
series = st.tuples(handlers, st.sampled_from(["GET", "POST"]), st.sampled_from(["2xx", "4xx", "5xx"]))
counts = st.dictionaries(series, st.integers(1, 10**7), max_size=8)
# What a server answers between two pages, and the size of other families before and behind.
steps = st.tuples(
    st.dictionaries(series, st.integers(1, 10**7), max_size=3),
    st.sampled_from([5, 50, 900]),
    st.sampled_from(["", "# TYPE up gauge\n"]),
)


def page(counts: dict[tuple[str, str, str], int], before: str = "", after: str = "") -> bytes:
    lines = (
        f'http_requests_total{{handler="{handler}",method="{method}",status="{status}"}} {float(count)}\n'
        for (handler, method, status), count in counts.items()
    )
    return f"{before}# HELP http_requests_total x\n# TYPE http_requests_total counter\n{''.join(lines)}{after}".encode()


def plain(text: bytes) -> float:
    """The sum by the plainest reading."""
    found = re.findall(
        r'^http_requests_total\{handler="(?:/sleep|/reset_prefix_cache)",method="\w+",status="2xx"\} (\S+)$',
        text.decode(),
        re.MULTILINE,
    )
    return sum(map(float, found))


@given(work=st.lists(steps, max_size=8))
def test_every_page_of_a_server_gives_what_a_plain_reading_gives(work) -> None:
    reader = CacheResetReader(COUNTER)
    answered: dict[tuple[str, str, str], int] = {}
    for number, (more, lines, after) in enumerate(work):
        for one, count in more.items():
            answered[one] = answered.get(one, 0) + count
        text = page(answered, "# one\n" + "up 1\n" * lines, after)
        assert reader.read(text) == plain(text), number


@given(first=counts, second=counts)
def test_another_server_at_the_address_is_read_anew_after_some_pages(first, second) -> None:
    reader = CacheResetReader(COUNTER)
    reader.read(page(first, "# one\n"))
    text = page(second, "# one\n")
    assert [reader.read(text) for _ in range(40)][-1] == plain(text)


@given(pages=st.lists(st.binary(max_size=200) | counts.map(page), max_size=6))
@example(pages=[b"\n# TYPE http_requests_total counter"])
@example(pages=[b'\n# TYPE http_requests_total counter\nhttp_requests_total{handler="/sleep",status="2xx"} NaN\n'] * 2)
def test_no_bytes_are_an_error(pages) -> None:
    reader = CacheResetReader(COUNTER)
    for each in pages:
        assert reader.read(each) >= 0.0


def test_a_series_that_appears_later_is_found_on_its_first_page() -> None:
    reader = CacheResetReader(COUNTER)
    served = {("/v1/completions", "POST", "2xx"): 9}
    assert reader.read(page(served, "# x\n")) == 0.0
    assert reader.read(page({("/v1/completions", "POST", "2xx"): 10}, "# x\n")) == 0.0
    assert reader.read(page({**served, ("/sleep", "POST", "2xx"): 1}, "# x\n")) == 1.0
    assert reader.read(page({**served, ("/sleep", "POST", "2xx"): 12}, "# x\n")) == 12.0
    assert reader.read(page({**served, ("/sleep", "POST", "2xx"): 12, ("/sleep", "POST", "4xx"): 3}, "# x\n")) == 12.0


def test_a_recorded_page_of_vllm_counts_its_reset_and_one_of_sglang_its_flush() -> None:
    recorded = (RECORDED / "lora_after_http_transcripts.prom").read_bytes()
    assert Extractor(VLLM).extract(recorded, whole=True).cache_resets == 1.0
    assert Extractor(VLLM).extract((RECORDED / "plain_idle.prom").read_bytes(), whole=True).cache_resets == 0.0
    sglang = (
        b'# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{model_name="m"} 0.0\n'
        b"# TYPE sglang:http_responses_total counter\n"
        b'sglang:http_responses_total{endpoint="/generate",method="POST",status_code="200"} 7.0\n'
        b'sglang:http_responses_total{endpoint="/flush_cache",method="POST",status_code="200"} 2.0\n'
        b'sglang:http_responses_total{endpoint="/flush_cache",method="POST",status_code="400"} 1.0\n'
    )
    assert Extractor(SGLANG).extract(sglang, whole=True).cache_resets == 2.0


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_a_page_without_the_counter_counts_nothing(engine) -> None:
    assert engine.cache_resets is not None
    reader = CacheResetReader(engine.cache_resets)
    assert [reader.read(b"# TYPE up gauge\nup 1\n") for _ in range(100)] == [0.0] * 100
