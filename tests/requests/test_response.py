"""The table of results: what a proxy's report of a response means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.requests.response import RESULTS, Response, broken_by, result_of


@pytest.mark.parametrize(
    ("details", "broken"),
    [
        ("", ""),
        ("via_upstream", ""),
        ("upstream_reset_before_response_started{connection_termination}", "reset"),
        ("upstream_reset_before_response_started{remote_reset}", "reset"),
        (
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
            "connect_failure",
        ),
        ("upstream_reset_before_response_started{connection_failure}", "connect_failure"),
        ("upstream_reset_after_response_started{connection_termination}", "reset"),
        ("upstream_response_timeout", "timeout"),
        ("upstream_per_try_timeout", "timeout"),
        ("no_healthy_upstream", "proxy"),
        ("ext_proc_error_gRPC_error_14", "proxy"),
        ("route_not_found", "proxy"),
    ],
)
def test_envoys_details_say_who_failed(details: str, broken: str) -> None:
    assert broken_by(details) == broken


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (101, "ok"),
        (200, "ok"),
        (204, "ok"),
        (302, "ok"),
        (400, "client_error"),
        (404, "client_error"),
        (408, "client_error"),
        (429, "overloaded"),
        (500, "server_error"),
        (501, "unsupported"),
        (502, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
        (505, "unsupported"),
        (529, "overloaded"),
        (599, "server_error"),
        (0, "client_left"),
    ],
)
def test_the_status_of_a_server_says_whose_fault_it_is(status: int, result: str) -> None:
    assert result_of(Response(status), queue_full=False) == result


def test_a_503_of_a_full_queue_is_an_overload_by_its_header_or_by_the_page() -> None:
    assert result_of(Response(503, retry_after=True), queue_full=False) == "overloaded"
    assert result_of(Response(503), queue_full=True) == "overloaded"
    assert result_of(Response(500, retry_after=True), queue_full=True) == "server_error"


responses = st.builds(
    Response,
    status=st.integers(0, 999),
    broken=st.sampled_from(["", "connect_failure", "reset", "timeout", "proxy"]),
    client_left=st.booleans(),
    retry_after=st.booleans(),
)


@given(response=responses, queue_full=st.booleans())
def test_every_response_has_a_result_of_the_table_and_no_status_below_500_is_a_failure(
    response: Response, queue_full: bool
) -> None:
    row = RESULTS[result_of(response, queue_full=queue_full)]
    if not response.broken and (response.status < 500 or response.client_left):
        assert not row.failure


@given(st.text())
def test_any_details_are_read(details: str) -> None:
    assert broken_by(details) in ("", "connect_failure", "reset", "timeout", "proxy")
