"""The index forgets an endpoint's blocks when its cache is known to be empty, and keeps them otherwise."""

from __future__ import annotations

import pytest

from agent.engines.mapping import Extraction
from agent.events import Event
from agent.events.scraping import CacheEmptied
from agent.prefix.index import PrefixIndex
from agent.signals import BLOCK_SIZE, BLOCKS, MODEL_LOADED, PREFIX_HITS, RUNNING, WAITING, Value
from agent.state.endpoint import EMPTIED
from agent.state.store import RoutingStore

A, B = "10.0.0.1:8000", "10.0.0.2:8000"
CHAIN = [1, 2, 3]
PAGE: dict[str, Value] = {RUNNING: 0.0, WAITING: 0.0, PREFIX_HITS: 5.0, BLOCKS: 1000.0, BLOCK_SIZE: 64.0}


class Fixture:
    """Two endpoints that hold one chain."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.index = PrefixIndex()
        self.store = RoutingStore("pool", stale_after=3.0, hook=self.events.append, prefix=self.index)
        self.store.set_endpoints({A: "vllm", B: "vllm"}, 0.0)
        self.at = 0.0
        for address in (A, B):
            self.page(address)
            self.index.record(address, CHAIN)

    def page(self, address: str, resets: float = 0.0, **changes: float) -> None:
        self.at += 0.1
        self.store.observed(address, Extraction({**PAGE, **changes}, (), (), cache_resets=resets), self.at, 0.01, 1000)

    def held(self) -> list[int]:
        return self.index.match(CHAIN, [A, B])

    def reasons(self) -> list[tuple[str, str]]:
        return [(event.endpoint, event.reason) for event in self.events if isinstance(event, CacheEmptied)]


def test_an_endpoint_that_is_seen_asleep_holds_nothing_and_keeps_its_capacity() -> None:
    fleet = Fixture()
    fleet.page(A, **{MODEL_LOADED: 1.0})
    assert fleet.held() == [3, 3]
    fleet.page(A, **{MODEL_LOADED: 0.0})
    assert fleet.held() == [0, 3]
    assert fleet.index.capacity(A) == 1000
    fleet.page(A, **{MODEL_LOADED: 0.0})
    fleet.page(A, **{MODEL_LOADED: 1.0})
    assert fleet.held() == [0, 3]
    assert fleet.reasons() == [(A, "asleep")]


def test_a_prompt_that_was_sent_while_the_endpoint_fell_asleep_is_forgotten_too() -> None:
    fleet = Fixture()
    fleet.page(A, **{MODEL_LOADED: 0.0})
    fleet.index.record(A, CHAIN)
    fleet.page(A, **{MODEL_LOADED: 0.0})
    assert fleet.held() == [0, 3]


def test_a_request_that_emptied_the_cache_without_the_picker_is_seen_on_the_page() -> None:
    fleet = Fixture()
    fleet.page(A, resets=0.0)
    assert fleet.held() == [3, 3]
    fleet.page(A, resets=1.0)
    assert fleet.held() == [0, 3]
    fleet.index.record(A, CHAIN)
    fleet.page(A, resets=1.0)
    assert fleet.held() == [3, 3]
    fleet.page(A, resets=3.0)
    assert fleet.held() == [0, 3]
    assert fleet.reasons() == [(A, "reset"), (A, "reset")]


def test_resets_before_the_first_page_and_pages_without_them_change_nothing() -> None:
    fleet = Fixture()
    store = RoutingStore("pool", stale_after=3.0, hook=fleet.events.append, prefix=fleet.index)
    store.set_endpoints({A: "vllm"}, 0.0)
    store.observed(A, Extraction(PAGE, (), (), cache_resets=7.0), 1.0, 0.01, 1000)
    assert fleet.held() == [3, 3]
    store.observed(A, Extraction(PAGE, (), (), cache_resets=0.0), 2.0, 0.01, 1000)  # cut off before the counter
    store.observed(A, Extraction(PAGE, (), (), cache_resets=7.0), 3.0, 0.01, 1000)
    assert fleet.held() == [3, 3]
    assert fleet.reasons() == []


def test_a_restart_is_no_reset_and_begins_to_count_again() -> None:
    fleet = Fixture()
    fleet.page(A, resets=4.0)
    fleet.index.record(A, CHAIN)
    fleet.page(A, resets=1.0, **{PREFIX_HITS: 0.0})  # the counter of hits went back
    assert fleet.held() == [0, 3]
    fleet.index.record(A, CHAIN)
    fleet.page(A, resets=1.0, **{PREFIX_HITS: 0.0})
    assert fleet.held() == [3, 3]
    assert fleet.reasons() == [(A, "reset")]


@pytest.mark.parametrize(
    ("before", "after", "emptied"),
    [
        ({"tiny": "/models/a"}, {"tiny": "/models/a"}, False),
        ({"tiny": "/models/a"}, {"tiny": "/models/b"}, True),
        ({"tiny": "/models/a"}, {"large": "/models/a"}, True),
        ({"tiny": "/models/a"}, {"tiny": "/models/a", "alias": "/models/a"}, False),
        ({"tiny": "/a", "alias": "/a"}, {"tiny": "/a"}, False),
        ({"tiny": "/a"}, {}, False),
        ({}, {"tiny": "/a"}, False),
    ],
)
def test_other_weights_have_another_cache(before: dict[str, str], after: dict[str, str], emptied: bool) -> None:
    fleet = Fixture()
    fleet.store.served_models(A, frozenset(before), 0.5, before)
    fleet.store.served_models(A, frozenset(after), 0.6, after)
    assert fleet.held() == [0 if emptied else 3, 3]
    assert fleet.reasons() == ([(A, "other_weights")] if emptied else [])


def test_the_reasons_are_those_of_the_table() -> None:
    fleet = Fixture()
    fleet.store.cache_emptied(A, "request", 1.0)
    fleet.store.cache_emptied("unknown:1", "request", 1.0)
    assert fleet.reasons() == [(A, "request")]
    assert fleet.held() == [0, 3]
    assert EMPTIED.keys() == {"asleep", "reset", "request", "other_weights"}


def test_the_engine_of_a_pool_is_the_one_that_its_endpoints_share() -> None:
    store = RoutingStore("pool", stale_after=3.0)
    assert store.shared_engine == ""
    store.set_endpoints({A: "sglang", B: "auto"}, 0.0)
    assert store.shared_engine == "sglang"
    store.recognised(B, "vllm")
    assert store.shared_engine == ""
    store.set_endpoints({B: "auto"}, 1.0)
    assert store.shared_engine == "vllm"
