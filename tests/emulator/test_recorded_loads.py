"""The pure engine behaves as a recorded vLLM with the same requests: docs/reference/emulator.md has the rates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.emulator.recorded_loads import LOADS, QueueState, RecordedLoad, duration, replay

BY_NAME = pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
WITHIN = 0.10
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "emulator.md"


def at_kept_page(load: RecordedLoad) -> tuple[QueueState, QueueState]:
    """(recorded, emulated) at the time of the page that the recording kept."""
    requests, scrapes = load.read()
    place = [scrape["t"] for scrape in scrapes].index(requests["page_kept_at"]["t"])
    _, recorded, emulated = replay(load)[place]
    return recorded, emulated


@BY_NAME
def test_the_kept_page_of_a_recorded_load_is_reproduced_within_10_percent(load):
    recorded, emulated = at_kept_page(load)
    assert recorded.running == 4
    for name, value in asdict(recorded).items():
        assert asdict(emulated)[name] == pytest.approx(value, rel=WITHIN, abs=0), name


@BY_NAME
def test_hits_and_preemptions_of_a_whole_recorded_load_are_reproduced_exactly(load):
    _, recorded, emulated = replay(load)[-1]  # long after the last scrape, when all requests have ended
    if load.name == "load_queue_limit12":
        assert recorded.preemptions == 4
    assert emulated.preemptions == recorded.preemptions
    assert emulated.prefix_hits == recorded.prefix_hits


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("load_base_seqs4_blocks100", 1.116),
        ("load_shared_prefix", 1.075),
        ("load_two_loras", 1.064),
        ("load_three_loras_max2", 0.832),
        ("load_queue_limit12", 0.861),
    ],
)
def test_the_duration_of_a_whole_load_differs_from_the_recorded_one_as_documented(name, ratio):
    """The recorded machine changed its speed within a load, see docs/reference/emulator.md."""
    recorded, emulated = duration(next(load for load in LOADS if load.name == name))
    assert emulated / recorded == pytest.approx(ratio, abs=0.001)
    assert f"{recorded:.2f} / {emulated:.2f}" in DOCUMENT.read_text(encoding="utf-8")


def test_the_queue_limit_refuses_the_same_eight_requests_as_the_recorded_server():
    load = LOADS[-1]
    requests, _ = load.read()
    refused = [result["i"] for result in requests["results"] if result["usage"] is None]
    assert refused == list(range(12, 20))
    replay(load)  # asserts for each refused request that the recording refused it too
