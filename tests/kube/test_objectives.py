"""Objectives and rewrites of both API groups: which apply to a pool, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.objectives import (
    GROUPS,
    NEW_GROUP,
    OBJECTIVE,
    OLD_GROUP,
    POOL_GROUP,
    REWRITE,
    Condition,
    Merged,
    PoolObjectives,
    RuleObject,
    accepted_message,
    merge,
)
from tests.kube.rule_objects import an_object, objective, rewrite, rule

POOL = ("ns", "llama")
EXISTING = {"ns": ["llama"]}


def merged(
    *objects: RuleObject,
    existing: Mapping[str, Collection[str]] = EXISTING,
    pools: Sequence[tuple[str, str]] = (POOL,),
) -> Merged:
    return merge(pools, existing, objects)


def of_pool(*objects: RuleObject) -> PoolObjectives:
    return merged(*objects).pools[POOL]


def reasons(found: Merged) -> dict[str, str]:
    """The reason of each object by group and name; empty where it is used."""
    return {
        f"{each.object.group} {each.object.ref.name}": each.problem.reason if each.problem else ""
        for each in found.acceptances
    }


def message(found: Merged) -> str:
    (acceptance,) = found.acceptances
    assert acceptance.problem is not None
    return acceptance.problem.message


def test_requests_that_name_an_objective_have_its_priority() -> None:
    pool = of_pool(objective("chat", 10), objective("batch", -5), objective("plain", None))
    assert [pool.priority(name) for name in ("chat", "batch", "plain", "other")] == [10, -5, 0, None]


def bound(models: str, name: str = "chat", **others: Any) -> RuleObject:
    return objective(name, annotations={"llm-d.ai/models": models}, **others)


def test_an_annotation_binds_an_objective_to_models() -> None:
    found = merged(bound(" qwen, org/llama:8b ,,qwen,"), objective("batch", annotations={"other": "x"}))
    assert found.pools[POOL].models == {"qwen": "chat", "org/llama:8b": "chat"}
    messages = [accepted_message(each) for each in found.acceptances]
    assert messages[1] == (
        "requests to InferencePool ns/llama that name it, and those for qwen, org/llama:8b that name none, have the "
        "priority 1"
    )


def test_of_two_objectives_that_are_bound_to_a_model_the_oldest_one_has_it() -> None:
    old = bound("qwen", "old", created="2026-01-01T00:00:00Z")
    new = bound("qwen,llama", "new", created="2026-01-02T00:00:00Z")
    for order in ((old, new), (new, old)):
        assert of_pool(*order).models == {"qwen": "old", "llama": "new"}


def test_an_objective_that_has_no_effect_is_bound_to_no_model() -> None:
    assert of_pool(bound("qwen", priority=2**40), bound("llama", "other", pool="gone")).models == {}


def test_an_annotation_on_a_rewrite_binds_nothing() -> None:
    assert rewrite("a", rule("x"), annotations={"llm-d.ai/models": "qwen"}).models == ()


def test_a_message_names_the_first_of_many_bound_models() -> None:
    (acceptance,) = merged(bound(",".join(f"m{number}" for number in range(1000)))).acceptances
    assert len(accepted_message(acceptance)) < 300


def test_the_object_of_llm_d_ai_is_used_where_both_groups_have_one_of_the_name() -> None:
    found = merged(objective("chat", 1, group=OLD_GROUP), objective("chat", 2), objective("old", 3, group=OLD_GROUP))
    assert dict(found.pools[POOL].priorities) == {"chat": 2, "old": 3}
    assert reasons(found) == {f"{NEW_GROUP} chat": "", f"{OLD_GROUP} chat": "Superseded", f"{OLD_GROUP} old": ""}


def test_an_invalid_object_of_llm_d_ai_does_not_give_way_to_that_of_the_old_group() -> None:
    found = merged(objective("chat", "high"), objective("chat", 1, group=OLD_GROUP))
    assert not found.pools[POOL].priorities
    assert reasons(found) == {f"{NEW_GROUP} chat": "InvalidObject", f"{OLD_GROUP} chat": "Superseded"}


def test_the_default_group_of_both_crds_means_the_same_pool() -> None:
    for group in (None, NEW_GROUP, POOL_GROUP):
        reference = {"name": "llama"} | ({"group": group} if group else {})
        for of in GROUPS:
            assert of_pool(objective("chat", 4, reference, group=of)).priority("chat") == 4


def test_a_pool_of_another_group_or_kind_is_no_pool() -> None:
    for reference in ({"group": OLD_GROUP}, {"kind": "Service"}, {"group": ""}):
        found = merged(objective(pool={"name": "llama"} | reference))
        assert reasons(found) == {f"{NEW_GROUP} chat": "InvalidPoolRef"}
        assert not found.pools[POOL].priorities
        assert merged(objective(pool={"name": "other"} | reference)).acceptances == ()


def test_a_missing_pool_is_named_with_the_remedy() -> None:
    found = merged(objective(pool="lama"))
    assert reasons(found) == {f"{NEW_GROUP} chat": "PoolNotFound"}
    assert "InferenceObjective ns/chat has no effect: InferencePool ns/lama does not exist" in message(found)
    assert "correct poolRef.name" in message(found)


def test_no_pool_is_missing_while_the_pools_are_not_known() -> None:
    assert merged(objective(pool="lama"), existing={}).acceptances == ()
    assert reasons(merged(objective(), existing={})) == {f"{NEW_GROUP} chat": ""}


def test_a_pool_of_the_agent_that_does_not_exist_is_missing_too() -> None:
    found = merged(objective(), existing={"ns": []})
    assert reasons(found) == {f"{NEW_GROUP} chat": "PoolNotFound"}
    assert not found.pools[POOL].priorities


def test_objects_of_a_pool_that_another_picker_serves_are_left_alone() -> None:
    assert merged(objective(pool="other"), existing={"ns": ["llama", "other"]}).acceptances == ()


def test_a_condition_that_a_pool_is_missing_is_withdrawn_when_another_picker_serves_it() -> None:
    lost = objective(pool="other")
    stale = lost._replace(accepted=msgspec.json.decode(b'{"type":"Accepted","reason":"PoolNotFound"}', type=Condition))
    (acceptance,) = merged(stale, existing={"ns": ["other"]}).acceptances
    assert acceptance.released
    assert acceptance.problem is None


def test_an_object_that_is_being_deleted_has_no_effect() -> None:
    assert merged(objective(deletionTimestamp="2026-01-02T00:00:00Z")).acceptances == ()


def test_a_priority_that_is_no_32_bit_number_is_invalid() -> None:
    for priority in (2**31, -(2**31) - 1, "1", 1.5):
        found = merged(objective(priority=priority))
        assert reasons(found) == {f"{NEW_GROUP} chat": "InvalidObject"}
        assert "priority" in message(found)


def test_a_rule_for_a_model_comes_before_one_for_all_then_the_oldest_then_the_first() -> None:
    old, new = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    pool = of_pool(
        rewrite("new", rule("a2", "a"), rule("c1", "c"), created=new),
        rewrite("old", rule("all"), rule("a1", "a"), rule("never", "a"), created=old),
        rewrite("also-old", rule("b1", "b", "c"), created=old),
    )
    targets = {model: found.targets[0].model for model in "abcd" if (found := pool.rewrite(model))}
    assert targets == {"a": "a1", "b": "b1", "c": "b1", "d": "all"}
    assert [each.source[1] for each in pool.rewrites] == ["also-old", "old", "old", "new", "new", "old"]


def test_the_weights_of_a_rule_are_those_of_its_targets_or_equal() -> None:
    targets = [{"modelRewrite": "a", "weight": 9}, {"modelRewrite": "b", "weight": 1}]
    pool = of_pool(rewrite("r", {"targets": targets}))
    found = pool.rewrite("x")
    assert found is not None
    assert found.targets == (("a", 9), ("b", 1))
    equal = of_pool(rewrite("r", {"targets": [{"modelRewrite": "a"}, {"modelRewrite": "b"}]})).rewrite("x")
    assert equal is not None
    assert equal.targets == (("a", 1), ("b", 1))


def test_rules_that_the_schema_lets_pass_and_that_mean_nothing_are_refused_with_their_place() -> None:
    mixed = {"targets": [{"modelRewrite": "a", "weight": 9}, {"modelRewrite": "b"}]}
    for bad, what in (
        (mixed, "some targets have a weight and others none"),
        ({"matches": []}, "has no targets"),
        ({"targets": [{"modelRewrite": "a"}], "matches": [{"model": {"type": "Regex", "value": "a"}}]}, "Regex"),
        ({"targets": [{"modelRewrite": "a", "weight": 0}]}, "weight"),
    ):
        found = merged(rewrite("r", rule("ok"), bad))
        assert reasons(found) == {f"{NEW_GROUP} r": "InvalidObject"}
        assert what in message(found)
        assert found.pools[POOL].rewrites == ()


def test_an_invalid_object_of_another_pool_is_not_the_agents() -> None:
    other = {"ns": ["llama", "other"]}
    assert merged(objective(priority="x", pool="other"), existing=other).acceptances == ()


def test_an_object_without_a_readable_pool_is_reported() -> None:
    specs: list[Any] = [{}, [], "x", {"poolRef": "llama"}, {"poolRef": {"name": 7}}]
    for spec in specs:
        assert reasons(merged(an_object(OBJECTIVE, "chat", spec))) == {f"{NEW_GROUP} chat": "InvalidObject"}


names = st.sampled_from(["a", "b", "c"])
objects = st.lists(
    st.one_of(
        st.builds(
            objective,
            names,
            st.one_of(st.integers(-(2**33), 2**33), st.none(), st.text(max_size=2)),
            st.sampled_from(["llama", "other", "none", {"name": "llama", "kind": "Service"}]),
            group=st.sampled_from(GROUPS),
            created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
        ),
        st.builds(
            lambda name, rules, group, created: rewrite(name, *rules, group=group, created=created),
            names,
            st.lists(st.builds(lambda target, models: rule(target, *models), names, st.lists(names)), max_size=3),
            st.sampled_from(GROUPS),
            st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
        ),
    ),
    max_size=8,
    unique_by=lambda each: (each.ref.kind, each.group, each.key),
)


@given(objects, st.randoms())
def test_the_order_in_which_objects_arrive_does_not_matter(objects: list[RuleObject], random: Any) -> None:
    found = merged(*objects, existing={"ns": ["llama", "other"]})
    shuffled = list(objects)
    random.shuffle(shuffled)
    assert merged(*shuffled, existing={"ns": ["llama", "other"]}) == found


@given(objects)
def test_an_object_is_used_exactly_where_nothing_is_wrong_with_it(objects: list[RuleObject]) -> None:
    found = merged(*objects, existing={"ns": ["llama", "other"]})
    used = [each.object for each in found.acceptances if each.problem is None]
    priorities = {each.ref.name: each.priority for each in used if each.ref.kind == OBJECTIVE}
    assert dict(found.pools[POOL].priorities) == priorities
    rules = [rule for each in used for rule in each.rules]
    assert Counter(found.pools[POOL].rewrites) == Counter(rules)
    assert len({(each.ref.kind, each.key) for each in used}) == len(used)  # one of each name


@given(objects, names)
def test_the_rule_of_a_model_is_the_first_by_precedence(objects: list[RuleObject], model: str) -> None:
    found = merged(*objects)
    pool = found.pools[POOL]
    used = [each.object for each in found.acceptances if each.problem is None and each.object.ref.kind == REWRITE]
    ranked = sorted(
        (not rule.models, each.created, each.key, index, rule)
        for each in used
        for index, rule in enumerate(each.rules)
        if not rule.models or model in rule.models
    )
    assert pool.rewrite(model) == (ranked[0][-1] if ranked else None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda each: (
            st.lists(each)
            | st.dictionaries(
                st.sampled_from(["poolRef", "rules", "priority", "name", "targets", "matches", "model"]), each
            )
        ),
    ),
    st.sampled_from([OBJECTIVE, REWRITE]),
)
def test_any_spec_is_an_object_with_a_pool_or_with_a_problem(spec: Any, kind: str) -> None:
    found = an_object(kind, "x", spec)
    assert found.pool is not None or found.problem
