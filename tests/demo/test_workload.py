"""The workload of the demo: its properties for any shape, and that it separates the ways to pick."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo.fleet import EMULATED, SERVERS
from agent.demo.workload import MIN_PROMPT_TOKENS, WorkloadShape, best_hit_ratio, plan
from agent.emulator.text import chat_tokens
from tests.demo import virtual

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])
shapes = st.builds(
    WorkloadShape,
    rate=st.floats(1, 50),
    seconds=st.floats(0.1, 4),
    tenants=st.integers(1, 20),
    skew=st.floats(0, 3),
    system_tokens=st.integers(20, 200),
    question_tokens=st.integers(20, 100),
    answer_tokens=st.integers(1, 20),
    turns=st.integers(1, 4),
    think_seconds=st.floats(0, 1),
    continue_ratio=st.floats(0, 1),
    bytes_per_token=st.floats(1, 8),
    seed=st.integers(0, 9),
)


@given(shapes)
def test_equal_shapes_give_equal_requests_in_the_order_of_their_times(shape: WorkloadShape) -> None:
    turns = plan(shape)
    assert turns == plan(shape)
    assert [turn.at for turn in turns] == sorted(turn.at for turn in turns)
    assert all(0 < turn.at < shape.seconds for turn in turns)


@given(shapes)
def test_no_prompt_is_longer_than_the_shape_says(shape: WorkloadShape) -> None:
    for turn in plan(shape):
        length = sum(len(message.content) for message in turn.messages) / shape.bytes_per_token
        assert length <= shape.prompt_tokens
        assert 0 <= turn.known_tokens < turn.prompt_tokens


@given(shapes)
def test_a_turn_repeats_its_conversation_and_adds_a_question(shape: WorkloadShape) -> None:
    before: dict[int, tuple[tuple[str, str], ...]] = {}
    last_at: dict[int, float] = {}
    for turn in plan(shape):
        roles = [message.role for message in turn.messages]
        assert roles == ["system", "user"] + ["assistant", "user"] * turn.number
        assert turn.number < shape.turns
        earlier = before.get(turn.conversation, ())
        assert turn.messages[: len(earlier)] == earlier
        if turn.number:
            assert turn.at - last_at[turn.conversation] >= shape.think_seconds
        before[turn.conversation], last_at[turn.conversation] = turn.messages, turn.at


@given(shapes)
def test_chats_share_their_system_prompt_within_a_tenant_only(shape: WorkloadShape) -> None:
    systems = {turn.tenant: turn.messages[0] for turn in plan(shape)}
    assert all(turn.messages[0] == systems[turn.tenant] for turn in plan(shape))
    assert len(set(systems.values())) == len(systems)


@given(shapes)
def test_with_another_salt_only_the_times_are_equal(shape: WorkloadShape) -> None:
    plain, salted = plan(shape), plan(shape, "d1ce ")
    assert [(turn.at, turn.tenant, turn.conversation) for turn in plain] == [
        (turn.at, turn.tenant, turn.conversation) for turn in salted
    ]
    assert all(turn.messages[0].content.startswith("d1ce ") for turn in salted)
    assert not any(turn.messages[0].content.startswith("d1ce ") for turn in plain)


@given(st.integers(MIN_PROMPT_TOKENS, 10_000))
def test_a_shape_is_scaled_down_to_a_bound_and_stays_valid(bound: int) -> None:
    shape = WorkloadShape().within(bound)
    assert shape.prompt_tokens <= max(bound, 0)
    assert shape.prompt_tokens >= min(bound, WorkloadShape().prompt_tokens) - 2 * WorkloadShape().turns
    assert min(shape.system_tokens, shape.question_tokens, shape.answer_tokens) > 0


def test_a_bound_too_low_for_a_chat_is_refused_with_the_minimum() -> None:
    with pytest.raises(ValueError, match=f"allow at least {MIN_PROMPT_TOKENS}"):
        WorkloadShape().within(MIN_PROMPT_TOKENS - 1)


@given(shapes)
def test_the_best_hit_ratio_is_a_ratio(shape: WorkloadShape) -> None:
    assert 0 <= best_hit_ratio(plan(shape)) < 1


def test_an_emulated_server_counts_as_many_tokens_as_planned() -> None:
    for turn in plan(replace(WorkloadShape(), seconds=2.0)):
        tokens = chat_tokens([(message.role, message.content) for message in turn.messages])
        assert len(tokens) == pytest.approx(turn.prompt_tokens, rel=0.01)
        assert len(tokens) <= WorkloadShape().prompt_tokens


@SEEDS
def test_the_fleet_has_enough_capacity_only_with_prefix_hits(seed: int) -> None:
    shape = replace(WorkloadShape(), seed=seed)
    turns = plan(shape)
    capacity = SERVERS * EMULATED.prefill_tokens_per_second * shape.seconds
    assert 0.5 * capacity < sum(turn.prompt_tokens - turn.known_tokens for turn in turns) < 0.75 * capacity
    assert sum(turn.prompt_tokens for turn in turns) > 2 * capacity


@SEEDS
def test_the_most_popular_tenant_needs_more_than_one_server(seed: int) -> None:
    shape = replace(WorkloadShape(), seed=seed)
    new = sum(turn.prompt_tokens - turn.known_tokens for turn in plan(shape) if turn.tenant == 0)
    assert new > EMULATED.prefill_tokens_per_second * shape.seconds


@SEEDS
def test_the_default_profile_is_much_faster_and_has_to_leave_warm_servers(seed: int) -> None:
    shape = replace(WorkloadShape(), seed=seed)
    turns = plan(shape)
    baseline = virtual.run(turns, virtual.ROUND_ROBIN, EMULATED, shape.answer_tokens)
    picked = virtual.run(turns, "least-cost", EMULATED, shape.answer_tokens)
    assert len(baseline.ttft) == len(picked.ttft) == len(turns)
    assert picked.percentile(90) < 0.4 * baseline.percentile(90)
    assert picked.percentile(50) < 0.5 * baseline.percentile(50)
    assert picked.hit_ratio > baseline.hit_ratio + 0.07
    assert 5 <= picked.left_warmest < len(turns) / 4
    assert picked.predicted_tokens == pytest.approx(picked.hit_tokens, rel=0.03)


@pytest.mark.parametrize("profile", ["affinity", "blend"])
def test_the_other_profiles_are_faster_too(profile: str) -> None:
    turns = plan(WorkloadShape())
    baseline = virtual.run(turns, virtual.ROUND_ROBIN, EMULATED, WorkloadShape().answer_tokens)
    picked = virtual.run(turns, profile, EMULATED, WorkloadShape().answer_tokens)
    assert picked.percentile(90) < 0.6 * baseline.percentile(90)
    assert picked.hit_ratio > baseline.hit_ratio
