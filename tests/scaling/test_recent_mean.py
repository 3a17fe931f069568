"""Levels are means of the last minute, of all replicas as far as they are seen."""

from __future__ import annotations

import pytest

from agent.scaling.arrivals import SHORT_SECONDS
from agent.scaling.demand_history import LevelSample
from agent.scaling.loading import LoadingReplicas
from agent.scaling.recent_mean import RecentMean, SeenLevel


def test_the_mean_is_of_the_last_minute_and_unknown_samples_leave_it():
    mean = RecentMean()
    assert mean.observe(None, 0.0) is None
    assert mean.observe(4.0, 1.0) == 4.0
    assert mean.observe(2.0, 2.0) == 3.0
    assert mean.observe(None, 3.0) == 3.0
    assert mean.observe(None, 1.0 + SHORT_SECONDS) == 2.0
    assert mean.observe(None, 2.0 + SHORT_SECONDS) is None


def test_a_part_that_is_seen_again_does_not_lower_the_level():
    level = SeenLevel()
    for second in range(30):
        assert level.observe(8.0, 1.25, float(second)) == pytest.approx(8.0)  # 8 of 10 replicas: 10 in all
    assert level.observe(10.0, 1.0, 30.0) == pytest.approx(10.0)


def test_below_the_coverage_floor_the_level_is_what_is_seen_and_lowers_nothing_later():
    level = SeenLevel()
    for second in range(30):
        level.observe(10.0, 1.0, float(second))
    for second in range(30, 60):
        found = level.observe(2.0, None, float(second))
    assert found == pytest.approx(6.0)
    assert level.observe(10.0, 1.0, 60.0) == pytest.approx(10.0)


def test_the_samples_of_one_that_has_them_for_longer_replace_the_own_ones_and_no_others_do():
    own = RecentMean()
    own.observe(1.0, 100.0)
    own.adopt([LevelSample(70.0, 5.0), LevelSample(99.0, 7.0)])
    assert own.observe(None, 101.0) == 6.0
    own.adopt([LevelSample(99.5, 90.0)])
    assert own.observe(None, 101.0) == 6.0


def test_replicas_load_since_another_observer_has_seen_them():
    own = LoadingReplicas()
    own.observe(2, 100.0)
    own.adopt([10.0, 40.0, 70.0])  # the first one is ready by now
    assert own.since == (40.0, 70.0)
    own.adopt([90.0])
    assert own.since == (40.0, 70.0)
    LoadingReplicas().adopt([1.0])
