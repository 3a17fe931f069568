"""Control headers through a real Envoy: who may set them, and that no model server receives one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from multidict import CIMultiDict

from agent.envoy.render import FailureMode, PickMode
from agent.events.objectives import FlowHeaderIgnored
from agent.requests.control_headers import CONTROL, OBJECTIVE, TERMS
from agent.requests.flow_headers import FlowHeaderRules
from agent.requests.flow_terms import NO_FLOW_HEADERS, FlowHeaders
from tests.envoy.gateway import MODES, Gateway, chat, run_gateway

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "objectives.md"
ALL = {"untrusted_headers": ()}  # `trustHeaders: all`
# A request with every control header; the rewrite is another test's.
SENT = {name: "x" for name in CONTROL if "rewrite" not in name} | {
    "x-llm-d-inference-objective": "interactive",
    "x-llm-d-inference-fairness-id": "team-a",
    "x-llm-d-inference-ttl": "30s",
    "x-llm-d-slo-ttft-ms": "500",
}
READ = FlowHeaders("interactive", "team-a", 30.0, 0.5)


async def send(gateway: Gateway, mode: PickMode, headers: Any) -> None:
    async with gateway.client.post(gateway.url(mode), json=chat(), headers=headers) as response:
        assert response.status == 200, await response.text()


def received(gateway: Gateway) -> set[str]:
    """The control headers of the requests that reached the servers."""
    requests = [request for server in gateway.servers for request in server.requests]
    assert requests
    return {name for request in requests for name in request.headers if name.lower() in CONTROL}


def leave_headers(manager: Any) -> None:
    """The configuration of a gateway that is not rendered by the agent: it removes nothing."""
    del manager["early_header_mutation_extensions"]
    del manager["route_config"]["request_headers_to_remove"]


def set_objective(manager: Any) -> None:
    """The filter of docs/concepts/objectives.md, which sets the objective `interactive`."""
    (block,) = re.findall(
        r"^```yaml envoy-filter\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    manager["http_filters"].insert(0, yaml.safe_load(block))


@pytest.mark.parametrize("settings", [{}, ALL], ids=["gateway", "all"])
async def test_no_model_server_receives_a_control_header(tmp_path: Path, settings: dict[str, Any]) -> None:
    async with run_gateway(tmp_path, settings=settings) as gateway:
        for mode in PickMode:
            await send(gateway, mode, SENT)
        assert received(gateway) == set()


async def test_the_agent_removes_them_where_the_gateway_does_not(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, edit=leave_headers) as gateway:
        for rules in (FlowHeaderRules(), FlowHeaderRules(believed=False)):
            gateway.pool.flow_rules = rules
            for mode in MODES:
                await send(gateway, mode, SENT)
        assert received(gateway) == set()
        assert gateway.pool.flow_headers == [READ, READ, NO_FLOW_HEADERS, NO_FLOW_HEADERS]


async def test_the_agent_removes_them_where_the_gateway_sends_it_no_body(tmp_path: Path) -> None:
    for body in ("NONE", "STREAMED", "BUFFERED_PARTIAL"):
        async with run_gateway(
            tmp_path / body, edit=leave_headers, processing_mode={"request_body_mode": body}
        ) as gateway:
            await send(gateway, PickMode.BUFFERED, SENT)
            assert received(gateway) == set()
            assert gateway.pool.flow_headers == [READ]


async def test_a_client_does_not_choose_its_priority_where_only_the_gateway_is_trusted(tmp_path: Path) -> None:
    async with run_gateway(tmp_path) as gateway:
        for mode in MODES:
            for name in TERMS:
                await send(gateway, mode, {name: "1", name.upper(): "1"})
        assert set(gateway.pool.flow_headers) == {NO_FLOW_HEADERS}
        assert gateway.events == []


async def test_a_client_chooses_its_priority_where_all_are_trusted(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, settings=ALL) as gateway:
        for mode in MODES:
            await send(gateway, mode, SENT)
        assert gateway.pool.flow_headers == [READ, READ]


async def test_a_filter_of_the_gateway_sets_what_the_client_cannot(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, edit=set_objective) as gateway:
        for mode in MODES:
            await send(gateway, mode, {OBJECTIVE: "of-the-client", "x-llm-d-inference-fairness-id": "forged"})
        assert gateway.pool.flow_headers == [FlowHeaders("interactive")] * 2
        assert received(gateway) == set()


async def test_the_header_that_names_the_caller_is_the_gateway_s_and_reaches_the_server(tmp_path: Path) -> None:
    untrusted = (*TERMS, "x-tenant")
    for settings, callers in (({"untrusted_headers": untrusted}, [""]), (ALL, ["team-b"])):
        async with run_gateway(tmp_path / str(len(callers[0])), servers=1, settings=settings) as gateway:
            gateway.pool.flow_rules = FlowHeaderRules(caller_header="x-tenant")
            await send(gateway, PickMode.BUFFERED, {"x-tenant": "team-b"})
            assert [headers.caller for headers in gateway.pool.flow_headers] == callers
            assert [request.headers.get("x-tenant", "") for request in gateway.servers[0].requests] == callers


async def test_of_a_header_that_the_client_repeats_the_last_value_is_used_and_it_is_counted(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, settings=ALL) as gateway:
        for mode in MODES:
            await send(gateway, mode, CIMultiDict([(OBJECTIVE, "first"), (OBJECTIVE, "last")]))
        assert gateway.pool.flow_headers == [FlowHeaders("last")] * 2
        assert gateway.events == [FlowHeaderIgnored("pool", OBJECTIVE, "repeated")] * 2
        assert received(gateway) == set()


async def test_a_header_of_10_kb_and_other_bad_values_leave_the_request_as_it_is(tmp_path: Path) -> None:
    headers = {OBJECTIVE: "x" * 10_000, "x-llm-d-inference-ttl": "0s", "x-llm-d-slo-ttft-ms": "-1"}
    async with run_gateway(tmp_path, settings=ALL) as gateway:
        for mode in MODES:
            await send(gateway, mode, headers)
        assert set(gateway.pool.flow_headers) == {NO_FLOW_HEADERS}
        assert [event.reason for event in gateway.events if isinstance(event, FlowHeaderIgnored)] == [
            "too_long",
            "not_positive",
            "not_positive",
        ] * 2
        assert received(gateway) == set()


async def test_no_server_receives_them_while_the_picker_is_down_and_requests_go_on_without_it(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, failure_mode=FailureMode.OPEN, settings=ALL) as gateway:
        await gateway.stop_picker()
        await send(gateway, PickMode.BUFFERED, SENT)
        assert received(gateway) == set()
