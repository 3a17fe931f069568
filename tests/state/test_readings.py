"""What an endpoint's view tells of a signal, wherever its reading came from, against the obvious way to keep it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.signals import KV_USAGE, LORA_RUNNING, MODELS, RUNNING, WAITING, Reading, Value
from agent.state.store import RoutingStore

STALE_AFTER = 3.0
ADDRESS = "127.0.0.1:8000"

pages = st.dictionaries(st.sampled_from([RUNNING, WAITING, KV_USAGE]), st.sampled_from([0.0, 0.5, 1.0]))
names = st.sampled_from([frozenset[str](), frozenset({"a"}), frozenset({"a", "b"})])
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("page"), pages, names),
        st.tuples(st.just("models"), names),
        st.tuples(st.just("failure")),
    ),
    max_size=12,
)


@given(happenings)
def test_each_signal_has_its_newest_value_and_the_time_it_was_asked_for(what: list[tuple[object, ...]]) -> None:
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints({ADDRESS: "vllm"}, 0.0)
    expected: dict[str, Reading] = {}
    now = 0.0
    for event in what:
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
