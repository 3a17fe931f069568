"""The readings of an endpoint's view, from pages and other sources, against a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.signals import KV_USAGE, LORA_RUNNING, MODEL_LOADED, MODELS, RUNNING, WAITING, Reading, Value
from agent.state.health import Health
from agent.state.store import RoutingStore

STALE_AFTER = 3.0
ADDRESS = "127.0.0.1:8000"

pages = st.dictionaries(st.sampled_from([RUNNING, WAITING, KV_USAGE]), st.sampled_from([0.0, 0.5, 1.0]))
names = st.sampled_from([frozenset[str](), frozenset({"a"}), frozenset({"a", "b"})])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("page"), pages, names),
        st.tuples(st.just("models"), names),
        st.tuples(st.just("failure")),
    ),
    max_size=12,
)


@given(steps)
def test_each_signal_has_its_newest_value_and_the_time_of_its_request(taken: list[tuple[object, ...]]) -> None:
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints({ADDRESS: "vllm"}, 0.0)
    expected: dict[str, Reading] = {}
    now = 0.0
    for event in taken:
        now += 1.0
        match event:
            case ("page", dict(values), frozenset(running)):
                brought: dict[str, Value] = {**values, LORA_RUNNING: running}
                store.observed(ADDRESS, Extraction(dict(brought), (), ()), now, 0.01, 100)
                expected.update({signal: Reading(value, now) for signal, value in brought.items()})
            case ("models", frozenset(served)):
                store.served_models(ADDRESS, served, now)
                expected[MODELS] = Reading(served, now)
            case _:
                store.failed(ADDRESS, "timeout", "", now, 0.01)
        at = now + 0.5
        (view,) = store.snapshot(at).endpoints
        assert view.readings == expected
        for signal in (RUNNING, WAITING, KV_USAGE, LORA_RUNNING, MODELS):
            assert view.reading(signal) == expected.get(signal)
            known = expected.get(signal)
            fresh = known is not None and at - known.at < STALE_AFTER
            assert view.fresh(signal, at) == (known.value if known is not None and fresh else None)


moments = st.lists(
    st.tuples(
        st.sampled_from(["page", "failure", "no metrics", "refused", "nothing"]),
        st.integers(0, 2),
        st.sampled_from([0.1, 4.0]),
    ),
    max_size=12,
)


@given(moments)
def test_the_snapshot_lists_its_addresses_as_picked_exactly_while_every_endpoint_is_healthy_or_blind(
    taken: list[tuple[str, int, float]],
) -> None:
    addresses = [f"10.0.0.{number}:8000" for number in range(3)]
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints(dict.fromkeys(addresses, "vllm"), 0.0)
    now = 0.0
    for address in addresses:
        store.observed(address, Extraction({RUNNING: 0.0}, (), ()), now, 0.0, 100)
    for kind, number, passed in taken:
        now += passed
        if kind == "page":
            store.observed(addresses[number], Extraction({RUNNING: 1.0}, (), ()), now, 0.0, 100)
        elif kind != "nothing":
            reason = {"refused": "refused", "failure": "timeout", "no metrics": "status"}[kind]
            store.failed(addresses[number], reason, "", now, 0.0)
        snapshot = store.snapshot(now)
        picked = all(view.health in {Health.HEALTHY, Health.BLIND} for view in snapshot.endpoints)
        assert snapshot.picked_addresses == (tuple(addresses) if picked else ())
        assert snapshot.addresses == tuple(addresses)


def test_a_server_that_sleeps_is_not_picked_until_it_wakes() -> None:
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints({ADDRESS: "vllm"}, 0.0)
    seen = []
    for at, loaded in ((0.0, 1.0), (1.0, 0.0), (2.0, 1.0)):
        store.observed(ADDRESS, Extraction({RUNNING: 0.0, MODEL_LOADED: loaded}, (), ()), at, 0.01, 100)
        (view,) = store.snapshot(at + 0.5).endpoints
        seen.append((view.health.value, view.reason))
    assert seen == [("healthy", ""), ("down", "asleep"), ("healthy", "")]


def test_a_sleeping_server_without_a_fresh_page_is_stale() -> None:
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints({ADDRESS: "vllm"}, 0.0)
    store.observed(ADDRESS, Extraction({RUNNING: 0.0, MODEL_LOADED: 0.0}, (), ()), 0.0, 0.01, 100)
    assert store.snapshot(1.0).endpoints[0].reason == "asleep"
    assert store.snapshot(STALE_AFTER).endpoints[0].health is Health.STALE
