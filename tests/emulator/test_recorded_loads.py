"""The pure engine does what a real vLLM did with the same requests (see docs/emulator.md for the rates and limits)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.emulator.loads import LOADS, Load, Seen, lasts, replay

BY_NAME = pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
WITHIN = 0.10
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "emulator.md"


def kept(load: Load) -> tuple[Seen, Seen]:
    """(recorded, emulated) at the instant at which the recording kept its page."""
    requests, scrapes = load.read()
    place = [scrape["t"] for scrape in scrapes].index(requests["page_kept_at"]["t"])
    _, recorded, emulated = replay(load)[place]
    return recorded, emulated


@BY_NAME
def test_the_kept_page_of_a_recorded_load_is_met_within_a_tenth(load):
    recorded, emulated = kept(load)
    assert recorded.running == 4
    for name, value in asdict(recorded).items():
        assert asdict(emulated)[name] == pytest.approx(value, rel=WITHIN, abs=0), name


@BY_NAME
def test_hits_and_preemptions_of_a_whole_recorded_load_are_met_exactly(load):
    _, recorded, emulated = replay(load)[-1]  # long after the last scrape, at which nothing ran any more
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
def test_a_whole_load_takes_as_long_as_the_document_says_and_not_exactly_as_long_as_recorded(name, ratio):
    """The recorded machine changed its speed within a load; docs/emulator.md tells why."""
    recorded, emulated = lasts(next(load for load in LOADS if load.name == name))
    assert emulated / recorded == pytest.approx(ratio, abs=0.001)
    assert f"{recorded:.2f} / {emulated:.2f}" in DOCUMENT.read_text(encoding="utf-8")


def test_the_queue_limit_refuses_the_eight_requests_that_the_recorded_server_refused():
    load = LOADS[-1]
    requests, _ = load.read()
    refused = [result["i"] for result in requests["results"] if result["usage"] is None]
    assert refused == list(range(12, 20))
    replay(load)  # `started` asserts for each refused request that the recording refused it too
