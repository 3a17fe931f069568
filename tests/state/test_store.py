"""The routing state: snapshots, freshness, health, restarts, in-flight work."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.events import Event
from agent.events.scraping import HealthChanged, HealthPathFailed, ScrapeDone, ScrapeFailed, ServerRestarted
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    KV_TOKENS,
    KV_USAGE,
    LORA_RUNNING,
    LORA_WAITING,
    MODELS,
    PREFILL_SECONDS,
    PREFILLS,
    PREFIX_HITS,
    PROMPT_TOKENS,
    RUNNING,
    SIGNALS,
    START_TIME,
    WAITING,
    SignalKind,
    Value,
)
from agent.state.health import DOWN_AFTER, HEALTH_REASONS, Health, evaluate
from agent.state.identity import Identity
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore

PAGE: Mapping[str, Value] = {RUNNING: 1.0, WAITING: 0.0, KV_USAGE: 0.25, START_TIME: 100.0, PREFIX_HITS: 0.0}


class Index:
    """Records the calls that the store makes to the prefix index."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []

    def resize(self, address: str, capacity_blocks: int) -> None:
        self.calls.append(("resize", address, capacity_blocks))

    def clear(self, address: str) -> None:
        self.calls.append(("clear", address, 0))

    def forget(self, address: str) -> None:
        self.calls.append(("forget", address, 0))


class Fixture:
    def __init__(self, *addresses: str, fixed: float | None = 1000.0) -> None:
        self.events: list[Event] = []
        self.index = Index()
        self.store = RoutingStore(
            "pool", stale_after=3.0, rate=RateLimits(fixed=fixed), hook=self.events.append, prefix=self.index
        )
        self.store.set_endpoints(dict.fromkeys(addresses, "vllm"), 0.0)

    def page(self, address: str, at: float, **changes: Value) -> None:
        self.store.observed(address, Extraction({**PAGE, **changes}, (), ()), at, 0.01, 1000)

    def health(self, now: float) -> dict[str, tuple[Health, str]]:
        return {view.address: (view.health, view.reason) for view in self.store.snapshot(now).endpoints}


def test_an_endpoint_is_unknown_until_its_first_page_and_has_no_reading() -> None:
    fleet = Fixture("a:1")
    (view,) = fleet.store.snapshot(0.0).endpoints
    assert (view.health, view.reason) == (Health.UNKNOWN, "never_scraped")
    assert view.fresh(WAITING, 0.0) is None
    assert view.readings == {}


def test_a_reading_has_the_time_at_which_its_page_was_requested() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 5.0)
    (view,) = fleet.store.snapshot(5.5).endpoints
    assert view.readings[KV_USAGE] == (0.25, 5.0)


def test_a_signal_that_a_good_page_lacks_keeps_its_age() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    for second in (1.0, 2.0, 3.0):
        fleet.store.observed("a:1", Extraction({RUNNING: 2.0, START_TIME: 100.0}, (KV_USAGE,), ()), second, 0.01, 10)
    (view,) = fleet.store.snapshot(3.5).endpoints
    assert view.health is Health.HEALTHY
    assert view.fresh(RUNNING, 3.5) == 2.0
    assert view.fresh(KV_USAGE, 3.5) is None
    assert view.readings[KV_USAGE].at == 0.0


def test_a_snapshot_is_the_same_object_until_something_changes_and_is_never_changed() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 0.0)
    before = fleet.store.snapshot(0.1)
    assert fleet.store.snapshot(0.2) is before
    copy = (before.version, before.endpoints, dict(before.endpoints[0].readings))
    fleet.page("a:1", 1.0, waiting_requests=7.0)
    after = fleet.store.snapshot(1.1)
    assert after.version > before.version
    assert after.endpoints[0].readings[WAITING].value == 7.0
    assert after.endpoints[1] is before.endpoints[1]
    assert (before.version, before.endpoints, dict(before.endpoints[0].readings)) == copy


def test_a_fleet_without_new_pages_goes_stale_and_the_version_changes() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 0.0)
    fleet.page("b:1", 1.0)
    version = fleet.store.snapshot(2.9).version
    assert fleet.health(3.0) == {"a:1": (Health.STALE, "no_fresh_page"), "b:1": (Health.HEALTHY, "")}
    assert fleet.store.version > version
    assert fleet.health(4.0)["b:1"] == (Health.STALE, "no_fresh_page")
    assert [(each.endpoint, each.new) for each in fleet.events if isinstance(each, HealthChanged)][-2:] == [
        ("a:1", "stale"),
        ("b:1", "stale"),
    ]


def test_a_refused_connection_is_down_at_once_and_a_page_makes_it_healthy_again() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.failed("a:1", "refused", "connection refused", 1.0, 0.001)
    assert fleet.health(1.1) == {"a:1": (Health.DOWN, "refused")}
    fleet.page("a:1", 2.0)
    assert fleet.health(2.1) == {"a:1": (Health.HEALTHY, "")}


def test_a_dead_server_is_not_healthy_again_because_its_next_scrape_fails_in_another_way() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.failed("a:1", "refused", "connection refused", 1.0, 0.001)
    fleet.store.failed("a:1", "timeout", "it starts to listen", 1.1, 0.1)
    assert fleet.health(1.3) == {"a:1": (Health.DOWN, "timeout")}
    fleet.page("a:1", 2.0)
    fleet.store.failed("a:1", "timeout", "transient", 2.1, 0.1)
    assert fleet.health(2.3) == {"a:1": (Health.HEALTHY, "")}


@pytest.mark.parametrize(
    ("reason", "health"),
    [
        ("timeout", Health.DOWN),
        ("reset", Health.DOWN),
        ("status", Health.BLIND),
        ("not_metrics", Health.BLIND),
        ("truncated", Health.BLIND),
    ],
)
def test_three_scrapes_without_an_answer_are_down_three_bad_pages_blind_and_two_change_nothing(
    reason: str, health: Health
) -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    for failure in range(DOWN_AFTER - 1):
        fleet.store.failed("a:1", reason, "", 0.1 * failure, 0.01)
        assert fleet.health(0.5) == {"a:1": (Health.HEALTHY, "")}
    fleet.store.failed("a:1", reason, "", 0.6, 0.01)
    assert fleet.health(0.7) == {"a:1": (health, reason)}


def test_a_failure_keeps_the_readings_and_their_age() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.failed("a:1", "timeout", "", 1.0, 1.0)
    (view,) = fleet.store.snapshot(2.0).endpoints
    assert view.readings[KV_USAGE] == (0.25, 0.0)
    assert view.failures == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({START_TIME: 200.0}, "new_start_time"), ({"start_time_seconds": None, PREFIX_HITS: 1.0}, "counter_went_back")],
)
def test_a_restarted_server_inherits_no_reading(changes: dict[str, Value | None], reason: str) -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0, prefix_hit_tokens=500.0)
    fleet.store.served_models("a:1", frozenset({"m"}), 0.0)
    values = {RUNNING: 0.0, PREFIX_HITS: 0.0, **changes}
    if reason == "counter_went_back":
        fleet = Fixture("a:1")
        fleet.store.observed("a:1", Extraction({PREFIX_HITS: 500.0, KV_USAGE: 0.5}, (), ()), 0.0, 0.01, 10)
    extraction = Extraction({k: v for k, v in values.items() if v is not None}, (), ())
    assert fleet.store.observed("a:1", extraction, 1.0, 0.01, 10)
    assert not fleet.store.observed("a:1", extraction, 1.05, 0.01, 10)
    (view,) = fleet.store.snapshot(1.1).endpoints
    assert KV_USAGE not in view.readings
    assert MODELS not in view.readings
    assert ("forget", "a:1", 0) in fleet.index.calls
    assert [each.reason for each in fleet.events if isinstance(each, ServerRestarted)] == [reason]


def test_a_request_is_in_the_next_snapshot_until_it_ends() -> None:
    fleet = Fixture("a:1", "b:1")
    work_id = fleet.store.started("a:1", 2000, 640, 1.0)
    view = fleet.store.snapshot(1.0).endpoints[0]
    assert view.work.requests == 1
    assert view.work.prefill_seconds(1.0) == 2.0
    assert view.work.prefill_tokens(2.0) == 1000.0
    assert view.prefix.predicted == 640
    fleet.store.ended(work_id, 1.5)
    view = fleet.store.snapshot(1.5).endpoints[0]
    assert view.work.requests == 0
    assert view.work.prefill_seconds(1.5) == 0.0
    assert fleet.store.in_flight == 0


def test_a_request_ends_once() -> None:
    fleet = Fixture("a:1")
    work_id = fleet.store.started("a:1", 1, 0, 0.0)
    fleet.store.ended(work_id, 0.0)
    with pytest.raises(KeyError):
        fleet.store.ended(work_id, 0.0)


def test_requests_at_an_endpoint_that_left_the_pool_still_end() -> None:
    fleet = Fixture("a:1", "b:1")
    work_id = fleet.store.started("a:1", 1, 0, 0.0)
    fleet.store.set_endpoints({"b:1": "vllm", "c:1": "vllm"}, 1.0)
    assert [view.address for view in fleet.store.snapshot(1.0).endpoints] == ["b:1", "c:1"]
    assert fleet.store.in_flight == 1
    fleet.store.ended(work_id, 2.0)
    assert fleet.store.in_flight == 0
    assert ("forget", "a:1", 0) in fleet.index.calls


def test_an_endpoint_that_is_added_again_starts_over() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.set_endpoints({}, 1.0)
    fleet.store.set_endpoints({"a:1": "vllm"}, 1.0)
    assert fleet.health(1.0) == {"a:1": (Health.UNKNOWN, "never_scraped")}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (Identity("pod-a"), Identity("pod-b"), "another_pod"),
        (Identity("pod-a", "n1"), Identity("pod-b", "n1"), "another_pod"),
        (Identity("pod-a", "n1"), Identity("pod-a", "n2"), "another_node"),
        (Identity("", "n1"), Identity("", "n2"), "another_node"),
        (Identity("pod-a"), Identity(), "another_pod"),
        (Identity("pod-a", "n1"), Identity("pod-a", "n1"), ""),
        (Identity(), Identity("pod-a", "n1"), ""),
        (Identity("pod-a"), Identity("pod-a", "n1"), ""),
    ],
)
def test_another_pod_or_node_at_an_address_is_another_server_and_inherits_no_reading(
    before: Identity, after: Identity, reason: str
) -> None:
    fleet = Fixture()
    fleet.store.set_endpoints({"a:1": "vllm"}, 0.0, {"a:1": before})
    fleet.page("a:1", 0.0)
    fleet.store.served_models("a:1", frozenset({"m"}), 0.0)
    fleet.store.health("a:1", True, "", "", 0.0, 0.01)
    work_id = fleet.store.started("a:1", 100, 64, 0.5)
    fleet.store.set_endpoints({"a:1": "vllm"}, 1.0, {"a:1": after})
    (view,) = fleet.store.snapshot(1.0).endpoints
    assert (view.health, view.reason) == ((Health.UNKNOWN, "never_scraped") if reason else (Health.HEALTHY, ""))
    assert bool(view.readings) is not bool(reason)
    assert view.prefix.predicted == (0 if reason else 64)
    assert view.work.requests == (0 if reason else 1)
    assert (("forget", "a:1", 0) in fleet.index.calls) is bool(reason)
    assert [each.reason for each in fleet.events if isinstance(each, ServerRestarted)] == [reason] * bool(reason)
    # A counter below the old server's is not a second restart.
    assert not fleet.store.observed("a:1", Extraction({**PAGE, PREFIX_HITS: 0.0}, (), ()), 2.0, 0.01, 10)
    fleet.store.ended(work_id, 3.0)
    assert fleet.store.in_flight == 0


def test_a_pod_whose_name_became_unknown_does_not_pass_its_readings_to_the_next() -> None:
    fleet = Fixture()
    for pod in ("pod-a", "", "pod-b"):
        fleet.store.set_endpoints({"a:1": "vllm"}, 0.0, {"a:1": Identity(pod)})
        if pod == "pod-a":
            fleet.page("a:1", 0.0)
    assert not fleet.store.snapshot(0.1).endpoints[0].readings


def test_endpoints_that_stay_keep_their_state_when_the_set_changes() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.set_endpoints({"a:1": "vllm", "b:1": "vllm"}, 1.0)
    assert fleet.health(1.0)["a:1"] == (Health.HEALTHY, "")


def test_a_result_for_an_address_that_is_not_in_the_pool_is_ignored() -> None:
    fleet = Fixture("a:1")
    version = fleet.store.version
    fleet.page("z:1", 0.0)
    fleet.store.failed("z:1", "refused", "", 0.0, 0.0)
    fleet.store.served_models("z:1", frozenset(), 0.0)
    assert fleet.store.version == version


def test_the_index_is_resized_once_for_each_change_of_a_cache() -> None:
    fleet = Fixture("a:1")
    for second in range(3):
        fleet.page("a:1", float(second), **{BLOCKS: 100.0, BLOCK_SIZE: 128.0})
    assert fleet.index.calls == [("resize", "a:1", 200)]
    fleet.page("a:1", 4.0, **{BLOCKS: 200.0, BLOCK_SIZE: 128.0})
    assert fleet.index.calls[-1] == ("resize", "a:1", 400)


def test_the_index_is_sized_by_the_capacity_that_the_engine_reports_and_not_by_a_product() -> None:
    fleet = Fixture("a:1")
    hybrid = {BLOCKS: 23_911.0, BLOCK_SIZE: 4.0, KV_TOKENS: 1_514_496.0}
    for second in range(3):
        fleet.page("a:1", float(second), **hybrid)
    fleet.page("a:1", 3.0, **{BLOCKS: 23_911.0, BLOCK_SIZE: 4.0})  # the page lacks it for once
    assert fleet.index.calls == [("resize", "a:1", 1_514_496 // 64)]
    fleet.page("a:1", 4.0, **{KV_TOKENS: 6_400.0})
    assert fleet.index.calls[-1] == ("resize", "a:1", 100)


def test_a_restart_is_reported_after_the_page_that_shows_it() -> None:
    fleet = Fixture("a:1", "b:1")
    seen: list[tuple[str, float, float]] = []
    fleet.store.on_restart.append(
        lambda address, now: seen.append((address, now, fleet.store.snapshot(now).endpoints[0].values[START_TIME]))  # type: ignore[arg-type]
    )
    fleet.page("a:1", 0.0, **{START_TIME: 100.0})
    fleet.page("a:1", 1.0, **{START_TIME: 200.0})
    fleet.page("a:1", 2.0, **{START_TIME: 200.0})
    assert [(address, start) for address, _, start in seen] == [("a:1", 200.0)]


def test_measured_and_predicted_hits_are_counted_from_the_same_moment() -> None:
    fleet = Fixture("a:1")
    (view,) = fleet.store.snapshot(0.0).endpoints
    assert view.prefix == (0.0, None)
    fleet.page("a:1", 0.0, prefix_hit_tokens=700.0)
    fleet.store.started("a:1", 10, 64, 0.1)
    fleet.page("a:1", 1.0, prefix_hit_tokens=760.0)
    (view,) = fleet.store.snapshot(1.1).endpoints
    assert view.prefix == (64.0, 60.0)


def test_an_endpoint_without_an_estimate_uses_the_median_of_its_pool() -> None:
    fleet = Fixture("a:1", "b:1", fixed=None)
    for second in range(60):
        done = float(second)
        fleet.page("a:1", done, **{PROMPT_TOKENS: 2000 * done, PREFILL_SECONDS: done, PREFILLS: done})
        fleet.page("b:1", done)
    first, second_view = fleet.store.snapshot(60.0).endpoints
    assert (first.work.rate_source, second_view.work.rate_source) == ("pool", "pool")
    assert first.work.rate == pytest.approx(2000, rel=0.05)
    assert second_view.work.rate == pytest.approx(2000, rel=0.05)


def learn(fleet: Fixture, address: str, rate: float, prefills: int, start: float) -> None:
    """Two pages between which that many prefills of one second were done at this rate."""
    for second, done in ((start, 0.0), (start + 1, float(prefills))):
        fleet.page(address, second, **{PROMPT_TOKENS: rate * done, PREFILL_SECONDS: done, PREFILLS: done})


def test_the_rate_of_one_endpoint_is_applied_to_all_at_once() -> None:
    """Otherwise an idle, equal endpoint looks ten times as fast until its next page."""
    fleet = Fixture("a:1", "b:1", fixed=None)
    fleet.page("b:1", 0.0)
    learn(fleet, "a:1", 1800.0, 20, 0.0)
    works = [view.work for view in fleet.store.snapshot(1.1).endpoints]
    assert [(work.rate, work.rate_source) for work in works] == [(1800.0, "pool")] * 2


@pytest.mark.parametrize(("prefills", "rates"), [(24, [6240.0, 6240.0]), (200, [1800.0, 21_632.0])])
def test_two_servers_with_different_estimates_share_a_rate_until_both_have_many_prefills(
    prefills: int, rates: list[float]
) -> None:
    fleet = Fixture("a:1", "b:1", fixed=None)
    learn(fleet, "a:1", 1800.0, prefills, 0.0)
    learn(fleet, "b:1", 21_632.0, prefills, 2.0)
    views = fleet.store.snapshot(3.1).endpoints
    assert [view.work.rate for view in views] == pytest.approx(rates, rel=0.03)


def test_each_scrape_emits_one_event_with_its_result() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    fleet.store.failed("a:1", "status", "HTTP 500", 1.0, 0.02)
    scrapes = [each for each in fleet.events if isinstance(each, ScrapeDone | ScrapeFailed)]
    assert scrapes == [
        ScrapeDone("pool", "a:1", 0.0, 0.01, 1000, (), ()),
        ScrapeFailed("pool", "a:1", 1.0, 0.02, "status", "HTTP 500"),
    ]


def test_watchers_are_called_for_every_change() -> None:
    fleet = Fixture("a:1")
    versions: list[int] = []
    fleet.store.on_change.append(lambda: versions.append(fleet.store.version))
    fleet.page("a:1", 0.0)
    fleet.store.ended(fleet.store.started("a:1", 1, 0, 0.0), 0.0)
    fleet.store.failed("a:1", "timeout", "", 1.0, 1.0)
    assert versions == sorted(versions)
    assert len(versions) == len(set(versions)) == 4


@given(
    page_at=st.none() | st.floats(0, 100),
    failures=st.integers(0, 5),
    failure=st.sampled_from(["", "timeout", "refused"]),
    earlier=st.floats(0, 200),
    later=st.floats(0, 200),
)
def test_time_alone_never_improves_health_and_a_verdict_holds_until_its_end(
    page_at: float | None, failures: int, failure: str, earlier: float, later: float
) -> None:
    earlier, later = sorted((earlier, later))
    first, second = evaluate(earlier, page_at, failures, failure, 3.0), evaluate(later, page_at, failures, failure, 3.0)
    if first.health is not Health.HEALTHY:
        assert second.health is first.health
    if later < first.until:
        assert second == first


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["page", "fail", "start", "end", "set", "wait"]), st.sampled_from("abc"), st.floats(0, 4)
        ),
        max_size=40,
    )
)
def test_a_snapshot_that_is_updated_equals_one_that_is_rebuilt(steps: list[tuple[str, str, float]]) -> None:
    fleet = Fixture("a:1", "b:1")
    now, work_ids = 0.0, list[int]()
    for kind, name, wait in steps:
        now += wait
        address = f"{name}:1"
        known = {view.address for view in fleet.store.snapshot(now).endpoints}
        if kind == "page":
            fleet.page(address, now)
        elif kind == "fail":
            fleet.store.failed(address, "timeout", "", now, 0.0)
        elif kind == "start" and address in known:
            work_ids.append(fleet.store.started(address, 100, 0, now))
        elif kind == "end" and work_ids:
            fleet.store.ended(work_ids.pop(0), now)
        elif kind == "set":
            fleet.store.set_endpoints(dict.fromkeys({"a:1", "b:1", address}, "vllm"), now)
        step_by_step = fleet.store.snapshot(now)
        assert fleet.store.in_flight == len(work_ids)
        untils = [(each, each.until) for each in fleet.store._endpoints.values()]
        fleet.store._rebuild()  # as after a change of the endpoints
        assert fleet.store.snapshot(now).endpoints == step_by_step.endpoints
        fleet.store._dirty.update(fleet.store.addresses)
        fleet.store._rebuild()
        at_once = fleet.store.snapshot(now)
        assert step_by_step.endpoints == at_once.endpoints
        assert (
            step_by_step.only_prefill
            == at_once.only_prefill
            == all(view.work.only_prefill for view in at_once.endpoints)
        )
        assert step_by_step.good_until <= at_once.good_until
        fleet.store._snapshot = step_by_step  # continue with updates
        for each, until in untils:
            each.until = until


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["page", "fail", "unhealthy", "wait", "read"]), st.sampled_from("ab"), st.floats(0, 4)
        ),
        max_size=40,
    )
)
@example([("page", "a", 0.0), ("page", "b", 1.0), ("wait", "a", 2.0), ("wait", "a", 1.0)])
def test_a_pool_without_readers_emits_the_same_events_as_one_with_readers(
    steps: list[tuple[str, str, float]],
) -> None:
    aged, read = Fixture("a:1", "b:1"), Fixture("a:1", "b:1")
    now = 0.0
    for kind, name, wait in steps:
        now += wait
        for fleet in (aged, read):
            if kind == "page":
                fleet.page(f"{name}:1", now)
            elif kind == "fail":
                fleet.store.failed(f"{name}:1", "timeout", "", now, 0.0)
            elif kind == "unhealthy":
                fleet.store.health(f"{name}:1", False, "health_status", "", now, 0.0)
        if kind == "read":
            aged.store.snapshot(now)
        aged.store.age(now)
        read.store.snapshot(now)
        assert sorted(aged.events, key=repr) == sorted(read.events, key=repr)


def test_a_snapshot_is_renewed_only_where_there_are_readers() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 0.0)
    first = fleet.store.snapshot(0.0)
    fleet.page("b:1", 0.5)
    fleet.store.age(0.5)
    ready = fleet.store._snapshot
    assert ready is not first
    fleet.page("b:1", 1.0)
    fleet.store.age(1.0)
    assert fleet.store._snapshot is ready
    assert fleet.store.snapshot(1.0).endpoints[1].page_at == 1.0


def test_a_snapshot_has_the_adapters_of_any_endpoint_and_the_models_of_all() -> None:
    fleet = Fixture("a:1", "b:1")
    assert (fleet.store.snapshot(0.0).adapters, fleet.store.snapshot(0.0).models_everywhere) == (
        frozenset(),
        frozenset(),
    )
    fleet.page("a:1", 0.0, **{LORA_RUNNING: frozenset({"x"}), LORA_WAITING: frozenset({"y"})})
    fleet.page("b:1", 0.0)
    fleet.store.served_models("a:1", frozenset({"base", "x"}), 0.0)
    assert fleet.store.snapshot(0.1).adapters == frozenset({"x", "y"})
    assert fleet.store.snapshot(0.1).models_everywhere == frozenset()
    fleet.store.served_models("b:1", frozenset({"base"}), 0.0)
    assert fleet.store.snapshot(0.2).models_everywhere == {"base"}
    fleet.page("a:1", 1.0, **{LORA_RUNNING: frozenset({"z"}), LORA_WAITING: frozenset()})
    assert fleet.store.snapshot(1.1).adapters == frozenset({"z"})
    fleet.page("a:1", 2.0, start_time_seconds=200.0)
    assert fleet.store.snapshot(2.1).adapters == frozenset()
    assert fleet.store.snapshot(2.1).models_everywhere == frozenset()


def probe(fleet: Fixture, reason: str, at: float) -> None:
    fleet.store.health("a:1", not reason, reason, "what was found", at, 0.001)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["page", "bare page", "restart", "models", "set", "limits"]),
            st.sampled_from("abc"),
            st.frozensets(st.sampled_from("xyz")),
        ),
        max_size=30,
    )
)
def test_adapters_and_models_of_a_snapshot_are_those_of_its_endpoints(
    steps: list[tuple[str, str, frozenset[str]]],
) -> None:
    fleet = Fixture("a:1", "b:1")
    for second, (kind, name, names) in enumerate(steps, 1):
        address, now = f"{name}:1", float(second)
        if kind == "page":
            fleet.page(address, now, **{LORA_RUNNING: names, LORA_WAITING: frozenset("x")})
        elif kind == "bare page":
            fleet.page(address, now)
        elif kind == "restart":
            fleet.page(address, now, **{START_TIME: 100.0 + now})
        elif kind == "models":
            fleet.store.served_models(address, names, now)
        elif kind == "set":
            fleet.store.set_endpoints(dict.fromkeys({"a:1", address}, "vllm"), now)
        else:
            fleet.store.set_limits(stale_after=3.0, rate=RateLimits(fixed=1000.0), now=now)
        snapshot = fleet.store.snapshot(now)
        views = snapshot.endpoints
        assert snapshot.adapters == frozenset().union(*(view.names(LORA_RUNNING, LORA_WAITING) for view in views))
        assert snapshot.models_everywhere == frozenset("xyz").intersection(*(view.names(MODELS) for view in views))


def test_health_depends_on_the_page_and_on_the_health_path() -> None:
    fleet = Fixture("a:1")
    probe(fleet, "", 0.0)
    assert fleet.health(0.0) == {"a:1": (Health.UNKNOWN, "never_scraped")}
    fleet.page("a:1", 0.0)
    assert fleet.health(0.1) == {"a:1": (Health.HEALTHY, "")}
    probe(fleet, "health_status", 1.0)
    assert fleet.health(1.1) == {"a:1": (Health.DOWN, "health_status")}
    probe(fleet, "", 2.0)
    assert fleet.health(2.1) == {"a:1": (Health.HEALTHY, "")}
    assert fleet.health(3.0) == {"a:1": (Health.BLIND, "no_fresh_page")}  # until the success at 2.0 is as old as that
    assert fleet.health(5.0) == {"a:1": (Health.STALE, "no_fresh_page")}


def test_an_endpoint_is_down_after_three_probes_without_an_answer_and_not_after_two() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    for failure in range(DOWN_AFTER - 1):
        probe(fleet, "health_timeout", 0.1 * failure)
        assert fleet.health(0.5) == {"a:1": (Health.HEALTHY, "")}
    probe(fleet, "health_timeout", 0.6)
    assert fleet.health(0.7) == {"a:1": (Health.DOWN, "health_timeout")}


def test_503_is_loading_until_the_health_path_succeeded_and_again_after_a_death_or_restart() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 0.0)
    probe(fleet, "health_unavailable", 0.0)
    assert fleet.health(0.1) == {"a:1": (Health.DOWN, "loading")}
    probe(fleet, "", 1.0)
    probe(fleet, "health_unavailable", 1.5)
    assert fleet.health(1.6) == {"a:1": (Health.DOWN, "health_unavailable")}
    fleet.store.failed("a:1", "refused", "", 2.0, 0.001)
    probe(fleet, "health_unavailable", 2.5)
    fleet.page("a:1", 2.5, start_time_seconds=200.0)
    assert fleet.health(2.6) == {"a:1": (Health.DOWN, "loading")}
    assert [each.reason for each in fleet.events if isinstance(each, HealthPathFailed)] == [
        "loading",
        "health_unavailable",
        "loading",
    ]


def test_a_server_whose_page_does_not_come_is_blind_from_the_next_success_of_its_health_path_on() -> None:
    fleet = Fixture("a:1")
    probe(fleet, "", 0.0)
    for second in range(DOWN_AFTER):
        fleet.store.failed("a:1", "timeout", "", float(second), 0.01)
    assert fleet.health(3.0) == {"a:1": (Health.DOWN, "timeout")}  # the earlier success does not count
    probe(fleet, "", 3.0)
    assert fleet.health(3.0) == {"a:1": (Health.BLIND, "timeout")}
    fleet.store.failed("a:1", "timeout", "", 3.5, 0.01)
    assert fleet.health(3.5) == {"a:1": (Health.BLIND, "timeout")}
    assert fleet.health(6.0) == {"a:1": (Health.DOWN, "timeout")}  # the success has expired


@given(
    pages=st.lists(st.sampled_from(["", "timeout", "status", "refused"]), max_size=5),
    probes=st.lists(st.sampled_from(["", *HEALTH_REASONS]), max_size=5),
    now=st.floats(0, 10),
)
def test_an_endpoint_is_healthy_only_when_its_last_page_and_its_last_probe_allow_it(
    pages: list[str], probes: list[str], now: float
) -> None:
    fleet = Fixture("a:1")
    for page in pages:
        if page:
            fleet.store.failed("a:1", page, "", 0.0, 0.0)
        else:
            fleet.page("a:1", 0.0)
    for result in probes:
        probe(fleet, result, 0.0)
    ((health, reason),) = fleet.health(now).values()
    assert (health is Health.HEALTHY) is (reason == "")
    if health is Health.HEALTHY:
        assert "" in pages
        assert now < 3.0
        assert not probes or probes[-1] == "" or probes[-DOWN_AFTER:].count("") > 0 or len(probes) < DOWN_AFTER
    if probes and probes[-1] in ("loading", "health_unavailable", "health_status"):
        assert health is not Health.HEALTHY


def test_a_recognised_engine_stays_when_the_endpoints_are_set_again() -> None:
    fleet = Fixture()
    fleet.store.set_endpoints({"a:1": "auto"}, 0.0)
    assert fleet.store.snapshot(0.0).endpoints[0].engine == "auto"
    fleet.store.recognised("a:1", "sglang")
    fleet.page("a:1", 0.0)
    fleet.store.set_endpoints({"a:1": "auto", "b:1": "auto"}, 0.0)
    (view, _) = fleet.store.snapshot(0.1).endpoints
    assert view.engine == "sglang"
    assert view.readings[RUNNING].value == 1.0


def test_another_engine_at_an_address_is_another_server() -> None:
    fleet = Fixture()
    fleet.store.set_endpoints({"a:1": "auto"}, 0.0)
    fleet.store.recognised("a:1", "sglang")
    fleet.page("a:1", 0.0)
    fleet.store.recognised("a:1", "sglang")
    assert RUNNING in fleet.store.snapshot(0.1).endpoints[0].readings
    fleet.store.recognised("a:1", "tgi")
    (view,) = fleet.store.snapshot(0.1).endpoints
    assert view.engine == "tgi"
    assert not view.readings
    assert [each.reason for each in fleet.events if isinstance(each, ServerRestarted)] == ["another_engine"]
    fleet.store.recognised("gone:1", "tgi")


@pytest.mark.parametrize("counter", [row.name for row in SIGNALS.values() if row.kind is SignalKind.COUNTER])
@pytest.mark.parametrize("more", [{START_TIME: 100.0}, {}], ids=["same start time", "no start time"])
def test_any_counter_that_goes_back_is_another_server_and_requests_stay_in_flight(
    counter: str, more: dict[str, Value]
) -> None:
    fleet = Fixture("a:1")
    fleet.store.observed("a:1", Extraction({counter: 7.0, KV_USAGE: 0.5, **more}, (), ()), 0.0, 0.01, 10)
    fleet.store.started("a:1", 100, 0, 0.5)
    fleet.store.observed("a:1", Extraction({counter: 7.0, **more}, (), ()), 1.0, 0.01, 10)
    assert fleet.store.snapshot(1.0).endpoints[0].reading(KV_USAGE) == (0.5, 0.0)
    fleet.store.observed("a:1", Extraction({counter: 6.0, **more}, (), ()), 2.0, 0.01, 10)
    (view,) = fleet.store.snapshot(2.0).endpoints
    assert view.reading(KV_USAGE) is None
    assert view.work.requests == 1
    assert [each.reason for each in fleet.events if isinstance(each, ServerRestarted)] == ["counter_went_back"]


# -- load reports between pages ----------------------------------------------------------------------------------------


def test_a_load_report_is_a_reading_of_its_own_time_until_the_next_page() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 10.0, **{WAITING: 0.0, KV_USAGE: 0.25})
    work_id = fleet.store.started("a:1", 100, 0, 10.1)
    fleet.store.reported(work_id, {WAITING: 7.0}, 11.0, 11.05)
    view, other = fleet.store.snapshot(11.05).endpoints
    assert (view.reading(WAITING), view.reading(KV_USAGE)) == ((7.0, 11.0), (0.25, 10.0))
    assert other.reading(WAITING) is None
    assert view.page_at == 10.0
    fleet.page("a:1", 12.0, **{WAITING: 2.0})
    view, _ = fleet.store.snapshot(12.05).endpoints
    assert view.reading(WAITING) == (2.0, 12.0)


def test_a_page_that_was_requested_before_a_report_does_not_replace_it() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 10.0)
    work_id = fleet.store.started("a:1", 100, 0, 10.1)
    fleet.store.reported(work_id, {WAITING: 7.0}, 11.01, 11.02)
    fleet.page("a:1", 11.0, **{WAITING: 0.0, KV_USAGE: 0.5})
    (view,) = fleet.store.snapshot(11.05).endpoints
    assert (view.reading(WAITING), view.reading(KV_USAGE)) == ((7.0, 11.01), (0.5, 11.0))
    fleet.store.reported(work_id, {WAITING: 1.0, KV_USAGE: 0.1}, 10.5, 11.06)
    (view,) = fleet.store.snapshot(11.06).endpoints
    assert (view.reading(WAITING), view.reading(KV_USAGE)) == ((7.0, 11.01), (0.5, 11.0))


def test_a_report_goes_stale_as_any_reading_and_keeps_no_server_healthy() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 10.0)
    work_id = fleet.store.started("a:1", 100, 0, 10.1)
    fleet.store.reported(work_id, {WAITING: 7.0}, 12.0, 12.0)
    before = fleet.store.snapshot(12.0)
    assert before.endpoints[0].fresh(WAITING, 12.5) == 7.0
    (view,) = fleet.store.snapshot(13.5).endpoints
    assert view.health is Health.STALE
    assert view.fresh(WAITING, 14.9) == 7.0
    assert view.fresh(WAITING, 15.0) is None


def test_a_report_for_a_request_that_ended_or_of_a_replaced_server_is_ignored() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 10.0)
    over, lost = (fleet.store.started("a:1", 100, 0, 10.1) for _ in range(2))
    fleet.store.ended(over, 10.2)
    fleet.store.reported(over, {WAITING: 7.0}, 10.3, 10.3)
    fleet.store.set_endpoints({"a:1": "vllm"}, 10.4, {"a:1": Identity("llm/one")})
    fleet.store.set_endpoints({"a:1": "vllm"}, 10.5, {"a:1": Identity("llm/two")})
    fleet.store.reported(lost, {WAITING: 7.0}, 10.6, 10.6)
    (view,) = fleet.store.snapshot(10.7).endpoints
    assert view.reading(WAITING) is None


def test_the_queue_of_a_report_is_in_the_backlog_at_once() -> None:
    fleet = Fixture("a:1")
    fleet.page("a:1", 10.0)
    work_ids = [fleet.store.started("a:1", 1000, 0, 10.0) for _ in range(3)]
    (view,) = fleet.store.snapshot(14.0 - 1.5).endpoints
    assert view.work.prefill_seconds(13.5) == 0.0
    fleet.store.reported(work_ids[0], {WAITING: 2.0}, 13.5, 13.5)
    (view,) = fleet.store.snapshot(13.5).endpoints
    assert view.work.prefill_seconds(13.5) == pytest.approx(2.0)


# -- on_changed --------------------------------------------------------------------------------------------------------


def changes_of(fleet: Fixture) -> list[str]:
    """The addresses with which `on_changed` is called from now on."""
    changes: list[str] = []
    fleet.store.on_changed.append(changes.append)
    return changes


def test_on_changed_has_the_endpoint_of_each_change() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 0.0)
    fleet.page("b:1", 0.0)
    changes = changes_of(fleet)
    store = fleet.store
    work_id = store.started("a:1", 100.0, 0.0, 1.0)
    store.ended(work_id, 2.0)
    store.failed("b:1", "timeout", "", 2.0, 0.1)
    fleet.page("b:1", 2.5)
    peer_id = store.peer_started("a:1", 10.0, 0.0, 2.5, 2.5)
    assert peer_id is not None
    store.peer_ended(peer_id, 2.6)
    moved = store.started("a:1", 100.0, 0.0, 2.7)
    store.moved(moved, "b:1", 100.0, 2.8)
    assert changes == ["a:1", "a:1", "b:1", "b:1", "a:1", "a:1", "a:1", "a:1", "b:1"]


def test_on_changed_has_an_endpoint_that_time_alone_makes_stale() -> None:
    fleet = Fixture("a:1", "b:1")
    fleet.page("a:1", 0.0)
    fleet.page("b:1", 1.0)
    fleet.store.snapshot(2.0)
    changes = changes_of(fleet)
    fleet.store.snapshot(2.9)
    assert changes == []
    fleet.store.age(3.0)
    assert changes == ["a:1"]


def test_on_changed_is_empty_for_another_set_of_endpoints_and_for_other_limits() -> None:
    fleet = Fixture("a:1")
    changes = changes_of(fleet)
    fleet.store.set_endpoints({"a:1": "vllm", "b:1": "vllm"}, 1.0)
    fleet.store.set_limits(stale_after=5.0, rate=RateLimits(fixed=1000.0), now=2.0)
    assert changes == ["", ""]


def test_on_changed_has_each_endpoint_to_which_another_rate_of_the_pool_applies() -> None:
    fleet = Fixture("a:1", "b:1", "c:1", fixed=None)
    for address in ("a:1", "b:1"):
        fleet.page(address, 0.0, **{PROMPT_TOKENS: 0.0, PREFILLS: 0.0, PREFILL_SECONDS: 0.0})
    changes = changes_of(fleet)
    for address in ("a:1", "b:1"):
        fleet.page(address, 1.0, **{PROMPT_TOKENS: 1e6, PREFILLS: 1_000.0, PREFILL_SECONDS: 100.0})
    assert "c:1" in changes
    (_, _, of_c) = fleet.store.snapshot(1.5).endpoints
    assert of_c.work.rate_source == "pool"
