"""A server that answers without a readable page: it is blind, it is picked, and it is not taken for its predecessor."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import NOTHING_COUNTED, Extraction
from agent.events import Event
from agent.events.scraping import HealthChanged, ServerRestarted
from agent.scrape.reasons import REASONS
from agent.signals import KV_USAGE, PREFILL_SECONDS, PREFILLS, PROMPT_TOKENS, RUNNING, WAITING, Value
from agent.state.health import (
    DOWN_AFTER,
    HEALTH_REASONS,
    PICKED,
    PROOF_OF_DEATH,
    PROOF_OF_LIFE,
    SUCCESS,
    Health,
    ProbeResult,
    evaluate,
)
from agent.state.store import RoutingStore

STALE_AFTER = 3.0
PAGE: Mapping[str, Value] = {RUNNING: 1.0, WAITING: 4.0, KV_USAGE: 0.25}


class Index:
    """Records which caches the store empties."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def resize(self, address: str, capacity_blocks: int) -> None:
        """Not recorded."""

    def clear(self, address: str) -> None:
        """Not recorded."""

    def forget(self, address: str) -> None:
        """Record it."""
        self.forgotten.append(address)


class BlindRig:
    """A store whose servers are scraped and probed by the test."""

    def __init__(self, *addresses: str) -> None:
        self.events: list[Event] = []
        self.index = Index()
        self.store = RoutingStore("pool", stale_after=STALE_AFTER, hook=self.events.append, prefix=self.index)
        self.store.set_endpoints(dict.fromkeys(addresses, "vllm"), 0.0)

    def page(self, address: str, at: float, **values: Value) -> None:
        self.store.observed(address, Extraction({**PAGE, **values}, (), ()), at, 0.01, 100)

    def fails(self, address: str, at: float, reason: str = "status") -> None:
        self.store.failed(address, reason, "", at, 0.01)

    def answers(self, address: str, at: float, reason: str = "") -> None:
        self.store.health(address, not reason, reason, "", at, 0.01)

    def health(self, now: float) -> list[tuple[str, str]]:
        return [(view.health.value, view.reason) for view in self.store.snapshot(now).endpoints]

    def changes(self) -> list[str]:
        return [event.new for event in self.events if isinstance(event, HealthChanged)]


# -- the table ---------------------------------------------------------------------------------------------------------

times = st.none() | st.floats(0, 10)
probes = (
    st.none() | st.just(SUCCESS) | st.builds(ProbeResult, st.sampled_from(sorted(HEALTH_REASONS)), st.integers(1, 4))
)


@given(
    page_at=times, answered_at=times, failures=st.integers(0, 5), failure=st.sampled_from(sorted(REASONS)),
    probe=probes, asleep=st.booleans(), fault=st.sampled_from(["", "accelerator_xid"]), now=st.floats(0, 20),
)  # fmt: skip
def test_down_is_a_server_that_does_not_answer_or_reports_that_it_cannot_serve(
    page_at: float | None, answered_at: float | None, failures: int, failure: str, probe: ProbeResult | None,
    asleep: bool, fault: str, now: float,
) -> None:  # fmt: skip
    verdict = evaluate(
        now, page_at, failures, failure if failures else "", STALE_AFTER, probe, fault, asleep=asleep,
        answered_at=answered_at,
    )  # fmt: skip
    refused = bool(failures) and failure in PROOF_OF_DEATH
    lives = answered_at is not None and now < answered_at + STALE_AFTER
    fails = refused or bool(fault) or asleep or (probe is not None and probe.unhealthy)
    if lives and not fails:
        assert verdict.health in PICKED or (verdict.health is Health.UNKNOWN and not failures)
    if verdict.health is Health.DOWN:
        assert fails or (failures >= DOWN_AFTER and not lives)
    if verdict.health is Health.BLIND:
        assert lives
        assert not refused
        assert verdict.until == pytest.approx((answered_at or 0.0) + STALE_AFTER)
    assert (verdict.health is Health.HEALTHY) is (verdict.reason == "")
    assert verdict.health.picked is (verdict.health in {Health.HEALTHY, Health.BLIND})
    assert verdict.until > now


def test_the_reasons_that_prove_life_or_death_are_reasons_of_failed_scrapes_and_exclude_each_other() -> None:
    assert REASONS.keys() >= PROOF_OF_LIFE | PROOF_OF_DEATH
    assert not PROOF_OF_LIFE & PROOF_OF_DEATH


# -- from a page to none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted(PROOF_OF_LIFE))
def test_a_page_that_is_lost_leaves_its_readings_until_they_are_stale_or_the_third_failure(reason: str) -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    for at in (0.1, 0.2):
        rig.fails("a:1", at, reason)
        (view,) = rig.store.snapshot(at).endpoints
        assert (view.health, view.fresh(WAITING, at), view.work.corrected) == (Health.HEALTHY, 4.0, True)
    rig.fails("a:1", 0.3, reason)
    (view,) = rig.store.snapshot(0.3).endpoints
    assert (view.health, view.reason, view.failures) == (Health.BLIND, reason, 3)
    assert (view.fresh(WAITING, 0.3), view.work.corrected, view.reading(WAITING)) == (None, False, (4.0, 0.0))
    assert rig.changes() == ["healthy", "blind"]


def test_a_page_that_is_stale_before_the_third_failure_is_no_gap_in_service() -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    for at in (1.0, 2.5):
        rig.fails("a:1", at)
    assert rig.health(2.9) == [("healthy", "")]
    assert rig.health(3.0) == [("blind", "status")]
    assert rig.store.snapshot(3.0).picked_addresses == ("a:1",)


def test_a_server_whose_page_hangs_is_blind_while_its_health_path_succeeds_and_down_when_it_does_not() -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    for at in (1.0, 2.0, 3.0, 4.0):
        rig.answers("a:1", at)
        rig.fails("a:1", at, "timeout")
    assert rig.health(4.1) == [("blind", "timeout")]
    for at in (5.0, 5.1, 5.2):
        rig.answers("a:1", at, "health_timeout")
    assert rig.health(5.3) == [("down", "health_timeout")]


def test_a_server_without_any_page_is_blind_at_its_first_failure_because_there_is_nothing_to_keep() -> None:
    rig = BlindRig("a:1")
    rig.answers("a:1", 0.0)
    assert rig.health(0.0) == [("unknown", "never_scraped")]
    rig.fails("a:1", 0.0, "wrong_engine")
    assert rig.health(0.1) == [("blind", "wrong_engine")]


def test_a_blind_server_is_healthy_with_its_next_page() -> None:
    rig = BlindRig("a:1")
    for at in (0.0, 1.0, 2.0):
        rig.fails("a:1", at)
    rig.page("a:1", 3.0)
    assert rig.health(3.1) == [("healthy", "")]
    rig.fails("a:1", 4.0)
    assert rig.health(4.1) == [("healthy", "")]


def test_without_any_further_contact_a_blind_server_is_down() -> None:
    rig = BlindRig("a:1")
    for at in (0.0, 1.0, 2.0):
        rig.fails("a:1", at)
    assert rig.health(4.9) == [("blind", "status")]
    assert rig.health(5.0) == [("down", "status")]


def test_an_unhealthy_accelerator_a_refused_connection_or_a_failing_health_path_is_down_and_not_blind() -> None:
    rig = BlindRig("a:1")
    for at in (0.0, 0.1, 0.2):
        rig.fails("a:1", at)
    rig.answers("a:1", 0.3, "health_status")
    assert rig.health(0.4) == [("down", "health_status")]
    rig.answers("a:1", 0.5)
    assert rig.health(0.6) == [("blind", "status")]
    rig.fails("a:1", 0.7, "refused")
    assert rig.health(0.8) == [("down", "refused")]


def test_a_server_that_sleeps_is_down_until_that_page_is_stale() -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0, model_loaded=0.0)
    for at in (0.5, 1.0, 1.5):
        rig.fails("a:1", at)
    assert rig.health(2.0) == [("down", "asleep")]
    rig.fails("a:1", 3.0)
    assert rig.health(3.1) == [("blind", "status")]


# -- another process ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_back_without_a_page_is_another_one_and_its_cache_is_empty() -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    rig.fails("a:1", 1.0, "refused")
    assert not rig.index.forgotten
    rig.answers("a:1", 2.0)
    assert rig.health(2.0) == [("down", "refused")]  # its page decides
    rig.fails("a:1", 2.0, "wrong_engine")
    rig.fails("a:1", 3.0, "wrong_engine")
    assert rig.health(3.1) == [("blind", "wrong_engine")]
    assert rig.index.forgotten == ["a:1"]
    assert [event.reason for event in rig.events if isinstance(event, ServerRestarted)] == ["answers_again"]
    assert rig.store.snapshot(3.1).endpoints[0].readings == {}


def test_a_server_that_is_back_and_has_counted_nothing_is_another_one() -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    rig.fails("a:1", 1.0, "refused")
    rig.store.observed("a:1", NOTHING_COUNTED, 2.0, 0.01, 0)
    rig.store.observed("a:1", NOTHING_COUNTED, 3.0, 0.01, 0)
    assert rig.health(3.1) == [("healthy", "")]
    assert rig.index.forgotten == ["a:1"]
    assert rig.store.snapshot(3.1).endpoints[0].readings == {}


@pytest.mark.parametrize("reason", ["unreachable", "timeout"])
def test_a_server_that_could_not_be_reached_for_a_time_may_be_the_same(reason: str) -> None:
    rig = BlindRig("a:1")
    rig.page("a:1", 0.0)
    rig.fails("a:1", 1.0, reason)
    for at in (2.0, 3.0):
        rig.fails("a:1", at)
    assert rig.health(3.1) == [("blind", "status")]
    assert not rig.index.forgotten


# -- beside others -----------------------------------------------------------------------------------------------------


def test_each_change_to_or_from_blind_has_the_number_of_blind_endpoints() -> None:
    rig = BlindRig("a:1", "b:1", "c:1")
    for address in ("a:1", "b:1"):
        rig.fails(address, 0.0)
    rig.page("c:1", 0.0)
    rig.page("a:1", 1.0)
    rig.store.set_endpoints({"a:1": "vllm"}, 1.0)
    rig.fails("a:1", 1.1)
    for at in (1.2, 1.3):
        rig.fails("a:1", at)
    counts = [(event.endpoint, event.new, event.blind, event.endpoints) for event in rig.events
              if isinstance(event, HealthChanged)]  # fmt: skip
    assert counts == [
        ("a:1", "blind", 1, 3),
        ("b:1", "blind", 2, 3),
        ("c:1", "healthy", 0, 0),
        ("a:1", "healthy", 1, 3),
        ("a:1", "blind", 1, 1),
    ]


def test_a_blind_endpoint_has_the_prefill_rate_of_its_pool() -> None:
    rig = BlindRig("a:1", "b:1")
    for step in range(40):
        at = 0.1 * step
        rates = {PROMPT_TOKENS: 1000.0 * step, PREFILL_SECONDS: 0.1 * step * (1 + step), PREFILLS: 10.0 * step}
        rig.page("a:1", at, **rates)
        rig.fails("b:1", at)
    seen, blind = rig.store.snapshot(4.0).endpoints
    assert (blind.health, blind.work.rate_source) == (Health.BLIND, "pool")
    assert blind.work.rate == seen.work.rate
