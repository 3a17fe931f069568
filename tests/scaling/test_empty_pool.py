"""A pool without a server has sums of 0; a pool without a ready one has unknown sums."""

from __future__ import annotations

import pytest

from agent.kube.pool_endpoints import NO_MATCHING_PODS, NO_READY_PODS, ObjectProblem
from agent.scaling.empty_pool import has_no_server
from agent.scaling.metric_source import StoreMetrics
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.state.source import SourceStatus
from tests.fakes.views import snapshot, view

SUMS = ("igw_pool_waiting_requests", "igw_pool_running_requests", "igw_pool_generation_tokens_per_second")


def source(reason: str = "", *, current: bool = True) -> SourceStatus:
    problems = (ObjectProblem(reason, "what is wrong"),) if reason else ()
    return SourceStatus("selector llm/app=chat", current, 0.0, problems)


@pytest.mark.parametrize("metric", SUMS)
def test_the_sums_of_a_pool_are_0_where_no_pod_has_its_labels(metric: str) -> None:
    of = snapshot(source=source(NO_MATCHING_PODS))
    assert StoreMetrics(lambda *_: of, 0.8).external_metric("pool", metric, 7.0) == ServedValue(0.0, 7.0)


@pytest.mark.parametrize("metric", SUMS)
@pytest.mark.parametrize(
    "status", [source(NO_READY_PODS), source(), source(NO_MATCHING_PODS, current=False)], ids=["unready", "", "away"]
)
def test_the_sums_of_a_pool_without_endpoints_are_unknown_where_it_may_have_servers(
    metric: str, status: SourceStatus
) -> None:
    of = snapshot(source=status)
    found = StoreMetrics(lambda *_: of, 0.8).external_metric("pool", metric, 0.0)
    assert isinstance(found, WithheldMetric)
    assert found.reason == "no_endpoints"


def test_an_average_of_no_server_is_unknown() -> None:
    of = snapshot(source=source(NO_MATCHING_PODS))
    found = StoreMetrics(lambda *_: of, 0.8).pool_metric("pool", "llm_d_epp_average_queue_size", 0.0)
    assert isinstance(found, WithheldMetric)


def test_a_pool_whose_configuration_lists_no_server_has_none() -> None:
    assert has_no_server(snapshot())
    assert not has_no_server(snapshot(view("a:1")))
