"""Whose a page is, where nobody said so, or where somebody said so wrongly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES, engine
from agent.engines.mapping import Extractor
from agent.engines.recognition import recognise
from agent.engines.table import MARKS, STRANGERS
from agent.exposition.page import PageRefused
from agent.scrape.reasons import REASONS

EVERY_MARK = pytest.mark.parametrize("mark", sorted(MARKS))


def refusal(page: str) -> PageRefused:
    with pytest.raises(PageRefused) as refused:
        recognise(page.encode())
    return refused.value


@EVERY_MARK
def test_a_sample_that_begins_with_a_mark_tells_its_engine(mark: str) -> None:
    assert recognise(f"python_info 1\n{mark}anything 1\n".encode()) == MARKS[mark]
    assert recognise(f"{mark}anything 1\n".encode()) == MARKS[mark]


@EVERY_MARK
def test_a_mark_in_a_label_a_comment_or_a_longer_name_tells_nothing(mark: str) -> None:
    page = f'# HELP {mark}x\nother{{name="{mark}x"}} 1\nmy_{mark}x 1\n'
    assert refusal(page).reason == "wrong_engine"


def test_tritons_own_names_beside_those_of_its_backend_do_not_hide_the_backend() -> None:
    page = b"nv_inference_pending_request_count 0\nnv_trt_llm_request_metrics 1\n"
    assert recognise(page) == "triton-tensorrt-llm"
    with pytest.raises(
        PageRefused, match="page of triton-tensorrt-llm, not of triton: write `engine: triton-tensorrt-"
    ):
        Extractor(engine("triton")).extract(page, whole=True)


def test_a_server_that_gets_the_backend_later_is_refused_then() -> None:
    extractor = Extractor(engine("triton"))
    plain = b"nv_inference_pending_request_count 3\n# end\n"
    assert extractor.extract(plain, whole=True).readings == {"waiting_requests": 3}
    with pytest.raises(PageRefused, match="triton-tensorrt-llm"):
        extractor.extract(b'nv_trt_llm_request_metrics{request_type="max"} 9\n' + plain, whole=True)


def test_a_page_with_the_names_of_two_engines_asks_for_a_word() -> None:
    told = refusal("vllm:num_requests_running 1\ntgi_queue_size 0\n")
    assert told.reason == "wrong_engine"
    assert "names of vllm and of tgi" in told.detail
    assert "`engine: vllm`" in told.detail


@pytest.mark.parametrize("mark", sorted(STRANGERS))
def test_the_page_of_another_program_is_called_by_its_name(mark: str) -> None:
    page = f"{mark}something 1\n"
    for name in ENGINES:
        with pytest.raises(PageRefused, match="is this the address of the model server") as refused:
            Extractor(engine(name)).extract(page.encode(), whole=True)
        assert STRANGERS[mark] in refused.value.detail
    assert STRANGERS[mark] in refusal(page).detail


def test_an_unknown_page_names_the_engines_that_are_known() -> None:
    told = refusal("my_own_server_queue 1\n")
    assert all(name in told.detail for name in ENGINES)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_they_are_an_engines_or_refused_with_a_known_reason(page: bytes) -> None:
    try:
        told = recognise(page)
    except PageRefused as refused:
        told = refused.reason
    assert told in {*ENGINES, *REASONS}


def test_every_mark_is_an_engine_that_there_is() -> None:
    assert set(MARKS.values()) == ENGINES.keys()
