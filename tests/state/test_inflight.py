"""The requests and the prefill backlog at one endpoint: how they grow, shrink and are corrected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state.batch_size import UNKNOWN
from agent.state.inflight import NO_QUEUE, PRIOR_TOKENS, TRANSIT_SECONDS, FirstTokens, InFlight, QueueEvidence


def line(*tokens: float, rate: float = 1000.0, at: float = 0.0) -> InFlight:
    made = InFlight(rate)
    for work_id, each in enumerate(tokens):
        made.start(work_id, each, at)
    return made


def test_the_backlog_is_the_tokens_sent_less_the_rate_times_the_time() -> None:
    work = line(3000, 1000)
    assert work.prefill_tokens(0.0) == 4000
    assert work.prefill_tokens(1.5) == 2500
    assert work.prefill_tokens(99.0) == 0
    assert work.busy_until == 4.0


def test_idle_time_does_not_count_for_later_requests() -> None:
    work = line(1000)
    work.start(9, 500, 10.0)
    assert work.prefill_tokens(10.0) == 500


def test_a_request_that_ends_before_its_prefill_removes_its_tokens() -> None:
    work = line(1000, 2000, 4000)
    work.end(1, 0.5)
    assert work.prefill_tokens(0.5) == 500 + 4000
    assert len(work) == 2


def test_a_request_that_ends_after_its_first_token_was_due_does_not_change_the_backlog() -> None:
    work = line(1000, 2000)
    work.end(0, 1.5)
    assert work.prefill_tokens(1.5) == 1500


def test_a_request_that_ends_half_prefilled_removes_the_other_half() -> None:
    work = line(1000, 2000)
    work.end(0, 0.25)
    assert work.prefill_tokens(0.25) == 2000


def test_the_requests_behind_one_that_ended_move_up() -> None:
    work = line(1000, 2000, 4000)
    work.end(0, 0.0)
    work.end(2, 0.0)
    assert work.prefill_tokens(0.0) == 2000
    work.end(1, 1.0)
    assert work.prefill_tokens(1.0) == 0


def test_by_a_page_the_newest_waiting_requests_have_not_begun() -> None:
    work = line(1000, 1000, 1000)
    work.correct(running=1, waiting=2, at=3.0, now=3.0)
    assert work.prefill_tokens(3.0) == 2000


def test_by_a_page_all_but_the_newest_requests_are_prefilled() -> None:
    work = line(4000, 1000, 1000)
    work.correct(running=1, waiting=1, at=0.5, now=0.5)
    assert work.prefill_tokens(0.5) == 2000


def test_an_idle_server_has_no_backlog() -> None:
    work = line(4000, 1000)
    work.correct(running=0, waiting=0, at=1.0, now=1.0)
    assert work.prefill_tokens(1.0) == 0


def test_a_request_that_the_page_cannot_include_stays_in_the_backlog() -> None:
    work = line(4000)
    work.start(9, 300, 1.0)
    work.correct(running=0, waiting=0, at=1.0 + TRANSIT_SECONDS / 2, now=1.03)
    assert work.prefill_tokens(1.03) == pytest.approx(300)


def test_requests_of_another_gateway_count_with_our_mean_length() -> None:
    work = line(*[800.0] * 64)
    for work_id in range(64):
        work.end(work_id, 100.0)
    work.correct(running=4, waiting=10, at=101.0, now=101.0)
    assert work.prefill_tokens(101.0) == pytest.approx(8000, rel=0.05)


def test_the_first_request_sets_the_mean_length() -> None:
    work = line(1000.0)
    work.end(0, 100.0)
    work.correct(running=4, waiting=10, at=101.0, now=101.0)
    assert work.prefill_tokens(101.0) == pytest.approx(10_000)


def test_a_page_that_arrives_late_is_extrapolated_to_now() -> None:
    work = line(1000, 1000)
    work.correct(running=0, waiting=2, at=1.9, now=2.2)
    assert work.prefill_tokens(2.2) == pytest.approx(1700)


def test_a_page_without_running_requests_bounds_the_backlog_from_below_only() -> None:
    work = line(4000, 1000)
    work.correct(running=None, waiting=0, at=1.0, now=1.0)
    assert work.prefill_tokens(1.0) == 4000


def test_another_rate_does_not_change_the_backlog_in_tokens() -> None:
    work = line(4000)
    work.set_rate(2000.0, 1.0)
    assert work.prefill_tokens(1.0) == 3000
    assert work.busy_until == 2.5


def test_before_any_request_those_of_others_have_the_prior_length() -> None:
    work = InFlight(1000.0)
    work.correct(running=8, waiting=3, at=1.0, now=1.0)
    assert work.prefill_tokens(1.0) == 3 * PRIOR_TOKENS


def test_requests_of_others_have_the_mean_that_their_server_shows() -> None:
    work = line(800.0)
    work.correct(running=8, waiting=10, at=100.0, now=100.0, mean_tokens=50.0)
    assert work.prefill_tokens(100.0) == pytest.approx(800 + 9 * 50)


def test_a_page_shows_the_requests_of_others() -> None:
    work = line(100, 100, 100)
    work.count(running=8.0, waiting=3.0, free=UNKNOWN, at=1.0)
    assert (work.foreign, work.load) == (8.0, 11.0)


def test_the_load_is_at_least_the_agents_own_requests() -> None:
    work = line(100, 100, 100)
    work.count(running=1.0, waiting=0.0, free=UNKNOWN, at=1.0)
    assert (work.foreign, work.load) == (0.0, 3.0)


def test_picks_since_the_page_add_to_it() -> None:
    work = line(100, 100)
    for work_id in range(10, 14):
        work.start(work_id, 100, 2.0)
    work.count(running=7.0, waiting=0.0, free=UNKNOWN, at=1.0)
    work.start(20, 100, 3.0)
    assert work.load == 7 + 4 + 1


def test_a_request_that_ended_while_the_page_was_read_is_on_it_and_not_a_foreign_one() -> None:
    work = line(100, 100, 100)
    work.end(0, 1.5)
    work.end(1, 1.6)
    work.count(running=3.0, waiting=0.0, free=UNKNOWN, at=1.0)
    assert (work.foreign, work.load) == (0.0, 1.0)


def test_a_request_that_ended_before_the_page_is_not_taken_for_one_on_it() -> None:
    work = line(100, 100, 100)
    work.end(0, 0.5)
    work.count(running=3.0, waiting=0.0, free=UNKNOWN, at=1.0)
    assert work.foreign == 1.0


def test_a_request_of_the_page_that_ends_leaves_the_load() -> None:
    work = line(100, 100)
    work.count(running=6.0, waiting=0.0, free=UNKNOWN, at=1.0)
    work.end(0, 2.0)
    assert work.load == 5.0


def test_each_request_above_the_batch_waits_for_one_more_to_end() -> None:
    work = line(100)
    work.count(running=8.0, waiting=3.0, free=0.0, at=1.0)
    work.delay(0.5)
    assert work.queue_seconds == 4 * 0.5
    work.start(9, 100, 1.5)
    assert work.queue_seconds == 5 * 0.5
    work.end(0, 2.0)
    assert work.queue_seconds == 4 * 0.5


def test_a_request_for_which_a_slot_is_free_does_not_wait_in_the_queue() -> None:
    work = InFlight(1000.0)
    work.count(running=6.0, waiting=0.0, free=2.0, at=1.0)
    work.delay(0.5)
    waits = []
    for work_id in range(4):
        waits.append(work.queue_seconds)
        work.start(work_id, 1, 1.5)
    assert waits == [0.0, 0.0, 0.5, 1.0]


def test_a_full_batch_without_a_queue_makes_the_next_request_wait_for_one_to_end() -> None:
    work = InFlight(1000.0)
    work.count(running=8.0, waiting=0.0, free=0.0, at=1.0)
    work.delay(0.5)
    assert work.queue_seconds == 0.5


def test_the_wait_in_a_queue_of_others_does_not_shrink_until_the_next_page() -> None:
    work = InFlight(1000.0)
    work.count(running=8.0, waiting=3.0, free=0.0, at=1.0)
    work.delay(0.5)
    before = work.queue_seconds
    work.correct(None, 0.0, 60.0, 60.0)
    assert work.queue_seconds == before
    work.count(running=2.0, waiting=0.0, free=6.0, at=61.0)
    assert work.queue_seconds == 0.0


def test_a_report_of_the_waiting_requests_only_raises_what_a_page_has_shown() -> None:
    work = line(100)
    work.count(running=4.0, waiting=0.0, free=UNKNOWN, at=1.0)
    work.delay(0.5)
    work.count_waiting(2.0, 2.0)
    assert (work.foreign, work.queue_seconds) == (3.0, 3 * 0.5)
    work.count_waiting(9.0, 3.0)
    assert work.foreign == 8.0
    work.count_waiting(0.0, 4.0)
    assert (work.foreign, work.queue_seconds) == (8.0, 0.5)


def test_another_server_has_none_of_the_old_ones_requests() -> None:
    work = line(100)
    work.count(running=8.0, waiting=3.0, free=0.0, at=1.0)
    work.delay(0.5)
    work.forget_others()
    assert (work.load, work.queue_seconds) == (1.0, 0.0)


def test_a_page_shows_for_how_long_the_first_of_the_waiting_requests_waits_and_how_much_of_it_prefill_explains() -> (
    None
):
    work = line(1000, 500)
    work.start(9, 100, 3.0)
    # 1.5 s of prefill from 0 on, then 0.1 s from 3 on: the request of 3 waits for something else.
    assert work.correct(8.0, 1.0, 5.0, 5.0) == pytest.approx(QueueEvidence(0.1, 2.0, 0.1))
    busy = line(1000, 4000, 500)
    assert busy.correct(1.0, 2.0, 2.0, 2.0) == QueueEvidence(4.5, 2.0, 2.0)
    assert line().correct(8.0, 0.0, 1.0, 1.0) == NO_QUEUE


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "page", "rate"]),
        st.floats(0, 5),
        st.floats(0, 1e5),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_the_backlog_is_never_negative_and_ends_with_the_last_request(
    steps: list[tuple[str, float, float, int, int]],
) -> None:
    work, now, work_id = InFlight(500.0), 0.0, 0
    open_tickets: list[int] = []
    given_tokens = 0.0
    for kind, wait, tokens, running, waiting in steps:
        now += wait
        if kind == "start":
            work_id += 1
            work.start(work_id, tokens, now)
            open_tickets.append(work_id)
            given_tokens += tokens
        elif kind == "end" and open_tickets:
            work.end(open_tickets.pop(waiting % len(open_tickets)), now)
        elif kind == "page":
            work.correct(float(min(running, len(open_tickets))), float(min(waiting, len(open_tickets))), now, now)
        elif kind == "rate":
            work.set_rate(1.0 + tokens, now)
        assert work.prefill_tokens(now) >= 0
        assert work.prefill_tokens(now) <= given_tokens * (1 + 1e-9) + 1e-6
        assert len(work) == len(open_tickets)
    for each in open_tickets:
        work.end(each, now)
    assert len(work) == 0
    work.correct(0.0, 0.0, now + 1, now + 1)
    assert work.prefill_tokens(now + 1) == 0


# One history of an endpoint: requests start and end, and pages arrive a while after they were requested.
HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "page", "report"]),
        st.floats(0, 5),
        st.floats(0, 1),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(HISTORY)
def test_the_load_is_never_less_than_the_own_requests_nor_than_the_page_and_the_picks_since(
    steps: list[tuple[str, float, float, int, int]],
) -> None:
    work, now, page_at = InFlight(500.0), 0.0, 0.0
    open_at: dict[int, float] = {}
    ended: list[tuple[float, float]] = []
    on_page = 0.0
    for work_id, (kind, wait, took, running, waiting) in enumerate(steps):
        now += wait
        if kind == "start":
            work.start(work_id, 100.0, now)
            open_at[work_id] = now
        elif kind == "end" and open_at:
            gone = list(open_at)[running % len(open_at)]
            work.end(gone, now)
            ended.append((open_at.pop(gone), now))
        elif kind == "page":
            page_at, on_page = now - min(took, wait), float(running + waiting)
            work.count(float(running), float(waiting), UNKNOWN, page_at)
        elif kind == "report":
            work.count_waiting(float(waiting), now)
        since = sum(at > page_at for at in open_at.values())
        ended_since = sum(picked <= page_at < at for picked, at in ended)
        assert work.load >= len(open_at)
        assert work.load >= on_page - ended_since + since
        if all(kind != "report" for kind, *_ in steps):
            own_then = len(open_at) - since + ended_since
            assert work.load == len(open_at) + max(0.0, on_page - own_then)


@given(
    st.integers(0, 20),
    st.integers(0, 300),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 100),
    st.floats(0.001, 100),
)
def test_more_requests_of_others_never_make_an_endpoint_look_less_loaded(
    own: int, batch: int, running: int, more_running: int, more_waiting: int, each: float
) -> None:
    def observed(running: float, waiting: float) -> tuple[float, float, float]:
        work = InFlight(500.0)
        for work_id in range(own):
            work.start(work_id, 10.0, 0.0)
        work.correct(running, waiting, 1.0, 1.0)
        work.count(running, waiting, max(0.0, batch - running), 1.0)
        work.delay(each)
        return work.load, work.queue_seconds, work.prefill_tokens(1.0)

    few = observed(float(running), 0.0)
    assert all(more >= less for more, less in zip(observed(float(running + more_running), 0.0), few, strict=True))
    assert all(more >= less for more, less in zip(observed(float(running), float(more_waiting)), few, strict=True))


# -- first tokens ------------------------------------------------------------------------------------------------------


def counted(*tokens: float, rate: float = 1000.0) -> InFlight:
    """Requests that were sent at 0, after a page that counts first tokens."""
    made = InFlight(rate)
    assert made.count_first_tokens(10.0, 0.0, 0.0, -1.0, -1.0) is None
    for work_id, each in enumerate(tokens):
        made.start(work_id, each, 0.0)
    return made


def test_a_page_that_counts_first_tokens_shows_that_the_server_is_faster_than_its_rate() -> None:
    work = counted(4_000, 2_000, 1_000)
    found = work.count_first_tokens(12.0, 3.0, 0.0, 1.0, 1.0)
    assert found == FirstTokens(1, 2, 4_000 + 6_000)
    work.correct(3.0, 0.0, 1.0, 1.0, first_tokens=found)
    assert work.prefill_tokens(1.0) == 1_000


def test_without_that_count_running_requests_may_all_be_prefilling() -> None:
    work = counted(4_000, 2_000, 1_000)
    work.correct(3.0, 0.0, 1.0, 1.0)
    assert work.prefill_tokens(1.0) == 6_000


def test_a_count_is_never_taken_to_make_a_backlog_longer() -> None:
    work = counted(1_000, 1_000)
    found = work.count_first_tokens(10.0, 2.0, 0.0, 1.5, 1.5)
    assert found == FirstTokens(2, 0, 0.0)
    work.correct(2.0, 0.0, 1.5, 1.5, first_tokens=found)
    assert work.prefill_tokens(1.5) == 500


def test_a_request_that_was_cut_off_without_a_first_token_is_awaited_no_longer() -> None:
    work = counted(1_000, 1_000, 1_000)
    work.end(1, 0.5)
    assert work.count_first_tokens(11.0, 2.0, 0.0, 1.0, 1.0) == FirstTokens(1, 1, 1_000)
    assert work.count_first_tokens(12.0, 1.0, 0.0, 2.0, 2.0) == FirstTokens(0, 1, 3_000)


def test_a_request_sent_after_the_page_was_requested_is_not_on_it() -> None:
    work = counted(1_000)
    work.start(9, 500, 2.0)
    assert work.count_first_tokens(11.0, 1.0, 0.0, 1.5, 2.0) == FirstTokens(0, 1, 1_000)


def test_the_count_is_not_used_while_others_send_requests_to_the_server() -> None:
    work = counted(1_000, 1_000)
    found = work.count_first_tokens(17.0, 9.0, 0.0, 0.5, 0.5)
    assert found == FirstTokens(0, 2, None)  # seven first tokens, of which two can be known ones
    for page in (1.0, 2.0):
        work.count(9.0, 0.0, UNKNOWN, page)
    assert work.count_first_tokens(18.0, 9.0, 0.0, 2.5, 2.5) is None


def test_a_queue_that_is_longer_than_the_awaited_requests_makes_the_model_count_again() -> None:
    work = counted(1_000, 1_000, 1_000)
    assert work.count_first_tokens(12.0, 3.0, 2.0, 0.5, 0.5) is None
    assert work.count_first_tokens(13.0, 3.0, 1.0, 1.5, 1.5) == FirstTokens(2, 1, None)


def test_another_server_counts_from_0() -> None:
    work = counted(1_000)
    work.forget_others()
    assert work.count_first_tokens(1.0, 1.0, 0.0, 0.5, 0.5) is None
    assert work.count_first_tokens(2.0, 1.0, 0.0, 0.9, 0.9) == FirstTokens(0, 1, None)


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "end", "page", "page"]), st.integers(0, 9), st.floats(0, 2)), max_size=60
    )
)
def test_a_server_that_prefills_in_order_has_as_many_requests_without_a_first_token_as_its_pages_show(
    steps: list[tuple[str, int, float]],
) -> None:
    """A server of twice the rate that the agent assumes. A request ends only after its first token."""
    work = InFlight(500.0)
    first_at: dict[int, float] = {}  # of each request that was sent
    flying: list[int] = []
    now = busy_until = 0.0
    work.count_first_tokens(0.0, 0.0, 0.0, 0.0, 0.0)
    for step, number, passed in steps:
        now += passed
        if step == "start":
            busy_until = max(busy_until, now) + 100 * (number + 1) / 1000.0
            flying.append(len(first_at))
            first_at[len(first_at)] = busy_until
            work.start(flying[-1], 100 * (number + 1), now)
        elif step == "end" and flying:
            done = [each for each in flying if first_at[each] <= now]
            if done:
                flying.remove(done[number % len(done)])
                work.end(done[number % len(done)], now)
        elif step == "page":
            begun = sum(at <= now for at in first_at.values())
            found = work.count_first_tokens(float(begun), float(len(flying)), 0.0, now, now)
            assert found is not None
            assert found.without == len(first_at) - begun
            work.correct(float(len(flying)), 0.0, now, now, first_tokens=found)
            tokens = sum(request.tokens for each, request in work._requests.items() if first_at[each] > now)
            assert work.prefill_tokens(now) <= tokens + 1e-6
