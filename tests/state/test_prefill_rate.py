"""The learnt prefill rate."""

from __future__ import annotations

from math import sqrt
from statistics import median_high, median_low

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.signals import PREFILL_SECONDS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value
from agent.state.rate import ENOUGH_PREFILLS, OWN_PREFILLS, PoolRates, PrefillRate, RateLimits


def page(tokens: float, seconds: float, prefills: float, hits: float = 0.0) -> dict[str, Value]:
    return {
        PROMPT_TOKENS: float(tokens + hits),
        PREFIX_HITS: float(hits),
        PREFILL_SECONDS: float(seconds),
        PREFILLS: float(prefills),
    }


def test_nothing_is_known_before_enough_prefills_were_seen() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0))
    learner.observe(page(1000 * (ENOUGH_PREFILLS - 1), ENOUGH_PREFILLS - 1, ENOUGH_PREFILLS - 1))
    assert learner.rate is None
    learner.observe(page(1000 * ENOUGH_PREFILLS, ENOUGH_PREFILLS, ENOUGH_PREFILLS))
    assert learner.rate == pytest.approx(1000, rel=0.01)


def test_what_was_counted_before_the_first_page_does_not_count() -> None:
    learner = PrefillRate()
    learner.observe(page(9e9, 1.0, 1e6))
    learner.observe(page(9e9 + 50_000, 51.0, 1e6 + 50))
    assert learner.rate == pytest.approx(1000)


def test_cached_tokens_are_not_prefilled() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0))
    learner.observe(page(50_000, 50, 50, hits=1e9))
    assert learner.rate == pytest.approx(1000)


def test_a_long_prompt_that_is_counted_at_once_does_not_look_fast() -> None:
    learner = PrefillRate()
    for second in range(200):
        # Every tenth second ten seconds of work are counted: 10,000 tokens that took 10 seconds.
        done = second // 10
        learner.observe(page(10_000 * done, 10 * done, 2 * done))
    assert learner.rate == pytest.approx(1000)


@pytest.mark.parametrize(("prefills", "proven"), [(OWN_PREFILLS - 1, False), (OWN_PREFILLS, True)])
def test_a_server_is_told_from_its_pool_only_after_many_prefills(prefills: int, *, proven: bool) -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0))
    learner.observe(page(50_000, 50, prefills))
    assert learner.rate == pytest.approx(1000, rel=0.01)
    assert learner.proven is proven


def test_a_server_that_was_replaced_has_proven_nothing() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0))
    learner.observe(page(50_000, 50, OWN_PREFILLS))
    learner.forget()
    assert learner.proven is False


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
def test_an_endpoint_goes_by_its_pool_unless_it_is_of_another_kind(
    own: float | None, of_pool: float | None, chosen: tuple[float, str]
) -> None:
    assert RateLimits(default=500.0, low=50.0, high=50_000.0).choose(own, of_pool) == chosen


def test_a_configured_rate_is_the_rate() -> None:
    assert RateLimits(fixed=7.0).choose(1000.0, 2000.0) == (7.0, "configured")


def test_a_counter_that_goes_back_starts_the_learning_anew() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0))
    learner.observe(page(50_000, 50, 50))
    learner.observe(page(10, 0.1, 1))
    assert learner.rate is None


@pytest.mark.parametrize("lacking", [PROMPT_TOKENS, PREFILL_SECONDS, PREFILLS])
def test_a_page_that_lacks_a_counter_teaches_nothing(lacking: str) -> None:
    learner = PrefillRate()
    for second in range(60):
        values = page(1000.0 * second, float(second), float(second))
        del values[lacking]
        learner.observe(values)
    assert learner.rate is None


@example([(0.0, 0.0, 0, 1.0), (5e-324, 2.0, 20, 1.0)])
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 60), st.integers(0, 50), st.floats(0.01, 30)), max_size=60))
def test_a_learnt_rate_is_positive_and_within_its_bounds(steps: list[tuple[float, float, int, float]]) -> None:
    learner, limits = PrefillRate(), RateLimits(low=50, high=5e4)
    tokens = seconds = prefills = now = 0.0
    for more_tokens, more_seconds, more_prefills, wait in steps:
        tokens, seconds, prefills, now = (
            tokens + more_tokens,
            seconds + more_seconds,
            prefills + more_prefills,
            now + wait,
        )
        learner.observe(page(tokens, seconds, prefills))
        if learner.rate is not None:
            assert learner.rate > 0
            assert 50 <= limits.choose(learner.rate, None)[0] <= 5e4


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.floats(1, 1e6)), max_size=60))
def test_the_median_of_a_pool_is_that_of_the_rates_told_last(steps: list[tuple[str, float | None]]) -> None:
    pool, last = PoolRates(), dict[str, float | None]()
    for endpoint, rate in steps:
        pool.replace(last.get(endpoint), rate)
        last[endpoint] = rate
        known = [one for one in last.values() if one is not None]
        assert pool.median == (pytest.approx(sqrt(median_low(known) * median_high(known))) if known else None)
