"""The pure engine does what a real vLLM did with the same requests (see docs/emulator.md for the rates and limits)."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.emulator.loads import LOADS, Load, Seen, replay

BY_NAME = pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
WITHIN = 0.10


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
    _, recorded, emulated = replay(load)[-1]
    if load.name == "load_queue_limit12":
        assert recorded.preemptions == 4
    assert emulated.preemptions == recorded.preemptions
    assert emulated.prefix_hits == recorded.prefix_hits


def test_the_queue_limit_refuses_the_eight_requests_that_the_recorded_server_refused():
    load = LOADS[-1]
    requests, _ = load.read()
    refused = [result["i"] for result in requests["results"] if result["usage"] is None]
    assert refused == list(range(12, 20))
    replay(load)  # asserts for each refused request that the recording refused it too
