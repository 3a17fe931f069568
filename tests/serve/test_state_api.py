"""`/v1/state`, `/v1/gauges` and their schema: what is unknown is null in all documents at once."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.events import Event
from agent.events.process import WatcherDropped
from agent.instruments.hook import Instruments
from agent.scaling.gauges import gauge_set
from agent.serve.admin.server import AdminServer
from agent.serve.state import documents
from agent.serve.state.moment import Moment
from agent.serve.state.openapi import document as openapi_document
from agent.serve.state.openapi import text as openapi_text
from agent.serve.state.watch import WatchLimits
from agent.signals import KV_USAGE, LORA_RUNNING, MODELS, PREFIX_HITS, RUNNING, WAITING
from agent.state.health import Health
from agent.state.snapshot import Prefix
from tests.fakes.clock import ManualClock
from tests.fakes.schema import check
from tests.fakes.state_source import FakeStateSource
from tests.fakes.views import STALE_AFTER, snapshot, view, views

DOCS = Path(__file__).parents[2] / "docs"


fleets = st.lists(views, max_size=4, unique_by=lambda each: each.address)


@given(fleets, st.floats(0, 10))
def test_the_state_of_any_fleet_is_json_that_is_valid_by_the_schema(found, now):
    document = documents.state("epoch", 1, [snapshot(*found)], Moment(now, 1.79e9 + now, now))
    check(document, "State")
    assert len(orjson.loads(documents.encode(document))["pools"][0]["endpoints"]) == len(found)


@given(fleets, fleets, st.floats(0, 10))
def test_every_change_is_valid_by_the_schema(before, after, now):
    old, new = {"pool": {each.address: each for each in before}}, {"pool": {each.address: each for each in after}}
    changes, removed_pools = documents.differences(old, new)
    document = documents.change("epoch", 1, 2, changes, removed_pools, Moment(now, 1.79e9 + now, now))
    check(document, "Change")


@given(fleets, st.floats(0, 10))
def test_the_gauges_of_any_fleet_are_valid_by_the_schema(found, now):
    document = documents.gauges(gauge_set([snapshot(*found)], now), Moment(now, 1.79e9 + now, now))
    check(document, "Gauges")
    assert all(row.value is None or math.isfinite(row.value) for row in document.gauges)


@given(
    st.lists(st.tuples(st.text(max_size=3), views), max_size=6),
    st.lists(st.tuples(st.text(max_size=3), views), max_size=6),
)
def test_differences_applied_to_the_old_state_give_the_new_one(before, after):
    def state(rows):
        pools: dict[str, dict[str, Any]] = {}
        for pool, each in rows:
            pools.setdefault(pool, {})[each.address] = each
        return pools

    old, new = state(before), state(after)
    changes, removed_pools = documents.differences(old, new)
    rebuilt = {pool: dict(endpoints) for pool, endpoints in old.items()}
    for change in changes:
        known = rebuilt.setdefault(change.pool, {})
        known |= {each.address: each for each in change.changed}
        for address in change.removed:
            del known[address]
    for pool in removed_pools:
        del rebuilt[pool]
    assert rebuilt == new


class StateServed:
    """An admin server over one pool, and a client of it."""

    def __init__(self, clock: ManualClock, source: FakeStateSource, http: aiohttp.ClientSession) -> None:
        self.clock = clock
        self.source = source
        self.http = http

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.http.get(path) as response:
            content = await response.json()
            assert response.status == status, content
            return content

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        async with self.http.get("/metrics") as response:
            families = text_string_to_metric_families(await response.text())
            return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
async def served() -> AsyncIterator[StateServed]:
    clock = ManualClock(100.0)
    source = FakeStateSource(
        "llama", view("a:1", {WAITING: 3.0, RUNNING: 2.0, KV_USAGE: 0.4}, at=99.0), view("b:1", at=99.5)
    )
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock), limits=WatchLimits())
    server.set_pools([source])
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield StateServed(clock, source, http)
    await server.stop()


async def test_the_state_has_value_unit_age_and_freshness_of_each_signal(served):
    document = await served.get("/v1/state")
    check(document, "State")
    (pool,) = document["pools"]
    first = pool["endpoints"][0]
    assert (pool["pool"], first["address"], first["health"], first["page_age_seconds"]) == (
        "llama",
        "a:1",
        "healthy",
        1.0,
    )
    assert first["signals"][WAITING] == {"value": 3.0, "unit": "requests", "age_seconds": 1.0, "fresh": True}
    assert first["signals"][MODELS] == {
        "value": None,
        "unit": "names",
        "age_seconds": None,
        "fresh": False,
        "reason": "not_reported",
    }


async def test_the_gap_of_prefix_hits_is_known_while_the_servers_count_is_fresh(served):
    served.source.put(view("a:1", {PREFIX_HITS: 900.0}, at=99.0)._replace(prefix=Prefix(640.0, 512.0)))
    expected: dict[str, float | None] = {
        "predicted_hit_tokens": 640.0,
        "measured_hit_tokens": 512.0,
        "gap_tokens": 128.0,
    }
    assert (await served.get("/v1/state"))["pools"][0]["endpoints"][0]["prefix"] == expected
    served.clock.advance(10.0)
    expected = {"predicted_hit_tokens": 640.0, "measured_hit_tokens": None, "gap_tokens": None}
    assert (await served.get("/v1/state"))["pools"][0]["endpoints"][0]["prefix"] == expected


async def test_the_backlog_is_that_at_the_time_of_the_document(served):
    there = view("a:1", at=99.0, backlog_seconds=104.0, rate=500.0, requests=2, foreign=8.0, queue_seconds=2.5)
    served.source.put(there)
    served.clock.advance(1.0)
    work = (await served.get("/v1/state"))["pools"][0]["endpoints"][0]["work"]
    assert work == {
        "requests": 2,
        "of_peers": 0,
        "foreign_requests": 8.0,
        "prefill_seconds": 3.0,
        "queue_seconds": 2.5,
        "prefill_tokens": 1500.0,
        "rate_tokens_per_second": 500.0,
        "rate_source": "configured",
        "corrected": True,
    }


async def test_the_backlog_does_not_fall_below_the_wait_in_the_queue(served):
    served.source.put(view("a:1", at=99.0, backlog_seconds=104.0, queue_seconds=2.5))
    served.clock.advance(2.0)
    work = (await served.get("/v1/state"))["pools"][0]["endpoints"][0]["work"]
    assert (work["prefill_seconds"], work["prefill_tokens"]) == (2.5, 2000.0)


async def test_no_raw_monotonic_time_leaves_the_process(served):
    first = await served.get("/v1/state")
    served.clock.advance(2.0)
    second = await served.get("/v1/state")
    assert (first["uptime_seconds"], second["uptime_seconds"]) == (0.0, 2.0)
    assert (first["as_of"], second["as_of"]) == ("2026-09-21T14:15:00.000000Z", "2026-09-21T14:15:02.000000Z")


async def test_a_stale_reading_is_null_withheld_and_absent_at_the_same_time(served):
    async def exits():
        state = await served.get("/v1/state")
        gauges = await served.get("/v1/gauges")
        lines = await served.samples()
        known = {
            each["address"] for each in state["pools"][0]["endpoints"] if each["signals"][KV_USAGE]["value"] is not None
        }
        valued = {
            row["labels"]["server"]
            for row in gauges["gauges"]
            if row["name"] == "igw_endpoint_kv_usage_ratio" and row["value"] is not None
        }
        present = {dict(labels)["server"] for name, labels in lines if name == "igw_endpoint_kv_usage_ratio"}
        mean = [row["value"] for row in gauges["gauges"] if row["name"] == "llm_d_epp_average_kv_cache_utilization"]
        assert (("llm_d_epp_average_kv_cache_utilization", frozenset({("name", "llama")})) in lines) is (mean != [None])
        return known, valued, present, mean

    assert await exits() == ({"a:1", "b:1"}, {"a:1", "b:1"}, {"a:1", "b:1"}, [0.2])
    served.clock.advance(99.0 + STALE_AFTER - 100.0)
    assert await exits() == ({"b:1"}, {"b:1"}, {"b:1"}, [0.0])
    served.clock.advance(0.5)
    assert await exits() == (set(), set(), set(), [None])


@pytest.mark.parametrize("health", [Health.BLIND, Health.DOWN, Health.STALE, Health.UNKNOWN])
async def test_an_endpoint_that_is_not_healthy_shows_no_value_of_its_server_anywhere(served, health):
    served.source.put(view("a:1", {WAITING: 77.0, LORA_RUNNING: frozenset({"x"})}, at=99.5, health=health))
    served.source.drop("b:1")
    state = await served.get("/v1/state")
    assert state["pools"][0]["by_health"] == dict.fromkeys(Health, 0) | {health: 1}
    assert {signal["value"] for signal in state["pools"][0]["endpoints"][0]["signals"].values()} == {None}
    assert 77.0 not in {row["value"] for row in (await served.get("/v1/gauges"))["gauges"]}
    assert 77.0 not in (await served.samples()).values()


async def test_a_gauge_has_its_value_and_sample_time_or_the_reason_why_it_is_withheld(served):
    (row,) = (await served.get("/v1/gauges?name=llm_d_epp_average_queue_size"))["gauges"]
    assert row == {
        "name": "llm_d_epp_average_queue_size",
        "aliases": ["inference_pool_average_queue_size"],
        "labels": {"name": "llama"},
        "unit": "requests",
        "value": 1.5,
        "sample_time": "2026-09-21T14:14:59.000000Z",
        "age_seconds": 1.0,
    }
    served.clock.advance(100.0)
    (row,) = (await served.get("/v1/gauges?name=inference_pool_average_queue_size"))["gauges"]
    assert (row["value"], row["withheld"]) == (None, "none_fresh")


async def test_one_pool_can_be_requested(served):
    assert [pool["pool"] for pool in (await served.get("/v1/state?pool=llama"))["pools"]] == ["llama"]
    refused = await served.get("/v1/state?pool=lama", 404)
    assert refused["error"]["message"] == "there is no pool 'lama'; the pools are: llama"
    check(refused, "Error")


async def test_the_parameters_of_every_path_are_those_of_the_document():
    clock = ManualClock()
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    accepted = {route.path: sorted(route.parameters) for route in server.routes if route.parameters is not None}
    documented = {
        path: sorted(each["name"] for each in methods["get"].get("parameters", []) if each["in"] == "query")
        for path, methods in openapi_document()["paths"].items()
    }
    assert accepted == {path: documented[path] for path in accepted}
    assert {path for path, names in documented.items() if names} <= accepted.keys()


async def test_a_parameter_of_a_path_without_parameters_is_refused(served):
    refused = await served.get("/v1/accelerators?pool=llama", 400)
    assert refused["error"]["message"] == "there is no parameter 'pool' here; there are none"
    check(refused, "Error")


async def test_a_parameter_that_does_not_exist_is_refused_by_name(served):
    refused = await served.get("/v1/gauges?pol=llama", 400)
    assert refused["error"]["message"] == "there is no parameter 'pol' here; the parameters are: pool, name"
    assert refused["error"]["param"] == "pol"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llm_d_epp_average_queue", "did you mean 'llm_d_epp_average_queue_size'?"),
        ("igw_picks_total", "/v1/gauges lists all gauges"),
    ],
)
async def test_a_gauge_that_does_not_exist_is_not_a_withheld_one(served, name, hint):
    refused = await served.get(f"/v1/gauges?name={name}", 404)
    assert refused["error"]["message"] == f"there is no gauge '{name}'; {hint}"
    check(refused, "Error")


async def test_names_that_are_not_valid_unicode_do_not_break_the_state(served):
    served.source.put(view("a:1", {LORA_RUNNING: frozenset({"\ud800", "b"})}, at=99.5))
    signal = (await served.get("/v1/state"))["pools"][0]["endpoints"][0]["signals"][LORA_RUNNING]
    assert signal["value"] == ["?", "b"]


@pytest.mark.parametrize(
    ("pools", "path", "advice"),
    [
        (1, "/v1/state", "over the limit of 1000; raise admin.maxStateBytes"),
        (2, "/v1/state", "over the limit of 1000; request one pool with /v1/state?pool=, or raise admin.maxStateBytes"),
        (2, "/v1/state?pool=p1", "over the limit of 1000; raise admin.maxStateBytes"),
        (2, "/v1/state/watch", "request one pool with /v1/state?pool=, or raise admin.maxStateBytes"),
    ],
)
async def test_a_state_over_the_size_limit_is_refused_with_advice_and_counted(pools, path, advice):
    clock = ManualClock()
    events: list[Event] = []
    limits = WatchLimits(message_bytes=1000)
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock), hook=events.append, limits=limits)
    server.set_pools([FakeStateSource(f"p{n}", view("a:1")) for n in range(pools)])
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, http.get(path) as response:
        refused = await response.json()
        assert (response.status, refused["error"]["code"]) == (503, "state_too_large")
    assert refused["error"]["message"].endswith(advice)
    assert events == [WatcherDropped("too_large")]
    await server.stop()


async def test_one_pool_of_a_fleet_over_the_limit_is_served():
    clock = ManualClock()
    server = AdminServer(
        "127.0.0.1:0", clock=clock, instruments=Instruments(clock), limits=WatchLimits(message_bytes=10_000)
    )
    server.set_pools([FakeStateSource(f"p{n}", view("a:1"), view("b:1")) for n in range(10)])
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/v1/state") as whole:
            assert whole.status == 503
        async with http.get("/v1/state?pool=p3") as part:
            assert [pool["pool"] for pool in (await part.json())["pools"]] == ["p3"]
    await server.stop()


async def test_the_openapi_document_is_served_and_equals_the_one_in_the_docs(served):
    assert await served.get("/v1/openapi.json") == openapi_document()
    assert (DOCS / "openapi.json").read_bytes() == openapi_text(), (
        "run: .venv/bin/python -m agent.serve.state.openapi > docs/openapi.json"
    )


def test_every_schema_of_the_document_is_a_valid_schema():
    schemas = openapi_document()["components"]["schemas"]
    assert {"State", "Change", "Gauges"} <= schemas.keys()
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "broken",
    [
        {"value": None, "unit": "ratio", "age_seconds": 1.0, "fresh": True},
        {"value": 0.5, "unit": "ratio", "age_seconds": 1.0, "fresh": False, "reason": "stale"},
        {"value": None, "unit": "ratio", "age_seconds": 1.0, "fresh": False},
        {"value": 0.5, "unit": "percent", "age_seconds": 1.0, "fresh": True},
        {"value": 1.5, "unit": "ratio", "age_seconds": 1.0, "fresh": True},
    ],
)
def test_the_schema_refuses_a_signal_that_contradicts_itself(broken):
    state = documents.state("epoch", 1, [snapshot(view("a:1"))], Moment(0.0, 1.79e9, 0.0))
    check(state, "State")
    document = orjson.loads(documents.encode(state))
    document["pools"][0]["endpoints"][0]["signals"][KV_USAGE] = broken
    with pytest.raises(jsonschema.ValidationError):
        check(document, "State")


@pytest.mark.parametrize(
    "broken",
    [
        {"value": None},
        {"value": 1.0, "withheld": "none_fresh"},
        {"value": 1.0, "withheld": "none_fresh", "sample_time": "2026-09-21T14:14:59Z", "age_seconds": 1.0},
        {"value": None, "withheld": "no_reason_of_ours"},
    ],
)
def test_the_schema_refuses_a_gauge_that_contradicts_itself(broken):
    row = {"name": "igw_x", "aliases": [], "labels": {}, "unit": "requests"}
    as_of = "2026-09-21T14:15:00Z"
    check({"as_of": as_of, "gauges": [{**row, "value": None, "withheld": "none_fresh"}]}, "Gauges")
    with pytest.raises(jsonschema.ValidationError):
        check({"as_of": as_of, "gauges": [{**row, **broken}]}, "Gauges")
