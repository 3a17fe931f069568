"""The prefill backlog at one endpoint: how it grows, shrinks and is corrected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state.inflight import TRANSIT_SECONDS, InFlight


def line(*tokens: float, rate: float = 1000.0, at: float = 0.0) -> InFlight:
    made = InFlight(rate)
    for work_id, each in enumerate(tokens):
        made.start(work_id, each, at)
    return made


def test_the_backlog_is_the_tokens_sent_less_the_rate_times_the_time() -> None:
    work = line(3000, 1000)
    assert work.prefill_tokens(0.0) == 4000
    assert work.prefill_tokens(1.5) == 2500
    assert work.prefill_tokens(99.0) == 0
    assert work.busy_until == 4.0


def test_idle_time_does_not_count_for_later_requests() -> None:
    work = line(1000)
    work.start(9, 500, 10.0)
    assert work.prefill_tokens(10.0) == 500


def test_a_request_that_ends_before_its_prefill_removes_its_tokens() -> None:
    work = line(1000, 2000, 4000)
    work.end(1, 0.5)
    assert work.prefill_tokens(0.5) == 500 + 4000
    assert len(work) == 2


def test_a_request_that_ends_after_its_first_token_was_due_does_not_change_the_backlog() -> None:
    work = line(1000, 2000)
    work.end(0, 1.5)
    assert work.prefill_tokens(1.5) == 1500


def test_a_request_that_ends_half_prefilled_removes_the_other_half() -> None:
    work = line(1000, 2000)
    work.end(0, 0.25)
    assert work.prefill_tokens(0.25) == 2000


def test_the_requests_behind_one_that_ended_move_up() -> None:
    work = line(1000, 2000, 4000)
    work.end(0, 0.0)
    work.end(2, 0.0)
    assert work.prefill_tokens(0.0) == 2000
    work.end(1, 1.0)
    assert work.prefill_tokens(1.0) == 0


def test_by_a_page_the_newest_waiting_requests_have_not_begun() -> None:
    work = line(1000, 1000, 1000)
    work.correct(running=1, waiting=2, at=3.0, now=3.0)
    assert work.prefill_tokens(3.0) == 2000


def test_by_a_page_all_but_the_newest_requests_are_prefilled() -> None:
    work = line(4000, 1000, 1000)
    work.correct(running=1, waiting=1, at=0.5, now=0.5)
    assert work.prefill_tokens(0.5) == 2000


def test_an_idle_server_has_no_backlog() -> None:
    work = line(4000, 1000)
    work.correct(running=0, waiting=0, at=1.0, now=1.0)
    assert work.prefill_tokens(1.0) == 0


def test_a_request_that_the_page_cannot_include_stays_in_the_backlog() -> None:
    work = line(4000)
    work.start(9, 300, 1.0)
    work.correct(running=0, waiting=0, at=1.0 + TRANSIT_SECONDS / 2, now=1.03)
    assert work.prefill_tokens(1.03) == pytest.approx(300)


def test_requests_of_another_gateway_count_with_our_mean_length() -> None:
    work = line(*[800.0] * 64)
    for work_id in range(64):
        work.end(work_id, 100.0)
    work.correct(running=4, waiting=10, at=101.0, now=101.0)
    assert work.prefill_tokens(101.0) == pytest.approx(8000, rel=0.05)


def test_the_first_request_sets_the_mean_length() -> None:
    work = line(1000.0)
    work.end(0, 100.0)
    work.correct(running=4, waiting=10, at=101.0, now=101.0)
    assert work.prefill_tokens(101.0) == pytest.approx(10_000)


def test_a_page_that_arrives_late_is_extrapolated_to_now() -> None:
    work = line(1000, 1000)
    work.correct(running=0, waiting=2, at=1.9, now=2.2)
    assert work.prefill_tokens(2.2) == pytest.approx(1700)


def test_a_page_without_running_requests_bounds_the_backlog_from_below_only() -> None:
    work = line(4000, 1000)
    work.correct(running=None, waiting=0, at=1.0, now=1.0)
    assert work.prefill_tokens(1.0) == 4000


def test_another_rate_does_not_change_the_backlog_in_tokens() -> None:
    work = line(4000)
    work.set_rate(2000.0, 1.0)
    assert work.prefill_tokens(1.0) == 3000
    assert work.busy_until == 2.5


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "page", "rate"]),
        st.floats(0, 5),
        st.floats(0, 1e5),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_the_backlog_is_never_negative_and_ends_with_the_last_request(
    steps: list[tuple[str, float, float, int, int]],
) -> None:
    work, now, work_id = InFlight(500.0), 0.0, 0
    open_tickets: list[int] = []
    given_tokens = 0.0
    for kind, wait, tokens, running, waiting in steps:
        now += wait
        if kind == "start":
            work_id += 1
            work.start(work_id, tokens, now)
            open_tickets.append(work_id)
            given_tokens += tokens
        elif kind == "end" and open_tickets:
            work.end(open_tickets.pop(waiting % len(open_tickets)), now)
        elif kind == "page":
            work.correct(float(min(running, len(open_tickets))), float(min(waiting, len(open_tickets))), now, now)
        elif kind == "rate":
            work.set_rate(1.0 + tokens, now)
        assert work.prefill_tokens(now) >= 0
        assert work.prefill_tokens(now) <= given_tokens * (1 + 1e-9) + 1e-6
        assert len(work) == len(open_tickets)
    for each in open_tickets:
        work.end(each, now)
    assert len(work) == 0
    work.correct(0.0, 0.0, now + 1, now + 1)
    assert work.prefill_tokens(now + 1) == 0
