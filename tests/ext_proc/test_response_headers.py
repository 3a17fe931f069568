"""What the messages of a proxy say of a response: status, the endpoint that answered, and how it came to be."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import Pick
from agent.requests.response import RESULTS, Response, result_of
from agent.serve.ext_proc.actions import ResponseStarted
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.messages import dispatch
from agent.serve.ext_proc.session import Session, SessionConfig
from tests.fakes.ext_proc import request_headers

SERVED = "x-gateway-destination-endpoint-served"
PICK = Pick("r", "a:1", (), 1, 0, 0, "tie", ("a:1",), (0.0,), {}, 1)


def response_headers(
    headers: dict[str, str], attributes: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> bytes:
    message = pb.ProcessingRequest()
    message.response_headers.SetInParent()
    for name, value in headers.items():
        message.response_headers.headers.headers.add(key=name, raw_value=value.encode())
    if attributes is not None:
        message.attributes["envoy.filters.http.ext_proc"].update(attributes)
    if metadata is not None:
        message.metadata_context.filter_metadata["envoy.lb"].update(metadata)
    data: bytes = message.SerializeToString()
    return data


def response(*arguments: Any) -> Response:
    session = Session(SessionConfig(), lambda: "id", BodyBudget(1 << 20))
    dispatch(session, request_headers(end=True))
    session.decided(PICK)
    (started,) = [
        action for action in dispatch(session, response_headers(*arguments)) if isinstance(action, ResponseStarted)
    ]
    return started.response


def test_a_proxy_that_sends_nothing_but_the_status_reports_it_for_the_picked_endpoint() -> None:
    assert response({":status": "500"}) == Response(500)
    assert response({":status": "503", "retry-after": "1"}) == Response(503, retry_after=True)


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        (({":status": "200", SERVED: "b:1"},), "b:1"),
        (({":status": "200"}, None, {SERVED: "b:1"}), "b:1"),
        (({":status": "200"}, {"upstream.address": "b:1"}), "b:1"),
        (({":status": "200", SERVED: "c:1"}, {"upstream.address": "b:1"}, {SERVED: "c:1"}), "b:1"),
        (({":status": "200", SERVED: "c:1"}, None, {SERVED: "b:1"}), "b:1"),
        (({":status": "200", SERVED: "c:1"}, {}, {}), "c:1"),
    ],
    ids=["header", "metadata", "attribute", "attribute-first", "metadata-before-header", "empty-metadata"],
)
def test_the_endpoint_that_answered_is_read_where_the_proxy_names_it(arguments: Any, served: str) -> None:
    assert response(*arguments).served == served


def test_envoys_attributes_say_who_failed_and_after_how_many_tries() -> None:
    details = "upstream_reset_before_response_started{connection_termination}"
    attributes = {"response.code_details": details, "upstream.request_attempt_count": 2}
    found = response({":status": "503"}, attributes)
    assert (result_of(found, queue_full=False), found.attempts) == ("reset", 2)


values = st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=20))


@given(
    headers=st.dictionaries(st.sampled_from([":status", "retry-after", SERVED]), st.text(max_size=8)),
    attributes=st.dictionaries(
        st.sampled_from(["upstream.address", "response.code_details", "upstream.request_attempt_count"]), values
    ),
    metadata=st.dictionaries(st.just(SERVED), values),
)
def test_whatever_a_proxy_sends_there_is_a_result(
    headers: dict[str, str], attributes: dict[str, Any], metadata: dict[str, Any]
) -> None:
    found = response(headers, attributes, metadata)
    assert result_of(found, queue_full=False) in RESULTS
    assert found.attempts >= 1
