"""The batch of a server as its pages show it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.state.batch_size import SATURATED_KV_USAGE, SATURATED_WAITING, UNKNOWN, BatchSize


def observe(batch: BatchSize, running: float | None, waiting: float, kv: float | None = None) -> float:
    return batch.observe(running, waiting, kv, None)


def test_a_queue_on_the_first_page_shows_a_full_batch() -> None:
    assert observe(BatchSize(), 8.0, 3.0) == 0.0


def test_without_a_queue_nothing_shows_the_size() -> None:
    assert observe(BatchSize(), 8.0, 0.0) == UNKNOWN


def test_a_server_that_ran_more_before_has_free_slots() -> None:
    batch = BatchSize()
    observe(batch, 20.0, 0.0)
    assert observe(batch, 8.0, 1.0) == 12.0


def test_the_same_number_beside_two_queues_is_the_size_also_without_one() -> None:
    batch = BatchSize()
    observe(batch, 8.0, 3.0)
    assert observe(batch, 8.0, 0.0) == UNKNOWN
    observe(batch, 8.0, 1.0)
    assert observe(batch, 8.0, 0.0) == 0.0
    assert observe(batch, 5.0, 0.0) == 3.0


def test_a_size_that_is_exceeded_is_none() -> None:
    batch = BatchSize()
    observe(batch, 8.0, 3.0)
    observe(batch, 8.0, 3.0)
    assert observe(batch, 9.0, 0.0) == UNKNOWN


def test_a_long_queue_or_a_full_kv_cache_is_a_full_batch_whatever_ran_before() -> None:
    for waiting, kv in ((SATURATED_WAITING, None), (1.0, SATURATED_KV_USAGE)):
        batch = BatchSize()
        observe(batch, 20.0, 0.0)
        assert observe(batch, 8.0, waiting, kv) == 0.0


def test_a_page_that_has_the_usage_of_the_slots_has_the_size() -> None:
    assert BatchSize().observe(6.0, 0.0, None, 0.75) == 2.0
    assert BatchSize().observe(8.0, 0.0, None, 1.0) == 0.0
    assert BatchSize().observe(0.0, 0.0, None, 0.0) == UNKNOWN


def test_unknown_running_requests_beside_a_queue_are_a_full_batch() -> None:
    assert observe(BatchSize(), None, 1.0) == 0.0
    assert observe(BatchSize(), None, 0.0) == UNKNOWN
    assert BatchSize().observe(None, 0.0, None, 1.0) == 0.0


def test_after_a_reset_the_size_is_unknown() -> None:
    batch = BatchSize()
    observe(batch, 8.0, 3.0)
    observe(batch, 8.0, 3.0)
    batch.reset()
    assert observe(batch, 8.0, 0.0) == UNKNOWN
    assert batch.largest == 8.0


COUNTS = st.one_of(st.none(), st.integers(0, 300).map(float))
RATIOS = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(st.tuples(COUNTS, st.integers(0, 50).map(float), RATIOS, RATIOS), max_size=20))
def test_free_slots_are_never_negative_and_never_more_than_the_largest_batch(
    pages: list[tuple[float | None, float, float | None, float | None]],
) -> None:
    batch = BatchSize()
    for running, waiting, kv, slots in pages:
        free = batch.observe(running, waiting, kv, slots)
        assert free >= 0
        if slots is None and free != UNKNOWN:
            assert free <= batch.largest


@given(st.floats(0, 1), st.integers(0, 300), st.integers(0, 300), st.integers(1, 50))
def test_losing_the_running_requests_beside_a_queue_never_shows_more_free_slots(
    kv: float, before: int, running: int, waiting: int
) -> None:
    known, unknown = BatchSize(), BatchSize()
    for batch in (known, unknown):
        batch.observe(float(before), 0.0, kv, None)
    lost = unknown.observe(None, float(waiting), kv, None)
    assert lost <= known.observe(float(running), float(waiting), kv, None)


def test_what_another_observer_has_seen_of_the_server_is_added_whatever_the_order() -> None:
    one, other = BatchSize(), BatchSize()
    for batch, running in ((one, 8.0), (other, 6.0)):
        for _ in range(2):
            observe(batch, running, 1.0)
    observe(other, 7.0, 0.0)
    shown = one.shown(), other.shown()
    one.adopt(*shown[1])
    other.adopt(*shown[0])
    assert one.shown() == other.shown() == (8.0, 8.0, 2)
    assert observe(other, 5.0, 0.0) == 3.0
