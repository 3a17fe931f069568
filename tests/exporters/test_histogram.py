"""Our histograms are those of the client library, without its cost."""

from __future__ import annotations

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from agent.instruments.histogram import BucketHistogram

bounds = st.lists(st.floats(0, 1e6), min_size=1, max_size=6, unique=True).map(lambda found: tuple(sorted(found)))
observed = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e7)), max_size=20)


def without_created(page: bytes) -> list[bytes]:
    return [line for line in page.splitlines() if b"_created" not in line]


@given(bounds, observed)
def test_the_page_is_that_of_the_client_library(buckets: tuple[float, ...], values: list[tuple[str, float]]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = prometheus_client.Histogram("h", "help", ["label"], buckets=buckets, registry=theirs)
    made = BucketHistogram("h", "help", ("label",), buckets)
    ours.register(made)
    for label, value in values:
        reference.labels(label).observe(value)
        made.labels(label).observe(value)
    assert without_created(generate_latest(ours)) == without_created(generate_latest(theirs))


def test_a_metric_without_labels_is_there_from_the_start_and_a_removed_series_is_gone() -> None:
    registry = CollectorRegistry()
    registry.register(BucketHistogram("h", "help", (), (1.0,)))
    assert registry.get_sample_value("h_count") == 0
    labelled = BucketHistogram("g", "help", ("label",), (1.0,))
    registry.register(labelled)
    labelled.labels("a").observe(2.0)
    labelled.labels("b").observe(2.0)
    labelled.remove("a")
    labelled.remove("unknown")
    assert registry.get_sample_value("g_count", {"label": "a"}) is None
    assert registry.get_sample_value("g_bucket", {"label": "b", "le": "+Inf"}) == 1
    labelled.clear()
    assert registry.get_sample_value("g_count", {"label": "b"}) is None
