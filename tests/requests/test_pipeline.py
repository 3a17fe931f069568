"""A request is a ticket: stages decide now or later, and every ticket has one decision and one end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Event
from agent.events.requests import Abandoned, StreamBroken
from agent.pick.decision import Pick
from agent.requests.pipeline import Pipeline
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.ticket import CONTINUE, WAIT, Request, Result, Ticket

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

    def shut_down(self, now: float) -> None:
        pass

    def cancelled(self, ticket: Ticket, now: float) -> None:
        self.cancels.append(ticket)

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        self.ends.append(how)


class Reports:
    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []
        self.responses: list[Response] = []

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        self.reports.append((report, served))

    def responded(self, ticket: Ticket, response: Response, now: float) -> None:
        self.responses.append(response)


class Scripted:
    """A pipeline of scripted stages, its events, and the decisions that came out."""

    def __init__(self, *results: Result, stages: Sequence[ScriptedStage] = ()) -> None:
        """`stages` come behind those that return `results`."""
        self.stages = [ScriptedStage(f"stage-{number}", result) for number, result in enumerate(results)]
        self.stages += stages
        self.events: list[Event] = []
        self.reports = Reports()
        self.decisions: list[tuple[Ticket, Pick | Rejection]] = []
        self.now = 1.0
        self.pipeline = Pipeline("pool", self.stages, lambda: self.now, self.events.append, self.reports, self.reports)

    def submit(self) -> Ticket:
        return self.pipeline.submit(REQUEST, lambda ticket, decision: self.decisions.append((ticket, decision)))


def test_without_a_stage_that_waits_the_decision_comes_within_submit() -> None:
    scripted = Scripted(CONTINUE, PICK)
    ticket = scripted.submit()
    assert scripted.decisions == [(ticket, PICK)]
    assert (ticket.picked, ticket.pick, scripted.pipeline.in_flight, scripted.pipeline.waiting) == (True, PICK, 1, 0)


def test_a_stage_that_rejects_keeps_the_request_from_those_behind_it() -> None:
    scripted = Scripted(NO, PICK)
    ticket = scripted.submit()
    assert scripted.decisions == [(ticket, NO)]
    assert scripted.stages[1].processed == []
    assert not ticket.end("closed")
    assert (scripted.pipeline.in_flight, scripted.stages[0].ends) == (0, [])


def test_a_stage_that_waits_decides_later_or_lets_the_next_stage_decide() -> None:
    scripted = Scripted(WAIT, PICK)
    first, second = scripted.submit(), scripted.submit()
    assert (scripted.decisions, scripted.pipeline.waiting) == ([], 2)
    assert second.resume(NO)
    assert first.resume(CONTINUE)
    assert scripted.decisions == [(second, NO), (first, PICK)]
    assert (scripted.pipeline.waiting, scripted.pipeline.in_flight) == (0, 1)


def test_a_ticket_is_not_resumed_with_wait() -> None:
    scripted = Scripted(WAIT, PICK)
    ticket = scripted.submit()
    with pytest.raises(ValueError, match="CONTINUE or a decision"):
        ticket.resume(WAIT)


def test_a_client_that_leaves_while_a_stage_has_its_request_cancels_it_there_and_gets_no_decision() -> None:
    scripted = Scripted(CONTINUE, WAIT, PICK)
    ticket = scripted.submit()
    assert ticket.cancel()
    assert not ticket.cancel()
    assert [stage.cancels for stage in scripted.stages] == [[], [ticket], []]
    assert scripted.events == [Abandoned("pool", "stage-1")]
    assert not ticket.resume(CONTINUE)
    assert (scripted.decisions, scripted.pipeline.waiting, scripted.pipeline.in_flight) == ([], 0, 0)


def test_a_decided_ticket_cannot_be_cancelled_and_ends_once_at_every_stage_that_it_passed() -> None:
    scripted = Scripted(CONTINUE, PICK, CONTINUE)
    ticket = scripted.submit()
    assert not ticket.cancel()
    assert ticket.report("TEXT x=1", "10.0.0.1:8000")
    assert ticket.end("closed")
    assert not ticket.end("lost")
    assert not ticket.report("TEXT x=2", "10.0.0.1:8000")
    assert scripted.reports.reports == [("TEXT x=1", "10.0.0.1:8000")]
    assert [stage.ends for stage in scripted.stages] == [["closed"], ["closed"], []]
    assert scripted.pipeline.in_flight == 0


def test_a_body_is_released_with_the_decision() -> None:
    scripted = Scripted(WAIT, PICK)
    kept, left = scripted.submit(), scripted.submit()
    assert kept.body == b"{}"
    kept.resume(CONTINUE)
    left.cancel()
    assert kept.body is left.body is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["submit", "resume", "pick", "reject", "cancel", "end", "report"]), st.integers(0, 5)),
    max_size=40,
)


@given(script=STEPS)
def test_in_any_order_of_calls_every_ticket_has_at_most_one_decision_and_the_counts_hold(script: list[Any]) -> None:
    scripted = Scripted(WAIT, WAIT, PICK)
    tickets: list[Ticket] = []
    for step, place in script:
        if step == "submit":
            tickets.append(scripted.submit())
            continue
        if place >= len(tickets):
            continue
        ticket = tickets[place]
        if step in ("resume", "pick", "reject"):
            results: dict[str, Result] = {"resume": CONTINUE, "pick": PICK, "reject": NO}
            ticket.resume(results[step])
        elif step == "cancel":
            ticket.cancel()
        elif step == "end":
            ticket.end("closed")
        else:
            ticket.report("TEXT", "")
    decided = [ticket for ticket, _ in scripted.decisions]
    assert len(decided) == len(set(decided))
    assert scripted.pipeline.waiting == sum(ticket.pending for ticket in tickets)
    assert scripted.pipeline.in_flight == sum(ticket.picked for ticket in tickets)


def test_a_stage_that_a_ticket_passed_is_notified_when_a_later_one_rejects_it_or_it_is_cancelled_there() -> None:
    scripted = Scripted(CONTINUE, WAIT, PICK)
    rejected, cancelled = scripted.submit(), scripted.submit()
    rejected.resume(NO)
    cancelled.cancel()
    assert [stage.ends for stage in scripted.stages] == [["rejected", "cancelled"], [], []]
    scripted = Scripted(CONTINUE, WAIT, NO)
    scripted.submit().resume(CONTINUE)
    assert [stage.ends for stage in scripted.stages] == [["rejected"], ["rejected"], []]


class RaisingStage(ScriptedStage):
    """Raises wherever it is called."""

    def process(self, ticket: Ticket, now: float) -> Result:
        raise KeyError("process")

    def cancelled(self, ticket: Ticket, now: float) -> None:
        raise KeyError("cancelled")

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        raise KeyError("ended")


def errors(scripted: Scripted) -> list[str]:
    return [event.detail for event in scripted.events if isinstance(event, StreamBroken)]


@pytest.mark.parametrize("first", [CONTINUE, WAIT])
def test_a_stage_that_raises_rejects_its_ticket_at_once_or_later_and_leaves_no_count_behind(first: Result) -> None:
    scripted = Scripted(CONTINUE, first, stages=[RaisingStage("broken", CONTINUE)])
    ticket = scripted.submit()
    assert first is CONTINUE or ticket.resume(CONTINUE)
    assert [decision.reason for _, decision in scripted.decisions if isinstance(decision, Rejection)] == ["error"]
    assert errors(scripted) == ["stage broken: KeyError('process')"]
    assert not ticket.cancel()
    assert (scripted.pipeline.waiting, scripted.pipeline.in_flight) == (0, 0)
    assert scripted.stages[0].ends == ["rejected"]


class HoldsAndRaises(RaisingStage):
    """Holds every ticket, and raises when that is cancelled."""

    def process(self, ticket: Ticket, now: float) -> Result:
        return WAIT


def test_a_stage_that_raises_when_a_ticket_is_cancelled_or_ends_keeps_no_other_from_being_notified() -> None:
    scripted = Scripted(CONTINUE, stages=[HoldsAndRaises("broken", WAIT)])
    cancelled, picked = scripted.submit(), scripted.submit()
    cancelled.cancel()
    picked.resume(PICK)
    picked.end("closed")
    assert scripted.stages[0].ends == ["cancelled", "closed"]
    assert errors(scripted) == ["stage broken: KeyError('cancelled')", "stage broken: KeyError('ended')"]
    assert (scripted.pipeline.waiting, scripted.pipeline.in_flight) == (0, 0)


class Reentrant(ScriptedStage):
    """Calls the ticket back within `process`, before it returns its result."""

    def __init__(self, result: Result, call: Callable[[Ticket], object]) -> None:
        super().__init__("reentrant", result)
        self.call = call

    def process(self, ticket: Ticket, now: float) -> Result:
        self.call(ticket)
        return self.result


@pytest.mark.parametrize("decision", [CONTINUE, PICK, NO])
def test_a_stage_may_resume_a_ticket_before_it_returns_wait(decision: Result) -> None:
    stage = Reentrant(WAIT, lambda ticket: ticket.resume(decision))
    scripted = Scripted(stages=[stage, ScriptedStage("last", PICK)])
    ticket = scripted.submit()
    assert len(scripted.decisions) == 1
    assert not ticket.resume(PICK)
    assert (scripted.pipeline.waiting, scripted.pipeline.in_flight) == (0, int(ticket.picked))


@pytest.mark.parametrize("result", [CONTINUE, WAIT, PICK, NO])
def test_a_ticket_that_is_cancelled_while_a_stage_processes_it_goes_no_further(result: Result) -> None:
    stage, last = Reentrant(result, Ticket.cancel), ScriptedStage("last", PICK)
    scripted = Scripted(CONTINUE, stages=[stage, last])
    ticket = scripted.submit()
    assert (scripted.decisions, last.processed, stage.cancels) == ([], [], [])
    assert stage.ends == (["cancelled"] if result is PICK else [])  # what it has picked is taken back
    assert scripted.stages[0].ends == ["cancelled"]
    assert not ticket.end("closed")
    assert (scripted.pipeline.waiting, scripted.pipeline.in_flight) == (0, 0)


def test_a_ticket_can_be_ended_when_the_recipient_of_its_decision_raises() -> None:
    scripted = Scripted(PICK)
    kept: list[Ticket] = []

    def fail(ticket: Ticket, _: Pick | Rejection) -> None:
        kept.append(ticket)
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        scripted.pipeline.submit(REQUEST, fail)
    assert scripted.pipeline.in_flight == 1
    assert kept[0].end("lost")
    assert scripted.pipeline.in_flight == 0


class KeepingStage(ScriptedStage):
    """Holds every ticket, and decides on those that it holds when it is shut down."""

    def __init__(self, name: str, result: Result) -> None:
        super().__init__(name, WAIT)
        self._last = result

    def shut_down(self, now: float) -> None:
        for ticket in self.processed:
            ticket.resume(self._last)


class FailingStage(ScriptedStage):
    def shut_down(self, now: float) -> None:
        raise OSError("a defect")


def test_a_pipeline_that_is_shut_down_has_its_stages_decide_on_what_they_hold() -> None:
    scripted = Scripted(CONTINUE, stages=[FailingStage("b", CONTINUE), KeepingStage("c", NO)])
    tickets = [scripted.submit() for _ in range(2)]
    assert scripted.pipeline.waiting == 2
    scripted.pipeline.shut_down()
    assert scripted.decisions == [(ticket, NO) for ticket in tickets]
    assert scripted.pipeline.waiting == 0
    assert scripted.events == [StreamBroken("pool", "error", "stage b: OSError('a defect')")]
