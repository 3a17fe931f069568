"""The demo's workload: what it promises to be, whatever its shape, and that it is worth showing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo.fleet import EMULATED, SERVERS
from agent.demo.workload import MIN_PROMPT_TOKENS, Shape, best_hit_ratio, plan
from agent.emulator.text import chat_tokens
from tests.demo import virtual

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])
shapes = st.builds(
    Shape,
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
def test_the_same_shape_gives_the_same_requests_in_the_order_of_their_times(shape: Shape) -> None:
    turns = plan(shape)
    assert turns == plan(shape)
    assert [turn.at for turn in turns] == sorted(turn.at for turn in turns)
    assert all(0 < turn.at < shape.seconds for turn in turns)


@given(shapes)
def test_no_prompt_is_longer_than_the_shape_says(shape: Shape) -> None:
    for turn in plan(shape):
        said = sum(len(message.content) for message in turn.messages) / shape.bytes_per_token
        assert said <= shape.prompt_tokens
        assert 0 <= turn.known_tokens < turn.prompt_tokens


@given(shapes)
def test_a_turn_says_again_all_that_its_conversation_said_and_then_asks(shape: Shape) -> None:
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
def test_chats_of_one_tenant_begin_alike_and_chats_of_two_do_not(shape: Shape) -> None:
    systems = {turn.tenant: turn.messages[0] for turn in plan(shape)}
    assert all(turn.messages[0] == systems[turn.tenant] for turn in plan(shape))
    assert len(set(systems.values())) == len(systems)


@given(shapes)
def test_a_salt_leaves_nothing_in_common_but_the_times(shape: Shape) -> None:
    plain, salted = plan(shape), plan(shape, "d1ce ")
    assert [(turn.at, turn.tenant, turn.conversation) for turn in plain] == [
        (turn.at, turn.tenant, turn.conversation) for turn in salted
    ]
    assert all(turn.messages[0].content.startswith("d1ce ") for turn in salted)
    assert not any(turn.messages[0].content.startswith("d1ce ") for turn in plain)


@given(st.integers(MIN_PROMPT_TOKENS, 10_000))
def test_a_shape_is_made_to_fit_a_bound_and_stays_one(bound: int) -> None:
    shape = Shape().within(bound)
    assert shape.prompt_tokens <= max(bound, 0)
    assert shape.prompt_tokens >= min(bound, Shape().prompt_tokens) - 2 * Shape().turns
    assert min(shape.system_tokens, shape.question_tokens, shape.answer_tokens) > 0


def test_a_bound_that_no_chat_fits_is_refused_with_the_least_one() -> None:
    with pytest.raises(ValueError, match=f"allow at least {MIN_PROMPT_TOKENS}"):
        Shape().within(MIN_PROMPT_TOKENS - 1)


@given(shapes)
def test_the_best_hit_ratio_is_a_ratio(shape: Shape) -> None:
    assert 0 <= best_hit_ratio(plan(shape)) < 1


def test_an_emulated_server_counts_the_tokens_that_the_plan_reckons_with() -> None:
    for turn in plan(replace(Shape(), seconds=2.0)):
        tokens = chat_tokens([(message.role, message.content) for message in turn.messages])
        assert len(tokens) == pytest.approx(turn.prompt_tokens, rel=0.01)
        assert len(tokens) <= Shape().prompt_tokens


@SEEDS
def test_the_fleet_is_enough_where_prefixes_are_kept_together_and_not_where_they_are_not(seed: int) -> None:
    shape = replace(Shape(), seed=seed)
    turns = plan(shape)
    able = SERVERS * EMULATED.prefill_tokens_per_second * shape.seconds
    assert 0.5 * able < sum(turn.prompt_tokens - turn.known_tokens for turn in turns) < 0.75 * able
    assert sum(turn.prompt_tokens for turn in turns) > 2 * able


@SEEDS
def test_the_most_popular_tenant_asks_for_more_than_one_server_can_do(seed: int) -> None:
    shape = replace(Shape(), seed=seed)
    new = sum(turn.prompt_tokens - turn.known_tokens for turn in plan(shape) if turn.tenant == 0)
    assert new > EMULATED.prefill_tokens_per_second * shape.seconds


@SEEDS
def test_the_default_profile_wins_clearly_and_has_to_leave_warm_servers(seed: int) -> None:
    shape = replace(Shape(), seed=seed)
    turns = plan(shape)
    blind = virtual.run(turns, virtual.ROUND_ROBIN, EMULATED, shape.answer_tokens)
    ours = virtual.run(turns, "least-cost", EMULATED, shape.answer_tokens)
    assert len(blind.ttft) == len(ours.ttft) == len(turns)
    assert ours.percentile(90) < 0.4 * blind.percentile(90)
    assert ours.percentile(50) < 0.5 * blind.percentile(50)
    assert ours.hit_ratio > blind.hit_ratio + 0.08
    assert 5 <= ours.left_warmest < len(turns) / 4
    assert ours.predicted_tokens == pytest.approx(ours.hit_tokens, rel=0.03)


@pytest.mark.parametrize("profile", ["affinity", "blend"])
def test_the_other_profiles_win_too(profile: str) -> None:
    turns = plan(Shape())
    blind = virtual.run(turns, virtual.ROUND_ROBIN, EMULATED, Shape().answer_tokens)
    ours = virtual.run(turns, profile, EMULATED, Shape().answer_tokens)
    assert ours.percentile(90) < 0.6 * blind.percentile(90)
    assert ours.hit_ratio > blind.hit_ratio
