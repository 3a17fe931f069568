"""The formula of the HPA, by hand-computed cases of its documentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.hpa import PODS, Direction, Hpa, HpaSettings, Policy, average_value, pods_average

DEFAULT = HpaSettings()


@pytest.mark.parametrize(
    ("total", "target", "current", "replicas"),
    [
        (200.0, 100.0, 1, 2),
        (50.0, 100.0, 2, 1),
        (4.3, 1.0, 4, 4),  # a ratio of 1.075 is within the tolerance
        (4.41, 1.0, 4, 5),
        (3.6, 1.0, 4, 4),
        (3.5, 1.0, 4, 4),  # 0.875, rounded up
        (2.9, 1.0, 4, 3),
        (0.0, 1.0, 4, 0),
        (0.1, 1.0, 0, 1),  # from 0 there is no tolerance
    ],
)
def test_an_average_value_is_the_total_over_the_target_rounded_up(total, target, current, replicas):
    assert average_value(total, target, current, DEFAULT) == replicas


@pytest.mark.parametrize(
    ("total", "reporting", "missing", "current", "replicas"),
    [
        (20.0, 2, 0, 2, 4),  # a mean of 10 over a target of 5
        (0.0, 2, 0, 2, 0),
        (20.0, 2, 2, 4, 4),  # the missing pods count as 0: a mean of 5
        (30.0, 2, 2, 4, 6),  # a mean of 7.5
        (2.0, 2, 2, 4, 3),  # the missing pods count as 5 each: 12 over 4 pods, 0.6 of the target
        (0.0, 0, 4, 4, 4),  # nothing is known
    ],
)
def test_a_pods_metric_counts_missing_pods_against_the_change(total, reporting, missing, current, replicas):
    assert pods_average(total, reporting, missing, 5.0, current, DEFAULT) == replicas


def test_a_scale_down_waits_for_the_highest_recommendation_of_five_minutes():
    hpa = Hpa(DEFAULT)
    assert hpa.sync(0.0, 10, 10) == 10
    assert [hpa.sync(float(at), 10, 4) for at in range(15, 301, 15)] == [10] * 20
    assert hpa.sync(315.0, 10, 4) == 4


def test_a_scale_up_is_limited_to_twice_the_replicas_or_four_in_fifteen_seconds():
    hpa = Hpa(DEFAULT)
    assert hpa.sync(0.0, 1, 100) == 5
    assert hpa.sync(15.0, 5, 100) == 10
    assert hpa.sync(20.0, 10, 100) == 10  # the change of five seconds ago has used the limit
    assert hpa.sync(30.0, 10, 100) == 20


def test_a_scale_up_window_takes_the_lowest_recommendation():
    hpa = Hpa(DEFAULT._replace(up=Direction(0.1, 30.0, ())))
    hpa.sync(0.0, 2, 2)
    assert hpa.sync(15.0, 2, 8) == 2
    assert hpa.sync(45.0, 2, 8) == 8


def test_a_policy_of_one_pod_a_minute_removes_one_pod_a_minute():
    hpa = Hpa(DEFAULT._replace(down=Direction(0.1, 0.0, (Policy(PODS, 1.0, 60.0),))))
    replicas, found = 5, []
    for at in range(0, 150, 15):
        replicas = hpa.sync(float(at), replicas, 1)
        found.append(replicas)
    assert found == [4, 4, 4, 4, 3, 3, 3, 3, 2, 2]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.integers(0, 5), st.integers(5, 50))
def test_the_replicas_stay_within_their_bounds(recommended, minimum, maximum):
    hpa, replicas = Hpa(HpaSettings(minimum, maximum)), minimum
    for place, each in enumerate(recommended):
        replicas = hpa.sync(15.0 * place, replicas, each)
        assert minimum <= replicas <= maximum
