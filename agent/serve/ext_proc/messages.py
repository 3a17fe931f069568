"""Envoy's ext_proc messages <-> the calls and actions of a session: the only module that knows the protobuf types.

The answer that routes a request is the same for every request to an endpoint unless headers are set or removed, so it
is serialised once per endpoint and kept.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Final

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from agent.engines.report import HEADER, REQUEST_HEADER, REQUESTED_FORMAT
from agent.requests.control_headers import SUBSET
from agent.requests.rejections import WAITED_HEADER
from agent.requests.response import Response, broken_by
from agent.serve.ext_proc.actions import Actions, ChangeResponse, Mode, Phase, Respond, Route
from agent.serve.ext_proc.headers import DESTINATION, subset_of
from agent.serve.ext_proc.response_chunks import ResponseChunk, echo, read_chunk
from agent.serve.ext_proc.session import Session

_MAX_ROUTES: Final = 4096  # past it the cache is emptied

# ProcessingMode.BodySendMode.
_MODES: Final = {0: Mode.NONE, 1: Mode.STREAMED, 2: Mode.BUFFERED, 3: Mode.PARTIAL, 4: Mode.FULL_DUPLEX}
_FULL_DUPLEX: Final = 4
_OVERWRITE: Final = 2  # HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD: replaces what the client sent
_SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
_PICK_NAMESPACE: Final = "envoy.lb"
_ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
# The attributes of a response that are read: the endpoint that answered, how Envoy came to the response, the tries.
SERVED: Final = "upstream.address"
DETAILS: Final = "response.code_details"
ATTEMPTS: Final = "upstream.request_attempt_count"
# The endpoint picker protocol's own name of the endpoint that answered, in the metadata namespace of the pick. Some
# gateways send it as a response header.
SERVED_KEY: Final = "x-gateway-destination-endpoint-served"
_STREAM: Final = "text/event-stream"
_JSON: Final = "application/json"
_REQUEST_REPORT: Final = ((REQUEST_HEADER, REQUESTED_FORMAT),)


def dispatch(session: Session, data: bytes) -> Actions:
    """Pass one serialised message of Envoy to the session; the actions that follow. Raises DecodeError (protobuf)."""
    chunk = read_chunk(data)
    if chunk is not None:
        return session.response_body(chunk.body, end_of_stream=chunk.end_of_stream)
    message = pb.ProcessingRequest.FromString(data)
    match message.WhichOneof("request"):
        case "request_headers":
            return _request_headers(session, message)
        case "request_body":
            return session.request_body(message.request_body.body, end_of_stream=message.request_body.end_of_stream)
        case "request_trailers":
            return session.request_trailers()
        case "response_headers":
            return _response_headers(session, message)
        case "response_body":
            return session.response_body(message.response_body.body, end_of_stream=message.response_body.end_of_stream)
        case "response_trailers":
            return session.response_trailers()
    return ()


def _request_headers(session: Session, message: pb.ProcessingRequest) -> Actions:
    read = session.read
    headers = {
        header.key: header.raw_value.decode("latin-1") or header.value
        for header in message.request_headers.headers.headers
        if header.key in read
    }
    mode, response_echo = None, None
    if message.HasField("protocol_config"):
        protocol = message.protocol_config
        mode = _MODES.get(protocol.request_body_mode)
        if mode is Mode.STREAMED and protocol.send_body_without_waiting_for_header_response:
            mode = Mode.HOLD
        response_echo = protocol.response_body_mode == _FULL_DUPLEX
    return session.request_headers(
        headers,
        end_of_stream=message.request_headers.end_of_stream,
        mode=mode,
        subset=_subset(message),
        response_echo=response_echo,
        repeated=partial(_repeated, message),
    )


def _repeated(message: pb.ProcessingRequest) -> list[str]:
    """The names of the headers that came several times, each once."""
    keys = [header.key for header in message.request_headers.headers.headers]
    if len(set(keys)) == len(keys):
        return []
    return [name for name, times in Counter(keys).items() if times > 1]


def _response_headers(session: Session, message: pb.ProcessingRequest) -> Actions:
    status, retry_after, reports, served = 0, False, [], ""
    kind, encoded = "", False
    for header in message.response_headers.headers.headers:
        if header.key == ":status":
            text = header.raw_value.decode("latin-1") or header.value
            status = int(text) if text.isdecimal() and len(text) == 3 else 0
        elif header.key == "retry-after":
            retry_after = True
        elif header.key == "content-type":
            kind = header.raw_value.decode("latin-1") or header.value
        elif header.key == "content-encoding":
            encoded = (header.raw_value.decode("latin-1") or header.value) != "identity"
        elif header.key == SERVED_KEY:
            served = header.raw_value.decode("latin-1") or header.value
        elif header.key == HEADER:
            reports.append(header.raw_value.decode("latin-1") or header.value)
    details, attempts = "", 1
    if _PICK_NAMESPACE in message.metadata_context.filter_metadata:
        served = message.metadata_context.filter_metadata[_PICK_NAMESPACE].fields[SERVED_KEY].string_value or served
    if _ATTRIBUTES in message.attributes:
        fields = message.attributes[_ATTRIBUTES].fields
        served = fields[SERVED].string_value or served
        details = fields[DETAILS].string_value
        attempts = _attempts(fields[ATTEMPTS].number_value)
    streamed = kind.startswith(_STREAM)
    text = not encoded and (streamed or kind.startswith(_JSON))
    response = Response(
        status, broken_by(details), False, served, attempts, retry_after, streamed=streamed, readable=text
    )
    return session.response_headers(response, "\n".join(reports))


def _attempts(number: float) -> int:
    """The number of tries; 1 where Envoy does not report it."""
    return int(number) if 1 <= number < 1e6 else 1


def _subset(message: pb.ProcessingRequest) -> frozenset[str] | None:
    """The subset hint of the endpoint picker protocol, if the proxy sent one."""
    if not message.HasField("metadata_context"):
        return None
    namespaces = message.metadata_context.filter_metadata
    if _SUBSET_NAMESPACE not in namespaces or SUBSET not in namespaces[_SUBSET_NAMESPACE].fields:
        return None
    value = namespaces[_SUBSET_NAMESPACE].fields[SUBSET]
    if value.WhichOneof("kind") == "list_value":
        return subset_of([entry.string_value for entry in value.list_value.values])
    return subset_of(value.string_value)


class RouteCache:
    """The serialised answers that route a request to an endpoint."""

    def __init__(self) -> None:
        self._serialised: dict[tuple[Phase, str, bool], bytes] = {}

    def route(self, route: Route) -> bytes:
        """The destination as a header and as metadata, the same value in both."""
        report = route.add == _REQUEST_REPORT
        if (route.add and not report) or route.remove or route.body is not None or route.waited:
            return _route(route)
        key = (route.phase, route.destination, report)
        known = self._serialised.get(key)
        if known is None:
            if len(self._serialised) >= _MAX_ROUTES:
                self._serialised.clear()
            known = self._serialised[key] = _route(route)
        return known


def _route(route: Route) -> bytes:
    response = pb.ProcessingResponse()
    common = getattr(response, route.phase.value).response
    # A route of the gateway may match on a header that the picker sets.
    common.clear_route_cache = True
    _set_headers(common.header_mutation, ((DESTINATION, route.destination), *route.add))
    common.header_mutation.remove_headers.extend(route.remove)
    if route.body is not None:
        common.body_mutation.body = route.body
    pick = {DESTINATION: route.destination}
    if route.waited:  # a route of Envoy makes a response header of it, without a message for the response
        pick[WAITED_HEADER] = route.waited
    response.dynamic_metadata.update({_PICK_NAMESPACE: pick})
    return _serialised(response)


def _continue(phase: Phase) -> bytes:
    response = pb.ProcessingResponse()
    getattr(response, phase.value).SetInParent()
    return _serialised(response)


def changed_response(change: ChangeResponse) -> bytes:
    """The answer to the response headers: other ones in the response."""
    if change == _WITHOUT_REPORT:
        return _REMOVE_REPORT
    return _changed_response(change)


def _changed_response(change: ChangeResponse) -> bytes:
    response = pb.ProcessingResponse()
    mutation = response.response_headers.response.header_mutation
    _set_headers(mutation, change.add)
    if change.remove:
        mutation.remove_headers.append(change.remove)
    return _serialised(response)


def extended(seconds: float) -> bytes:
    """A new limit for the answer to Envoy's last message, from now. Envoy ignores everything else in this message."""
    response = pb.ProcessingResponse()
    response.override_message_timeout.FromMilliseconds(int(seconds * 1000))
    return _serialised(response)


def replaced(body: bytes) -> bytes:
    """The answer to a chunk of the request body that Envoy keeps: another one in its place."""
    response = pb.ProcessingResponse()
    mutation = response.request_body.response.body_mutation
    if body:
        mutation.body = body
    else:
        mutation.clear_body = True
    return _serialised(response)


def streamed(phase: Phase, body: bytes, *, end_of_stream: bool) -> bytes:
    """One chunk of a body that is sent back in full duplex."""
    if phase is Phase.RESPONSE_BODY:
        return echo(ResponseChunk(body, end_of_stream))
    response = pb.ProcessingResponse()
    chunk = getattr(response, phase.value).response.body_mutation.streamed_response
    chunk.body = body
    chunk.end_of_stream = end_of_stream
    return _serialised(response)


def immediate(respond: Respond) -> bytes:
    """The agent's own answer to the client; `details` appears in Envoy's access log as %RESPONSE_CODE_DETAILS%."""
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = respond.status
    answer.body = respond.body
    answer.details = f"endpoint_picker_{respond.reason}"
    _set_headers(answer.headers, respond.headers)
    return _serialised(response)


def _set_headers(mutation: pb.HeaderMutation, headers: tuple[tuple[str, str], ...]) -> None:
    for name, value in headers:
        option = mutation.set_headers.add(append_action=_OVERWRITE)
        option.header.key = name
        # As headers are decoded: a request id of a client may hold bytes that are not ASCII.
        option.header.raw_value = value.encode("latin-1", "replace")


def _serialised(response: pb.ProcessingResponse) -> bytes:
    data: bytes = response.SerializeToString()
    return data


CONTINUE: Final = {phase: _continue(phase) for phase in Phase}
_WITHOUT_REPORT: Final = ChangeResponse((), HEADER)
_REMOVE_REPORT: Final = _changed_response(_WITHOUT_REPORT)
