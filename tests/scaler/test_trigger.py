"""What the metadata of a trigger select."""

from __future__ import annotations

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.served_metrics import SERVED, MetricKind
from agent.serve.keda.trigger import KEYS, KEYS_OF_KEDA, REASONS, BadTrigger, metric_names, read_trigger

POOLS = ("chat", "code")


def test_metadata_without_a_metric_select_the_demand_of_one_replica() -> None:
    trigger = read_trigger({"pool": "chat"}, POOLS)
    assert (trigger.pool, trigger.metric.name, trigger.threshold, trigger.activation) == (
        "chat",
        "igw_demand_replicas",
        1.0,
        None,
    )


def test_the_only_pool_need_not_be_named() -> None:
    assert read_trigger({}, ["chat"]).pool == "chat"


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_that_is_one_number_of_a_pool_can_be_selected(name: str) -> None:
    assert read_trigger({"pool": "chat", "metric": name, "threshold": "2"}, POOLS).metric.name == name


@pytest.mark.parametrize("key", sorted(KEYS_OF_KEDA))
def test_what_keda_itself_reads_of_the_metadata_is_no_error(key: str) -> None:
    assert read_trigger({"pool": "chat", key: "x"}, POOLS).pool == "chat"


@pytest.mark.parametrize(
    ("metadata", "reason", "message"),
    [
        ({"pool": "chatt"}, "unknown_pool", "unknown pool 'chatt'; there are chat, code"),
        ({}, "bad_metadata", "set pool to one of chat, code"),
        ({"pool": "chat", "metric": "x"}, "unknown_metric", "unknown metric 'x'; there are igw_"),
        ({"pool": "chat", "metricName": "x"}, "bad_metadata", "unknown metadata 'metricName'; there are pool, metric"),
        ({"pool": "chat", "metric": "igw_pool_waiting_requests"}, "bad_metadata", "set threshold: how much of igw_"),
        ({"pool": "chat", "threshold": "0"}, "bad_metadata", "threshold is 0; write a number above 0"),
        ({"pool": "chat", "threshold": "-1"}, "bad_metadata", "threshold is -1; write a number above 0"),
        ({"pool": "chat", "threshold": "four"}, "bad_metadata", "threshold is 'four'; write a number"),
        ({"pool": "chat", "threshold": "NaN"}, "bad_metadata", "threshold is 'NaN'; write a number"),
        ({"pool": "chat", "threshold": "1e999"}, "bad_metadata", "threshold is '1e999'; write a number"),
        ({"pool": "chat", "activationThreshold": "-2"}, "bad_metadata", "is -2; write a number from 0 on"),
    ],
)
def test_metadata_that_select_nothing_are_refused_with_what_to_change(
    metadata: dict[str, str], reason: str, message: str
) -> None:
    with pytest.raises(BadTrigger) as refused:
        read_trigger(metadata, POOLS)
    assert refused.value.reason == reason
    assert message in str(refused.value)


def test_a_metric_of_each_pod_is_refused_with_those_of_a_pool() -> None:
    name = next(iter(SERVED[MetricKind.PODS]))
    with pytest.raises(BadTrigger, match=f"metric {name} is of each pod; KEDA needs one of igw_demand_replicas"):
        read_trigger({"pool": "chat", "metric": name, "threshold": "1"}, POOLS)


def test_an_agent_without_pools_names_none() -> None:
    with pytest.raises(BadTrigger, match="set pool to one of none"):
        read_trigger({}, [])


@given(
    st.dictionaries(
        st.sampled_from([*KEYS, "other"]),
        st.one_of(st.text(max_size=100), st.sampled_from([*POOLS, *metric_names(), "1", "0.5"])),
    )
)
def test_any_metadata_select_a_positive_threshold_or_are_refused_in_one_short_line(metadata: dict[str, str]) -> None:
    refusal: BadTrigger | None = None
    try:
        trigger = read_trigger(metadata, POOLS)
    except BadTrigger as bad:
        refusal = bad
    if refusal is not None:
        assert refusal.reason in REASONS
        assert len(str(refusal)) < 800
        return
    assert trigger.pool in POOLS
    assert isfinite(trigger.threshold)
    assert trigger.threshold > 0
    assert trigger.activation is None or trigger.activation >= 0
