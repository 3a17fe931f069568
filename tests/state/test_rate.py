"""The learnt prefill rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.signals import PREFILL_SECONDS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value
from agent.state.rate import ENOUGH_PREFILLS, PrefillRate, RateLimits


def page(tokens: float, seconds: float, prefills: float, hits: float = 0.0) -> dict[str, Value]:
    return {
        PROMPT_TOKENS: float(tokens + hits),
        PREFIX_HITS: float(hits),
        PREFILL_SECONDS: float(seconds),
        PREFILLS: float(prefills),
    }


def test_nothing_is_known_before_enough_prefills_were_seen() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0), 0.0)
    learner.observe(page(1000 * (ENOUGH_PREFILLS - 1), ENOUGH_PREFILLS - 1, ENOUGH_PREFILLS - 1), 100.0)
    assert learner.rate is None
    learner.observe(page(1000 * ENOUGH_PREFILLS, ENOUGH_PREFILLS, ENOUGH_PREFILLS), 101.0)
    assert learner.rate == pytest.approx(1000, rel=0.01)


def test_what_was_counted_before_the_first_page_does_not_count() -> None:
    learner = PrefillRate()
    learner.observe(page(9e9, 1.0, 1e6), 0.0)
    learner.observe(page(9e9 + 50_000, 51.0, 1e6 + 50), 1000.0)
    assert learner.rate == pytest.approx(1000)


def test_cached_tokens_are_not_prefilled() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0), 0.0)
    learner.observe(page(50_000, 50, 50, hits=1e9), 1000.0)
    assert learner.rate == pytest.approx(1000)


def test_of_two_bounds_the_larger_is_believed() -> None:
    together, apart = PrefillRate(), PrefillRate()
    for learner in (together, apart):
        learner.observe(page(0, 0, 0), 0.0)
    # Four requests share each second: 4 x 1,000 tokens in 4 request-seconds, but in one second of the clock.
    for second in range(1, 21):
        together.observe(page(4000 * second, 4 * second, 4 * second), float(second))
    assert together.rate == pytest.approx(4000)
    # One request of one second in each minute: the clock alone would say 17 tokens/s.
    for minute in range(1, 31):
        apart.observe(page(1000 * minute, minute, minute), 60.0 * minute)
    assert apart.rate == pytest.approx(1000)


def test_a_counter_that_goes_back_starts_the_learning_anew() -> None:
    learner = PrefillRate()
    learner.observe(page(0, 0, 0), 0.0)
    learner.observe(page(50_000, 50, 50), 60.0)
    learner.observe(page(10, 0.1, 1), 61.0)
    assert learner.rate is None


@pytest.mark.parametrize("lacking", [PROMPT_TOKENS, PREFILL_SECONDS, PREFILLS])
def test_a_page_that_lacks_a_counter_teaches_nothing(lacking: str) -> None:
    learner = PrefillRate()
    for second in range(60):
        values = page(1000.0 * second, float(second), float(second))
        del values[lacking]
        learner.observe(values, float(second))
    assert learner.rate is None


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
        learner.observe(page(tokens, seconds, prefills), now)
        if learner.rate is not None:
            assert learner.rate > 0
            assert 50 <= limits.bounded(learner.rate) <= 5e4
