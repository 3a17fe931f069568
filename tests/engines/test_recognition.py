"""Recognition of the engine that wrote a page, for an endpoint without an engine or with a wrong one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES, engine
from agent.engines.mapping import Extractor
from agent.engines.recognition import name_prefixes, recognise
from agent.engines.table import OTHER_PROGRAMS
from agent.exposition.page import PageRefused
from agent.scrape.reasons import REASONS

EVERY_PREFIX = pytest.mark.parametrize("prefix", sorted(name_prefixes()))


def refusal(page: str) -> PageRefused:
    with pytest.raises(PageRefused) as refused:
        recognise(page.encode())
    return refused.value


@EVERY_PREFIX
def test_the_prefix_of_a_sample_name_identifies_its_engine(prefix: str) -> None:
    assert recognise(f"python_info 1\n{prefix}anything 1\n".encode()) == name_prefixes()[prefix]
    assert recognise(f"{prefix}anything 1\n".encode()) == name_prefixes()[prefix]


@EVERY_PREFIX
def test_a_prefix_in_a_label_a_comment_or_a_longer_name_is_ignored(prefix: str) -> None:
    page = f'# HELP {prefix}x\nother{{name="{prefix}x"}} 1\nmy_{prefix}x 1\n'
    assert refusal(page).reason == "wrong_engine"


def test_a_triton_page_with_names_of_its_backend_is_recognised_as_the_backends() -> None:
    page = b"nv_inference_pending_request_count 0\nnv_trt_llm_request_metrics 1\n"
    assert recognise(page) == "triton-tensorrt-llm"
    with pytest.raises(
        PageRefused, match="page of triton-tensorrt-llm, not of triton: write `engine: triton-tensorrt-"
    ):
        Extractor(engine("triton")).extract(page, whole=True)


def test_a_server_that_loads_the_backend_later_is_refused_from_then_on() -> None:
    extractor = Extractor(engine("triton"))
    plain = b"nv_inference_pending_request_count 3\n# end\n"
    assert extractor.extract(plain, whole=True).readings == {"waiting_requests": 3}
    with pytest.raises(PageRefused, match="triton-tensorrt-llm"):
        extractor.extract(b'nv_trt_llm_request_metrics{request_type="max"} 9\n' + plain, whole=True)


def test_a_page_with_the_names_of_two_engines_is_refused_with_the_option_to_write() -> None:
    found = refusal("vllm:num_requests_running 1\ntgi_queue_size 0\n")
    assert found.reason == "wrong_engine"
    assert "metrics of vllm and of tgi" in found.detail
    assert "`engine: vllm`" in found.detail


@pytest.mark.parametrize("prefix", sorted(OTHER_PROGRAMS))
def test_the_refusal_of_another_programs_page_names_the_program(prefix: str) -> None:
    page = f"{prefix}something 1\n"
    for name in ENGINES:
        with pytest.raises(PageRefused, match="is this the address of the model server") as refused:
            Extractor(engine(name)).extract(page.encode(), whole=True)
        assert OTHER_PROGRAMS[prefix] in refused.value.detail
    assert OTHER_PROGRAMS[prefix] in refusal(page).detail


def test_the_refusal_of_an_unknown_page_lists_the_known_engines() -> None:
    found = refusal("my_own_server_queue 1\n")
    assert all(name in found.detail for name in ENGINES)


@given(st.binary(max_size=200))
def test_any_bytes_are_recognised_as_an_engines_or_refused_with_a_known_reason(page: bytes) -> None:
    try:
        result = recognise(page)
    except PageRefused as refused:
        result = refused.reason
    assert result in {*ENGINES, *REASONS}


def test_every_prefix_belongs_to_an_existing_engine() -> None:
    assert set(name_prefixes().values()) == ENGINES.keys()
