"""Whether a pool has requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.activity import Activity, activity
from agent.scaling.served_metrics import WithheldMetric
from agent.signals import KV_USAGE, RUNNING, WAITING
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from agent.state.source import SourceStatus
from tests.fakes.views import STALE_AFTER, snapshot, view, views


def test_a_pool_without_servers_is_idle_until_a_request_is_held() -> None:
    assert activity(snapshot(), 0, 0.0) is Activity.IDLE
    assert activity(snapshot(), 1, 0.0) is Activity.ACTIVE


@pytest.mark.parametrize("values", [{RUNNING: 1.0, WAITING: 0.0}, {RUNNING: 0.0, WAITING: 2.0}, {WAITING: 1.0}])
def test_a_request_at_any_server_is_activity_whoever_sent_it(values: dict[str, float]) -> None:
    assert activity(snapshot(view("a:1"), view("b:1", values)), 0, 0.0) is Activity.ACTIVE


def test_a_request_that_no_page_shows_yet_is_activity() -> None:
    assert activity(snapshot(view("a:1", requests=1)), 0, 0.0) is Activity.ACTIVE


@pytest.mark.parametrize("health", [each for each in Health if each is not Health.HEALTHY])
def test_a_server_without_a_fresh_page_makes_an_idle_pool_unknown(health: Health) -> None:
    found = activity(snapshot(view("a:1"), view("b:1", health=health)), 0, 0.0)
    assert isinstance(found, WithheldMetric)
    assert found.detail == "no fresh page of b:1: it may have requests"


def test_a_stale_page_makes_an_idle_pool_unknown() -> None:
    found = activity(snapshot(view("a:1"), view("b:1")), 0, STALE_AFTER)
    assert found == WithheldMetric("stale", "no fresh page of a:1 and 1 more: it may have requests")


def test_a_fresh_page_that_is_older_than_the_limit_shows_activity_and_does_not_show_that_a_server_is_idle() -> None:
    idle, busy = snapshot(view("a:1")), snapshot(view("a:1", {RUNNING: 1.0, WAITING: 0.0}))
    assert activity(idle, 0, 1.0, max_age=1.0) is Activity.IDLE
    found = activity(idle, 0, 1.5, max_age=1.0)
    assert found == WithheldMetric("stale", "no fresh page of a:1: it may have requests")
    assert activity(busy, 0, 1.5, max_age=1.0) is Activity.ACTIVE


def test_an_engine_that_reports_no_running_requests_is_idle_by_its_queue_and_by_what_was_sent() -> None:
    assert activity(snapshot(view("a:1", {WAITING: 0.0})), 0, 0.0) is Activity.IDLE
    found = activity(snapshot(view("a:1", {KV_USAGE: 0.0})), 0, 0.0)
    assert isinstance(found, WithheldMetric)
    assert found.reason == "not_reported"


def test_a_silent_replica_makes_an_idle_pool_unknown_and_an_active_one_is_known() -> None:
    silent = ["replica b is silent"]
    assert activity(snapshot(), 0, 0.0, silent) == WithheldMetric("replica_unknown", "replica b is silent")
    assert activity(snapshot(view("a:1", requests=1)), 0, 0.0, silent) is Activity.ACTIVE


@pytest.mark.parametrize(("known_at", "reason"), [(None, "never_known"), (1.0, "stale")])
def test_a_source_that_is_away_makes_an_idle_pool_unknown(known_at: float | None, reason: str) -> None:
    source = SourceStatus("InferencePool llm/chat", current=False, known_at=known_at)
    found = activity(snapshot(source=source), 0, 5.0)
    assert isinstance(found, WithheldMetric)
    assert found.reason == reason
    assert activity(snapshot(source=source._replace(current=True)), 0, 5.0) is Activity.IDLE


@given(st.lists(views, max_size=4, unique_by=lambda each: each.address), st.integers(0, 2), st.floats(0, 6))
def test_a_pool_is_idle_only_where_every_server_has_a_fresh_page_without_requests(
    found: list[EndpointView], held: int, now: float
) -> None:
    result = activity(snapshot(*found), held, now)
    if result is Activity.IDLE:
        assert held == 0
        for each in found:
            assert each.work.requests == 0
            assert not any(each.fresh(signal, now) for signal in (RUNNING, WAITING))
            assert any(each.fresh(signal, now) == 0 for signal in (RUNNING, WAITING))
