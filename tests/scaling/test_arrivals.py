"""Arrivals become a rate, and growth that is more than noise becomes a trend."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.arrivals import (
    MAX_UNKNOWN,
    MIN_NOISE_STEPS,
    NOISE_STEPS,
    STEP_SECONDS,
    ArrivalHistory,
    expected,
    is_jump,
    noise_of,
    slope_of,
)
from agent.scaling.demand_history import ArrivalSpan

rates_of_steps = st.lists(st.floats(0, 1e4), min_size=1, max_size=60)


def history_of(rates: list[float]) -> ArrivalHistory:
    """Steps from 0 on with these requests per second."""
    history = ArrivalHistory()
    for step, rate in enumerate(rates):
        history.add(rate * STEP_SECONDS, step * STEP_SECONDS, (step + 1) * STEP_SECONDS)
    return history


@given(rates_of_steps)
def test_the_rates_of_complete_steps_are_those_that_arrived(rates):
    assert history_of(rates).complete(len(rates) * STEP_SECONDS) == pytest.approx(rates, abs=1e-6)


@given(rates_of_steps, st.floats(0, 1))
def test_the_mean_of_a_time_lies_between_the_rates_in_it(rates, part):
    until = len(rates) * STEP_SECONDS - part * STEP_SECONDS
    found = history_of(rates).mean(60.0, until)
    if until < STEP_SECONDS - 1e-9:
        assert found is None
    else:
        assert found is not None
        assert min(rates) - 1e-6 <= found or part > 0
        assert found <= max(rates) / (1 - part if part < 1 and len(rates) < 2 else 1) + 1e-6 or part > 0


def test_one_minute_of_ten_requests_a_second_has_that_mean():
    assert history_of([10.0] * 4).mean(60.0, 60.0) == pytest.approx(10.0)


def test_less_than_a_step_has_no_mean():
    history = ArrivalHistory()
    history.add(100.0, 0.0, 5.0)
    assert history.mean(60.0, 5.0) is None


def test_arrivals_that_are_reported_late_belong_to_the_time_in_which_they_arrived():
    history = ArrivalHistory()
    history.add(0.0, 0.0, 90.0)
    history.add(300.0, 0.0, 60.0)
    assert history.complete(90.0) == pytest.approx([5.0, 5.0, 5.0, 5.0, 0.0, 0.0])


def test_endpoints_that_are_not_seen_count_like_those_that_are():
    history = ArrivalHistory()
    history.due(10, 0.0, 60.0)
    history.add(480.0, 0.0, 60.0)  # of eight endpoints
    history.seen(8, 0.0, 60.0)
    assert history.mean(60.0, 60.0) == pytest.approx(10.0)
    history.add(120.0, 0.0, 60.0)  # the others report again, with what they have received since
    history.seen(2, 0.0, 60.0)
    assert history.mean(60.0, 60.0) == pytest.approx(10.0)


def test_unknown_arrivals_increase_a_rate_by_a_bounded_factor():
    history = ArrivalHistory()
    history.due(100, 0.0, 60.0)
    history.add(60.0, 0.0, 60.0)
    history.seen(1, 0.0, 60.0)
    assert history.mean(60.0, 60.0) == pytest.approx(MAX_UNKNOWN)


def test_a_history_holds_an_hour_and_a_gap_of_a_day_clears_it():
    history = history_of([1.0] * 1000)
    assert len(history.complete(1000 * STEP_SECONDS)) == NOISE_STEPS + 1
    history.add(150.0, 86_400.0, 86_415.0)
    assert history.complete(86_415.0)[-1] == pytest.approx(10.0)
    assert sum(history.complete(86_415.0)) == pytest.approx(10.0)


def test_the_noise_of_alternating_rates_is_their_deviation():
    # differences of 2: their squares have the mean 4, half of which is the variance of a step
    assert noise_of([10.0, 12.0] * 40) == pytest.approx(math.sqrt(2.0))


def test_too_few_steps_show_no_noise():
    assert noise_of([1.0] * MIN_NOISE_STEPS) is None


def test_a_ramp_without_noise_has_its_slope_less_two_standard_errors():
    rates = [100.0 + 1.5 * step for step in range(40)]  # 0.1 requests/s each second
    noise = 0.3
    slope, seconds = slope_of(rates, noise)
    spread = sum((place - 19.5) ** 2 for place in range(40))
    assert seconds == 600.0  # the longest window has the smallest error
    assert slope == pytest.approx((1.5 - 2 * noise / math.sqrt(spread)) / STEP_SECONDS)


@given(st.integers(0, 1000), st.floats(1, 1000))
def test_a_trend_is_never_negative_and_never_above_the_steepest_rise(seed, mean):
    random = Random(seed)
    rates = [max(0.0, random.gauss(mean, math.sqrt(mean / STEP_SECONDS))) for _ in range(60)]
    noise = noise_of(rates)
    assert noise is not None
    slope, _ = slope_of(rates, noise)
    assert 0.0 <= slope <= (max(rates) - min(rates)) / STEP_SECONDS


def test_noise_of_a_constant_rate_shows_a_trend_rarely_and_a_small_one():
    random = Random(7)
    slopes = []
    for _ in range(300):
        rates = [random.gauss(200.0, math.sqrt(200.0 / STEP_SECONDS)) for _ in range(60)]
        slopes.append(slope_of(rates, noise_of(rates) or 0.0)[0])
    assert sum(slope > 0 for slope in slopes) < 0.12 * len(slopes)
    assert max(slopes) * 330.0 < 0.25 * 200.0


@given(st.integers(1, 7), st.floats(5, 1000))
def test_a_jump_is_no_trend_wherever_it_is_in_the_window(new, height):
    rates = [10.0] * (40 - new) + [10.0 + height] * new
    assert slope_of(rates, 0.1 * height / 3)[0] == 0.0


def test_a_line_is_no_jump():
    window = [float(step) for step in range(8)]
    assert not is_jump(window, 1.0, 42.0, 0.1)


def test_falling_rates_have_no_trend():
    assert slope_of([100.0 - step for step in range(60)], 0.1) == (0.0, 0.0)


def test_the_expected_rate_is_the_mean_of_the_last_minute_and_the_trend_for_the_lead():
    rates = [100.0 + 1.5 * step for step in range(80)]
    found = expected(history_of(rates), 1200.0, 330.0)
    assert found is not None
    assert found.short == pytest.approx(100.0 + 1.5 * 77.5)
    assert found.rate == pytest.approx(found.short + found.trend * 330.0)
    assert 0.09 < found.trend < 0.1
    assert found.without_trend().rate == found.short


def test_nothing_is_expected_before_one_step_was_counted():
    assert expected(ArrivalHistory(), 100.0, 330.0) is None


def test_a_pool_without_requests_is_expected_to_have_none():
    found = expected(history_of([0.0] * 80), 1200.0, 330.0)
    assert found is not None
    assert found.rate == 0.0


RATES = st.lists(st.integers(0, 50), min_size=20, max_size=120)


@given(RATES, st.integers(10, 19), st.floats(0, 1e6), st.floats(-1e5, 1e5))
def test_an_observer_that_starts_later_counts_like_one_that_was_there_before(rates, start, shift, apart):
    """Both see the same arrivals in seconds of 5; the later one has another monotonic clock, `apart` seconds ahead."""
    first, later = ArrivalHistory(shift), ArrivalHistory(shift - apart)
    for place, count in enumerate(rates):
        begin, end = place * 5.0, place * 5.0 + 5.0
        if place == start:
            spans = [span._replace(begin=span.begin + apart, end=span.end + apart) for span in first.spans()]
            adopted = spans
        observers = [(first, 0.0)] if place < start else [(first, 0.0), (later, apart)]
        for history, offset in observers:
            history.add(count, begin + offset, end + offset)
            history.seen(2, begin + offset, end + offset)
            history.due(2, begin + offset, end + offset)
    later.adopt(adopted)
    later.adopt(adopted)  # twice is once
    now = len(rates) * 5.0
    a, b = expected(first, now, 330.0), expected(later, now + apart, 330.0)
    assert a is not None
    assert b is not None
    assert b.rate == pytest.approx(a.rate, rel=1e-3, abs=1e-2)
    assert b.short == pytest.approx(a.short, rel=1e-3, abs=1e-2)


def test_arrivals_that_both_have_seen_count_once_and_a_short_gap_counts_like_the_time_before():
    own = ArrivalHistory()
    own.add(10.0, 100.0, 110.0)
    own.seen(1, 100.0, 110.0)
    own.adopt([ArrivalSpan(30.0, 60.0, 60.0, 30.0, 30.0), ArrivalSpan(60.0, 95.0, 70.0, 35.0, 35.0)])
    assert own.mean(60.0, 110.0) == pytest.approx((50 * 2.0 + 10) / 60)
    own.adopt([ArrivalSpan(40.0, 110.0, 1e6, 1.0, 1.0)])
    assert own.mean(60.0, 110.0) == pytest.approx((50 * 2.0 + 10) / 60)
