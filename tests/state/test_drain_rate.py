"""A queue that something else than prefill delays: its drain rate, and when prefill explains it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state.drain_rate import PRIOR_RESPONSE_SECONDS, DrainRate, TokensDone

NO_PREFILL = TokensDone(generated=None, prefilled=None, rate=1000.0, mean_tokens=0.0, busy_until=0.0)


def drained(pages: int, ended_each: float, waiting: float, prefill: TokensDone = NO_PREFILL) -> DrainRate:
    """One page a second; `ended_each` requests end between two of them."""
    drain = DrainRate()
    for second in range(pages):
        drain.observe(ended_each * second, waiting, float(second), prefill)
    return drain


def test_before_anything_was_observed_a_batch_drains_once_in_the_time_of_a_response() -> None:
    assert DrainRate().rate(8.0) == 8.0 / PRIOR_RESPONSE_SECONDS
    assert DrainRate().delay_seconds(8.0, 3.0, 0.0, 0.0) == PRIOR_RESPONSE_SECONDS / 8.0


def test_an_unknown_batch_is_taken_to_be_one_request() -> None:
    assert DrainRate().delay_seconds(0.0, 1.0, 0.0, 0.0) == PRIOR_RESPONSE_SECONDS


def test_the_rate_is_that_at_which_requests_end_while_others_wait() -> None:
    assert drained(600, 2.0, waiting=8.0).rate(8.0) == pytest.approx(2.0, rel=0.02)


def test_times_without_a_queue_do_not_make_a_queue_slower() -> None:
    idle = drained(100, 0.01, waiting=0.0)
    assert idle.rate(8.0) == DrainRate().rate(8.0)


def test_a_server_that_ended_more_without_a_queue_has_that_as_its_prior() -> None:
    assert drained(100, 20.0, waiting=0.0).rate(8.0) == pytest.approx(20.0, rel=0.05)


def test_a_queue_without_progress_gets_slower_with_every_page() -> None:
    rates = [drained(pages, 0.0, waiting=4.0).rate(8.0) for pages in range(1, 10)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.2


def test_a_page_on_which_nothing_has_moved_is_no_standstill() -> None:
    drain, frozen = DrainRate(), NO_PREFILL._replace(generated=5_000.0, prefilled=100.0)
    for second in range(60):
        drain.observe(7.0, 4.0, float(second), frozen)
    assert drain.rate(8.0) == DrainRate().rate(8.0)
    for second in range(60, 70):
        drain.observe(7.0, 4.0, float(second), frozen._replace(generated=5_000.0 + second))
    assert drain.rate(8.0) < DrainRate().rate(8.0) / 4


def test_a_counter_that_goes_back_starts_the_estimate_over() -> None:
    drain = drained(20, 10.0, waiting=5.0)
    drain.observe(1.0, 5.0, 20.0, NO_PREFILL)
    assert drain.rate(8.0) == DrainRate().rate(8.0)


def test_a_queue_is_explained_by_the_prefill_that_the_server_counts() -> None:
    drain = DrainRate()
    for second in range(10):  # 500 tokens a second at 1,000 tokens a second: half of the time
        drain.observe(0.1 * second, 3.0, float(second), TokensDone(None, 500.0 * second, 1000.0, 100.0, 0.0))
    assert drain.delay_seconds(8.0, 3.0, 0.0, 0.1) == 0.0


def test_a_queue_is_explained_by_the_backlog_that_the_agent_knows() -> None:
    drain = DrainRate()
    for second in range(10):
        drain.observe(0.1 * second, 3.0, float(second), TokensDone(None, 0.0, 1000.0, 100.0, second + 0.5))
    assert drain.delay_seconds(8.0, 3.0, 0.0, 0.1) == 0.0


def test_without_a_counter_of_tokens_each_ended_request_has_the_mean() -> None:
    mean = TokensDone(None, None, 1000.0, 600.0, 0.0)
    assert drained(20, 1.0, waiting=3.0, prefill=mean).delay_seconds(8.0, 3.0, 0.0, 0.1) == 0.0
    assert drained(20, 0.1, waiting=3.0, prefill=mean).delay_seconds(8.0, 3.0, 0.0, 0.1) > 1.0


def test_a_queue_is_explained_by_the_prefill_of_those_that_wait_in_it() -> None:
    assert DrainRate().delay_seconds(8.0, 4.0, 1.0, 0.01) == 0.0
    assert DrainRate().delay_seconds(8.0, 4.0, 0.1, 0.01) > 0.0


PAGES = st.lists(st.tuples(st.floats(0, 50), st.integers(0, 30), st.floats(0.01, 10), st.floats(-10, 1e6)), max_size=40)


@given(PAGES, st.floats(0, 1e4))
def test_a_rate_is_never_zero_and_a_delay_is_never_negative(
    pages: list[tuple[float, int, float, float]], batch: float
) -> None:
    drain, finished, tokens, now = DrainRate(), 0.0, 0.0, 0.0
    for ended, waiting, passed, prefilled in pages:
        finished, tokens, now = finished + ended, tokens + prefilled, now + passed
        drain.observe(finished, float(waiting), now, TokensDone(None, tokens, 500.0, 100.0, now))
        assert drain.rate(batch) > 0
        assert drain.delay_seconds(batch, float(waiting), 0.1, 0.1) >= 0
