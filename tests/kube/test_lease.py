"""Candidates of one Lease over a network and an API server that delay, lose and refuse, with clocks that differ.

The state machine is adversarial: it chooses when each message arrives, who is paused, when the Lease is deleted.
"""

from __future__ import annotations

import itertools
import json
import math
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agent.kube.lease import (
    MAX_RATE_ERROR,
    MIN_DURATION,
    RELEASED_SECONDS,
    LeaseElection,
    LeaseRequest,
    LeaseTimes,
    lease_times,
)

TIMES = lease_times(15)
STAMP = "2026-01-01T00:00:00.000000Z"
CANDIDATES = 3


class LeaseServer:
    """One Lease with optimistic concurrency."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self._versions = itertools.count(1)

    def answer(self, request: LeaseRequest) -> tuple[int, bytes]:
        """The status and the body."""
        now, sent = self.lease, json.loads(request.body or "{}")
        if request.method != "POST" and now is None:
            return 404, b""
        if request.method == "POST" and now is not None:
            return 409, b""
        if request.method == "PUT":
            assert now is not None
            if sent["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"]:
                return 409, b""
        if request.method != "GET":
            self.lease = sent
            self.touch()
        return 201 if request.method == "POST" else 200, json.dumps(self.lease).encode()

    def touch(self) -> None:
        """Another version of the same Lease."""
        if self.lease is not None:
            self.lease = {**self.lease, "metadata": {"resourceVersion": str(next(self._versions))}}


class Candidate:
    """A process with its own clock. `right_ends` is the real time until which it may begin writes, with its present
    knowledge, or the time at which it noticed that it may not."""

    def __init__(self, number: int, offset: float, rate: float, times: LeaseTimes) -> None:
        self.number = number
        self.offset = offset
        self.rate = rate
        self.times = times
        self.paused = False
        self.slow = False  # its messages arrive when the adversary wants
        self.lives = 0
        self.right_ends = -math.inf
        self.start()

    def start(self) -> None:
        """The process begins, or begins again."""
        self.lives += 1
        identity = f"{self.number}-{self.lives}"
        self.election = LeaseElection("ns", "agent", identity, self.times, Random(self.number))
        self.pending: tuple[int, LeaseRequest, float] | None = None

    def local(self, real: float) -> float:
        """What its clock shows."""
        return self.offset + self.rate * real

    def held(self, real: float) -> bool:
        """Whether it may begin a write."""
        return self.election.held(self.local(real))


class Elections(RuleBasedStateMachine):
    """Two never hold the Lease at once, nor does one begin while a write of another may be under way."""

    times = TIMES
    rate_error = MAX_RATE_ERROR

    def __init__(self) -> None:
        super().__init__()
        self.real = 0.0
        self.server = LeaseServer()
        self.numbers = itertools.count()
        self.requests: dict[int, tuple[Candidate, LeaseRequest]] = {}
        self.answers: dict[int, tuple[int, bytes]] = {}
        rates = (1 - self.rate_error, 1 + self.rate_error, 1.0)
        self.candidates = [
            Candidate(number, 1000.0 * number - 500, rates[number % 3], self.times) for number in range(CANDIDATES)
        ]

    # -- what the adversary may do -----------------------------------------------------------------------------------

    @initialize(released=st.booleans())
    def the_lease_exists_or_not(self, released: bool) -> None:
        if released:
            self.server.lease = {"spec": {"holderIdentity": "", "leaseDurationSeconds": RELEASED_SECONDS}}
            self.server.touch()

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0, 16.0]))
    def the_processes_run(self, seconds: float) -> None:
        """Messages arrive at once, except those of a process that is paused or has a slow network."""
        ends = self.real + seconds
        while self.real < ends:
            for candidate in self.candidates:
                self.poll(candidate)
            for number, (candidate, _) in sorted(self.requests.items()):
                if not candidate.slow:
                    self.arrive(number)
            for number in sorted(self.answers):
                self.deliver(number)
            self.no_two_write_at_once()
            self.real = min(ends, self.next_due())

    @rule(seconds=st.sampled_from([0.01, 0.5, 4.0, 14.0]))
    def time_passes(self, seconds: float) -> None:
        self.real += seconds

    @rule(which=st.integers(0, 9))
    def a_request_arrives(self, which: int) -> None:
        if self.requests:
            self.arrive(sorted(self.requests)[which % len(self.requests)])

    @rule(which=st.integers(0, 9))
    def an_answer_arrives(self, which: int) -> None:
        if self.answers:
            self.deliver(sorted(self.answers)[which % len(self.answers)], slowly=True)

    @rule()
    def the_messages_under_way_are_lost(self) -> None:
        self.requests.clear()
        self.answers.clear()

    @rule(which=st.integers(0, CANDIDATES - 1), slow=st.booleans())
    def the_network_of_a_process_gets_slow_or_well(self, which: int, slow: bool) -> None:
        self.candidates[which].slow = slow

    @rule(which=st.integers(0, CANDIDATES - 1), paused=st.booleans())
    def a_process_is_paused_or_resumed(self, which: int, paused: bool) -> None:
        self.candidates[which].paused = paused

    @rule(held=st.booleans(), which=st.integers(0, CANDIDATES - 1))
    def a_process_is_cut_off(self, held: bool, which: int) -> None:
        """The holder, if there is one and it is to be."""
        holders = [candidate for candidate in self.candidates if candidate.held(self.real)]
        (holders[0] if held and holders else self.candidates[which]).slow = True

    @rule(which=st.integers(0, CANDIDATES - 1))
    def a_process_is_killed_and_starts_again(self, which: int) -> None:
        self.candidates[which].start()

    @rule(which=st.integers(0, CANDIDATES - 1))
    def a_process_releases_the_lease_and_starts_again(self, which: int) -> None:
        candidate = self.candidates[which]
        request = candidate.election.end(STAMP)  # its writes have ended
        assert not candidate.held(self.real)
        candidate.right_ends = -math.inf
        if request is not None:
            self.requests[next(self.numbers)] = candidate, request
        candidate.start()

    @rule()
    def the_lease_is_deleted(self) -> None:
        self.server.lease = None

    @rule()
    def the_lease_gets_a_label(self) -> None:
        self.server.touch()

    # -- the world -------------------------------------------------------------------------------------------------------

    def poll(self, candidate: Candidate) -> None:
        """What a process does when it runs: notice a time-out, send what is due."""
        if candidate.paused:
            return
        now = candidate.local(self.real)
        if candidate.pending is not None:
            _, request, sent = candidate.pending
            if now < sent + candidate.times.write_timeout:
                return
            candidate.pending = None
            candidate.election.answered(request, sent, now, 0, b"timed out")
        due = candidate.election.request(now, STAMP)
        if due is not None:
            number = next(self.numbers)
            candidate.pending = number, due, now
            self.requests[number] = candidate, due

    def arrive(self, number: int) -> None:
        """The API server receives a request, perhaps one that its sender has given up."""
        if number in self.requests:
            _, request = self.requests.pop(number)
            self.answers[number] = self.server.answer(request)

    def next_due(self) -> float:
        """The real time at which a process has something to do next; a moment later at least, as processes are."""
        times = []
        for candidate in self.candidates:
            local = candidate.election.due
            if candidate.pending is not None:
                local = candidate.pending[2] + candidate.times.write_timeout
            if not candidate.paused:
                times.append((local - candidate.offset) / candidate.rate)
        return max(self.real + 0.01, min([*times, self.real + 1.0]))

    def deliver(self, number: int, *, slowly: bool = False) -> None:
        """A process reads an answer, unless it is paused or has given up."""
        for candidate in self.candidates:
            if candidate.pending is not None and candidate.pending[0] == number and number in self.answers:
                if candidate.paused or (candidate.slow and not slowly):
                    return
                _, request, sent = candidate.pending
                candidate.pending = None
                candidate.election.answered(
                    request, sent, candidate.local(self.real), *self.answers.pop(number)
                )
                return
        self.answers.pop(number, None)

    @invariant()
    def no_two_write_at_once(self) -> None:
        for candidate in self.candidates:
            if not candidate.held(self.real):
                candidate.right_ends = min(candidate.right_ends, self.real)
                continue
            begins = candidate.right_ends < self.real
            candidate.right_ends = (candidate.election.held_until - candidate.offset) / candidate.rate
            for other in self.candidates:
                if other is not candidate and begins:
                    last_write = other.right_ends + other.times.write_timeout / other.rate
                    assert last_write <= self.real, f"{candidate.number} begins while {other.number} writes"
        assert sum(candidate.held(self.real) for candidate in self.candidates) <= 1

    def teardown(self) -> None:
        """When the faults end, one holds it within two durations and a time-out."""
        for candidate in self.candidates:
            candidate.paused = candidate.slow = False
        ends = self.real + 2 * self.times.duration / (1 - self.rate_error) + 10 * self.times.retry
        ends += MAX_BACKOFF_SECONDS
        while self.real < ends and not any(candidate.held(self.real) for candidate in self.candidates):
            self.the_processes_run(0.25)
        assert any(candidate.held(self.real) for candidate in self.candidates), "nobody holds the Lease"


MAX_BACKOFF_SECONDS = 8 * 1.2 * TIMES.retry + TIMES.write_timeout
Elections.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


# The first failure is enough: it is not made smaller.
WRONG = settings(max_examples=500, stateful_step_count=30, deadline=None, phases=[Phase.generate])


class TestElections(Elections.TestCase):
    pass


class _TooLong(Elections):
    """The holder writes as long as others wait."""

    times = TIMES._replace(renew_deadline=15.0)


class _WriteOfAnyLength(Elections):
    """The time that a write takes is not reckoned with."""

    times = TIMES._replace(write_timeout=6.0)


class _OtherClocks(Elections):
    """Clocks that differ by more than is allowed for."""

    rate_error = 0.2


@pytest.mark.parametrize("wrong", [_TooLong, _WriteOfAnyLength, _OtherClocks])
def test_the_state_machine_finds_times_that_are_not_safe(wrong: type[Elections]) -> None:
    with pytest.raises(AssertionError, match="begins while"):
        run_state_machine_as_test(wrong, settings=WRONG)
