"""Flow headers and control headers in the messages of a proxy: what the pipeline gets, and what the proxy removes."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import Pick
from agent.requests.control_headers import CONTROL, FAIRNESS_ID, OBJECTIVE, TERMS, TTFT, TTL
from agent.requests.flow_headers import FlowHeaderRules, IgnoredHeader
from agent.requests.flow_terms import NO_FLOW_HEADERS, FlowHeaders
from agent.requests.ticket import Request
from agent.serve.ext_proc.actions import Action, Route, Schedule
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.headers import read_by
from agent.serve.ext_proc.messages import RouteCache, dispatch
from agent.serve.ext_proc.session import Session, SessionConfig
from tests.fakes.ext_proc import request_body

TENANT = FlowHeaderRules(caller_header="x-tenant")
MODES = {"none": 0, "streamed": 1, "buffered": 2, "partial": 3, "full_duplex": 4}


def message(*headers: tuple[str, str], mode: int = 2) -> bytes:
    request = pb.ProcessingRequest()
    for name, value in ((":method", "POST"), (":path", "/v1/completions"), ("x-request-id", "r"), *headers):
        request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    request.protocol_config.request_body_mode = mode
    data: bytes = request.SerializeToString()
    return data


def converse(
    *headers: tuple[str, str], rules: FlowHeaderRules = TENANT, mode: int = 2
) -> tuple[Request, tuple[IgnoredHeader, ...], Route]:
    """What the pipeline gets of a request with these headers, and the answer to the proxy."""
    session = Session(SessionConfig(flow_rules=rules, read=read_by(rules)), lambda: "r", BodyBudget(1 << 20))
    actions: list[Action] = list(dispatch(session, message(*headers, mode=mode)))
    if mode > 1:
        actions += dispatch(session, request_body(b'{"model":"m","prompt":"x"}'))
    (schedule,) = [action for action in actions if isinstance(action, Schedule)]
    decided = session.decided(Pick("r", "10.0.0.1:8000", (), 1, 0, 0, "tie", ("10.0.0.1:8000",), (0.0,), {}, 1))
    (route,) = [action for action in decided if isinstance(action, Route)]
    return schedule.request, schedule.ignored, route


def removed(route: Route) -> set[str]:
    """The headers that the serialised answer removes."""
    answer = pb.ProcessingResponse.FromString(RouteCache().route(route))
    return set(getattr(answer, answer.WhichOneof("response")).response.header_mutation.remove_headers)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_pipeline_gets_the_flow_headers_and_the_proxy_removes_them(mode: int) -> None:
    headers = ((OBJECTIVE, "high"), (FAIRNESS_ID, "team-a"), (TTL, "30s"), (TTFT, "500"), ("x-tenant", "team-b"))
    request, ignored, route = converse(*headers, mode=mode)
    assert request.flow_headers == FlowHeaders("high", "team-a", 30.0, 0.5)
    assert ignored == ()
    assert removed(route) == {OBJECTIVE, FAIRNESS_ID, TTL, TTFT}


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_each_control_header_is_removed_whether_it_is_believed_or_not(name: str) -> None:
    for rules in (TENANT, FlowHeaderRules(believed=False)):
        *_, route = converse((name, "x"), ("accept", "*/*"), rules=rules)
        assert removed(route) == {name}


def test_headers_that_are_not_believed_have_no_effect() -> None:
    rules = FlowHeaderRules(believed=False, caller_header="x-tenant")
    request, ignored, _ = converse((OBJECTIVE, "high"), (TTL, "never"), ("x-tenant", "b"), rules=rules)
    assert request.flow_headers is NO_FLOW_HEADERS
    assert ignored == ()


def test_the_configured_header_names_the_caller_and_stays() -> None:
    request, _, route = converse(("x-tenant", "team-b"))
    assert request.flow_headers == FlowHeaders("", "team-b")
    assert removed(route) == set()
    assert converse(("x-tenant", "team-b"), rules=FlowHeaderRules())[0].flow_headers is NO_FLOW_HEADERS


def test_of_a_repeated_header_the_last_value_is_used_and_it_is_counted() -> None:
    repeated = ((OBJECTIVE, "from-the-client"), (OBJECTIVE, "from-the-gateway"), ("x-tenant", "a"), ("x-tenant", "b"))
    request, ignored, route = converse(*repeated)
    assert request.flow_headers == FlowHeaders("from-the-gateway", "b")
    assert ignored == (IgnoredHeader(OBJECTIVE, "repeated"), IgnoredHeader("x-tenant", "repeated"))
    assert removed(route) == {OBJECTIVE}


def test_a_value_that_cannot_be_used_leaves_the_request_as_it_is() -> None:
    request, ignored, route = converse((OBJECTIVE, "x" * 10_000), (TTL, "0s"), (TTFT, "-1"))
    assert request.flow_headers == NO_FLOW_HEADERS
    assert [each.reason for each in ignored] == ["too_long", "not_positive", "not_positive"]
    assert removed(route) == {OBJECTIVE, TTL, TTFT}


def test_a_request_without_such_headers_gets_the_answer_that_is_kept_for_its_endpoint() -> None:
    request, ignored, route = converse(("content-type", "application/json"), ("authorization", "Bearer x"))
    assert request.flow_headers is NO_FLOW_HEADERS
    assert (ignored, route.remove, route.add) == ((), (), ())


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=300)


@given(headers=st.lists(st.tuples(st.sampled_from([*TERMS, "x-tenant", "accept"]), texts), max_size=8))
def test_no_values_in_whatever_order_fail_a_request(headers: list[tuple[str, str]]) -> None:
    request, _, route = converse(*headers)
    assert request.request_id == "r"
    assert removed(route) == {name for name, _ in headers if name in CONTROL}
