"""The overload demo's workload and table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo.overload import (
    CAPACITY,
    LARGE,
    LOAD,
    OBJECTIVES,
    SECONDS,
    SERVER,
    SMALL,
    OverloadRun,
    SentChat,
    caller_of,
    fairness,
    notes,
    objective_of,
    overloading,
    table,
)
from agent.demo.report import UNKNOWN
from agent.demo.workload import WorkloadShape, plan
from tests.demo import virtual


def chat(priority: int, caller: str, ttft: float | None, refused: str = "", ended_at: float = 1.0) -> SentChat:
    return SentChat(priority, caller, 1000, ttft, refused, ended_at)


def test_the_load_is_twice_what_the_servers_can_do() -> None:
    whole = overloading(WorkloadShape(seconds=SECONDS), None)
    assert whole.rate == LOAD * CAPACITY
    half = replace(whole, rate=CAPACITY)
    ended = [
        virtual.run(plan(shape), "least-cost", SERVER, shape.answer_tokens).ended_at / SECONDS
        for shape in (half, whole)
    ]
    assert ended == [pytest.approx(1.0, abs=0.15), pytest.approx(LOAD, rel=0.1)]


def test_a_given_rate_is_kept() -> None:
    assert overloading(WorkloadShape(seconds=4), 3.0).rate == 3.0


def test_each_priority_gets_a_third_of_the_chats_and_its_large_caller_twice_as_many_as_the_small_one() -> None:
    turns = plan(overloading(WorkloadShape(seconds=SECONDS), None))
    by = Counter((objective_of(turn).priority, caller_of(turn)) for turn in turns)
    for objective in OBJECTIVES:
        large, small = by[objective.priority, LARGE], by[objective.priority, SMALL]
        assert large + small == pytest.approx(len(turns) / 3, rel=0.15)
        assert large / small == pytest.approx(2, rel=0.3)


def test_a_conversation_keeps_its_priority_and_its_caller() -> None:
    of: dict[int, set[tuple[str, str]]] = {}
    for turn in plan(WorkloadShape(seconds=4)):
        of.setdefault(turn.conversation, set()).add((objective_of(turn).name, caller_of(turn)))
    assert all(len(pairs) == 1 for pairs in of.values())


def test_callers_that_get_what_they_are_due_are_served_fairly_however_much_more_one_wants() -> None:
    chats = [chat(0, "a", 0.1), chat(0, "b", 0.1), *[chat(0, "a", None, "expired")] * 5, chat(0, "b", None, "expired")]
    assert fairness(chats, 10) == pytest.approx(1.0)


def test_a_caller_that_takes_the_share_of_the_other_lowers_the_index() -> None:
    chats = [*[chat(0, "a", 0.1)] * 3, chat(0, "b", 0.1), *[chat(0, "b", None, "expired")] * 3]
    value = fairness(chats, 10)
    assert value is not None
    assert value == pytest.approx((1.5 + 0.5) ** 2 / (2 * (1.5**2 + 0.5**2)))


def test_answers_after_the_last_chat_was_sent_do_not_count_as_served() -> None:
    chats = [chat(0, "a", 0.1, ended_at=1), chat(0, "b", 9.0, ended_at=20)]
    value = fairness(chats, 10)
    assert value is not None
    assert value < 1
    assert fairness([chat(0, "a", None, "shed")], 10) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30))
def test_the_index_lies_between_one_over_the_callers_and_one(rows: list[tuple[str, bool]]) -> None:
    value = fairness([chat(0, caller, 0.1 if answered else None) for caller, answered in rows], 10)
    callers = len({caller for caller, _ in rows})
    assert value is None or 1 / callers - 1e-9 <= value <= 1 + 1e-9


def test_the_table_has_the_figures_of_each_priority_and_a_dash_for_what_is_unknown() -> None:
    without = OverloadRun("without", 30, [chat(10, "a", 4.0, ended_at=10), chat(-1, "a", 6.0, ended_at=10)], {})
    controlled = OverloadRun(
        "with", 30, [chat(10, "a", 0.5, ended_at=5), chat(-1, "a", None, "shed"), chat(0, "a", None)], {"HTTP 500": 1}
    )
    rows = {row.label: row.cells for row in table((without, controlled))}
    assert rows["priority 10: time to first token, p90"] == ("4.00 s", "0.50 s")
    assert rows["priority 10: tokens per second"] == ("100", "200")
    assert rows["priority -1: shed"] == ("0", "1")
    assert rows["priority -1: answered"] == ("1 of 1", "0 of 1")
    assert rows["priority 0: time to first token, p50"] == (UNKNOWN, UNKNOWN)
    assert rows["all: errors"] == ("0", "1")
    text = "\n".join(notes((without, controlled)))
    assert "priority 10: p90 of the time to first token is 0.12 of that without." in text
    assert "with: 1 x HTTP 500" in text
