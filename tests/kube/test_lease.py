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
from hypothesis import Phase, given, settings
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
    """One Lease with the optimistic concurrency of the API server: a PUT of a Lease that does not exist creates it,
    unless it names a uid."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self._numbers = itertools.count(1)

    def answer(self, request: LeaseRequest) -> tuple[int, bytes]:
        """The status and the body."""
        now, sent = self.lease, json.loads(request.body or "{}")
        meta = sent.get("metadata", {})
        if request.method == "GET":
            return (404, b"") if now is None else (200, json.dumps(now).encode())
        if request.method == "POST" and now is not None:
            return 409, b""
        if request.method == "PUT":
            current = now["metadata"] if now is not None else {"uid": "", "resourceVersion": meta["resourceVersion"]}
            if meta["resourceVersion"] != current["resourceVersion"] or meta.get("uid", "") not in ("", current["uid"]):
                return 409, b""
        self.put(sent["spec"])
        return (201 if now is None else 200), json.dumps(self.lease).encode()

    def delete(self) -> None:
        """Remove the Lease."""
        self.lease = None

    @property
    def holder(self) -> str | None:
        """Who holds the Lease, None where there is none."""
        return None if self.lease is None else self.lease["spec"]["holderIdentity"]

    def put(self, spec: dict[str, Any]) -> None:
        """Another version of the Lease, or a new one."""
        uid = self.lease["metadata"]["uid"] if self.lease is not None else f"uid-{next(self._numbers)}"
        self.lease = {"metadata": {"resourceVersion": str(next(self._numbers)), "uid": uid}, "spec": spec}

    def touch(self) -> None:
        """Another version with the same content."""
        if self.lease is not None:
            self.put(self.lease["spec"])


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
            self.server.put({"holderIdentity": "", "leaseDurationSeconds": RELEASED_SECONDS})

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
        candidate.election.end()  # and its writes have ended
        request = candidate.election.release(STAMP)
        assert not candidate.held(self.real)
        candidate.right_ends = -math.inf
        if request is not None:
            self.requests[next(self.numbers)] = candidate, request
        candidate.start()

    @rule()
    def the_lease_is_deleted(self) -> None:
        self.server.delete()

    @rule()
    def the_lease_gets_a_label(self) -> None:
        self.server.touch()

    # -- the world ---------------------------------------------------------------------------------------------------

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
                candidate.election.answered(request, sent, candidate.local(self.real), *self.answers.pop(number))
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
WRONG = settings(max_examples=2000, stateful_step_count=40, deadline=None, phases=[Phase.generate])


TestElections = Elections.TestCase


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
def test_the_state_machine_finds_what_is_not_safe(wrong: type[Elections]) -> None:
    with pytest.raises(AssertionError, match="begins while"):
        run_state_machine_as_test(wrong, settings=WRONG)


def election(identity: str = "me", duration: int = 15) -> LeaseElection:
    """A candidate that sees and sends at once."""
    return LeaseElection("ns", "agent", identity, lease_times(duration), Random(1))


def exchange(one: LeaseElection, server: LeaseServer, now: float, delay: float = 0.0) -> LeaseRequest | None:
    """Send what is due now, and read the answer after the delay."""
    request = one.request(now, STAMP)
    if request is not None:
        one.answered(request, now, now + delay, *server.answer(request))
    return request


def run_until(one: LeaseElection, server: LeaseServer, now: float, end: float) -> int:
    """Let a candidate run; returns how many requests it sent."""
    count = 0
    while now < end:
        count += exchange(one, server, now) is not None
        now = max(one.due, now + 1e-3)
    return count


def released(server: LeaseServer, transitions: int = 4) -> None:
    """The Lease as client-go's holder leaves it."""
    spec = {"holderIdentity": "", "leaseDurationSeconds": RELEASED_SECONDS, "leaseTransitions": transitions}
    server.put(spec)


@pytest.mark.parametrize("duration", [MIN_DURATION, 5, 15, 60, 300, 3600])
def test_a_write_ends_before_the_next_holder_may_begin_with_any_clock_that_is_allowed(duration: int) -> None:
    times = lease_times(duration)
    slowest, fastest = 1 - MAX_RATE_ERROR, 1 + MAX_RATE_ERROR
    assert (times.renew_deadline + times.write_timeout) / slowest < times.duration / fastest
    assert times.retry + times.write_timeout < times.renew_deadline  # one renewal may fail


def test_the_times_are_those_of_client_go() -> None:
    assert lease_times(15) == (15, 10.0, 2.0, 4.0)
    with pytest.raises(ValueError, match="at least 3 seconds"):
        lease_times(2)


def test_a_released_lease_is_taken_at_once_and_renewed_every_retry_period() -> None:
    server, one = LeaseServer(), election()
    released(server)
    assert exchange(one, server, 100.0) is not None
    assert exchange(one, server, 100.0) is not None
    assert one.held(100.0)
    assert server.lease is not None
    assert server.lease["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "acquireTime": STAMP,
        "renewTime": STAMP,
        "leaseTransitions": 5,
    }
    assert run_until(one, server, 100.0, 160.0) == 29  # at 102, 104, ... 158
    assert one.transitions == 5


def test_a_lease_that_does_not_exist_is_made_without_a_holder_and_taken_after_its_duration() -> None:
    """A Lease that was deleted a moment ago may still be held."""
    server, one = LeaseServer(), election()
    run_until(one, server, 0.0, 14.9)
    assert server.lease is not None
    assert (server.lease["spec"]["holderIdentity"], one.held(14.9)) == ("", False)
    run_until(one, server, 14.9, 15.1)
    assert one.held(15.1)


def test_the_lease_of_another_is_taken_when_its_version_has_not_changed_for_its_own_duration() -> None:
    server, one, other = LeaseServer(), election(), election("other", 30)
    released(server)
    run_until(other, server, 0.0, 1.0)
    run_until(one, server, 10.0, 39.9)
    assert one.holder == "other"
    assert not one.held(39.9)
    run_until(one, server, 39.9, 40.1)
    assert one.held(40.1)
    assert one.transitions == 6


def test_a_right_ends_at_the_deadline_after_the_sending_of_the_last_renewal() -> None:
    server, one = LeaseServer(), election()
    released(server)
    exchange(one, server, 0.0)
    exchange(one, server, 0.0, delay=3.0)
    assert one.held(9.99)
    assert not one.held(10.0)
    assert one.held_until == 10.0


def test_a_renewal_whose_answer_was_lost_does_not_lose_the_lease() -> None:
    server, one = LeaseServer(), election()
    released(server)
    run_until(one, server, 0.0, 1.0)
    renewal = one.request(one.due, STAMP)
    assert renewal is not None
    server.answer(renewal)
    one.answered(renewal, one.due, 6.0, 0, b"timed out")
    assert run_until(one, server, 6.0, 9.0) >= 2
    assert one.held(18.0)


def test_a_renewal_of_a_lease_that_was_deleted_does_not_create_it() -> None:
    server, one = LeaseServer(), election()
    released(server)
    run_until(one, server, 0.0, 1.0)
    server.delete()
    assert exchange(one, server, one.due) is not None
    assert server.holder is None
    run_until(one, server, 2.5, 4.0)
    assert server.holder == ""


def test_a_holder_that_sees_another_stops_at_once() -> None:
    server, one = LeaseServer(), election()
    released(server)
    run_until(one, server, 0.0, 1.0)
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "a person's choice"
    server.touch()
    run_until(one, server, 2.0, 4.0)
    assert not one.held(4.0)
    assert one.holder == "a person's choice"


def test_a_release_is_possible_only_for_the_holder_and_the_next_takes_it_at_once() -> None:
    server, one, other = LeaseServer(), election(), election("other")
    released(server)
    run_until(one, server, 0.0, 1.0)
    run_until(other, server, 1.0, 3.0)
    other.end()
    assert other.release(STAMP) is None
    one.end()
    assert not one.held(1.0)
    request = one.release(STAMP)
    assert request is not None
    server.answer(request)
    assert one.request(100.0, STAMP) is None
    third = election("third")
    run_until(third, server, 3.0, 3.1)
    assert third.held(3.1)


def test_an_answer_after_the_end_gives_no_right() -> None:
    server, one = LeaseServer(), election()
    released(server)
    exchange(one, server, 0.0)
    request = one.request(0.0, STAMP)
    assert request is not None
    one.end()
    one.answered(request, 0.0, 0.1, *server.answer(request))
    assert not one.held(0.1)
    assert one.release(STAMP) is not None


@pytest.mark.parametrize(
    ("status", "data", "reason", "words"),
    [
        (0, b"refused", "unreachable", "refused"),
        (403, b"no", "forbidden", "let the agent's ServiceAccount get, create and update leases in namespace ns"),
        (401, b"no", "unauthorized", "401: no"),
        (429, b"slow down", "refused", "429: slow down"),
        (500, b"", "refused", "500"),
        (200, b"<html>", "unreadable", "no Lease"),
        (200, b'{"metadata":{}}', "unreadable", "no Lease"),
        (200, b'{"metadata":{"resourceVersion":"1"},"spec":{"leaseDurationSeconds":"x"}}', "unreadable", "no Lease"),
    ],
)
def test_a_failure_is_named_with_its_remedy_and_gives_no_right(
    status: int, data: bytes, reason: str, words: str
) -> None:
    one = election()
    request = one.request(0.0, STAMP)
    assert request is not None
    one.answered(request, 0.0, 0.1, status, data)
    assert one.failure is not None
    assert one.failure.reason == reason
    assert words in one.failure.message
    assert not one.held(0.1)
    assert one.due >= 2.0


def test_a_namespace_that_does_not_exist_is_named() -> None:
    one = election()
    for method in ("GET", "POST"):
        request = one.request(0.0, STAMP)
        assert request is not None
        assert request.method == method
        one.answered(request, 0.0, 0.0, 404, b"not found")
    assert one.failure is not None
    assert "does namespace ns exist?" in one.failure.message


@pytest.mark.parametrize("status", [0, 401, 403, 404, 409, 429, 500])
def test_a_server_that_always_fails_gets_few_requests(status: int) -> None:
    one = election()
    now, count = 0.0, 0
    while now < 600.0:
        request = one.request(now, STAMP)
        if request is not None:
            one.answered(request, now, now, status, b"")
            count += 1
        now = max(one.due, now + 1e-3)
    assert count <= 600 / (2.0 / 4)
    if status not in (404, 409):
        assert count <= 600 / 16.0 + 4


@given(st.lists(st.sampled_from([0, 200, 201, 404, 409, 500]), min_size=1, max_size=40))
def test_no_sequence_of_answers_leads_to_a_busy_loop(statuses: list[int]) -> None:
    one, now, count = election(), 0.0, 0
    bodies = itertools.count(1)
    for status in statuses:
        request = one.request(now, STAMP)
        assert request is not None
        body = {"metadata": {"resourceVersion": str(next(bodies))}, "spec": {"leaseDurationSeconds": 1}}
        one.answered(request, now, now, status, json.dumps(body).encode())
        count = count + 1 if one.due <= now else 0
        assert count <= 2
        now = max(one.due, now)
