"""Optional histograms of a page, compared with the client library's parser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.engines import engine
from agent.engines.histograms import HistogramReader
from agent.engines.mapping import NO_HISTOGRAMS, Extractor, LayoutCache
from agent.signals import FIRST_TOKEN_SECONDS, FIRST_TOKEN_WAIT, HISTOGRAMS, QUEUE_SECONDS, Histogram, RefusedValue

PAGE = (Path(__file__).parents[1] / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom").read_bytes()
VLLM = engine("vllm")
FAMILY = "vllm:time_to_first_token_seconds"


def oracle(page: bytes, family: str) -> Histogram:
    """The sum of all histograms of the family, as the client library reads them."""
    (found,) = [each for each in text_string_to_metric_families(page.decode()) if each.name == family]
    bounds = sorted({float(sample.labels["le"]) for sample in found.samples if sample.name.endswith("_bucket")})[:-1]
    counts = tuple(
        sum(
            sample.value
            for sample in found.samples
            if sample.name.endswith("_bucket") and float(sample.labels["le"]) == bound
        )
        for bound in bounds
    )
    total = sum(sample.value for sample in found.samples if sample.name.endswith("_count"))
    whole = sum(sample.value for sample in found.samples if sample.name.endswith("_sum"))
    return Histogram(tuple(bounds), counts, total, whole)


def written(family: str, bounds: Sequence[str], groups: Sequence[Sequence[float]], sums: Sequence[float]) -> bytes:
    """A page with one histogram per group of cumulative counts, whose last one is the total."""
    lines = ["vllm:num_requests_running 1", f"# TYPE {family} histogram"]
    for engine_number, (counts, whole) in enumerate(zip(groups, sums, strict=True)):
        for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
            lines.append(f'{family}_bucket{{engine="{engine_number}",le="{bound}"}} {count}')
        lines.append(f'{family}_count{{engine="{engine_number}"}} {counts[-1]}')
        lines.append(f'{family}_sum{{engine="{engine_number}"}} {whole}')
    return ("\n".join(lines) + "\n").encode()


def read(page: bytes, *, whole: bool = True, signal: str = FIRST_TOKEN_SECONDS) -> Histogram | RefusedValue | None:
    distributions = HistogramReader(VLLM, [signal]).read(page, whole=whole)
    return distributions.refused[0] if distributions.refused else distributions.found[signal]


@pytest.mark.parametrize("signal", sorted(HISTOGRAMS))
def test_the_recorded_page_is_read_as_the_client_library_reads_it(signal: str) -> None:
    assert read(PAGE, signal=signal) == oracle(PAGE, VLLM.histograms[signal][0])


def test_an_extractor_without_histograms_reads_none() -> None:
    extractor = Extractor(VLLM)
    assert extractor.extract(PAGE, whole=True).histograms is NO_HISTOGRAMS
    assert not any("_bucket" in name for name in extractor._scanner._names)


def test_reading_histograms_changes_no_other_reading() -> None:
    memory = LayoutCache(VLLM)
    with_histograms = Extractor(VLLM, memory, tuple(HISTOGRAMS)).extract(PAGE, whole=True)
    assert with_histograms._replace(histograms=NO_HISTOGRAMS) == Extractor(VLLM, memory).extract(PAGE, whole=True)
    assert None not in with_histograms.histograms.values()


def test_a_histogram_that_is_not_on_the_page_is_none_without_a_refusal() -> None:
    distributions = HistogramReader(VLLM, [QUEUE_SECONDS]).read(b"vllm:num_requests_running 1\n", whole=True)
    assert (distributions.found, distributions.refused) == ({QUEUE_SECONDS: None}, ())


counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(
    lambda steps: [float(sum(steps[: place + 1])) for place in range(4)]
)


@given(st.lists(st.tuples(counts, st.floats(0, 1e9)), min_size=1, max_size=4))
def test_the_histograms_of_several_engines_are_added_up(groups: list[tuple[list[float], float]]) -> None:
    page = written(FAMILY, ("0.1", "1.0", "10.0"), [counts for counts, _ in groups], [whole for _, whole in groups])
    expected = oracle(page, FAMILY)
    found = read(page)
    assert isinstance(found, Histogram)
    assert found._replace(sum=0.0) == expected._replace(sum=0.0)
    assert found.sum == pytest.approx(expected.sum)


@given(st.data())
def test_a_known_layout_gives_the_same_histograms_as_a_full_scan(data: st.DataObject) -> None:
    remembering = HistogramReader(VLLM, [FIRST_TOKEN_SECONDS])
    for _ in range(4):
        groups = data.draw(st.lists(counts, min_size=1, max_size=3))
        page = written(FAMILY, ("0.1", "1.0", "10.0"), groups, [1.5] * len(groups))
        assert remembering.read(page, whole=True).found[FIRST_TOKEN_SECONDS] == read(page)


OTHER_BOUNDS = (
    written(FAMILY, ("0.5",), [[1.0, 2.0]], [1.0]).replace(b'engine="0"', b'engine="1"').partition(b"histogram\n")[2]
)
GOOD = written(FAMILY, ("0.1", "1.0"), [[1.0, 2.0, 3.0]], [4.5])


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (GOOD.replace(b'"1.0"} 2.0', b'"1.0"} 0.0'), "not_a_histogram"),
        (GOOD.replace(b'"+Inf"} 3.0', b'"+Inf"} 5.0'), "not_a_histogram"),
        (GOOD.replace(b'"0.1"} 1.0', b'"0.1"} NaN'), "not_a_histogram"),
        (GOOD.replace(b'"0.1"} 1.0', b'"0.1"} -1'), "not_a_histogram"),
        (GOOD.replace(b"} 4.5", b"} NaN"), "not_a_histogram"),
        (GOOD.replace(b'le="0.1"', b'le="low"'), "not_a_histogram"),
        (GOOD.replace(b'le="0.1"', b'le="1"'), "not_a_histogram"),
        (GOOD.replace(b'le="+Inf"', b'le="9"'), "not_a_histogram"),
        (b"\n".join(line for line in GOOD.split(b"\n") if b"_sum" not in line), "not_a_histogram"),
        (GOOD.replace(b'"0.1"} 1.0', b'"0.1"} one'), "bad_line"),
        (GOOD.replace(b'le="0.1"', b'le="1.0"'), "duplicate_series"),
        (GOOD + OTHER_BOUNDS, "disagreement"),
    ],
)
def test_an_inconsistent_histogram_is_refused_and_the_signals_are_read(page: bytes, reason: str) -> None:
    found = Extractor(VLLM, histograms=(FIRST_TOKEN_SECONDS,)).extract(page, whole=True)
    refused = [refusal for refusal in found.refused if refusal.signal != FIRST_TOKEN_WAIT]  # the sum is a signal too
    assert [(refusal.signal, refusal.reason) for refusal in refused] == [(FIRST_TOKEN_SECONDS, reason)]
    assert found.histograms == {FIRST_TOKEN_SECONDS: None}
    assert found.readings["running_requests"] == 1.0


def test_a_page_cut_at_any_line_never_gives_a_partial_histogram() -> None:
    page = written(FAMILY, ("0.1", "1.0"), [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], [4.5, 0.5]) + b"vllm:other 1\n"
    for cut in (place for place in range(40, len(page)) if page[place - 1] == 10):
        found = read(page[:cut], whole=False)
        assert found in {None, read(page)} or isinstance(found, RefusedValue), page[:cut]
