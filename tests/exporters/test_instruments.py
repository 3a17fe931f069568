"""Events become metrics, within bounds that no caller and no server can push out."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import events
from agent.events.process import Reloaded, WatcherDropped
from agent.events.requests import Abandoned, Ended, Picked, Refused, StreamBroken
from agent.events.scraping import (
    BudgetChanged,
    BudgetOutgrown,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.instruments import ENDPOINT_NAMES, MODEL_NAMES, NAME_LENGTH, Instruments, Names
from agent.signals import Refusal
from exporters.gauge import GaugeSet
from exporters.prometheus import page
from tests.fakes.clock import ManualClock

L = {"model_name": "m", "target_model_name": "m", "fairness_id": "default-flow", "priority": "0"}


@pytest.fixture
def instruments() -> Instruments:
    return Instruments(ManualClock())


def picked(model: str = "m", endpoint: str = "a:1", *, left_warmest: bool = False) -> Picked:
    return Picked("pool", "least-cost", model, endpoint, 100, 64, left_warmest, 0.0001)


def sample(instruments: Instruments, name: str, labels: dict[str, str] | None = None) -> float | None:
    return instruments.registry.get_sample_value(name, labels or {})


def test_a_request_is_counted_while_it_runs_and_timed_when_it_ends(instruments):
    instruments(picked())
    assert sample(instruments, "llm_d_epp_request_running", L) == 1
    instruments(Ended("pool", "m", "a:1", 2.5, "closed"))
    assert sample(instruments, "llm_d_epp_request_running", L) == 0
    assert sample(instruments, "llm_d_epp_request_total", L) == 1
    assert sample(instruments, "llm_d_epp_request_duration_seconds_sum", L) == 2.5
    assert sample(instruments, "igw_requests_ended_total", {"pool": "pool", "how": "closed"}) == 1


def test_a_pick_is_counted_with_its_tokens_its_time_and_whether_it_left_the_warmest(instruments):
    instruments(picked(left_warmest=True))
    instruments(picked())
    labels = {"pool": "pool", "profile": "least-cost", "endpoint": "a:1"}
    assert sample(instruments, "igw_picks_total", labels) == 2
    assert sample(instruments, "igw_pick_prompt_tokens_total", {"pool": "pool"}) == 200
    assert sample(instruments, "igw_pick_predicted_hit_tokens_total", {"pool": "pool"}) == 128
    assert sample(instruments, "igw_picks_left_warmest_total", {"pool": "pool"}) == 1
    assert sample(instruments, "llm_d_epp_scheduler_e2e_duration_seconds_count") == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "BadRequest"), (429, "ResourceExhausted"), (500, "Internal"), (503, "ServiceUnavailable"), (413, "413")],
)
def test_a_refusal_is_a_request_and_an_error_under_the_reference_s_name(instruments, status, code):
    instruments(Refused("pool", "m", status, "why"))
    assert sample(instruments, "llm_d_epp_request_total", L) == 1
    assert sample(instruments, "llm_d_epp_request_error_total", L | {"error_code": code}) == 1
    assert sample(instruments, "igw_refusals_total", {"pool": "pool", "status": str(status), "reason": "why"}) == 1


def test_scrapes_are_counted_by_result_and_reason(instruments):
    instruments(
        ScrapeDone("pool", "a:1", 0.0, 0.02, 73_000, ("kv_blocks",), (Refusal("kv_usage_ratio", "not_finite", "NaN"),))
    )
    instruments(ScrapeFailed("pool", "b:1", 0.0, 1.0, "timeout", "no answer in 1 s"))
    assert sample(instruments, "igw_scrapes_total", {"pool": "pool", "result": "ok", "reason": ""}) == 1
    assert sample(instruments, "igw_scrapes_total", {"pool": "pool", "result": "failed", "reason": "timeout"}) == 1
    assert sample(instruments, "igw_scrape_page_bytes_sum", {"pool": "pool"}) == 73_000
    assert sample(instruments, "igw_scrape_duration_seconds_bucket", {"pool": "pool", "le": "0.025"}) == 1
    assert sample(instruments, "igw_scrape_missing_signals_total", {"pool": "pool", "signal": "kv_blocks"}) == 1
    refused = {"pool": "pool", "signal": "kv_usage_ratio", "reason": "not_finite"}
    assert sample(instruments, "igw_scrape_refused_values_total", refused) == 1


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (
            HealthChanged("pool", "a:1", "healthy", "down", "refused"),
            "igw_health_changes_total",
            {"pool": "pool", "state": "down"},
        ),
        (
            HealthPathFailed("pool", "a:1", 1.0, 0.5, "health_timeout", "no answer"),
            "igw_health_path_failures_total",
            {"pool": "pool", "reason": "health_timeout"},
        ),
        (
            ServerRestarted("pool", "a:1", "new_start_time"),
            "igw_server_restarts_total",
            {"pool": "pool", "reason": "new_start_time"},
        ),
        (Abandoned("pool", "body"), "igw_requests_abandoned_total", {"pool": "pool"}),
        (StreamBroken("pool", "protocol", "x"), "igw_stream_breaks_total", {"pool": "pool", "reason": "protocol"}),
        (Reloaded(ok=True, detail="x"), "igw_reloads_total", {"result": "ok"}),
        (Reloaded(ok=False, detail="x"), "igw_reloads_total", {"result": "failed"}),
        (BudgetOutgrown("cpu", 4, 0.3, 0.2), "igw_scrape_budget_outgrown_total", {"of": "cpu"}),
        (WatcherDropped("slow"), "igw_watchers_dropped_total", {"reason": "slow"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_happens_rarely_is_counted_too(instruments, event, name, labels):
    instruments(event)
    assert sample(instruments, name, labels) == 1


def test_a_budget_is_shown_while_there_is_one(instruments):
    instruments(ScrapesPaced(1.0, 10, 2.5, 90, {"scrapes": 0.9, "cpu": 1.1}))
    assert sample(instruments, "igw_scrape_interval_seconds", {"endpoints": "idle"}) == 2.5
    assert sample(instruments, "igw_scrape_paced_endpoints", {"endpoints": "busy"}) == 10
    assert sample(instruments, "igw_scrape_budget_used_ratio", {"of": "cpu"}) == 1.1
    instruments(BudgetChanged())
    assert sample(instruments, "igw_scrape_interval_seconds", {"endpoints": "idle"}) is None
    assert sample(instruments, "igw_scrape_budget_used_ratio", {"of": "cpu"}) is None


def test_every_kind_of_event_is_taken(instruments):
    assert set(instruments._actions) == set(typing.get_args(events.Event))


def test_a_new_model_name_past_the_limit_counts_as_other_and_the_known_ones_keep_theirs(instruments):
    for number in range(MODEL_NAMES + 50):
        instruments(Refused("pool", f"model-{number}", 503, "none_healthy"))
    instruments(Refused("pool", "model-0", 503, "none_healthy"))
    other = L | {"model_name": "other", "target_model_name": "other"}
    known = L | {"model_name": "model-0", "target_model_name": "model-0"}
    assert sample(instruments, "llm_d_epp_request_total", other) == 50
    assert sample(instruments, "llm_d_epp_request_total", known) == 2


def test_a_megabyte_is_no_model_name(instruments):
    instruments(picked("m" * (1 << 20)))
    assert len(page(GaugeSet(0.0, [], []), instruments.registry)[0]) < 1 << 16


def test_half_of_a_surrogate_pair_in_a_model_name_does_not_stop_the_page(instruments):
    instruments(picked("\ud800"))
    assert b'model_name="?"' in page(GaugeSet(0.0, [], []), instruments.registry)[0]


@given(st.lists(st.text(max_size=NAME_LENGTH + 2)), st.integers(0, 5))
def test_names_never_grow_past_their_limit_and_one_name_is_always_the_same_label(names, limit):
    label = Names(limit)
    given_labels = {name: label(name) for name in names}
    assert {name: label(name) for name in names} == given_labels
    assert len(set(given_labels.values()) - {"other"}) <= limit


def test_endpoints_that_come_and_go_are_bounded(instruments):
    label = instruments._endpoint
    for number in range(ENDPOINT_NAMES):
        label(f"10.0.0.{number}:8000")
    assert label("one-more:8000") == "other"


def test_two_agents_in_one_process_share_no_metric(instruments):
    instruments(picked())
    assert sample(Instruments(ManualClock()), "llm_d_epp_request_total", L) is None
