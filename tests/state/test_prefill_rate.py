"""The estimated prefill rate."""

from __future__ import annotations

from math import sqrt
from statistics import median_high, median_low

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.signals import PREFILL_SECONDS, PREFILLED_TOKENS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value
from agent.state.prefill_rate import (
    ENOUGH_PREFILLS,
    OWN_FACTOR,
    OWN_PREFILLS,
    PoolRates,
    PrefillRateEstimator,
    RateLimits,
)


def page(tokens: float, seconds: float, prefills: float, hits: float = 0.0) -> dict[str, Value]:
    return {
        PROMPT_TOKENS: float(tokens + hits),
        PREFIX_HITS: float(hits),
        PREFILL_SECONDS: float(seconds),
        PREFILLS: float(prefills),
    }


def test_there_is_no_rate_before_enough_prefills_were_observed() -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.observe(page(1000 * (ENOUGH_PREFILLS - 1), ENOUGH_PREFILLS - 1, ENOUGH_PREFILLS - 1))
    assert estimator.rate is None
    estimator.observe(page(1000 * ENOUGH_PREFILLS, ENOUGH_PREFILLS, ENOUGH_PREFILLS))
    assert estimator.rate == pytest.approx(1000, rel=0.01)


def test_counts_from_before_the_first_page_are_ignored() -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(9e9, 1.0, 1e6))
    estimator.observe(page(9e9 + 50_000, 51.0, 1e6 + 50))
    assert estimator.rate == pytest.approx(1000)


def test_cached_tokens_are_not_prefilled() -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.observe(page(50_000, 50, 50, hits=1e9))
    assert estimator.rate == pytest.approx(1000)


def test_prompts_of_requests_that_run_do_not_raise_the_rate_where_the_tokens_of_ended_ones_are_reported() -> None:
    estimator = PrefillRateEstimator()
    for second in range(60):
        ended = max(0, second - 30)  # a request takes 30 s from its prefill to its end
        estimator.observe({**page(1000.0 * second, ended, ended), PREFILLED_TOKENS: 1000.0 * ended})
    assert estimator.rate == pytest.approx(1000)
    assert estimator.uncached_tokens == 59_000.0  # all that are prefilled


def test_a_page_that_lacks_the_tokens_of_ended_requests_is_not_compared_with_one_that_has_them() -> None:
    estimator = PrefillRateEstimator()
    for second in range(100):
        more = {PREFILLED_TOKENS: 500.0 * second} if second % 10 else {}
        estimator.observe({**page(1000.0 * second + 1e6, second, second), **more})
    assert estimator.rate == pytest.approx(500)


def test_a_long_prompt_that_is_counted_at_once_does_not_raise_the_rate() -> None:
    estimator = PrefillRateEstimator()
    for second in range(200):
        # Every tenth second ten seconds of work are counted: 10,000 tokens that took 10 seconds.
        done = second // 10
        estimator.observe(page(10_000 * done, 10 * done, 2 * done))
    assert estimator.rate == pytest.approx(1000)


@pytest.mark.parametrize(("prefills", "proven"), [(OWN_PREFILLS - 1, False), (OWN_PREFILLS, True)])
def test_a_server_is_distinguished_from_its_pool_only_after_many_prefills(prefills: int, *, proven: bool) -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.observe(page(50_000, 50, prefills))
    assert estimator.rate == pytest.approx(1000, rel=0.01)
    assert estimator.proven is proven


def test_a_replaced_server_is_not_proven() -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.observe(page(50_000, 50, OWN_PREFILLS))
    estimator.reset()
    assert estimator.proven is False


@pytest.mark.parametrize(
    ("own", "of_pool", "chosen"),
    [
        (None, None, (500.0, "default")),
        (None, 2000.0, (2000.0, "pool")),
        (1000.0, None, (1000.0, "learnt")),
        (1000.0, 2000.0, (2000.0, "pool")),
        (5900.0, 2000.0, (2000.0, "pool")),
        (6100.0, 2000.0, (6100.0, "learnt")),
        (600.0, 2000.0, (600.0, "learnt")),
        (1.0, 2000.0, (50.0, "learnt")),
        (1e9, None, (50_000.0, "learnt")),
    ],
)
def test_an_endpoint_uses_the_rate_of_its_pool_unless_its_own_is_far_away(
    own: float | None, of_pool: float | None, chosen: tuple[float, str]
) -> None:
    assert RateLimits(default=500.0, low=50.0, high=50_000.0).choose(own, of_pool) == chosen


def test_a_configured_rate_is_always_used() -> None:
    assert RateLimits(fixed=7.0).choose(1000.0, 2000.0) == (7.0, "configured")


def test_a_counter_that_goes_back_starts_the_estimate_over() -> None:
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.observe(page(50_000, 50, 50))
    estimator.observe(page(10, 0.1, 1))
    assert estimator.rate is None


@pytest.mark.parametrize("lacking", [PROMPT_TOKENS, PREFILL_SECONDS, PREFILLS])
def test_a_page_without_one_of_the_counters_is_ignored(lacking: str) -> None:
    estimator = PrefillRateEstimator()
    for second in range(60):
        values = page(1000.0 * second, float(second), float(second))
        del values[lacking]
        estimator.observe(values)
    assert estimator.rate is None


@example([(0.0, 0.0, 0, 1.0), (5e-324, 2.0, 20, 1.0)])
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 60), st.integers(0, 50), st.floats(0.01, 30)), max_size=60))
def test_a_learnt_rate_is_positive_and_within_its_bounds(steps: list[tuple[float, float, int, float]]) -> None:
    estimator, limits = PrefillRateEstimator(), RateLimits(low=50, high=5e4)
    tokens = seconds = prefills = now = 0.0
    for more_tokens, more_seconds, more_prefills, wait in steps:
        tokens, seconds, prefills, now = (
            tokens + more_tokens,
            seconds + more_seconds,
            prefills + more_prefills,
            now + wait,
        )
        estimator.observe(page(tokens, seconds, prefills))
        if estimator.rate is not None:
            assert estimator.rate > 0
            assert 50 <= limits.choose(estimator.rate, None)[0] <= 5e4


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.floats(1, 1e6)), max_size=60))
def test_the_median_of_a_pool_is_over_the_last_rate_of_each_endpoint(steps: list[tuple[str, float | None]]) -> None:
    pool, last = PoolRates(), dict[str, float | None]()
    for endpoint, rate in steps:
        pool.replace(last.get(endpoint), rate)
        last[endpoint] = rate
        known = [one for one in last.values() if one is not None]
        assert pool.median == (pytest.approx(sqrt(median_low(known) * median_high(known))) if known else None)


def learnt_from_first_tokens(backlog: float, seconds: float, prefill_seconds: float) -> PrefillRateEstimator:
    """After 50 requests with this backlog and this time to the first token each."""
    estimator = PrefillRateEstimator()
    estimator.observe(page(0, 0, 0))
    estimator.skip_first_tokens(100.0)
    for number in range(1, 51):
        estimator.observe(page(1000.0 * number, prefill_seconds * number, number))
        estimator.observe_first_tokens(1, backlog, 100.0 + seconds * number)
    return estimator


def test_first_tokens_show_the_rate_where_requests_are_prefilled_together() -> None:
    assert learnt_from_first_tokens(1000.0, 0.5, 1.0).rate == pytest.approx(2000)


def test_first_tokens_that_wait_for_something_else_than_prefill_do_not_lower_the_rate() -> None:
    assert learnt_from_first_tokens(1000.0, 30.0, 1.0).rate == pytest.approx(1000)


def test_first_tokens_raise_the_rate_by_a_bounded_factor() -> None:
    assert learnt_from_first_tokens(1000.0, 1e-6, 1.0).rate == pytest.approx(OWN_FACTOR * 1000)


def test_a_restart_forgets_the_first_tokens() -> None:
    estimator = learnt_from_first_tokens(1000.0, 0.5, 1.0)
    estimator.reset()
    assert estimator.rate is None
    estimator.observe_first_tokens(1, 1000.0, 0.5)  # the sum before it is unknown
    for number in range(2):
        estimator.observe(page(50_000.0 * number, 50.0 * number, 50 * number))
    assert estimator.rate == pytest.approx(1000)


def test_a_page_whose_first_tokens_are_not_known_by_request_counts_for_nothing() -> None:
    estimator = learnt_from_first_tokens(1000.0, 0.5, 1.0)
    estimator.skip_first_tokens(9_000.0)
    estimator.observe_first_tokens(1, 1000.0, 9_000.5)
    assert estimator.rate == pytest.approx(2000)
