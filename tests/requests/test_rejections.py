"""The one table of rejections, and what a client reads of each row."""

from __future__ import annotations

import orjson
import pytest

from agent.requests.rejections import (
    REJECTIONS,
    Rejection,
    error_code,
    error_type,
    milliseconds,
    proxy_replies,
)

# Statuses that the official OpenAI clients retry by themselves: 408, 409, 429 and every 5xx.
RETRIED = {408, 409, 429, 500, 503, 504}


@pytest.mark.parametrize("reason", list(REJECTIONS))
def test_every_rejection_is_an_openai_error_with_the_headers_of_its_row(reason: str) -> None:
    row, rejection = REJECTIONS[reason], Rejection(reason, "why", "model")
    assert orjson.loads(rejection.body())["error"] == {
        "message": "why", "type": error_type(row.status), "param": "model", "code": row.code,
    }  # fmt: skip
    headers = dict(rejection.headers())
    assert rejection.status == row.status
    assert headers["content-type"] == "application/json"
    assert headers.get("retry-after", "0") == str(row.retry_after)
    assert headers.get("x-llm-d-request-dropped-reason", "") == row.dropped
    assert headers.get("x-gateway-request-dropped-reason", "") == row.dropped
    assert "x-llm-d-flow-queue-duration-ms" not in headers


@pytest.mark.parametrize("reason", list(REJECTIONS))
def test_what_may_succeed_later_has_a_status_that_clients_retry_and_a_short_wait(reason: str) -> None:
    row = REJECTIONS[reason]
    if row.retry:
        assert row.status in RETRIED
    else:
        assert row.retry_after == 0
    assert 0 <= row.retry_after <= 120  # clients ignore a longer one


@pytest.mark.parametrize("reason", list(REJECTIONS))
@pytest.mark.parametrize(("waited", "milliseconds_waited"), [(0.0, "0"), (0.0001, "1"), (2.5, "2500")])
def test_a_rejection_may_have_its_own_time_to_come_back_and_how_long_the_request_was_held(
    reason: str, waited: float, milliseconds_waited: str
) -> None:
    headers = dict(Rejection(reason, "why", retry_after=77, waited_seconds=waited).headers())
    assert headers["retry-after"] == "77"
    assert headers["x-llm-d-flow-queue-duration-ms"] == milliseconds_waited == milliseconds(waited)


def test_what_flow_control_refuses_has_the_reasons_of_the_field() -> None:
    expected = {
        "shed": (429, "rejected-saturated"),
        "displaced": (429, "rejected-saturated"),
        "body_budget": (429, "rejected-saturated"),
        "expired": (429, "rejected-ttl-expired"),
        "no_endpoints": (503, "rejected-no-endpoints"),
        "shutting_down": (503, "rejected-shutting-down"),
    }
    assert {reason: (REJECTIONS[reason].status, REJECTIONS[reason].dropped) for reason in expected} == expected


@pytest.mark.parametrize(
    ("status", "type", "code"),
    [
        (400, "invalid_request_error", "BadRequest"),
        (401, "authentication_error", "Unauthorized"),
        (403, "permission_error", "Forbidden"),
        (404, "not_found_error", "NotFound"),
        (405, "invalid_request_error", "405"),
        (413, "invalid_request_error", "413"),
        (429, "rate_limit_error", "ResourceExhausted"),
        (500, "server_error", "Internal"),
        (503, "server_error", "ServiceUnavailable"),
    ],
)
def test_the_type_and_the_label_of_an_error_follow_from_its_status(status: int, type: str, code: str) -> None:
    assert (error_type(status), error_code(status)) == (type, code)


def test_the_replies_of_the_proxy_name_the_limit_of_a_body_and_end_with_a_row_for_every_error() -> None:
    replies = proxy_replies(1000)
    assert any("1000 bytes" in reply.message for reply in replies)
    assert replies[-1].condition == "response.code >= 400"
    assert len({reply.code for reply in replies}) == len(replies)
