"""Events become metrics, within bounds that no client and no server can exceed."""

from __future__ import annotations

import logging
import typing

import pytest

from agent import events
from agent.events.access import AccessChecked, TokenFileProblem
from agent.events.leases import LeaseChanged, LeaseFailed
from agent.events.metrics_api import MetricsAccessChecked, MetricsApiProblem, MetricsRead
from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.events.requests import (
    Abandoned,
    Completed,
    Ended,
    EndpointEjected,
    NotFollowed,
    Picked,
    Refused,
    Responded,
    StreamBroken,
    UnknownLogEntry,
    Unreported,
)
from agent.events.scraping import (
    BudgetChanged,
    BudgetExceeded,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.instruments.hook import Instruments
from agent.instruments.requests import SERVER_NAMES
from agent.signals import RefusedValue
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
    assert sample(instruments, "igw_requests_ended_total", {"pool": "pool", "result": "closed"}) == 1


def test_a_pick_is_counted_with_its_tokens_its_time_and_whether_it_left_the_warmest(instruments):
    instruments(picked(left_warmest=True))
    instruments(picked())
    labels = {"pool": "pool", "profile": "least-cost", "server": "a:1"}
    assert sample(instruments, "igw_picks_total", labels) == 2
    assert sample(instruments, "igw_pick_prompt_tokens_total", {"pool": "pool"}) == 200
    assert sample(instruments, "igw_pick_predicted_hit_tokens_total", {"pool": "pool"}) == 128
    assert sample(instruments, "igw_picks_left_warmest_total", {"pool": "pool"}) == 1
    assert sample(instruments, "llm_d_epp_scheduler_e2e_duration_seconds_count") == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "BadRequest"), (429, "ResourceExhausted"), (500, "Internal"), (503, "ServiceUnavailable"), (413, "413")],
)
def test_a_rejected_request_counts_as_a_request_and_as_an_error_with_the_reference_s_name(instruments, status, code):
    instruments(Refused("pool", "m", status, "why"))
    assert sample(instruments, "llm_d_epp_request_total", L) == 1
    assert sample(instruments, "llm_d_epp_request_error_total", L | {"error_code": code}) == 1
    assert (
        sample(instruments, "igw_requests_rejected_total", {"pool": "pool", "status": str(status), "reason": "why"})
        == 1
    )


def test_scrapes_are_counted_by_result_and_reason(instruments):
    instruments(
        ScrapeDone(
            "pool", "a:1", 0.0, 0.02, 73_000, ("kv_blocks",), (RefusedValue("kv_usage_ratio", "not_finite", "NaN"),)
        )
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
        (Abandoned("pool", "body"), "igw_requests_abandoned_total", {"pool": "pool", "stage": "body"}),
        (
            Responded("pool", "a:1", "reset"),
            "igw_responses_total",
            {"pool": "pool", "server": "a:1", "result": "reset"},
        ),
        (
            EndpointEjected("pool", "a:1", "trial_failed", "reset", 4, 0.5, 2.0, 2),
            "igw_endpoint_ejections_total",
            {"pool": "pool", "server": "a:1", "reason": "trial_failed"},
        ),
        (
            UnknownLogEntry("pool"),
            "igw_access_log_unknown_entries_total",
            {"pool": "pool"},
        ),
        (Unreported("pool"), "igw_requests_unreported_total", {"pool": "pool"}),
        (
            Completed("pool", "m", "server_error", 500, None, caller="a", priority=3),
            "igw_request_results_total",
            {
                "model_name": "m",
                "target_model_name": "m",
                "fairness_id": "a",
                "priority": "3",
                "code": "500",
                "result": "server_error",
            },
        ),
        (NotFollowed("pool", "a:1", "b:1"), "igw_picks_not_followed_total", {"pool": "pool", "server": "a:1"}),
        (TaskFailed("discovery/pool", "it returned", 0.5), "igw_task_failures_total", {"task": "discovery/pool"}),
        (StreamBroken("pool", "protocol", "x"), "igw_stream_errors_total", {"pool": "pool", "reason": "protocol"}),
        (Reloaded(ok=True, detail="x"), "igw_reloads_total", {"result": "ok"}),
        (Reloaded(ok=False, detail="x"), "igw_reloads_total", {"result": "failed"}),
        (BudgetExceeded("cpu", 4, 0.3, 0.2), "igw_scrape_budget_exceeded_total", {"resource": "cpu"}),
        (WatcherDropped("slow"), "igw_watchers_dropped_total", {"reason": "slow"}),
        (
            AccessChecked("token", "forbidden", "x"),
            "igw_access_checks_total",
            {"method": "token", "result": "forbidden"},
        ),
        (TokenFileProblem("line 1"), "igw_token_file_problems_total", {}),
        (MetricsRead("no_match", "x"), "igw_metrics_api_requests_total", {"result": "no_match"}),
        (
            MetricsAccessChecked("none", "unauthenticated", "x"),
            "igw_metrics_api_access_checks_total",
            {"method": "none", "result": "unauthenticated"},
        ),
        (MetricsApiProblem("x"), "igw_metrics_api_problems_total", {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_rare_event_is_counted(instruments, event, name, labels):
    instruments(event)
    assert sample(instruments, name, labels) == 1


def test_a_budget_is_shown_while_there_is_one(instruments):
    instruments(ScrapesPaced(1.0, 10, 2.5, 90, {"scrapes": 0.9, "cpu": 1.1}))
    assert sample(instruments, "igw_scrape_interval_seconds", {"activity": "idle"}) == 2.5
    assert sample(instruments, "igw_scrape_paced_endpoints", {"activity": "busy"}) == 10
    assert sample(instruments, "igw_scrape_budget_used_ratio", {"resource": "cpu"}) == 1.1
    instruments(BudgetChanged())
    assert sample(instruments, "igw_scrape_interval_seconds", {"activity": "idle"}) is None
    assert sample(instruments, "igw_scrape_budget_used_ratio", {"resource": "cpu"}) is None


def test_a_lease_is_shown_while_this_replica_is_a_candidate_for_it(instruments):
    lease = {"lease": "igw/agent"}

    def changes() -> dict[str, float | None]:
        names = ("acquired", "lost", "released")
        return {name: sample(instruments, "igw_lease_changes_total", {**lease, "change": name}) for name in names}

    assert sample(instruments, "igw_lease_held", lease) is None
    instruments(LeaseChanged("igw/agent", held=False, holder="b", released=False))
    assert sample(instruments, "igw_lease_held", lease) == 0
    assert changes() == {"acquired": 0, "lost": 0, "released": 0}
    instruments(LeaseChanged("igw/agent", held=True, holder="a", released=False))
    assert sample(instruments, "igw_lease_held", lease) == 1
    instruments(LeaseChanged("igw/agent", held=False, holder="", released=False))
    instruments(LeaseChanged("igw/agent", held=False, holder="b", released=False))
    assert sample(instruments, "igw_lease_held", lease) == 0
    instruments(LeaseChanged("igw/agent", held=True, holder="a", released=False))
    instruments(LeaseChanged("igw/agent", held=False, holder="", released=True))
    assert sample(instruments, "igw_lease_held", lease) is None
    assert changes() == {"acquired": 2, "lost": 1, "released": 1}
    instruments(LeaseFailed("igw/agent", "forbidden", "403"))
    assert sample(instruments, "igw_lease_failures_total", {**lease, "reason": "forbidden"}) == 1


def test_every_event_is_counted_and_only_events_are_logged(instruments):
    assert set(instruments._counts) == set(typing.get_args(events.Event))
    assert set(instruments._lines) <= set(instruments._counts)


def test_the_handlers_of_an_event_are_in_the_module_of_the_event_s_domain(instruments):
    for kind, handler in [*instruments._counts.items(), *instruments._lines.items()]:
        assert handler.__func__.__module__ == kind.__module__.replace("agent.events.", "agent.instruments.")


def test_a_megabyte_is_not_accepted_as_a_model_name(instruments):
    instruments(picked("m" * (1 << 20)))
    assert len(page(GaugeSet(0.0, [], []), instruments.registry)[0]) < 1 << 16


def test_a_lone_surrogate_in_a_model_name_does_not_break_the_page(instruments):
    instruments(picked("\ud800"))
    assert b'model_name="?"' in page(GaugeSet(0.0, [], []), instruments.registry)[0]


def test_the_number_of_servers_on_the_page_is_bounded(instruments):
    for number in range(SERVER_NAMES + 1):
        instruments(picked(endpoint=f"10.0.0.{number}:8000"))
    labels = {"pool": "pool", "profile": "least-cost", "server": "other"}
    assert sample(instruments, "igw_picks_total", labels) == 1


def test_two_agents_in_one_process_share_no_metric(instruments):
    instruments(picked())
    assert sample(Instruments(ManualClock()), "llm_d_epp_request_total", L) is None


def test_refused_readers_cost_one_line_for_each_kind_and_allowed_ones_none(instruments, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("igw"), "propagate", True)
    for number in range(50):
        instruments(AccessChecked("token", "allowed"))
        instruments(AccessChecked("token", "unauthenticated", f"reason {number}"))
        instruments(AccessChecked("none", "unauthenticated", "no credentials"))
    instruments(AccessChecked("token", "unavailable", "the API server is gone"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "request to the admin address refused: unauthenticated, by token: reason 0"),
        ("WARNING", "request to the admin address refused: unauthenticated, by none: no credentials"),
        ("ERROR", "request to the admin address refused: unavailable, by token: the API server is gone"),
    ]
    assert sample(instruments, "igw_access_checks_total", {"method": "token", "result": "allowed"}) == 50


def test_the_age_of_values_at_read_is_a_histogram_by_api(instruments):
    instruments(MetricsRead("ok", "", "external", 0.7))
    assert sample(instruments, "igw_metrics_api_value_age_seconds_sum", {"api": "external"}) == 0.7


def test_a_repeated_refusal_of_the_metrics_apis_is_not_a_line_each(instruments, caplog):
    for _ in range(100):
        instruments(MetricsRead("no_match", "no pool matches pool=x"))
        instruments(MetricsRead("refused", "the token is not accepted"))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["metrics API request refused: no_match: no pool matches pool=x"]
