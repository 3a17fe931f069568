"""Samples with time stamps: one that repeats its stamp was not measured again, and keeps its age."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from agent.engines import engine
from agent.engines.mapping import Extraction, Extractor
from agent.signals import KV_USAGE, RUNNING, WAITING, Value
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from agent.state.store import RoutingStore

A = "a:1"
STALE_AFTER = 3.0


class StampedServer:
    """A store with one endpoint, and its pages."""

    def __init__(self) -> None:
        self.store = RoutingStore("pool", stale_after=STALE_AFTER)
        self.store.set_endpoints({A: "vllm"}, 0.0)
        self.extractor = Extractor(engine("vllm"))

    def scraped(self, at: float, running: str, waiting: str = "", more: str = "") -> EndpointView:
        page = f"vllm:num_requests_running {running}\n" + (f"vllm:num_requests_waiting {waiting}\n" if waiting else "")
        self.store.observed(A, self.extractor.extract((page + more).encode(), whole=True), at, 0.0, 1)
        return self.view(at)

    def view(self, now: float) -> EndpointView:
        (view,) = self.store.snapshot(now).endpoints
        return view


def test_a_sample_whose_stamp_repeats_is_as_old_as_the_first_page_that_had_it() -> None:
    server = StampedServer()
    assert server.scraped(0.0, "4 1000", "1 1000").reading(RUNNING) == (4.0, 0.0)
    view = server.scraped(1.0, "4 1000", "2 2000")
    assert view.reading(RUNNING) == (4.0, 0.0)
    assert view.reading(WAITING) == (2.0, 1.0)
    assert server.scraped(2.0, "4 2000", "2 2000").reading(RUNNING) == (4.0, 2.0)


def test_a_server_whose_samples_all_repeat_is_blind_and_is_healthy_with_the_next_measurement() -> None:
    server = StampedServer()
    for at in range(8):
        view = server.scraped(float(at), "4 1000")
        assert view.health is (Health.HEALTHY if at < STALE_AFTER else Health.BLIND)
    assert view.fresh(RUNNING, 7.0) is None
    view = server.scraped(8.0, "4 1001")
    assert (view.health, view.reading(RUNNING)) == (Health.HEALTHY, (4.0, 8.0))


def test_a_page_of_repeated_samples_ends_the_failures_before_it_and_changes_no_reading() -> None:
    server = StampedServer()
    server.scraped(0.0, "4 1000")
    server.store.failed(A, "refused", "", 1.0, 0.0)
    assert server.view(1.0).health is Health.DOWN
    view = server.scraped(2.0, "4 1000")
    assert (view.health, view.failures, view.reading(RUNNING)) == (Health.HEALTHY, 0, (4.0, 0.0))


def test_a_sum_is_as_old_as_its_oldest_part() -> None:
    server = StampedServer()
    for at, stamps in ((0.0, (1, 1)), (1.0, (2, 1)), (2.0, (3, 2)), (3.0, (3, 3))):
        lines = "".join(f'vllm:num_requests_waiting{{engine="{at}"}} 2 {stamp}\n' for at, stamp in enumerate(stamps))
        view = server.scraped(at, "1", more=lines)
        assert view.reading(RUNNING) == (1.0, at)
        reading = view.reading(WAITING)
        assert reading is not None
        assert reading.value == 4.0
        assert reading.at == {0.0: 0.0, 1.0: 0.0, 2.0: 2.0, 3.0: 2.0}[at]


def test_the_samples_of_a_restarted_server_are_new_although_their_stamps_repeat() -> None:
    server = StampedServer()
    server.scraped(0.0, "4 1000", more="process_start_time_seconds 5\n")
    server.scraped(1.0, "4 1000", more="process_start_time_seconds 5\n")
    view = server.scraped(2.0, "4 1000", more="process_start_time_seconds 6\n")
    assert view.reading(RUNNING) == (4.0, 2.0)


def test_a_page_without_stamps_has_none() -> None:
    server = StampedServer()
    page = b"vllm:num_requests_running 4\nvllm:kv_cache_usage_perc 0.5\n"
    assert server.extractor.extract(page, whole=True).stamps == {}
    stamped = server.extractor.extract(page.replace(b" 4", b" 4 -17.5"), whole=True)
    assert stamped.stamps == {RUNNING: (b"-17.5",), KV_USAGE: (b"",)}


STAMPS = st.sampled_from(["", "1", "2"])


@given(st.lists(st.tuples(STAMPS, STAMPS).filter(any), min_size=1, max_size=12))
def test_no_reading_is_younger_than_its_stamp_and_none_is_lost(pages: list[tuple[str, str]]) -> None:
    """The oracle goes back while the stamp is the same."""
    store = RoutingStore("pool", stale_after=STALE_AFTER)
    store.set_endpoints({A: "vllm"}, 0.0)
    for at, stamps in enumerate(pages):
        values: dict[str, Value] = {RUNNING: float(at), WAITING: 1.0}
        given_stamps: Mapping[str, tuple[bytes, ...]] = {
            name: (stamp.encode(),) for name, stamp in zip((RUNNING, WAITING), stamps, strict=True)
        }
        store.observed(A, Extraction(values, (), (), {}, given_stamps), float(at), 0.0, 1)
        (view,) = store.snapshot(float(at)).endpoints
        for place, name in enumerate((RUNNING, WAITING)):
            since = at
            while stamps[place] and since and pages[since - 1][place] == stamps[place]:
                since -= 1
            reading = view.reading(name)
            assert reading is not None
            assert reading.at == since, (pages[: at + 1], name)
