"""A request is a ticket: stages decide now or later, and every ticket has one decision and one end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Event
from agent.events.requests import Abandoned
from agent.pick.decision import Pick
from agent.requests.pipeline import CONTINUE, WAIT, Pipeline, Result
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket

PICK = Pick("r", "10.0.0.1:8000", (), 1, 0, 0, "tie", ("10.0.0.1:8000",), (0.0,), {}, 1)
NO = Rejection("none_healthy", "all are down")
REQUEST = Request("r", "/v1/completions", b"{}")


class ScriptedStage:
    """Returns what a test scripts, and records what it is called with."""

    def __init__(self, name: str, result: Result) -> None:
        self.name = name
        self.result = result
        self.processed: list[Ticket] = []
        self.cancels: list[Ticket] = []
        self.ends: list[str] = []

    def process(self, ticket: Ticket, now: float) -> Result:
        self.processed.append(ticket)
        return self.result

    def cancelled(self, ticket: Ticket, now: float) -> None:
        self.cancels.append(ticket)

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        self.ends.append(how)


class Reports:
    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        self.reports.append((report, served))


class Line:
    """A pipeline of scripted stages, its events, and the decisions that came out."""

    def __init__(self, *results: Result) -> None:
        self.stages = [ScriptedStage(f"stage-{number}", result) for number, result in enumerate(results)]
        self.events: list[Event] = []
        self.reports = Reports()
        self.decisions: list[tuple[Ticket, Pick | Rejection]] = []
        self.now = 1.0
        self.pipeline = Pipeline("pool", self.stages, lambda: self.now, self.events.append, self.reports)

    def submit(self) -> Ticket:
        return self.pipeline.submit(REQUEST, lambda ticket, decision: self.decisions.append((ticket, decision)))


def test_without_a_stage_that_waits_the_decision_comes_within_submit() -> None:
    line = Line(CONTINUE, PICK)
    ticket = line.submit()
    assert line.decisions == [(ticket, PICK)]
    assert (ticket.picked, ticket.pick, line.pipeline.in_flight, line.pipeline.waiting) == (True, PICK, 1, 0)


def test_a_stage_that_rejects_keeps_the_request_from_those_behind_it() -> None:
    line = Line(NO, PICK)
    ticket = line.submit()
    assert line.decisions == [(ticket, NO)]
    assert line.stages[1].processed == []
    assert not ticket.end("closed")
    assert (line.pipeline.in_flight, line.stages[0].ends) == (0, [])


def test_a_stage_that_waits_decides_later_or_lets_the_next_stage_decide() -> None:
    line = Line(WAIT, PICK)
    first, second = line.submit(), line.submit()
    assert (line.decisions, line.pipeline.waiting) == ([], 2)
    assert line.pipeline.resume(second, NO)
    assert line.pipeline.resume(first, CONTINUE)
    assert line.decisions == [(second, NO), (first, PICK)]
    assert (line.pipeline.waiting, line.pipeline.in_flight) == (0, 1)


def test_a_ticket_is_not_resumed_with_wait() -> None:
    line = Line(WAIT, PICK)
    ticket = line.submit()
    with pytest.raises(ValueError, match="CONTINUE or a decision"):
        line.pipeline.resume(ticket, WAIT)


def test_a_client_that_leaves_while_a_stage_has_its_request_cancels_it_there_and_gets_no_decision() -> None:
    line = Line(CONTINUE, WAIT, PICK)
    ticket = line.submit()
    assert ticket.cancel()
    assert not ticket.cancel()
    assert [stage.cancels for stage in line.stages] == [[], [ticket], []]
    assert line.events == [Abandoned("pool", "stage-1")]
    assert not line.pipeline.resume(ticket, CONTINUE)
    assert (line.decisions, line.pipeline.waiting, line.pipeline.in_flight) == ([], 0, 0)


def test_a_decided_ticket_cannot_be_cancelled_and_ends_once_at_every_stage_that_it_passed() -> None:
    line = Line(CONTINUE, PICK, CONTINUE)
    ticket = line.submit()
    assert not ticket.cancel()
    assert ticket.report("TEXT x=1", "10.0.0.1:8000")
    assert ticket.end("closed")
    assert not ticket.end("lost")
    assert not ticket.report("TEXT x=2", "10.0.0.1:8000")
    assert line.reports.reports == [("TEXT x=1", "10.0.0.1:8000")]
    assert [stage.ends for stage in line.stages] == [["closed"], ["closed"], []]
    assert line.pipeline.in_flight == 0


def test_a_body_is_released_with_the_decision() -> None:
    line = Line(WAIT, PICK)
    kept, left = line.submit(), line.submit()
    assert kept.body == b"{}"
    line.pipeline.resume(kept, CONTINUE)
    left.cancel()
    assert kept.body is left.body is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["submit", "resume", "pick", "reject", "cancel", "end", "report"]), st.integers(0, 5)),
    max_size=40,
)


@given(script=STEPS)
def test_in_any_order_of_calls_every_ticket_has_at_most_one_decision_and_the_counts_hold(script: list[Any]) -> None:
    line = Line(WAIT, WAIT, PICK)
    tickets: list[Ticket] = []
    for step, place in script:
        if step == "submit":
            tickets.append(line.submit())
            continue
        if place >= len(tickets):
            continue
        ticket = tickets[place]
        if step in ("resume", "pick", "reject"):
            results: dict[str, Result] = {"resume": CONTINUE, "pick": PICK, "reject": NO}
            line.pipeline.resume(ticket, results[step])
        elif step == "cancel":
            ticket.cancel()
        elif step == "end":
            ticket.end("closed")
        else:
            ticket.report("TEXT", "")
    decided = [ticket for ticket, _ in line.decisions]
    assert len(decided) == len(set(decided))
    assert line.pipeline.waiting == sum(ticket.pending for ticket in tickets)
    assert line.pipeline.in_flight == sum(ticket.picked for ticket in tickets)
