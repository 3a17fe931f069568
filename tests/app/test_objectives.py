"""The objectives of a pool, from the configuration and from objects of an API server, and the requests that wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.app.agent import Agent
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.objectives import ObjectiveConfig
from agent.events.kubernetes import ObjectProblemFound
from agent.events.objectives import UnknownObjective
from agent.kube import informer as informer_module
from agent.kube.objectives import PoolObjectives
from agent.requests.flow_headers import FlowHeaderRules
from agent.requests.flow_terms import FlowHeaders
from agent.signals import KV_USAGE, RUNNING, WAITING
from tests.app.live import servers
from tests.app.test_pods import pod_at, running, written
from tests.app.test_pool import A, B, Bench, completion
from tests.discovery.test_pods import POOLS
from tests.fakes.api_server import PODS, FakeApiServer
from tests.waiting import eventually

OBJECTIVES = "objectives: [{name: high, priority: 10}, {name: batch, priority: -1, models: [nightly]}]\n"
RULES = "/apis/{group}/v1alpha2/namespaces/ns/{plural}"
GROUPS = ("llm-d.ai", "inference.networking.x-k8s.io")
PLURALS = ("inferenceobjectives", "inferencemodelrewrites")
OURS = RULES.format(group="llm-d.ai", plural="inferenceobjectives")


class FullPool(Bench):
    """A pool whose two servers have no room: requests wait."""

    def __init__(self, more: str = OBJECTIVES) -> None:
        super().__init__(more)
        self.scraped(A, B, **{RUNNING: 4.0, WAITING: 9.0, KV_USAGE: 0.5})
        self.number = 0

    def hold(self, objective: str = "", model: str = "m", requested: str = "") -> None:
        """Submit a request, which waits."""
        self.number += 1
        request = completion(model, self.number)._replace(
            request_id=f"r{self.number}", requested=requested, flow_headers=FlowHeaders(objective)
        )
        self.pool.submit(request, lambda *_: pytest.fail("it does not wait"))

    def bands(self) -> dict[int, int]:
        """The number of waiting requests by priority."""
        report = self.pool.flow_report(self.clock.now())
        return {band.priority: band.requests for band in report.bands if band.requests}

    def changed(self, *objectives: ObjectiveConfig) -> Config:
        return replace(self.config, objectives=objectives)


async def test_a_request_waits_in_the_band_of_its_objective_else_of_its_model() -> None:
    pool = FullPool()
    for objective, model in (("high", "m"), ("batch", "m"), ("", "nightly"), ("high", "nightly"), ("", "m")):
        pool.hold(objective, model)
    assert pool.bands() == {10: 2, 0: 1, -1: 2}


async def test_the_model_of_an_objective_is_the_one_that_the_client_named() -> None:
    pool = FullPool()
    pool.hold(model="canary", requested="nightly")  # a header has replaced the model in the body
    pool.hold(model="nightly", requested="m")
    assert pool.bands() == {-1: 1, 0: 1}


async def test_a_reload_of_objectives_applies_to_the_next_request_and_loses_none() -> None:
    pool = FullPool()
    pool.hold("high")
    pool.pool.terms.set_objects(PoolObjectives({"of-an-object": 4}))
    pool.pool.objectives = PoolObjectives({"of-an-object": 4})
    await pool.pool.apply(pool.changed(ObjectiveConfig("high", 3)))
    pool.scraped(A, B, **{RUNNING: 4.0, WAITING: 9.0, KV_USAGE: 0.5})
    pool.hold("high")
    pool.hold("of-an-object")
    assert pool.bands() == {10: 1, 3: 1, 4: 1}
    await pool.pool.stop(0.0)


async def test_a_reload_of_the_trust_applies_to_the_next_request() -> None:
    pool = FullPool("flowControl: {callerHeader: x-tenant}\n")
    assert pool.pool.flow_rules == FlowHeaderRules(believed=True, caller_header="x-tenant")
    flow = replace(pool.config.flow_control, trust_headers="none", caller_header="")
    await pool.pool.apply(replace(pool.config, flow_control=flow))
    assert pool.pool.flow_rules == FlowHeaderRules(believed=False)
    await pool.pool.stop(0.0)


async def test_the_flow_report_has_the_priorities_of_the_file_and_of_objects_together() -> None:
    pool = FullPool()
    pool.pool.set_objectives(PoolObjectives({"high": 1, "of-an-object": 4}, (), {"qwen": "of-an-object"}))
    report = pool.pool.flow_report(pool.clock.now())
    assert report.objectives == {"high": 10, "batch": -1, "of-an-object": 4}
    assert report.model_priorities == {"nightly": -1, "qwen": 4}


async def test_an_unknown_objective_waits_with_priority_0_and_is_reported_also_where_nothing_waits() -> None:
    pool = FullPool()
    pool.hold("typo")
    assert pool.bands() == {0: 1}
    idle = Bench(OBJECTIVES)
    idle.scraped(A, B)
    idle.pick(completion()._replace(flow_headers=FlowHeaders("typo")))
    for bench in (pool, idle):
        assert bench.of(UnknownObjective) == [UnknownObjective("default", "typo", first=True)]


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApiServer]:
    monkeypatch.setattr(informer_module, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(informer_module, "MAX_BACKOFF_SECONDS", 0.05)
    collections: dict[str, list[Any]] = {PODS: [], POOLS: []}
    for group in GROUPS:
        collections |= {RULES.format(group=group, plural=plural): [] for plural in PLURALS}
    server = FakeApiServer(collections=collections)
    await server.start()
    yield server
    await server.stop()


def objective(name: str, priority: int, models: str = "", version: int = 1, pool: str = "llama") -> dict[str, Any]:
    """An InferenceObjective that is bound to these models."""
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"llm-d.ai/models": models} if models else {},
        },
        "spec": {"poolRef": {"name": pool}, "priority": priority},
    }


def priority(agent: Agent, name: str = "", model: str = "m") -> int:
    return agent.pools["pods"].terms.terms(FlowHeaders(name), model).priority


async def test_objectives_of_objects_apply_with_the_models_that_an_annotation_binds(
    tmp_path: Path, api: FakeApiServer
) -> None:
    async with servers(1) as (one,):
        api.collections[PODS] = [pod_at(one.address)]
        spec = {"selector": {"matchLabels": {"app": "llama"}}, "targetPorts": [{"number": one.port}]}
        meta = {"name": "llama", "namespace": "ns", "uid": "u", "resourceVersion": "1"}
        api.collections[POOLS] = [{"metadata": meta, "spec": spec}]
        api.collections[OURS] = [objective("high", 10, "qwen, org/llama"), objective("gone", 9, "m", pool="other")]
        path = written(
            tmp_path / "igw.yaml",
            {"name": "pods", "inferencePool": "llama", "namespace": "ns"},
            kubeconfig=api.kubeconfig(tmp_path),
        )
        async with running(path) as (agent, recorder):
            await eventually(lambda: priority(agent, "high") == 10)
            assert [priority(agent, model=model) for model in ("qwen", "org/llama", "m")] == [10, 10, 0]
            watch = await api.watch(OURS)
            watch.event("MODIFIED", objective("high", 3, "m", version=11))
            await eventually(lambda: priority(agent, model="m") == 3)
            assert [priority(agent, "high"), priority(agent, model="qwen")] == [3, 0]
            watch.event("MODIFIED", objective("high", 2**40, "m", version=12))
            await eventually(lambda: priority(agent, "high") == 0)
            assert priority(agent, model="m") == 0
            (problem,) = [each for each in recorder.of(ObjectProblemFound) if each.reason == "InvalidObject"]
            assert "InferenceObjective ns/high has no effect: Expected `int` <= 2147483647" in problem.message
            watch.event("MODIFIED", objective("high", 7, "m", version=13))
            await eventually(lambda: priority(agent, model="m") == 7)
            watch.event("DELETED", objective("high", 7, "m", version=14))
            await eventually(lambda: priority(agent, model="m") == 0)
            assert priority(agent, "high") == 0


def test_the_priorities_of_a_file_and_of_an_object_have_the_same_range() -> None:
    for text, fits in ((str(2**31 - 1), True), (str(2**31), False), (str(-(2**31) - 1), False), (str(2**40), False)):
        file = (
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['10.0.0.1:8000']}]\n"
            f"objectives: [{{name: a, priority: {text}}}]\n"
        )
        if fits:
            assert parse(file, "x", VOCABULARY).objectives[0].priority == int(text)
        else:
            with pytest.raises(Exception, match="is out of range; write a whole number from -2147483648 to 2147483647"):
                parse(file, "x", VOCABULARY)
