"""The cost of a metric's age at a step of the load."""

from __future__ import annotations

import pytest

from tests.bench.step_overflow import AFTER, AFTER_SECONDS, STARTUP_SECONDS, step_outcome


def test_a_metric_without_age_delays_by_half_a_sync_and_overflows_while_replicas_start():
    found = step_outcome([0.0])
    assert found.delay == pytest.approx(7.5, abs=0.5)
    assert found.delay_p99 <= 15.0
    # 0.8 of 4.8 requests per second are over the capacity of four replicas, until two more have started.
    assert found.overflow == pytest.approx(0.8 * (STARTUP_SECONDS + 7.5) / (AFTER * AFTER_SECONDS), rel=0.01)


def test_a_metric_of_ten_seconds_of_age_is_acted_on_at_the_first_sync_after_them():
    found = step_outcome([10.0])
    assert 10.0 <= found.delay <= found.delay_p99 <= 25.0
    assert found.overflow > step_outcome([0.0]).overflow


def test_the_outcome_is_the_same_for_the_same_ages():
    assert step_outcome([1.0, 20.0]) == step_outcome([1.0, 20.0])
