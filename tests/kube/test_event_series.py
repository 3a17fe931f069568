"""Which Kubernetes Events are written about problems of objects, how often, and what they contain."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.kube import event_series
from agent.kube.event_series import (
    BURST,
    HEARTBEAT_SECONDS,
    MAX_OBJECTS,
    NOTE_BYTES,
    REFILL_SECONDS,
    TOTAL_BURST,
    TTL_SECONDS,
    EventSeries,
    EventWrite,
)
from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.wall_time import micro_time

POOL = ObjectRef("inference.networking.k8s.io/v1", "InferencePool", "ns", "llama", "uid-1")
PROBLEM = ObjectProblem("NoMatchingPods", "InferencePool ns/llama selects no pod; correct the selector")
WALL = 1_800_000_000.0


class Recorded:
    """The Events of a series after each write was taken."""

    def __init__(self) -> None:
        self.series = EventSeries("agent-0", 0.0)

    def report(
        self, *problems: ObjectProblem, ref: ObjectRef = POOL, at: float = 0.0, source: str = "discovery"
    ) -> None:
        self.series.set_problems(source, ref, problems, at)

    def take(self, at: float = 0.0) -> list[EventWrite]:
        """Every write that is due now, each of which is taken."""
        found = []
        while (write := self.series.next_write(at, micro_time(WALL + at))) is not None:
            self.series.written(write, at)
            found.append(write)
        return found


def body(write: EventWrite) -> Any:
    return msgspec.json.decode(write.body)


def kinds(writes: list[EventWrite]) -> list[tuple[str, bool, int]]:
    return [(write.type, write.create, write.occurrences) for write in writes]


def test_a_problem_is_a_warning_that_names_its_object() -> None:
    events = Recorded()
    events.report(PROBLEM)
    (write,) = events.take()
    event = body(write)
    name = event.pop("metadata").pop("name")
    assert name.startswith("llama.")
    assert write.path == "/apis/events.k8s.io/v1/namespaces/ns/events"
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "eventTime": "2027-01-15T08:00:00.000000Z",
        "type": "Warning",
        "reason": "NoMatchingPods",
        "action": "SelectPods",
        "note": PROBLEM.message,
        "regarding": {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "namespace": "ns",
            "name": "llama",
            "uid": "uid-1",
        },
        "reportingController": "inference-gateway-agent",
        "reportingInstance": "agent-0",
    }


def test_a_problem_that_is_reported_again_is_not_written_again() -> None:
    events = Recorded()
    events.report(PROBLEM)
    assert len(events.take()) == 1
    events.report(PROBLEM, at=1.0)
    assert events.take(1.0) == []


def test_the_end_of_a_problem_is_a_normal_event() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    events.report(at=5.0)
    (write,) = events.take(5.0)
    event = body(write)
    assert (event["type"], event["reason"]) == ("Normal", "ProblemResolved")
    assert event["note"] == "InferencePool ns/llama: NoMatchingPods is resolved"
    assert events.take(6.0) == []


def test_a_problem_that_comes_back_raises_the_count_of_its_event() -> None:
    events = Recorded()
    events.report(PROBLEM)
    (first,) = events.take()
    events.report(at=1.0)
    events.take(1.0)
    events.report(PROBLEM, at=2.0)
    (again,) = events.take(2.0)
    assert (again.create, again.name) == (False, first.name)
    assert again.path == f"/apis/events.k8s.io/v1/namespaces/ns/events/{first.name}"
    assert body(again) == {"series": {"count": 2, "lastObservedTime": "2027-01-15T08:00:02.000000Z"}}
    events.report(at=3.0)
    assert kinds(events.take(3.0)) == [("Normal", False, 2)]


def test_a_problem_that_came_and_went_before_it_was_written_leaves_no_event() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.report()
    assert events.take() == []
    assert len(events.series) == 0


def test_another_note_is_another_event() -> None:
    events = Recorded()
    events.report(PROBLEM)
    (first,) = events.take()
    events.report(PROBLEM._replace(message="another text"))
    (second,) = events.take()
    assert second.create
    assert second.name != first.name


def test_a_problem_that_stays_is_written_again_before_its_event_is_forgotten() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    assert events.series.next_due(10.0) == HEARTBEAT_SECONDS - 10.0
    assert events.take(HEARTBEAT_SECONDS - 1.0) == []
    assert kinds(events.take(HEARTBEAT_SECONDS)) == [("Warning", False, 2)]
    assert kinds(events.take(2 * HEARTBEAT_SECONDS)) == [("Warning", False, 3)]


def test_an_event_that_is_gone_is_created_again() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    write = events.series.next_write(HEARTBEAT_SECONDS, micro_time(WALL))
    assert write is not None
    assert not write.create
    events.series.gone(write)
    (created,) = events.take(HEARTBEAT_SECONDS)
    assert created.create


def test_an_event_older_than_its_life_is_created_again() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    events.report()
    events.take()
    events.report(PROBLEM, at=TTL_SECONDS)
    assert kinds(events.take(TTL_SECONDS)) == [("Warning", True, 1)]


def test_problems_with_one_reason_are_one_event() -> None:
    events = Recorded()
    events.report(PROBLEM, PROBLEM._replace(message="second"), PROBLEM._replace(message="third"))
    (write,) = events.take()
    assert write.note == f"{PROBLEM.message} (and 2 more)"


def test_two_sources_report_about_one_object() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.report(ObjectProblem("PodInTwoPools", "pod"), source="pools")
    assert {write.reason for write in events.take()} == {"NoMatchingPods", "PodInTwoPools"}
    events.report(source="pools")
    (write,) = events.take()
    assert write.note == "InferencePool ns/llama: PodInTwoPools is resolved"


def test_an_object_of_the_same_name_with_another_uid_begins_without_a_past() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    other = POOL._replace(uid="uid-2")
    events.report(ref=other)
    assert events.take() == []
    events.report(PROBLEM, ref=other)
    (write,) = events.take()
    assert write.create
    assert body(write)["regarding"]["uid"] == "uid-2"


def test_an_object_that_does_not_exist_has_an_event_without_a_uid() -> None:
    events = Recorded()
    events.report(PROBLEM, ref=POOL.anonymous)
    (write,) = events.take()
    assert "uid" not in body(write)["regarding"]


def test_an_object_that_is_forgotten_has_no_last_event() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    events.series.forget("discovery", POOL)
    assert events.take() == []
    assert len(events.series) == 0


def test_a_long_note_and_a_long_name_fit() -> None:
    events = Recorded()
    events.report(PROBLEM._replace(message="\N{SNOWMAN}" * 900), ref=POOL._replace(name="a." * 126 + "b"))
    (write,) = events.take()
    event = body(write)
    assert len(event["note"].encode()) <= NOTE_BYTES
    assert len(event["metadata"]["name"]) <= 253


def test_an_object_whose_problem_flaps_has_a_bounded_rate_and_the_last_state_in_the_end() -> None:
    events = Recorded()
    writes = 0
    seconds = 600
    for step in range(10 * seconds):
        events.report(*((PROBLEM,) if step % 2 == 0 else ()), at=step / 10)
        writes += len(events.take(step / 10))
    assert BURST < writes <= BURST + seconds / REFILL_SECONDS + 1
    events.report(at=float(seconds))
    assert events.take(seconds + 10 * REFILL_SECONDS)[-1:] != []
    assert events.take(seconds + 20 * REFILL_SECONDS) == []


def test_occurrences_within_the_limit_are_counted() -> None:
    events = Recorded()
    events.report(PROBLEM)
    assert kinds(events.take()) == [("Warning", True, 1)]
    events.series.failed(EventWrite(POOL, "NoMatchingPods", "Warning", "", True, "", 1, b""), 100.0)
    for step in range(7):
        events.report(at=float(step))
        events.report(PROBLEM, at=float(step))
    assert events.take(99.0) == []
    assert kinds(events.take(100.0)) == [("Warning", False, 8)]


def test_a_fleet_of_objects_with_problems_is_written_at_a_bounded_rate() -> None:
    events = Recorded()
    for number in range(MAX_OBJECTS + 5):
        events.report(PROBLEM, ref=POOL._replace(name=f"pool-{number}"))
    assert len(events.series) == MAX_OBJECTS
    assert events.series.dropped == 5
    assert len(events.take()) == TOTAL_BURST
    assert 0.0 < events.series.next_due(0.0) <= 1.0
    assert len(events.take(10.0)) == 10


def test_objects_without_a_problem_make_room() -> None:
    events = Recorded()
    for number in range(MAX_OBJECTS):
        ref = POOL._replace(name=f"pool-{number}")
        events.report(PROBLEM, ref=ref)
    events.take()
    events.report(ref=POOL._replace(name="pool-0"))
    events.report(PROBLEM)
    assert len(events.series) == MAX_OBJECTS
    assert events.series.dropped == 0


def test_a_resolved_problem_is_forgotten_with_its_events() -> None:
    events = Recorded()
    events.report(PROBLEM)
    events.take()
    events.report()
    events.take()
    events.take(TTL_SECONDS)
    events.take(TTL_SECONDS)
    assert len(events.series) == 0


steps = st.lists(
    st.tuples(
        st.floats(0.0, 400.0),
        st.sampled_from("abc"),
        st.lists(
            st.sampled_from([PROBLEM, PROBLEM._replace(message="x"), ObjectProblem("NoReadyPods", "y")]), max_size=2
        ),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps)
def test_no_sequence_writes_more_than_the_limits_and_the_last_events_are_the_present_state(
    steps: list[tuple[float, str, list[ObjectProblem], bool]],
) -> None:
    events, now, wrote = Recorded(), 0.0, dict.fromkeys("abc", 0)
    shown: dict[tuple[str, str], str] = {}
    state: dict[str, set[str]] = {name: set() for name in "abc"}

    def take() -> None:
        while (write := events.series.next_write(now, micro_time(WALL + now))) is not None:
            wrote[write.ref.name] += 1
            if "series" in body(write):
                assert body(write)["series"]["count"] >= 2
            events.series.written(write, now)
            shown[write.ref.name, write.reason] = write.type

    for wait, name, problems, look in steps:
        now += wait
        events.report(*problems, ref=POOL._replace(name=name), at=now)
        state[name] = {problem.reason for problem in problems}
        if look:
            take()
    for name, count in wrote.items():
        assert count <= BURST + now / REFILL_SECONDS + 1, name
    for _ in range(40):
        now += event_series.REFILL_SECONDS
        take()
    for name, reasons in state.items():
        assert {reason for (of, reason), kind in shown.items() if of == name and kind == "Warning"} == reasons
