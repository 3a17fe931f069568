"""The parts of the scrape bench: generated pages, statistics of ages, and their picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.signals import SIGNALS, START_TIME, SignalKind
from tests.bench.age_picture import ChartPanel, svg
from tests.bench.ages import AgeSample, AgeSpread, by_second, percentile, sample_times, spread
from tests.bench.nginx_fleet import PAGE, PAGES, addresses, nginx_conf
from tests.bench.pages import MissingSample, sequence
from tests.bench.programs import ROOT

AGES = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=200)


@pytest.fixture(scope="module")
def pages() -> list[bytes]:
    return list(sequence(PAGE.read_bytes(), PAGES))


# -- pages -------------------------------------------------------------------------------------------------------------


def test_each_page_differs_from_the_previous_one_in_most_readings(pages: list[bytes]) -> None:
    extractor = Extractor(engine("vllm"))
    read = [extractor.extract(page, whole=True).readings for page in pages]
    changed = [sum(after[signal] != value for signal, value in before.items()) for before, after in pairwise(read)]
    assert min(changed) >= 8
    assert len({readings[START_TIME] for readings in read}) == 1


def test_no_reading_is_refused_and_no_counter_decreases(pages: list[bytes]) -> None:
    extractor = Extractor(engine("vllm"))
    last: dict[str, float] = {}
    for page in pages:
        extraction = extractor.extract(page, whole=True)
        assert not extraction.refused
        assert not extraction.missing
        for signal, value in extraction.readings.items():
            if SIGNALS[signal].kind is SignalKind.COUNTER:
                assert isinstance(value, float)
                assert value >= last.get(signal, 0.0)
                last[signal] = value


@pytest.mark.parametrize("step", [0, 1, 500, PAGES - 1])
def test_a_page_has_the_recorded_series_and_consistent_histograms(pages: list[bytes], step: int) -> None:
    recorded = {(s.name, tuple(s.labels.items())) for f in families(PAGE.read_bytes()) for s in f.samples}
    found = families(pages[step])
    assert {(s.name, tuple(s.labels.items())) for f in found for s in f.samples} == recorded
    for family in found:
        if family.type == "histogram":
            buckets: dict[tuple[str, ...], list[float]] = {}
            for sample in family.samples:
                labels = tuple(f"{key}={value}" for key, value in sample.labels.items() if key != "le")
                if sample.name.endswith("_bucket"):
                    buckets.setdefault(labels, []).append(sample.value)
                elif sample.name.endswith("_count"):
                    assert buckets[labels][-1] == sample.value
            assert all(counts == sorted(counts) for counts in buckets.values())


def families(page: bytes) -> list:
    return list(text_string_to_metric_families(page.decode()))


def test_a_page_of_another_server_is_refused_with_the_missing_sample() -> None:
    with pytest.raises(MissingSample, match="vllm:kv_cache_usage_perc"):
        list(sequence(b"sglang:num_running_reqs 1\n", 1))


def test_every_endpoint_has_its_own_loopback_address() -> None:
    found = addresses(1, 100_000)
    assert len(set(found)) == 100_000
    assert all(all(0 <= int(part) < 255 for part in one.partition(":")[0].split(".")) for one in found)
    assert all(one.startswith("127.") for one in found)


def test_the_server_selects_pages_by_the_last_digits() -> None:
    assert r"\d{1,3}" in nginx_conf(1)
    assert PAGES == 1000


# -- ages --------------------------------------------------------------------------------------------------------------


@given(AGES, st.floats(min_value=0, max_value=1))
def test_a_percentile_is_one_of_the_values_at_its_rank(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values)
    assert sum(value < found for value in values) <= part * len(values)


def test_without_values_there_is_no_percentile_and_no_spread() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    assert spread([]) is None
    assert spread([AgeSample(0.1, [])]) is None


def test_ages_are_grouped_by_second_without_empty_ones() -> None:
    samples = [AgeSample(0.2, [1.0]), AgeSample(0.9, [3.0]), AgeSample(1.5, []), AgeSample(2.0, [5.0, 7.0])]
    assert by_second(samples) == [(0.5, AgeSpread(1.0, 3.0, 3.0)), (2.5, AgeSpread(5.0, 7.0, 7.0))]


@given(st.floats(min_value=0, max_value=60), st.floats(min_value=0.05, max_value=10), st.integers())
def test_sample_times_are_ordered_random_and_within_the_time(seconds: float, gap: float, seed: int) -> None:
    found = sample_times(seconds, gap, Random(seed))
    gaps = [after - before for before, after in pairwise([0.0, *found])]
    assert all(0.49 * gap <= one <= 1.51 * gap for one in gaps)
    assert all(0 < at < seconds for at in found)


# -- the picture -------------------------------------------------------------------------------------------------------


def drawn(panels: Sequence[ChartPanel]) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(svg(panels))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [
        [(float(x), float(y)) for x, _, y in (point.partition(",") for point in line.attrib["points"].split())]
        for line in lines
    ]


def test_an_older_age_is_drawn_higher_and_a_later_one_to_the_right() -> None:
    young, old = AgeSpread(0.5, 0.9, 1.0), AgeSpread(5.0, 9.0, 10.0)
    lines = drawn([ChartPanel("fleet", 1.0, 1.1, {"agent": [(0.5, young), (1.5, old)]})])
    assert len(lines) == 3
    for (x1, y1), (x2, y2) in lines:
        assert x1 < x2
        assert y1 > y2


@given(st.floats(min_value=0, max_value=1e9))
def test_any_age_is_drawn_within_its_panel(age: float) -> None:
    panel = ChartPanel("a < b & c", 0.05, 0.055, {"agent": [(0.5, AgeSpread(age, age, age))]})
    for line in drawn([panel, panel]):
        for x, y in line:
            assert 0 <= x <= 760
            assert 0 <= y <= 620


def test_the_picture_of_the_documentation_exists() -> None:
    text = (ROOT / "docs" / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    assert "(age-over-time.svg)" in text
    assert ET.parse(ROOT / "docs" / "reference" / "age-over-time.svg").getroot().tag.endswith("svg")
