"""Load that the agent did not give: another gateway's, another replica's, or its own before a restart.

One of two servers has a full batch of long responses and a queue, and its page shows that; the other one is idle. The
situation is that of llm-d-router#1946 and GIE#1406. At most one of 16 requests may go to the full server.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from agent.emulator.config import EmulatorConfig
from tests.fakes.simulated_fleet import SimulatedFleet

FULL, IDLE = "server-1:8000", "server-2:8000"
SERVER = EmulatorConfig(max_num_seqs=8, step_seconds=0.02)
LONG = 600  # tokens: 12 seconds
BURST = 16

AT_ONCE_AND_ONE_BY_ONE = pytest.mark.parametrize("gap", [0.0, 0.15], ids=["at once", "one by one"])


def without(*families: str) -> Callable[[bytes], bytes]:
    """Removes these families from a page."""
    lines = re.compile(rb"^(?:# \w+ )?(?:" + b"|".join(name.encode() for name in families) + rb")\b.*\n", re.MULTILINE)
    return lambda page: lines.sub(b"", page)


@AT_ONCE_AND_ONE_BY_ONE
@pytest.mark.parametrize("interval", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("prompt_tokens", [4, 115, 1000])
def test_a_burst_beside_a_server_full_of_the_work_of_others_avoids_it(
    gap: float, interval: float, prompt_tokens: int
) -> None:
    fleet = SimulatedFleet(SERVER, interval=interval)
    fleet.send_past(FULL, 11, LONG)
    fleet.advance(interval + 0.1)
    assert fleet.burst(BURST, gap, prompt_tokens)[FULL] <= 1
    fleet.advance(3.0)
    assert len(fleet.first_token_seconds) == BURST
    assert max(fleet.first_token_seconds) < 1.5


@AT_ONCE_AND_ONE_BY_ONE
@pytest.mark.parametrize("interval", [0.05, 1.0, 5.0])
def test_a_burst_right_after_a_restart_avoids_the_server_that_the_agent_filled_before(
    gap: float, interval: float
) -> None:
    fleet = SimulatedFleet(SERVER, interval=interval)
    for _ in range(11):
        fleet.send(LONG, only=[FULL])
    fleet.advance(1.2)
    fleet.restart()
    assert (fleet.work(FULL).requests, fleet.work(FULL).foreign) == (0, 11)
    assert fleet.burst(BURST, gap)[FULL] <= 1


@AT_ONCE_AND_ONE_BY_ONE
def test_a_burst_avoids_a_server_that_the_agent_itself_has_filled(gap: float) -> None:
    fleet = SimulatedFleet(SERVER)
    for _ in range(11):
        fleet.send(LONG, only=[FULL])
    fleet.advance(1.2)
    assert (fleet.work(FULL).requests, fleet.work(FULL).foreign) == (11, 0)
    assert fleet.burst(BURST, gap)[FULL] <= 1


@AT_ONCE_AND_ONE_BY_ONE
def test_a_burst_avoids_a_full_batch_without_a_queue(gap: float) -> None:
    fleet = SimulatedFleet(SERVER)
    fleet.send_past(FULL, 8, LONG)
    fleet.advance(1.2)
    assert fleet.burst(BURST, gap)[FULL] <= 1


@AT_ONCE_AND_ONE_BY_ONE
@pytest.mark.parametrize(
    "families",
    [
        ("vllm:request_success_total",),
        ("vllm:num_requests_running",),
        ("vllm:prompt_tokens_total", "vllm:request_prefill_time_seconds"),
        ("vllm:request_success_total", "vllm:num_requests_running", "vllm:request_prefill_time_seconds_count"),
    ],
    ids=["drain rate", "running", "tokens", "all but waiting"],
)
def test_what_the_pages_do_not_show_is_never_a_wait_of_zero(gap: float, families: tuple[str, ...]) -> None:
    fleet = SimulatedFleet(SERVER, change=without(*families))
    fleet.send_past(FULL, 11, LONG)
    fleet.advance(1.2)
    assert fleet.work(FULL).prefill_seconds(fleet.now) > 1.0
    assert fleet.burst(BURST, gap)[FULL] <= 1


@AT_ONCE_AND_ONE_BY_ONE
def test_a_burst_goes_to_the_servers_with_room_in_a_larger_fleet(gap: float) -> None:
    fleet = SimulatedFleet(SERVER, servers=4)
    fleet.send_past(FULL, 11, LONG)
    fleet.send_past(IDLE, 9, LONG)
    fleet.advance(1.2)
    sent = fleet.burst(BURST, gap)
    assert sent[FULL] + sent[IDLE] <= 1
    assert min(sent["server-3:8000"], sent["server-4:8000"]) >= 6


def test_a_server_that_the_others_have_left_is_used_again_from_its_next_page_on() -> None:
    fleet = SimulatedFleet(SERVER)
    fleet.send_past(FULL, 11, 50)
    fleet.advance(1.2)
    assert fleet.work(FULL).foreign > 0
    fleet.advance(4.0)
    assert (fleet.work(FULL).foreign, fleet.work(FULL).queue_seconds) == (0, 0)
    sent = fleet.burst(BURST, 0.0)
    assert sent[FULL] == sent[IDLE] == BURST // 2


def test_when_every_server_is_full_the_burst_is_shared() -> None:
    fleet = SimulatedFleet(SERVER)
    for address in (FULL, IDLE):
        fleet.send_past(address, 11, LONG)
    fleet.advance(1.2)
    assert min(fleet.burst(BURST, 0.0).values()) >= 6


def test_the_load_is_shown_by_what_is_the_agents_own_and_what_is_not() -> None:
    fleet = SimulatedFleet(SERVER)
    fleet.send_past(FULL, 6, LONG)
    for _ in range(3):
        fleet.send(LONG, only=[FULL])
    fleet.advance(1.2)
    work = fleet.work(FULL)
    assert (work.requests, work.foreign, work.load) == (3, 6, 9)
    assert work.queue_seconds > 0
    assert fleet.work(IDLE).load == 0


@pytest.mark.parametrize("profile", ["affinity", "blend", "least-cost"])
@AT_ONCE_AND_ONE_BY_ONE
def test_every_built_in_profile_avoids_the_full_server(profile: str, gap: float) -> None:
    fleet = SimulatedFleet(SERVER, profile=profile)
    fleet.send_past(FULL, 11, LONG)
    fleet.advance(1.2)
    assert fleet.burst(BURST, gap)[FULL] <= 1
