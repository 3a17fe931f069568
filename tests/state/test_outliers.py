"""Outlier detection of one endpoint: when it is ejected, tried again, and admitted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state.outliers import (
    CONSECUTIVE_FAILURES,
    EJECTION_REASONS,
    FAILURE_RATIO,
    PENALTY_HALF_LIFE_SECONDS,
    TRIAL_FAILED,
    TRIAL_SECONDS,
    Errors,
    OutlierDetector,
    OutlierLimits,
    penalty,
)

LIMITS = OutlierLimits()


def errors_of(detector: OutlierDetector) -> Errors:
    assert detector.errors is not None
    return detector.errors


def ejected(at: float = 10.0) -> OutlierDetector:
    detector = OutlierDetector()
    for work_id in range(1, LIMITS.consecutive):
        assert detector.failed(work_id, "server_error", LIMITS, at) == ""
    reason = detector.failed(LIMITS.consecutive, "server_error", LIMITS, at)
    assert reason == CONSECUTIVE_FAILURES
    assert detector.eject(reason, LIMITS, at) == LIMITS.base
    return detector


def test_an_endpoint_that_never_failed_has_no_errors_and_no_penalty() -> None:
    detector = OutlierDetector()
    for number in range(100):
        assert not detector.succeeded(number + 1, number * 0.1)
    assert detector.errors is None
    assert penalty(detector.errors, 10.0) == 0.0


def test_the_limit_of_failures_in_a_row_ejects_and_a_success_between_starts_the_row_again() -> None:
    detector = OutlierDetector()
    now = 10.0
    for _ in range(3):
        for work_id in range(LIMITS.consecutive - 1):
            assert detector.failed(work_id + 1, "reset", OutlierLimits(requests=1e6), now) == ""
        detector.succeeded(9, now)
    assert errors_of(detector).consecutive == 0
    assert ejected().ejected


def test_half_of_the_recent_responses_failing_ejects_without_a_row() -> None:
    detector = OutlierDetector()
    reasons = []
    for number in range(10):
        detector.succeeded(2 * number + 1, 10.0)
        reasons.append(detector.failed(2 * number + 2, "server_error", LIMITS, 10.0))
    assert reasons.index(FAILURE_RATIO) == LIMITS.requests / 2 - 1


def test_failures_of_long_ago_do_not_count() -> None:
    detector = OutlierDetector()
    for number in range(4):
        detector.failed(number + 1, "server_error", LIMITS, 0.0)
    detector.succeeded(5, 0.0)
    for number in range(20):
        detector.succeeded(6 + number, 100.0)
    assert detector.failed(30, "server_error", LIMITS, 100.0) == ""
    assert errors_of(detector).ratio == pytest.approx(1 / 21, rel=0.02)


def test_only_the_trial_decides_on_an_ejected_endpoint() -> None:
    detector = ejected(at=10.0)
    assert not detector.succeeded(3, 11.0), "a request of before the ejection"
    assert detector.failed(4, "server_error", LIMITS, 11.0) == "", "a request of before the ejection"
    detector.started(20, 11.9)
    assert not detector.succeeded(20, 12.0), "too early to be the trial"
    detector.started(21, 12.0)
    assert errors_of(detector).trial_at == 12.0 + TRIAL_SECONDS, "one trial at a time"
    assert detector.succeeded(21, 12.1)
    assert not detector.ejected
    assert detector.reason == ""


def test_a_failed_trial_ejects_for_twice_as_long_up_to_the_longest() -> None:
    detector, now, times = ejected(), 10.0, []
    for work_id in range(100, 110):
        trial_at = errors_of(detector).trial_at
        assert trial_at is not None
        times.append(trial_at - now)
        now = trial_at
        detector.started(work_id, now)
        assert detector.failed(work_id, "server_error", LIMITS, now) == TRIAL_FAILED
        detector.eject(TRIAL_FAILED, LIMITS, now)
    assert times == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert errors_of(detector).reason == TRIAL_FAILED
    assert errors_of(detector).ejections == 11


def test_a_trial_without_an_outcome_makes_room_for_another() -> None:
    detector = ejected(at=0.0)
    detector.started(50, 2.0)
    detector.started(51, 2.0 + TRIAL_SECONDS)
    assert not detector.succeeded(50, 8.0), "the first one is no longer the trial"
    assert detector.succeeded(51, 8.0)


def test_an_endpoint_that_was_well_for_long_begins_with_the_shortest_ejection_again() -> None:
    detector = ejected(at=0.0)
    detector.started(50, 2.0)
    assert detector.succeeded(50, 2.0)
    assert detector.eject(FAILURE_RATIO, LIMITS, 3.0) == 2 * LIMITS.base
    detector.started(51, 7.0)
    assert detector.succeeded(51, 7.0)
    assert detector.eject(FAILURE_RATIO, LIMITS, 7.0 + LIMITS.longest) == LIMITS.base


def test_a_restart_forgets_everything() -> None:
    detector = ejected()
    detector.reset()
    assert (detector.ejected, detector.errors, detector.reason) == (False, None, "")


def test_the_penalty_grows_with_each_failure_fades_and_spares_the_trial() -> None:
    detector, before = OutlierDetector(), 0.0
    detector.succeeded(1, 10.0)
    for number in range(4):
        detector.failed(2 + number, "server_error", LIMITS, 10.0)
        now = penalty(detector.errors, 10.0)
        assert now > before
        before = now
    assert penalty(detector.errors, 10.0 + PENALTY_HALF_LIFE_SECONDS) == pytest.approx(before / 2)
    assert penalty(detector.errors, 200.0) == 0.0
    assert penalty(ejected().errors, 10.0) == 0.0


outcomes = st.lists(
    st.tuples(st.sampled_from(["start", "ok", "fail", "end"]), st.integers(0, 12), st.floats(0, 30)), max_size=60
)


@given(script=outcomes)
def test_whatever_happens_an_ejection_has_a_reason_a_time_and_ends_by_its_trial_alone(
    script: list[tuple[str, int, float]],
) -> None:
    detector, now, ids = OutlierDetector(), 0.0, itertools.count(1)
    trials: set[int] = set()
    sent: list[int] = []
    for what, which, passed in script:
        now += passed
        if what == "start":
            work_id = next(ids)
            errors = detector.errors
            if errors is not None and errors.trial_at is not None and errors.trial_at <= now:
                trials.add(work_id)
            detector.started(work_id, now)
            sent.append(work_id)
        elif sent:
            work_id = sent[which % len(sent)]
            if what == "ok":
                was = detector.ejected
                assert detector.succeeded(work_id, now) == (was and not detector.ejected)
                assert not (was and not detector.ejected) or work_id in trials
            else:
                reason = detector.failed(work_id, "reset", LIMITS, now)
                if reason:
                    seconds = detector.eject(reason, LIMITS, now)
                    assert LIMITS.base <= seconds <= LIMITS.longest
        assert detector.ejected == (detector.reason in EJECTION_REASONS)
        errors = detector.errors
        assert 0.0 <= penalty(errors, now) <= 1.0
        if errors is not None:
            assert (errors.trial_at is not None) == detector.ejected
            assert 0.0 <= errors.ratio <= 1.0
