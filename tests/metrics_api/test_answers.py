"""The values that a request gets, and why it gets none: unknown is never 0, and half a list is not served."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.served_metrics import SERVED, MetricKind, OverPorts, ServedValue, WithheldMetric
from agent.serve.metrics_api.answer import (
    POOLS,
    PodOfEndpoint,
    PoolOfApi,
    ReadLimits,
    ServedItem,
    external_metric,
    object_metric,
    over_ports,
)
from agent.serve.metrics_api.documents import custom_value, external_values, resource_list, whole_seconds
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL, VERSIONS, ExternalRequest, ObjectRequest, parse_target
from agent.serve.metrics_api.status import RESULTS, RequestRefused
from tests.fakes.metric_values import AVERAGE_QUEUE, HELD, HIT_RATIO, KV, WAITING, FixedMetrics, Value, pool_of

NOW = 1000.0
LIMITS = ReadLimits(max_age=15.0, min_coverage=0.8)
BOTH = frozenset({CUSTOM, EXTERNAL})


def served(value: float, age: float = 0.5, window: float | None = None) -> ServedValue:
    return ServedValue(value, NOW - age, window)


def read(
    target: str, pools: Sequence[PoolOfApi], source: FixedMetrics, limits: ReadLimits = LIMITS
) -> list[ServedItem]:
    request = parse_target(target, BOTH)
    if isinstance(request, ExternalRequest):
        return external_metric(request, pools, source, limits, NOW)
    assert isinstance(request, ObjectRequest)
    return object_metric(request, pools, source, limits, NOW)


def pods(query: str = "", name: str = "*", metric: str = WAITING, namespace: str = "llm") -> str:
    return f"/apis/{CUSTOM}/v1beta2/namespaces/{namespace}/pods/{name}/{metric}{query}"


def pool(name: str, metric: str = AVERAGE_QUEUE, namespace: str = "llm", resource: str = POOLS) -> str:
    return f"/apis/{CUSTOM}/v1beta2/namespaces/{namespace}/{resource}/{name}/{metric}"


def external(metric: str = HELD, query: str = "", namespace: str = "llm") -> str:
    return f"/apis/{EXTERNAL}/v1beta1/namespaces/{namespace}/{metric}{query}"


def refusal(call: Callable[[], Any]) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        call()
    assert refused.value.cause in RESULTS
    return refused.value


@pytest.fixture
def source() -> FixedMetrics:
    found = FixedMetrics()
    found.pods["chat", WAITING] = {"a:8000": served(1), "b:8000": served(2), "c:8000": served(3)}
    return found


CHAT = pool_of("chat", "a", "b", "c")


def values(items: Sequence[ServedItem]) -> dict[str, float]:
    return {item.described.name if item.described else "": item.value.value for item in items}


# -- the checklist of field/autoscaling.md 1.8, the lines that concern the answers -------------------------------------


def test_1_both_versions_have_the_value_and_spell_the_window_as_the_api_does():
    item = ServedItem(None, "m", {"pool": "p"}, ServedValue(3.5, 10.0, 29.2))
    second = custom_value("v1beta2", item, "", 0.0)
    first = custom_value("v1beta1", item, "", 0.0)
    other = external_values("v1beta1", [item], 0.0)["items"][0]
    assert (second["windowSeconds"], first["window"], other["window"]) == (30, 30, 30)
    assert "window" not in second
    assert "windowSeconds" not in first
    assert "windowSeconds" not in other
    assert (second["metric"], first["metricName"], other["metricName"]) == ({"name": "m", "selector": None}, "m", "m")
    assert {second["value"], first["value"], other["value"]} == {"3500m"}
    assert other["metricLabels"] == {"pool": "p"}


def test_2_a_star_is_all_pods_and_a_name_is_one(source):
    assert values(read(pods(), [CHAT], source)) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert values(read(pods(name="b"), [CHAT], source)) == {"b": 2.0}


def test_3_the_metric_of_a_namespace_object_is_not_found_and_says_what_is_served(source):
    target = f"/apis/{CUSTOM}/v1beta2/namespaces/llm/metrics/{WAITING}"
    refused = refusal(lambda: read(target, [CHAT], source))
    assert (refused.code, refused.cause) == (404, "unknown_metric")
    assert "metrics are served for pods and inferencepools.inference.networking.k8s.io" in str(refused)


@pytest.mark.parametrize("resource", [POOLS, "inferencepools"])
def test_4_a_resource_may_be_qualified_by_its_group(source, resource):
    source.pools["chat", AVERAGE_QUEUE] = served(4)
    assert values(read(pool("chat", resource=resource), [CHAT], source)) == {"chat": 4.0}


def test_5_the_label_selector_selects_pods_and_the_metric_label_selector_pools(source):
    source.pods["code", WAITING] = {"d:8000": served(9)}
    both = [CHAT, pool_of("code", "d")]
    assert values(read(pods("?labelSelector=app%3Dcode"), both, source)) == {"d": 9.0}
    assert values(read(pods("?labelSelector=app+notin+(chat)"), both, source)) == {"d": 9.0}
    assert values(read(pods("?metricLabelSelector=pool%3Dcode"), both, source)) == {"d": 9.0}
    assert values(read(pods("?metricLabelSelector=inference_pool!%3Dcode"), both, source)) == {"a": 1, "b": 2, "c": 3}


def test_6_an_object_has_exactly_one_item_or_a_status(source):
    source.pools["chat", AVERAGE_QUEUE] = served(4)
    twice = [CHAT, CHAT._replace(name="other")]
    assert len(read(pool("chat"), twice, source)) == 1
    source.pools["chat", AVERAGE_QUEUE] = WithheldMetric("none_fresh")
    assert refusal(lambda: read(pool("chat"), [CHAT], source)).code == 503
    assert refusal(lambda: read(pool("*"), [CHAT], source)).code == 503


def test_7_an_unknown_value_is_omitted_and_never_zero(source):
    source.pods["chat", WAITING] |= {f"{name}:8000": served(0.0) for name in "de"}
    source.pods["chat", WAITING]["c:8000"] = WithheldMetric("blind")
    found = values(read(pods(), [pool_of("chat", *"abcde")], source))
    assert found == {"a": 1.0, "b": 2.0, "d": 0.0, "e": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e300])
def test_8_a_number_without_a_quantity_is_withheld(source, value):
    source.pods["chat", WAITING]["a:8000"] = served(value)
    refused = refusal(lambda: read(pods(name="a"), [CHAT], source))
    assert (refused.code, refused.cause) == (503, "withheld")
    assert "has no quantity in Kubernetes" in str(refused)


def test_9_a_pod_that_left_the_pool_is_gone_from_the_next_read(source):
    assert values(read(pods(), [pool_of("chat", "a", "b")], source)) == {"a": 1.0, "b": 2.0}


def test_10_a_pod_that_was_never_scraped_is_omitted(source):
    source.pods["chat", WAITING] |= {f"{name}:8000": served(5.0) for name in "de"}
    found = values(read(pods(), [pool_of("chat", *"abcdef")], source))
    assert found.keys() == {"a", "b", "c", "d", "e"}


def test_12_a_pod_with_several_ports_has_one_value_and_none_while_a_port_has_none(source):
    two = pool_of("chat", "a", ports=2)
    source.pods["chat", WAITING] = {"a:8000": served(1, age=3), "a:8001": served(2, age=1)}
    source.pods["chat", KV] = {"a:8000": served(0.2), "a:8001": served(0.7)}
    source.pods["chat", HIT_RATIO] = {"a:8000": served(0.2, window=10), "a:8001": served(0.4, window=30)}
    (item,) = read(pods(), [two], source)
    assert item.value == ServedValue(3.0, NOW - 3)
    assert values(read(pods(metric=KV), [two], source)) == {"a": 0.7}
    assert read(pods(metric=HIT_RATIO), [two], source)[0].value == ServedValue(0.30000000000000004, NOW - 0.5, 30)
    source.pods["chat", WAITING]["a:8001"] = WithheldMetric("down")
    assert refusal(lambda: read(pods(), [two], source)).cause == "low_coverage"


def test_13_two_pools_of_one_namespace_are_split_by_the_selector(source):
    source.externals = {("chat", HELD): served(3), ("code", HELD): served(4)}
    both = [CHAT, pool_of("code", "d")]
    assert [item.value.value for item in read(external(), both, source)] == [3.0, 4.0]
    (one,) = read(external(query="?labelSelector=inference_pool%3Dcode"), both, source)
    assert (one.value.value, one.labels) == (4.0, {"pool": "code", "inference_pool": "code"})


def test_14_a_value_has_the_time_of_its_sample_rounded_down(source):
    item = ServedItem(None, "m", {}, ServedValue(1.0, 999.9))
    (found,) = external_values("v1beta1", [item], 1_788_264_000.0)["items"]
    assert found["timestamp"] == whole_seconds(1_788_264_999) == "2026-09-01T12:16:39Z"
    assert "window" not in found


def test_17_a_small_value_is_rounded_up_and_never_becomes_zero():
    item = ServedItem(None, "m", {}, ServedValue(0.0001, 0.0))
    assert external_values("v1beta1", [item], 0.0)["items"][0]["value"] == "1m"


@pytest.mark.parametrize(("group", "version"), [(group, each) for group in VERSIONS for each in VERSIONS[group]])
def test_18_discovery_lists_every_metric_and_reads_no_value(group, version):
    listed = {row["name"].rpartition("/")[2] for row in resource_list(group, version)["resources"]}
    kinds = [MetricKind.EXTERNAL] if group == EXTERNAL else [MetricKind.PODS, MetricKind.OBJECT]
    assert listed == {name for kind in kinds for name in SERVED[kind]}
    assert all(row["verbs"] == ["get"] and row["namespaced"] for row in resource_list(group, version)["resources"])


# -- the coverage floor ------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["known", "withheld", "old", "nan"]), min_size=1, max_size=12), st.floats(0, 1))
def test_a_list_is_served_only_with_enough_of_its_pods_and_only_with_known_values(states, floor):
    made: dict[str, Value] = {
        "known": served(7.0),
        "withheld": WithheldMetric("stale"),
        "old": served(7.0, age=16),
        "nan": served(math.nan),
    }
    names = [f"p{number:02}" for number in range(len(states))]
    source = FixedMetrics()
    source.pods["chat", WAITING] = {f"{name}:8000": made[state] for name, state in zip(names, states, strict=True)}
    known = {name: 7.0 for name, state in zip(names, states, strict=True) if state == "known"}
    limits = ReadLimits(15.0, floor)
    if known and len(known) / len(states) >= floor:
        assert values(read(pods(), [pool_of("chat", *names)], source, limits)) == known
    else:
        refused = refusal(lambda: read(pods(), [pool_of("chat", *names)], source, limits))
        assert (refused.code, refused.cause) == (503, "low_coverage")


def test_a_list_below_the_floor_says_which_pods_lack_a_value_and_why(source):
    source.pods["chat", WAITING] |= {"b:8000": WithheldMetric("down", "it is down"), "c:8000": served(1, age=20)}
    assert str(refusal(lambda: read(pods(), [CHAT], source))) == (
        f"1 of 3 pods have {WAITING}, below the coverage of 0.8, so none is served: an autoscaler would take the "
        "others as loaded at target and shrink. b: it is down; c: its age of 20.0 s is over metricsApi.maxAge (15 s)"
    )


def test_coverage_is_of_the_pods_that_were_selected(source):
    source.pods["code", WAITING] = {"d:8000": WithheldMetric("down")}
    assert values(read(pods("?labelSelector=app%3Dchat"), [CHAT, pool_of("code", "d")], source)).keys() == {
        "a",
        "b",
        "c",
    }


def test_an_external_sum_that_lacks_a_pool_is_withheld(source):
    source.externals = {("chat", HELD): served(3), ("code", HELD): WithheldMetric("replica_unknown", "b is silent")}
    refused = refusal(lambda: read(external(), [CHAT, pool_of("code", "d")], source))
    assert (refused.code, refused.cause) == (503, "withheld")
    assert str(refused) == f"{HELD} of pool code is unknown now: b is silent"


def test_a_value_at_the_age_limit_is_served_and_an_older_one_is_not(source):
    source.pools["chat", AVERAGE_QUEUE] = served(1, age=15.0)
    assert read(pool("chat"), [CHAT], source)
    source.pools["chat", AVERAGE_QUEUE] = served(1, age=15.1)
    assert "its age of 15.1 s is over metricsApi.maxAge (15 s)" in str(
        refusal(lambda: read(pool("chat"), [CHAT], source))
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code", "cause", "message"),
    [
        (pods(metric="igw_endpoint_waiting_request"), 404, "unknown_metric", f"did you mean {WAITING}?"),
        (pods(metric=HELD), 404, "unknown_metric", "it is a metric of kind object"),
        (pods(metric="x"), 404, "unknown_metric", "discovery lists all metrics"),
        (external("a%2Fb"), 404, "unknown_metric", "the server could not find the external metric a/b"),
        (pods(namespace="other"), 404, "unknown_namespace", "no pool of the agent is in the namespace other"),
        (external(namespace="other"), 404, "unknown_namespace", "there are pools in: llm"),
        (pods("?labelSelector=app%3Dnone"), 404, "no_match", "no endpoint of namespace llm matches app=none; correct"),
        (external(query="?labelSelector=pool%3Dx"), 404, "no_match", "no pool of namespace llm matches pool=x"),
        (
            pods(name="z"),
            404,
            "unknown_object",
            "pod llm/z is no endpoint of a pool of the agent: it does not exist, is",
        ),
        (pool("z"), 404, "unknown_object", "InferencePool llm/z is no pool of the agent; those are: chat"),
    ],
)
def test_a_request_for_what_does_not_exist_says_what_does(source, target, code, cause, message):
    refused = refusal(lambda: read(target, [CHAT], source))
    assert (refused.code, refused.cause) == (code, cause)
    assert message in str(refused)


def test_a_pod_of_two_pools_is_refused_until_the_request_chooses_one(source):
    source.pods["other", WAITING] = {"a:8000": served(8)}
    both = [CHAT, PoolOfApi("other", "llm", "other", {"a:8000": PodOfEndpoint("llm", "a", {})})]
    refused = refusal(lambda: read(pods(), both, source))
    assert (refused.code, refused.cause) == (409, "ambiguous")
    assert "pod llm/a is an endpoint of the pools chat and other; choose one with metricLabelSelector=" in str(refused)
    assert values(read(pods("?metricLabelSelector=pool%3Dother"), both, source)) == {"a": 8.0}


# -- several ports -----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(list(OverPorts)),
    st.lists(st.builds(ServedValue, st.floats(0, 1e6), st.floats(0, 1e3), st.none() | st.floats(0, 60)), min_size=1),
)
def test_a_pod_is_as_old_as_its_oldest_port_and_between_the_extremes_unless_summed(over, found):
    row = SERVED[MetricKind.PODS][WAITING]._replace(over_ports=over)
    result = over_ports(row, found)
    assert isinstance(result, ServedValue)
    assert result.at == min(each.at for each in found)
    numbers = [each.value for each in found]
    if over is OverPorts.SUM:
        assert result.value == pytest.approx(math.fsum(numbers))
    else:
        assert min(numbers) <= result.value <= max(numbers) * (1 + 1e-12)
