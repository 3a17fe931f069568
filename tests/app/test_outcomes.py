"""What the proxy reports of responses, and what follows for picks, the index, the work in flight and the metrics."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.events.exchange import Exchange, TokenUsage
from agent.events.requests import Completed, EndpointEjected, NotFollowed, Responded, UnknownLogEntry, Unreported
from agent.events.scraping import HealthChanged
from agent.pick.decision import ERRORS
from agent.requests.outcomes import AWAITED_SECONDS, FIRST_AWAITED, MAX_AWAITED
from agent.requests.response import RESET, RETRIED, Response
from agent.requests.ticket import Request, Ticket
from agent.signals import WAITING
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from tests.app.test_pool import LONG, A, B, Bench, completion

C, D = "10.0.0.3:8000", "10.0.0.4:8000"
GOOD = Response(200, complete=True, body_bytes=100)
BAD = Response(500, complete=True, body_bytes=3)
BROKEN_OFF = Response(200, RESET, complete=True, body_bytes=9)


class Fleet(Bench):
    """A pool of three whose responses come by the access log, by response headers, or by both."""

    def __init__(self, *servers: str, log: bool = True, more: str = "") -> None:
        super().__init__(f"{more}flowControl: {{enabled: false}}\n")
        self.servers = servers or (A, B, C)
        self.pool.store.set_endpoints(dict.fromkeys(self.servers, "vllm"), 100.0)
        self.scraped(*self.servers)
        self.log = log
        self.number = 0
        if log:
            self.pool.log_opened()

    def view(self, address: str) -> EndpointView:
        views = self.pool.store.snapshot(self.clock.now()).endpoints
        return next(view for view in views if view.address == address)

    def send(self, request: Request = LONG, subset: frozenset[str] | None = None) -> Ticket:
        self.number += 1
        ticket, _ = self.pick(request._replace(request_id=f"r{self.number}"), subset)
        return ticket

    def answer(self, ticket: Ticket, response: Response, *, late: bool = False) -> None:
        """The proxy reports the response and ends the stream; `late`: the entry of the log comes last."""
        response = response if response.served else response._replace(served=ticket.endpoint)
        if not self.log:
            ticket.respond(response._replace(complete=False, body_bytes=None))
        if late:
            ticket.end("closed")
        if self.log:
            self.pool.logged(ticket.request_id, response)
        if not late:
            ticket.end("closed")

    def fail(self, address: str, times: int = 3, response: Response = BAD) -> None:
        for _ in range(times):
            self.answer(self.send(subset=frozenset({address})), response)


by_log_and_headers = pytest.mark.parametrize("log", [True, False], ids=["access-log", "response-headers"])


@by_log_and_headers
def test_an_endpoint_is_ejected_after_failures_in_a_row_and_says_why_and_when_it_is_tried(log: bool) -> None:
    fleet = Fleet(log=log)
    fleet.fail(A, 2)
    assert fleet.view(A).health is Health.HEALTHY
    fleet.fail(A, 1)
    view = fleet.view(A)
    assert (view.health, view.reason) == (Health.FAILING, "consecutive_failures")
    assert view.errors is not None
    assert (view.errors.consecutive, view.errors.last, view.errors.trial_at) == (3, "server_error", 102.0)
    (event,) = fleet.of(EndpointEjected)
    assert (event.endpoint, event.reason, event.consecutive, event.seconds) == (A, "consecutive_failures", 3, 2.0)
    assert {fleet.send(completion(token=number)).endpoint for number in range(20)} == {B, C}


@by_log_and_headers
@pytest.mark.parametrize(
    "response",
    [
        Response(400, complete=True),
        Response(401, complete=True),
        Response(404, complete=True),
        Response(422, complete=True),
        Response(429, complete=True),
        Response(501, complete=True),
        Response(503, retry_after=True, complete=True),
        Response(529, complete=True),
        Response(0, client_left=True, complete=True),
        Response(200, client_left=True, complete=True, body_bytes=50),
        Response(503, "proxy", complete=True),
    ],
    ids=lambda response: f"{response.status}{'-left' * response.client_left}{'-' * bool(response.broken)}",
)
def test_what_is_not_the_servers_fault_never_ejects(response: Response, log: bool) -> None:
    fleet = Fleet(log=log)
    fleet.fail(A, 50, response)
    assert fleet.view(A).health is Health.HEALTHY
    assert fleet.view(A).errors is None


def test_a_503_without_retry_after_ejects_only_where_no_page_shows_a_queue() -> None:
    fleet = Fleet()
    fleet.scraped(A, **{WAITING: 3.0})
    fleet.fail(A, 50, Response(503, complete=True))
    assert fleet.view(A).health is Health.HEALTHY
    fleet.fail(B, 3, Response(503, complete=True))
    assert fleet.view(B).health is Health.FAILING


def test_an_old_page_proves_no_queue() -> None:
    fleet = Fleet()
    fleet.scraped(A, **{WAITING: 3.0})
    fleet.clock.advance(fleet.config.state.stale_after)
    assert not fleet.pool.store.has_queue(A, fleet.clock.now())


def test_client_errors_between_the_failures_neither_count_nor_hide_them() -> None:
    fleet = Fleet()
    for _ in range(3):
        fleet.fail(A, 1)
        fleet.fail(A, 3, Response(400, complete=True))
    assert fleet.view(A).health is Health.FAILING


@by_log_and_headers
def test_the_trial_is_a_single_request_and_its_success_admits_the_endpoint(log: bool) -> None:
    fleet = Fleet(A, B, log=log)
    fleet.fail(A)
    fleet.clock.advance(2.0)
    tickets = [fleet.send(completion(token=number)) for number in range(10)]
    assert Counter(ticket.endpoint for ticket in tickets) == {A: 1, B: 9}
    (trial,) = [ticket for ticket in tickets if ticket.endpoint == A]
    fleet.answer(trial, GOOD)
    assert fleet.view(A).health is Health.HEALTHY
    change = fleet.of(HealthChanged)[-1]
    assert (change.endpoint, change.old, change.new) == (A, "failing", "healthy")


def test_a_failed_trial_ejects_again_for_longer() -> None:
    fleet = Fleet(A, B)
    fleet.fail(A)
    fleet.clock.advance(2.0)
    trial = next(ticket for ticket in (fleet.send(completion(token=n)) for n in range(10)) if ticket.endpoint == A)
    fleet.answer(trial, BAD)
    assert fleet.view(A).reason == "trial_failed"
    assert [event.seconds for event in fleet.of(EndpointEjected)] == [2.0, 4.0]


@pytest.mark.parametrize(("servers", "limit"), [((A, B), 1), ((A, B, C), 1), ((A, B, C, D), 2)])
def test_only_a_share_of_the_pool_is_ejected_at_a_time(servers: tuple[str, ...], limit: int) -> None:
    fleet = Fleet(*servers)
    for address in servers:
        fleet.fail(address, 10)
    assert sum(fleet.view(address).health is Health.FAILING for address in servers) == limit


def test_what_the_proxy_ejects_counts_towards_the_same_share() -> None:
    fleet = Fleet(A, B, C)
    fleet.answer(fleet.send(subset=frozenset({A})), GOOD._replace(served=B))
    assert fleet.of(NotFollowed) == [NotFollowed("default", A, B)]
    fleet.fail(C)
    assert fleet.view(C).health is Health.HEALTHY, "the proxy has ejected one of three"
    fleet.clock.advance(30.0)
    fleet.scraped(A, B, C)
    fleet.fail(C, 1)
    assert fleet.view(C).health is Health.FAILING


def test_the_last_healthy_endpoint_is_not_ejected() -> None:
    fleet = Fleet(A, B, C, D)
    fleet.pool.store.failed(B, "refused", "", 100.0, 0.0)
    fleet.pool.store.failed(C, "refused", "", 100.0, 0.0)
    fleet.pool.store.failed(D, "refused", "", 100.0, 0.0)
    fleet.fail(A, 20)
    assert fleet.view(A).health is Health.HEALTHY


def test_where_no_healthy_endpoint_is_left_an_ejected_one_is_picked() -> None:
    fleet = Fleet(A, B)
    fleet.fail(A)
    fleet.pool.store.failed(B, "refused", "", 100.0, 0.0)
    assert fleet.send().endpoint == A


def test_a_subset_of_ejected_endpoints_is_served() -> None:
    fleet = Fleet()
    fleet.fail(A)
    assert fleet.send(subset=frozenset({A})).endpoint == A


def test_failures_raise_the_cost_before_they_eject() -> None:
    fleet = Fleet(A, B)
    warm = fleet.send(subset=frozenset({A}))
    fleet.answer(warm, GOOD)
    assert fleet.send().endpoint == A, "it holds the prompt"
    fleet.fail(A, 2)
    ticket = fleet.send()
    assert ticket.endpoint == B
    assert ticket.pick is not None
    assert ticket.pick.decided_by == ERRORS
    assert ticket.pick.scores[ERRORS] == [pytest.approx(0.5), 1.0]


def test_a_restarted_server_is_admitted_at_once() -> None:
    fleet = Fleet()
    fleet.scraped(A, finished_requests=10.0)
    fleet.fail(A)
    fleet.scraped(A, finished_requests=0.0)
    assert fleet.view(A).health is Health.HEALTHY


def test_without_outlier_detection_failures_are_counted_and_change_nothing() -> None:
    fleet = Fleet(more="outlierDetection: {enabled: false}\n")
    fleet.fail(A, 20)
    assert fleet.view(A).health is Health.HEALTHY
    assert fleet.view(A).errors is None
    assert Counter(event.result for event in fleet.of(Responded)) == {"server_error": 20}


# -- the prefix index -------------------------------------------------------------------------------------------------


@by_log_and_headers
@pytest.mark.parametrize("late", [False, True], ids=["before-the-end", "after-the-end"])
@pytest.mark.parametrize("response", [BAD, Response(400, complete=True), Response(429, complete=True)], ids=str)
def test_a_failed_request_is_not_credited_to_the_index(response: Response, late: bool, log: bool) -> None:
    fleet = Fleet(log=log)
    if not log:
        fleet.answer(fleet.send(completion(token=1)), GOOD)
    ticket = fleet.send()
    assert fleet.pool.index.blocks(ticket.endpoint) > 0
    fleet.answer(ticket, response, late=late and log)
    _, pick = fleet.pick(LONG)
    assert (pick.hit_tokens, pick.best_hit_tokens) == (0, 0)


def test_a_stream_that_breaks_off_is_not_credited() -> None:
    fleet = Fleet()
    ticket = fleet.send()
    ticket.respond(Response(200, served=ticket.endpoint))
    fleet.answer(ticket, BROKEN_OFF, late=True)
    assert fleet.pool.index.blocks(ticket.endpoint) == 0
    assert [event.result for event in fleet.of(Responded)] == ["ok", "reset"]
    assert fleet.view(ticket.endpoint).errors is not None


@by_log_and_headers
def test_a_client_that_leaves_before_the_response_leaves_no_credit(log: bool) -> None:
    fleet = Fleet(log=log)
    fleet.answer(fleet.send(completion(token=1)), GOOD)
    ticket = fleet.send()
    if log:
        fleet.answer(ticket, Response(0, client_left=True, complete=True, body_bytes=0))
    else:
        ticket.end("closed")
    _, pick = fleet.pick(LONG)
    assert pick.best_hit_tokens == 0


def test_a_client_that_leaves_during_the_response_leaves_the_credit() -> None:
    fleet = Fleet()
    fleet.answer(fleet.send(), Response(200, client_left=True, complete=True, body_bytes=9))
    assert fleet.pick(LONG)[1].best_hit_tokens > 0


def test_a_failure_keeps_the_credit_of_earlier_requests_and_of_those_that_succeed_beside_it() -> None:
    fleet = Fleet(A)
    first = fleet.send()
    beside = fleet.send()
    fleet.answer(first, Response(0, client_left=True, complete=True, body_bytes=0))
    fleet.answer(beside, GOOD)
    held = fleet.pick(LONG)[1].hit_tokens
    assert held > 0
    fleet.answer(fleet.send(), BAD)
    assert fleet.pick(LONG)[1].hit_tokens == held


def test_predicted_hits_of_a_failed_request_are_taken_back() -> None:
    fleet = Fleet(A)
    fleet.scraped(A, prefix_hit_tokens=0.0)
    fleet.answer(fleet.send(), GOOD)
    fleet.answer(fleet.send(), GOOD)
    predicted = fleet.view(A).prefix.predicted
    assert predicted > 0
    fleet.answer(fleet.send(), BAD)
    assert fleet.view(A).prefix.predicted == predicted


@pytest.mark.parametrize("log", [True, False], ids=["access-log", "response-headers"])
@pytest.mark.parametrize("late", [False, True], ids=["before-the-end", "after-the-end"])
@pytest.mark.parametrize(("status", "forgotten"), [(200, True), (404, False), (500, False)])
def test_a_reset_that_passed_through_is_believed_where_it_succeeded(
    log: bool, late: bool, status: int, forgotten: bool
) -> None:
    fleet = Fleet(A, log=log)
    fleet.answer(fleet.send(), GOOD)
    held = fleet.pool.index.blocks(A)
    assert held > 0
    reset = fleet.send(Request("r", "/reset_prefix_cache", None, method="POST"))
    fleet.answer(reset, Response(status, complete=True), late=late and log)
    assert fleet.pool.index.blocks(A) == (0 if forgotten else held)


# -- served elsewhere -------------------------------------------------------------------------------------------------


def test_a_pick_that_the_proxy_does_not_follow_is_booked_where_it_was_served_and_reported() -> None:
    fleet = Fleet(A, B, log=False)
    ticket = fleet.send(subset=frozenset({A}))
    fleet.answer(ticket, GOOD._replace(served=ticket.endpoint))
    ticket = fleet.send(completion(token=3), subset=frozenset({A}))
    ticket.respond(Response(200, served=B))
    assert (fleet.view(A).work.requests, fleet.view(B).work.requests) == (0, 1)
    assert fleet.of(NotFollowed) == [NotFollowed("default", A, B)]
    ticket.end("closed")
    assert (fleet.view(A).work.requests, fleet.view(B).work.requests) == (0, 0)
    assert fleet.pick(completion(token=3))[1].endpoint == B, "its cache has the prompt"


def test_an_endpoint_that_left_the_pool_gets_no_work_and_no_credit() -> None:
    fleet = Fleet(A, B)
    fleet.answer(fleet.send(subset=frozenset({A})), GOOD._replace(served=D))
    assert fleet.pool.index.blocks(D) == 0
    assert fleet.of(NotFollowed) == [NotFollowed("default", A, D)]


def test_a_retry_counts_against_the_endpoint_that_could_not_be_reached() -> None:
    fleet = Fleet(A, B)
    fleet.answer(fleet.send(subset=frozenset({A})), GOOD._replace(served=B, attempts=2))
    assert [(event.endpoint, event.result) for event in fleet.of(Responded)] == [(A, RETRIED), (B, "ok")]
    assert fleet.of(NotFollowed) == []
    assert fleet.view(A).errors is not None


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_nothing_is_kept_for_long_where_the_proxy_reports_nothing() -> None:
    fleet = Fleet(log=False)
    for _ in range(FIRST_AWAITED):
        fleet.send().end("closed")
    fleet.clock.advance(AWAITED_SECONDS + 1)
    fleet.scraped(A, B, C)
    ticket = fleet.send()
    ticket.end("closed")
    assert (ticket.chain, fleet.pool.outcomes.kept) == ((), 0)
    assert fleet.of(Unreported) == []


def test_the_first_requests_are_reported_although_the_proxy_opens_its_log_with_their_entries() -> None:
    fleet = Fleet(log=False)
    over, open_ = fleet.send(), fleet.send()
    over.end("closed")
    fleet.pool.log_opened()
    for ticket in (over, open_):
        fleet.pool.logged(ticket.request_id, GOOD._replace(served=ticket.endpoint, exchange=EXCHANGE))
    open_.end("closed")
    assert [event.result for event in fleet.of(Completed)] == ["ok", "ok"]
    assert fleet.pool.outcomes.kept == 0


def test_requests_without_an_entry_are_forgotten_after_a_while_and_beyond_a_number() -> None:
    fleet = Fleet()
    for _ in range(MAX_AWAITED + 10):
        fleet.send().end("closed")
    assert fleet.pool.outcomes.kept == MAX_AWAITED
    fleet.clock.advance(AWAITED_SECONDS + 1)
    fleet.scraped(A, B, C)
    fleet.send().end("closed")
    assert fleet.pool.outcomes.kept == 1


def test_a_log_that_ends_leaves_nothing_behind() -> None:
    fleet = Fleet()
    over, open_ = fleet.send(), fleet.send()
    over.end("closed")
    fleet.pool.log_closed()
    assert fleet.pool.outcomes.kept == 1
    open_.end("closed")  # its entry may come by the next log
    for _ in range(FIRST_AWAITED):
        fleet.send().end("closed")
    assert fleet.pool.outcomes.kept == 0
    assert over.chain == open_.chain == ()


def test_requests_with_one_id_are_told_apart_by_their_endpoints() -> None:
    fleet = Fleet(A, B)
    ours = [fleet.pick(LONG, frozenset({address}))[0] for address in (A, B)]
    fleet.pool.logged(LONG.request_id, BAD._replace(served=B))
    fleet.pool.logged(LONG.request_id, GOOD._replace(served=A))
    assert [ticket.result for ticket in ours] == ["ok", "server_error"]


def test_an_entry_of_an_unknown_request_is_ignored() -> None:
    fleet = Fleet()
    fleet.pool.logged("of another picker", BAD._replace(served=A))
    assert fleet.of(Responded) == []


EXCHANGE = Exchange(2.0, 0.5, 1.9, 1_000, 5_000, True, TokenUsage(100, 15, 64))


@pytest.mark.parametrize("late", [False, True])
def test_the_end_of_a_request_is_reported_once_with_what_the_proxy_measured(late: bool) -> None:
    fleet = Fleet()
    ticket = fleet.send()
    fleet.answer(ticket, GOOD._replace(exchange=EXCHANGE), late=late)
    fleet.pool.logged(ticket.request_id, GOOD._replace(exchange=EXCHANGE, served=A))  # the proxy repeats itself
    assert fleet.of(Completed) == [Completed("default", ticket.model, "ok", 200, EXCHANGE)]
    assert fleet.of(UnknownLogEntry) == [UnknownLogEntry("default")]


def test_response_headers_report_an_end_without_measurements_and_a_break_off_as_it_came() -> None:
    fleet = Fleet(log=False)
    fleet.answer(fleet.send(), GOOD)
    fleet.send().end("closed")  # no response at all
    assert [(event.result, event.status, event.exchange) for event in fleet.of(Completed)] == [
        ("ok", 200, None),
        ("client_left", 0, None),
    ]


def test_a_stream_that_breaks_off_is_reported_by_the_later_report_only() -> None:
    fleet = Fleet()
    ticket = fleet.send()
    ticket.respond(GOOD._replace(served=ticket.endpoint, complete=False, body_bytes=None))
    fleet.answer(ticket, BROKEN_OFF._replace(exchange=EXCHANGE))
    assert [(event.result, event.status) for event in fleet.of(Completed)] == [("reset", 200)]


def test_a_request_whose_entry_does_not_come_is_counted_as_unreported() -> None:
    fleet = Fleet()
    fleet.send().end("closed")
    fleet.clock.advance(AWAITED_SECONDS + 1)
    fleet.scraped(A, B, C)
    fleet.send().end("closed")
    assert len(fleet.of(Unreported)) == 1
    fleet.pool.log_closed()
    assert len(fleet.of(Unreported)) == 2
    assert fleet.of(Completed) == []
