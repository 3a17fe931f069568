"""An address is in Envoy's file before it may be picked, and stays there until no pick of it can be on its way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from hypothesis import given
from hypothesis import strategies as st

from agent.envoy.rollout import LINGER_SECONDS, RETRY_SECONDS, SETTLE_SECONDS, EndpointRollout

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
MOMENT = 1e-6
ALL = (A, B, C, "10.0.0.4:80")


class RolloutSimulation:
    """A pool that follows its rollout as `agent.app.endpoint_files` does, with a clock and a file of the test."""

    def __init__(self, in_file: Iterable[str] | None = None) -> None:
        self.now = 100.0
        self.rollout = EndpointRollout(in_file, self.now)
        self.file: AbstractSet[str] | None = None if in_file is None else frozenset(in_file)
        self.picked: AbstractSet[str] = frozenset()
        self.writable = True

    def step(self) -> None:
        """Write the file if that is possible, and take over what may be picked."""
        if self.writable:
            self.file = written = self.rollout.file(self.now)
            self.rollout.wrote(written, self.now)
        else:
            self.rollout.failed(self.now)
        pickable = self.rollout.pickable(self.now)
        if pickable is not None:
            self.picked = pickable

    def want(self, *addresses: str) -> None:
        self.rollout.want(addresses)
        self.step()

    def run(self, seconds: float) -> None:
        """Step whenever something is due within the next `seconds`, and a moment later, as a timer does."""
        end = self.now + seconds + MOMENT
        while (due := self.now + self.rollout.wait(self.now) + MOMENT) <= end:
            self.now = due
            self.step()
        self.now = end


def test_a_new_address_is_written_at_once_and_picked_when_it_has_settled() -> None:
    pool = RolloutSimulation([A])
    pool.want(A)
    assert pool.picked == {A}
    pool.want(A, B)
    assert (pool.file, pool.picked) == ({A, B}, {A})
    pool.run(0.9 * SETTLE_SECONDS)
    assert pool.picked == {A}
    pool.run(0.11 * SETTLE_SECONDS)
    assert pool.picked == {A, B}


def test_a_removed_address_is_no_longer_picked_and_then_leaves_the_file() -> None:
    pool = RolloutSimulation([A, B])
    pool.want(A, B)
    pool.want(A)
    assert (pool.file, pool.picked) == ({A, B}, {A})
    pool.run(0.9 * LINGER_SECONDS)
    assert pool.file == {A, B}
    pool.run(0.11 * LINGER_SECONDS)
    assert pool.file == {A}
    assert pool.rollout.wait(pool.now) == math.inf


def test_a_change_of_all_addresses_leaves_the_pool_no_moment_without_any() -> None:
    pool = RolloutSimulation([A])
    pool.want(A)
    pool.want(B, C)
    assert (pool.file, pool.picked) == ({A, B, C}, {A})
    pool.run(SETTLE_SECONDS)
    assert (pool.file, pool.picked) == ({A, B, C}, {B, C})
    pool.run(LINGER_SECONDS)
    assert (pool.file, pool.picked) == ({B, C}, {B, C})


def test_the_first_addresses_of_a_new_file_are_picked_at_once() -> None:
    pool = RolloutSimulation(None)
    pool.want(A, B)
    assert (pool.file, pool.picked) == ({A, B}, {A, B})


def test_addresses_of_an_earlier_run_are_picked_at_once_and_others_of_it_leave() -> None:
    pool = RolloutSimulation([A, B])
    pool.want(A)
    assert (pool.file, pool.picked) == ({A, B}, {A})
    pool.run(LINGER_SECONDS)
    assert pool.file == {A}


def test_while_the_file_cannot_be_written_no_new_address_is_picked_and_a_removed_one_is_not_either() -> None:
    pool = RolloutSimulation([A, B])
    pool.want(A, B)
    pool.writable = False
    pool.want(B, C)
    assert (pool.file, pool.picked) == ({A, B}, {B})
    assert pool.rollout.wait(pool.now) == RETRY_SECONDS
    pool.run(10 * RETRY_SECONDS)
    assert (pool.file, pool.picked) == ({A, B}, {B})
    pool.writable = True
    pool.run(RETRY_SECONDS + SETTLE_SECONDS)
    assert pool.picked == {B, C}
    pool.run(LINGER_SECONDS)
    assert pool.file == {B, C}


def test_an_address_that_returns_within_the_linger_time_never_leaves_the_file() -> None:
    pool = RolloutSimulation([A, B])
    pool.want(A, B)
    pool.want(A)
    pool.run(LINGER_SECONDS / 2)
    pool.want(A, B)
    assert pool.picked == {A, B}
    pool.run(10 * LINGER_SECONDS)
    assert pool.file == {A, B}


sets = st.frozensets(st.sampled_from(ALL))
actions = st.tuples(st.sampled_from(["want", "run", "break", "mend"]), sets, st.floats(0.0, 3.0))


@given(start=st.none() | sets, script=st.lists(actions, max_size=30))
def test_whatever_happens_a_pick_is_of_an_address_that_envoy_knows(
    start: frozenset[str] | None, script: list[tuple[str, frozenset[str], float]]
) -> None:
    pool = RolloutSimulation(start)
    since: defaultdict[str, float] = defaultdict(lambda: math.inf)  # address -> since when the file has it
    since |= dict.fromkeys(pool.file or (), -math.inf)
    left: dict[str, float] = {}  # address -> when it was last pickable
    wanted: frozenset[str] = frozenset()
    step = pool.step

    def observed_step() -> None:
        unread = pool.file is None
        before = pool.picked
        step()
        for address in ALL:
            if address not in (pool.file or ()):
                since.pop(address, None)
            elif math.isinf(since[address]) and since[address] > 0:
                since[address] = -math.inf if unread else pool.now
        for address in before - pool.picked:
            left[address] = pool.now
        for address in pool.picked:
            left.pop(address, None)
            assert since[address] + SETTLE_SECONDS <= pool.now + 1e-9
        for address, at in left.items():
            assert address in (pool.file or ()) or at + LINGER_SECONDS <= pool.now + 1e-9

    pool.step = observed_step  # type: ignore[method-assign]
    for action, addresses, seconds in script:
        if action == "want":
            had = pool.picked
            wanted = addresses
            pool.want(*addresses)
            assert pool.picked or not (had and wanted and pool.writable)
        elif action == "run":
            pool.run(seconds)
        else:
            pool.writable = action == "mend"
    pool.writable = True
    pool.run(RETRY_SECONDS + SETTLE_SECONDS + LINGER_SECONDS)
    if wanted:
        assert (pool.file, pool.picked) == (wanted, wanted)
    assert pool.rollout.wait(pool.now) == math.inf
