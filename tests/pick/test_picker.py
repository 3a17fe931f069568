"""The decision: the candidates, the winner, and the reasons."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import NoPick, Pick
from agent.pick.picker import pick
from agent.pick.profile import BadProfile, Profile, build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS, ProfileSpec, plugin
from agent.signals import KV_USAGE, LORA_MAX, LORA_RUNNING, LORA_WAITING, MODELS, RUNNING, WAITING, Value
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from tests.fakes.views import IDLE, FixedIndex, snapshot, view

LEAST_COST, AFFINITY, BLEND = (build(PRESETS[name]) for name in ("least-cost", "affinity", "blend"))
EVERY_PRESET = pytest.mark.parametrize("profile", [LEAST_COST, AFFINITY, BLEND], ids=lambda profile: profile.name)


def request(
    request_id: str = "r",
    *,
    tokens: int = 640,
    blocks: int = 10,
    model: str = "m",
    subset: frozenset[str] | None = None,
) -> PickRequest:
    return PickRequest(request_id, model, tokens, range(blocks), 64, subset)


def choose(
    *views: EndpointView,
    profile: Profile = LEAST_COST,
    warm: dict[str, int] | None = None,
    wanted: PickRequest | None = None,
    now: float = 0.0,
) -> Pick:
    decision = pick(snapshot(*views), wanted or request(), profile, FixedIndex(warm), now)
    assert isinstance(decision, Pick), decision
    return decision


@EVERY_PRESET
def test_a_warm_endpoint_wins_when_all_are_idle(profile: Profile) -> None:
    decision = choose(view("a:1"), view("b:1"), view("c:1"), profile=profile, warm={"b:1": 10})
    assert decision.endpoint == "b:1"
    assert decision.hit_tokens == 640
    assert decision.uncached_tokens == 1
    assert not decision.left_warmest


def test_least_cost_leaves_a_warm_endpoint_when_waiting_there_costs_more_than_prefilling_again() -> None:
    decision = choose(view("a:1", backlog_seconds=5.0), view("b:1"), warm={"a:1": 10})
    assert decision.endpoint == "b:1"
    assert decision.left_warmest
    assert decision.best_hit_tokens == 640
    assert decision.decided_by == "least-cost-scorer"


def test_least_cost_is_the_published_formula() -> None:
    # w = (1.0, 0.2), u = (0.1, 0.64): W = 0.6, price = 1 + 2 x 0.6 = 2.2; costs 1.22 and 1.608.
    wanted = request(tokens=640)
    decision = choose(
        view("a:1", backlog_seconds=1.0), view("b:1", backlog_seconds=0.2), warm={"a:1": 10}, wanted=wanted
    )
    w, u = (1.0, 0.2), (0.0, 0.64)
    price = 1 + 2 * (sum(w) / 2)
    costs = [wait + price * own for wait, own in zip(w, u, strict=True)]
    expected = [1 / (1 + cost - min(costs)) for cost in costs]
    assert decision.scores["least-cost-scorer"] == pytest.approx(expected)


def test_fallbacks_are_the_next_best_candidates_within_the_subset_and_none_unless_requested() -> None:
    views = [
        view(f"{name}:1", backlog_seconds=seconds) for name, seconds in (("c", 2.0), ("a", 0.0), ("d", 3.0), ("b", 1))
    ]
    views.append(view("down:1", health=Health.DOWN))
    for count, expected in ((0, ()), (1, ("b:1",)), (2, ("b:1", "c:1")), (8, ("b:1", "c:1", "d:1"))):
        decision = pick(snapshot(*views), request(), LEAST_COST, FixedIndex(), 0.0, count)
        assert isinstance(decision, Pick)
        assert (decision.endpoint, decision.fallbacks) == ("a:1", expected)
    wanted = request(subset=frozenset({"c:1", "d:1"}))
    decision = pick(snapshot(*views), wanted, LEAST_COST, FixedIndex(), 0.0, 8)
    assert isinstance(decision, Pick)
    assert (decision.endpoint, decision.fallbacks) == ("c:1", ("d:1",))


def test_congestion_makes_a_warm_cache_worth_more() -> None:
    def where(crowd: float) -> str:
        others = [view(f"x{i}:1", backlog_seconds=crowd) for i in range(2)]
        warm_one, cold_one = view("warm:1", backlog_seconds=crowd + 1.0), view("cold:1", backlog_seconds=crowd)
        return choose(warm_one, cold_one, *others, warm={"warm:1": 10}).endpoint

    assert where(0.0) != "warm:1"
    assert where(5.0) == "warm:1"


def test_affinity_stays_warm_until_the_penalty_is_reached() -> None:
    warm = {"a:1": 8}
    assert choose(view("a:1", backlog_seconds=4.9), view("b:1"), profile=AFFINITY, warm=warm).endpoint == "a:1"
    assert choose(view("a:1", backlog_seconds=5.1), view("b:1"), profile=AFFINITY, warm=warm).endpoint == "b:1"


def test_affinity_needs_its_threshold_of_the_prompt() -> None:
    assert choose(view("a:1", backlog_seconds=1.0), view("b:1"), profile=AFFINITY, warm={"a:1": 7}).endpoint == "b:1"


def test_blend_weighs_queue_cache_and_prefix_by_the_reference_formulas() -> None:
    busy = {**IDLE, WAITING: 4.0, KV_USAGE: 0.5}
    decision = choose(view("a:1", busy), view("b:1"), profile=BLEND, warm={"a:1": 5})
    assert decision.scores["queue-scorer"] == [0.0, 1.0]
    assert decision.scores["kv-cache-utilization-scorer"] == [0.5, 1.0]
    assert decision.scores["prefix-cache-scorer"] == [0.5, 0.0]
    assert decision.totals == [2 * 0.0 + 2 * 0.5 + 3 * 0.5, 2 * 1.0 + 2 * 1.0 + 3 * 0.0]


@EVERY_PRESET
def test_equal_endpoints_share_requests_evenly_and_a_tie_is_always_broken_the_same_way(profile: Profile) -> None:
    views = [view(f"e{i}:1") for i in range(4)]
    picks = [choose(*views, profile=profile, wanted=request(f"request-{i}")) for i in range(4000)]
    assert {each.decided_by for each in picks} == {"tie"}
    shares = Counter(each.endpoint for each in picks)
    assert all(850 < shares[each.address] < 1150 for each in views)
    assert choose(*views, profile=profile, wanted=request("request-7")).endpoint == picks[7].endpoint


def test_a_single_candidate_is_decided_by_only_candidate() -> None:
    assert choose(view("a:1")).decided_by == "only_candidate"


@pytest.mark.parametrize("health", [Health.UNKNOWN, Health.STALE, Health.DOWN])
@EVERY_PRESET
def test_an_endpoint_that_is_not_healthy_is_never_picked_however_warm(profile: Profile, health: Health) -> None:
    decision = choose(view("a:1", health=health), view("b:1", backlog_seconds=50.0), profile=profile, warm={"a:1": 10})
    assert decision.endpoint == "b:1"


def test_no_pick_counts_the_endpoints_by_health() -> None:
    none = pick(
        snapshot(view("a:1", health=Health.DOWN), view("b:1", health=Health.STALE)),
        request(),
        LEAST_COST,
        FixedIndex(),
        0.0,
    )
    assert none == NoPick("r", "none_healthy", "none of the endpoints of pool pool can be picked: 1 down, 1 stale")


def test_an_empty_pool_has_a_reason_of_its_own() -> None:
    none = pick(snapshot(), request(), LEAST_COST, FixedIndex(), 0.0)
    assert isinstance(none, NoPick)
    assert none.reason == "no_endpoints"


def test_a_subset_is_binding_and_an_empty_one_has_a_reason_of_its_own() -> None:
    views = view("a:1"), view("b:1")
    assert choose(*views, wanted=request(subset=frozenset({"b:1", "z:1"})), warm={"a:1": 10}).endpoint == "b:1"
    for subset in (frozenset[str](), frozenset({"z:1"})):
        none = pick(snapshot(*views), request(subset=subset), LEAST_COST, FixedIndex(), 0.0)
        assert isinstance(none, NoPick)
        assert none.reason == "subset_empty"


def test_a_request_goes_where_its_model_is_served_and_anywhere_when_no_endpoint_is_known_to() -> None:
    has = view("a:1", {**IDLE, MODELS: frozenset({"base", "lora-a"})}, backlog_seconds=9.0)
    lacks = view("b:1", {**IDLE, MODELS: frozenset({"base"})})
    assert choose(has, lacks, wanted=request(model="lora-a")).endpoint == "a:1"
    assert choose(has, lacks, wanted=request(model="base")).endpoint == "b:1"
    assert choose(has, lacks, wanted=request(model="unknown")).endpoint == "b:1"


def test_an_adapter_prefers_active_then_a_free_slot_then_waiting_then_none() -> None:
    def server(address: str, running: set[str], waiting: set[str], slots: float) -> EndpointView:
        values: dict[str, Value] = {LORA_MAX: slots, LORA_RUNNING: frozenset(running), LORA_WAITING: frozenset(waiting)}
        return view(address, {**IDLE, **values})

    views = (
        server("active:1", {"x"}, set(), 2),
        server("free:1", {"y"}, set(), 2),
        server("coming:1", {"y"}, {"x"}, 1),
        server("full:1", {"y"}, set(), 1),
    )
    decision = choose(*views, wanted=request(model="x"))
    scores = dict(zip(decision.addresses, decision.scores["lora-affinity-scorer"], strict=True))
    assert scores == {"active:1": 1.0, "free:1": 0.8, "coming:1": 0.6, "full:1": 0.0}
    assert decision.endpoint == "active:1"
    assert "lora-affinity-scorer" not in choose(*views, wanted=request(model="base")).scores


def test_an_unknown_or_stale_signal_gets_the_lowest_known_score() -> None:
    silent = view("a:1", {RUNNING: 0.0})
    stale = view("b:1", {**IDLE, KV_USAGE: 0.0}, at=-10.0)
    decision = choose(
        silent, stale, view("c:1", {**IDLE, KV_USAGE: 0.9}), view("d:1", {**IDLE, KV_USAGE: 0.3}), profile=BLEND
    )
    assert decision.scores["kv-cache-utilization-scorer"] == pytest.approx([0.1, 0.1, 0.1, 0.7])


def test_a_signal_that_no_candidate_has_gives_its_scorer_no_opinion() -> None:
    decision = choose(view("a:1", {WAITING: 1.0}), view("b:1", {WAITING: 0.0}), profile=BLEND)
    assert set(decision.scores) == {"queue-scorer"}


def test_a_backlog_that_no_page_corrects_counts_as_the_largest_of_the_others() -> None:
    views = view("a:1", corrected=False), view("b:1", backlog_seconds=2.0), view("c:1", backlog_seconds=1.0)
    assert choose(*views, warm={}).endpoint == "c:1"
    alone = view("a:1", corrected=False), view("b:1", corrected=False, backlog_seconds=1.0)
    assert choose(*alone).endpoint == "a:1"


def test_the_wait_in_a_queue_of_others_is_a_wait_for_every_scorer_and_filter_that_reads_the_backlog() -> None:
    full, idle = view("a:1", queue_seconds=6.0, foreign=11.0), view("b:1")
    for profile in (LEAST_COST, AFFINITY):
        assert choose(full, idle, profile=profile, warm={"a:1": 10}).endpoint == "b:1"


def test_requests_of_others_cost_at_least_as_much_as_the_agents_own() -> None:
    for ours, theirs, cost in ((3, 0.0, 0.015), (0, 3.0, 0.09), (1, 2.0, 0.065)):
        busy = view("a:1", requests=ours, foreign=theirs)
        decision = choose(busy, view("b:1", requests=2))
        assert decision.endpoint == "b:1"
        assert decision.scores["least-cost-scorer"] == pytest.approx([1 / (1 + cost - 0.01), 1.0])


def test_the_running_requests_scorer_counts_the_larger_of_the_page_and_the_load() -> None:
    profile = build(ProfileSpec("p", (), ((plugin("running-requests-size-scorer"), 1.0),)))
    decision = choose(
        view("a:1", {**IDLE, RUNNING: 8.0}, requests=2, foreign=2.0),
        view("b:1", {**IDLE, RUNNING: 2.0}, requests=1, foreign=3.0),
        view("c:1", {**IDLE, RUNNING: 0.0}),
        profile=profile,
    )
    assert decision.scores["running-requests-size-scorer"] == [0.0, 0.5, 1.0]


def test_a_shared_prefix_leaves_a_busy_server_before_a_conversation_does() -> None:
    # w = (0.7, 0.0), u = (0.1, 0.74) at 1,000 tokens/s: a conversation pays 1 + 2 x 0.35 = 1.7 s for each second of u
    # everywhere; a shared prefix 2.4 s at the busy server and 1 s at the idle one.
    hot, idle = view("a:1", backlog_seconds=0.7), view("b:1")
    wanted = request(tokens=740)
    found = {}
    for shared in (False, True):
        index = FixedIndex({"a:1": 10}, all_shared=shared)
        decision = pick(snapshot(hot, idle), wanted, LEAST_COST, index, 0.0)
        assert isinstance(decision, Pick)
        found[shared] = decision
        assert decision.shared_prefix is shared
    assert [found[shared].endpoint for shared in (False, True)] == ["a:1", "b:1"]
    costs = [0.7 + 2.4 * 0.1, 0.74]
    best = min(costs)
    assert found[True].scores["least-cost-scorer"] == pytest.approx([1 / (1 + cost - best) for cost in costs])


def test_one_flag_of_the_snapshot_spares_the_pick_the_checks_and_changes_nothing() -> None:
    fleet = snapshot(view("a:1", backlog_seconds=0.4, requests=2), view("b:1", backlog_seconds=0.1), view("c:1"))
    picks = [
        pick(fleet._replace(only_prefill=flag), request(), LEAST_COST, FixedIndex({"a:1": 5}), 0.0)
        for flag in (False, True)
    ]
    assert picks[0] == picks[1]


def test_an_endpoint_whose_queue_is_unknown_has_the_foreign_requests_of_the_busiest() -> None:
    unseen = view("a:1", requests=3, corrected=False)
    busiest = view("b:1", requests=1, foreign=9.0, queue_seconds=5.0)
    decision = choose(unseen, busiest, view("c:1", queue_seconds=1.0, foreign=3.0))
    # Each of the ten requests at b:1 costs half a second of its wait; a:1 has twelve.
    assert list(decision.backlog_seconds) == pytest.approx([6.0, 5.0, 1.0])
    assert [work.load for work in decision.works] == [12.0, 10.0, 3.0]


def test_an_unknown_queue_and_the_busiest_share_requests_evenly() -> None:
    sent = {"a:1": 0, "b:1": 0}
    for number in range(40):
        unseen = view("a:1", requests=sent["a:1"], corrected=False)
        waits = 2.0 + 0.5 * sent["b:1"]
        busy = view("b:1", requests=sent["b:1"], foreign=4.0, queue_seconds=waits)
        sent[choose(unseen, busy, wanted=request(f"r{number}")).endpoint] += 1
    assert min(sent.values()) >= 15


@st.composite
def fleets(draw: st.DrawFn) -> list[EndpointView]:
    views = []
    for i in range(draw(st.integers(1, 6))):
        values: dict[str, Value] = {}
        if draw(st.booleans()):
            values[WAITING] = draw(st.floats(0, 1e7))
        if draw(st.booleans()):
            values[KV_USAGE] = draw(st.floats(0, 1))
        if draw(st.booleans()):
            values[LORA_MAX], values[LORA_RUNNING] = 1.0, frozenset(draw(st.sets(st.sampled_from("mxy"))))
        views.append(
            view(
                f"e{i}:1",
                values,
                at=draw(st.floats(-5, 0)),
                health=draw(st.sampled_from([Health.HEALTHY, Health.HEALTHY, Health.DOWN])),
                backlog_seconds=draw(st.floats(0, 1e4)),
                rate=draw(st.floats(1, 1e6)),
                corrected=draw(st.booleans()),
            )
        )
    return views


@EVERY_PRESET
@given(
    views=fleets(),
    tokens=st.integers(0, 1 << 20),
    warm=st.dictionaries(st.sampled_from(["e0:1", "e2:1"]), st.integers(0, 9)),
)
def test_whatever_the_fleet_a_pick_is_a_healthy_endpoint_with_scores_from_0_to_1(
    profile: Profile, views: list[EndpointView], tokens: int, warm: dict[str, int]
) -> None:
    decision = pick(snapshot(*views), request(tokens=tokens), profile, FixedIndex(warm), 0.0)
    healthy = {each.address for each in views if each.health is Health.HEALTHY}
    if not healthy:
        assert isinstance(decision, NoPick)
        return
    assert isinstance(decision, Pick)
    assert decision.endpoint in healthy
    assert len(decision.addresses) == len(decision.totals)
    for scores in decision.scores.values():
        assert len(scores) == len(decision.addresses)
        assert all(0.0 <= score <= 1.0 for score in scores)
    place = list(decision.addresses).index(decision.endpoint)
    assert decision.totals[place] >= max(decision.totals) - 1e-9
    again = pick(snapshot(*reversed(views)), request(tokens=tokens), profile, FixedIndex(warm), 0.0)
    assert again == decision


@given(backlog=st.floats(0, 100), more=st.floats(0, 100), hit=st.integers(0, 9))
def test_a_larger_backlog_or_a_smaller_prefix_hit_never_wins_a_request(backlog: float, more: float, hit: int) -> None:
    better, worse = view("a:1", backlog_seconds=backlog), view("b:1", backlog_seconds=backlog + more)
    decision = choose(better, worse, warm={"a:1": hit + 1, "b:1": hit})
    assert decision.endpoint == "a:1"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (ProfileSpec("p", (), ()), "profile p has no scorer: write at least one of"),
        (ProfileSpec("p", (), ((plugin("quue-scorer"), 1.0),)), "there is no scorer of type 'quue-scorer': it can be"),
        (
            ProfileSpec("p", (plugin("no-filter"),), ()),
            "there is no filter of type 'no-filter': it can be accelerator-utilization-filter, prefix-",
        ),
        (
            ProfileSpec("p", (), ((plugin("queue-scorer"), -1.0),)),
            "weight is -1.0: write a number that is not negative",
        ),
        (
            ProfileSpec("p", (), ((plugin("queue-scorer"), float("nan")),)),
            "weight is nan: write a number that is not negative",
        ),
        (
            ProfileSpec("p", (), ((plugin("queue-scorer", a=1), 1.0),)),
            "a is not a parameter here: it takes no parameters",
        ),
        (
            ProfileSpec("p", (), ((plugin("least-cost-scorer", kappaPerSecond="two"), 1.0),)),
            "kappaPerSecond is 'two': write a number",
        ),
        (
            ProfileSpec(
                "p", (plugin("prefix-cache-affinity-filter", affinityThreshold=2),), ((plugin("queue-scorer"), 1.0),)
            ),
            "affinityThreshold is 2: write a number from 0 to 1",
        ),
    ],
)
def test_the_error_of_a_bad_profile_says_what_to_write(spec: ProfileSpec, sentence: str) -> None:
    with pytest.raises(BadProfile) as bad:
        build(spec)
    assert sentence in str(bad.value)


def test_an_adapter_that_only_a_stale_page_names_is_not_scored() -> None:
    values: dict[str, Value] = {LORA_MAX: 2.0, LORA_RUNNING: frozenset({"x"}), LORA_WAITING: frozenset()}
    stale = view("a:1", {**IDLE, **values}, at=-10.0)
    assert "lora-affinity-scorer" not in choose(stale, view("b:1"), wanted=request(model="x")).scores


def test_of_two_endpoints_that_cost_the_same_the_one_with_fewer_requests_is_picked() -> None:
    assert choose(view("a:1", requests=9), view("b:1", requests=8)).endpoint == "b:1"
    assert choose(view("a:1", requests=9), view("b:1", backlog_seconds=0.1), warm={"a:1": 10}).endpoint == "a:1"
